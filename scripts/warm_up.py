"""Teach a model worked solutions before reinforcement learning: python scripts/warm_up.py model=smollm2 into=FOLDER"""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("warm_up")
def main(config: DictConfig) -> None:
    from lens.commands.warm_up import warm_up

    print(warm_up(config))


if __name__ == "__main__":
    main()
