"""Make tables, figures and a page from finished runs: python scripts/report.py runs=outputs/sweeps/demo"""

from pathlib import Path

from lens.cli.entry_point import DictConfig, OmegaConf, entry_point


@entry_point("report")
def main(config: DictConfig) -> None:
    from lens.reporting.report import report

    folders = [Path(folder) for folder in (config.runs if OmegaConf.is_list(config.runs) else [config.runs])]
    report(folders, config.baseline, Path(config.target or folders[0] / "report"), completions=config.completions)


if __name__ == "__main__":
    main()
