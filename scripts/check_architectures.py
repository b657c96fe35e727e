"""Compare log-probabilities on tiny models of many architectures: python scripts/check_architectures.py"""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("check_architectures")
def main(config: DictConfig) -> None:
    from lens.commands.check_architectures import check_architectures

    check_architectures(config)


if __name__ == "__main__":
    main()
