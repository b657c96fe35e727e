"""Says what a model remembers of the tokens that it has read."""

from __future__ import annotations

from transformers import PreTrainedModel

ATTENTION_TYPES = {"full_attention", "sliding_attention"}  # transformers' names of layers


def mixes_by_attention(model: PreTrainedModel) -> bool:
    """Return whether all layers mix tokens by attention alone, full or with a sliding window.

    Then the model remembers keys and values. Others keep a state that depends on the order of all tokens, padding
    included, or attend in chunks.
    """
    config = model.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    chunked = getattr(config, "attention_chunk_size", None) is not None
    return types <= ATTENTION_TYPES and not chunked and not model._is_stateful
