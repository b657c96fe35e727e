"""Weigh stored rollouts under another objective, without a model: python scripts/replay.py run=... objective=lens"""

from lens.cli.entry_point import DictConfig, HydraConfig, entry_point


@entry_point("replay")
def main(config: DictConfig) -> None:
    from hydra.utils import instantiate

    from lens.commands.replay import replay
    from lens.config.checks import as_path, check_values

    check_values(config)
    run, target = as_path("run", config.run), as_path("target", config.target)
    name = HydraConfig.get().runtime.choices.objective
    replay(run, instantiate(config.objective), name=name, step=config.step, target=target)


if __name__ == "__main__":
    main()
