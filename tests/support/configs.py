"""The configs that commands compose."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lens.files import CONFIGS


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The composed config, with Hydra's own part, which its interpolations may use."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config
