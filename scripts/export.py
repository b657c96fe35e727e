"""Write a checkpoint as a Hugging Face folder: python scripts/export.py checkpoint=outputs/runs/... target=FOLDER"""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("export")
def main(config: DictConfig) -> None:
    from lens.commands.export import export
    from lens.config.checks import as_path

    export(str(as_path("checkpoint", config.checkpoint)), as_path("target", config.target))


if __name__ == "__main__":
    main()
