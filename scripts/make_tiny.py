"""Make the tiny model of configs/model/tiny.yaml if it does not exist yet, and print its folder."""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("make_tiny")
def main(config: DictConfig) -> None:
    from lens.commands.assembly import model_path

    print(model_path(config))


if __name__ == "__main__":
    main()
