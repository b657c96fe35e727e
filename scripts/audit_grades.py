"""List confident answers that were graded wrong: python scripts/audit_grades.py run=outputs/runs/..."""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("audit_grades")
def main(config: DictConfig) -> None:
    from lens.commands.audit_grades import audit_grades
    from lens.config.checks import as_path

    run, target = as_path("run", config.run), as_path("target", config.target)
    audit_grades(run, source=config.source, step=config.step, limit=config.limit, target=target)


if __name__ == "__main__":
    main()
