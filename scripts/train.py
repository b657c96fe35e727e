"""Train one run, or a sweep with -m: python scripts/train.py objective=lens seed=3 (--help lists every key)"""

from pathlib import Path

from lens.cli.entry_point import DictConfig, HydraConfig, RunMode, entry_point, rank


@entry_point("train")
def main(config: DictConfig) -> None:
    from lens.commands.train import train

    hydra = HydraConfig.get()
    train(config, Path(hydra.runtime.output_dir), show_progress=hydra.mode == RunMode.RUN and rank() == 0)


if __name__ == "__main__":
    main()
