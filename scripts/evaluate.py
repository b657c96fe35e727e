"""Evaluate a run, a checkpoint or any Hugging Face model: python scripts/evaluate.py checkpoint=outputs/runs/..."""

from pathlib import Path

from lens.cli.entry_point import DictConfig, HydraConfig, entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    from lens.commands.evaluate import evaluate

    evaluate(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
