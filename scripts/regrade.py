"""Grade stored answers again, without generating: python scripts/regrade.py run=outputs/runs/..."""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("regrade")
def main(config: DictConfig) -> None:
    from hydra.utils import instantiate

    from lens.commands.regrade import make_settings, regrade
    from lens.config.checks import as_path

    run, target, settings = as_path("run", config.run), as_path("target", config.target), make_settings(config.settings)
    with instantiate(config.grader) as grader:
        regrade(grader, settings, run=run, step=config.step, target=target)


if __name__ == "__main__":
    main()
