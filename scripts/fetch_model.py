"""Fetch a pretrained model into the folder that its config names: python scripts/fetch_model.py model=smollm2"""

from pathlib import Path

from lens.cli.entry_point import DictConfig, HydraConfig, entry_point
from lens.errors import ConfigError


@entry_point("fetch_model")
def main(config: DictConfig) -> None:
    from lens.models.fetching import fetch_model

    if config.model.fetch is None:
        valid = "must be one with a fetch section, as smollm2 has"
        raise ConfigError("model", HydraConfig.get().runtime.choices.model, valid)
    print(fetch_model(Path(config.model.name_or_path), **config.model.fetch, source=config.source))


if __name__ == "__main__":
    main()
