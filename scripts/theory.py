"""Check the paper's theory on small answer spaces, and draw its figure 4, w(z): python scripts/theory.py"""

from pathlib import Path

from omegaconf import DictConfig

from lens.cli.entry_point import entry_point


@entry_point("theory")
def main(config: DictConfig) -> None:
    from lens.commands.theory import check_theory, draw_w
    from lens.config.checks import at_least, check_values, check_writable
    from lens.terminal import show_table

    check_values(config, {"num_spaces": at_least(1), "num_answers": at_least(4)})
    check_writable("target", Path(config.target))
    table = check_theory(config.num_spaces, config.num_answers)
    show_table("The paper's theory, checked in float64 on answer spaces small enough to sum over", table)
    print(f"figure: {draw_w(Path(config.target) / 'figure_4_w')}, .pdf")


if __name__ == "__main__":
    main()
