"""Counts the sizes of a model on the model itself, built on the meta device, which holds shapes and no numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from lens.errors import ConfigError
from lens.models.flops import Flops
from lens.models.loading import VALID
from lens.models.lora import add_adapters, check_adapters
from lens.models.tiny import make_model, make_tokenizer


@dataclass(frozen=True)
class Architecture:
    """Holds the sizes of a model that a plan needs.

    Attributes:
        parameters: number of parameters of the whole model; tied ones count once.
        layer: number of parameters of one block.
        layers, hidden, intermediate, kv_width, vocabulary: sizes; kv_width is key heads x their width.
        flops: FLOPs of the parts of a forward pass.
        adapters: number of parameters of low-rank adapters; if there are any, only they are trained.
    """

    parameters: int
    layer: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    vocabulary: int
    flops: Flops
    adapters: int = 0

    @property
    def trained(self) -> int:
        """Return the number of parameters that have a gradient."""
        return self.adapters or self.parameters

    def forward_flops(self, context: float) -> float:
        """Return the FLOPs of a forward pass for one token that sees ``context`` tokens; its logits are included."""
        return self.flops.body + self.flops.head + self.flops.attention * context

    @classmethod
    def of(cls, config: PreTrainedConfig, lora: DictConfig | None = None) -> Architecture:
        """Build the model on the meta device and count its sizes; ``lora`` is a config's model.lora.

        Raises:
            ConfigError: the model cannot have these adapters.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        counted = cls(
            parameters=model.num_parameters(),
            layer=sum(p.numel() for p in blocks[0].parameters()),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            kv_width=heads * width,
            vocabulary=config.vocab_size,
            flops=Flops.of(model),
        )
        if lora is None:
            return counted
        check_adapters(model, lora)
        with torch.device("meta"):
            add_adapters(model, lora, seed=0)
        return replace(counted, adapters=model.num_parameters(only_trainable=True))


def architecture_of(config: DictConfig) -> Architecture:
    """Return the architecture of a config's model.

    Raises:
        ConfigError: there is no such model, it needs code of its own, or it cannot have these adapters.
    """
    try:
        return Architecture.of(find_numbers(config.model), config.model.lora)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        valid = f"{VALID}, unless model.architecture has its numbers ({reason})"
        raise ConfigError("model.name_or_path", config.model.name_or_path, valid) from error


def find_numbers(model: DictConfig) -> PreTrainedConfig:
    """Return transformers' config of a model, from the section's architecture, its recipe, or its name or folder.

    Raises:
        OSError, ValueError: there is no such model, or it needs code of its own.
    """
    if (numbers := OmegaConf.select(model, "architecture")) is not None:
        numbers = OmegaConf.to_container(numbers)
        return AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    if model.name_or_path is None:
        return make_model(instantiate(model.recipe), make_tokenizer()).config
    return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=False)
