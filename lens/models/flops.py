"""Counts the floating-point operations of a model's passes, on the model itself or on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass: a multiplication and an addition for each weight and token.

    Attributes:
        body: of one token in all layers, without attention to other tokens.
        head: of one token whose logits are computed.
        attention: of one pair of tokens, one of which sees the other: its score and its share of the value.
    """

    body: float
    head: float
    attention: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> Flops:
        """Count a decoder whose layers are alike."""
        config = model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=2 * model.base_model.num_parameters(exclude_embeddings=True),
            head=2 * config.hidden_size * config.vocab_size,
            attention=4 * config.num_hidden_layers * config.num_attention_heads * head_dim,
        )
