"""Estimate what a run will take before it starts: python scripts/plan.py experiment=paper/table1_llama num_gpus=8"""

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("plan")
def main(config: DictConfig) -> None:
    from lens.commands.plan import show_plan

    show_plan(config)


if __name__ == "__main__":
    main()
