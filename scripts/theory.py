"""Check the theory on small answer spaces, and draw it: python scripts/theory.py"""

from pathlib import Path

from lens.cli.entry_point import DictConfig, entry_point


@entry_point("theory")
def main(config: DictConfig) -> None:
    from lens.commands import theory
    from lens.config.checks import at_least, check_values, check_writable
    from lens.terminal import show_table

    check_values(config, {"num_spaces": at_least(1), "num_answers": at_least(4)})
    target = Path(config.target)
    check_writable("target", target)
    table = theory.check_theory(config.num_spaces, config.num_answers)
    show_table("The paper's theory, checked in float64 on answer spaces small enough to sum over", table)
    table = theory.check_negative_groups(config.num_spaces)
    show_table("What negative groups say on average: summed over all groups of 2 to 5 out of 6 answers", table)
    show_table("Cosines with gradients: one right answer and six wrong ones, G = 8", theory.profile_table())
    title = "Cosines for 100 random policies: one right answer and four wrong ones, G = 4; median (5 % to 95 %)"
    show_table(title, theory.random_table())
    print(f"figure: {theory.draw_w(target / 'figure_4_w')}, .pdf")
    print(f"figure: {theory.draw_directions(target / 'negative_groups')}, .pdf")


if __name__ == "__main__":
    main()
