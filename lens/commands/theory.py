"""Checks the theory on small answer spaces, draws the paper's figure 4, and shows where negative groups point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

from lens.objectives.negative_group_checks import NEGATIVE_GROUP_CHECKS
from lens.objectives.negative_groups import PROFILES, NegativeGroups, compare_directions
from lens.objectives.theory import w
from lens.objectives.theory_checks import CHECKS, AnswerSpace
from lens.reporting.figures import COLUMN_WIDTH, STYLE, finish_figure, line_look, make_panels, save_figure

# The columns of the tables of cosines. Those of the uniform penalty with pass@G are all 1.
COSINES = (
    "LENS: pass@G",
    "LENS: entropy",
    "LENS: entropy of wrong",
    "not centred: pass@G",
    "not centred: entropy",
    "uniform: entropy",
    "norm left",
)


def check_theory(num_spaces: int = 100, num_answers: int = 10) -> pd.DataFrame:
    """Check every statement on random answer spaces; return a row per statement, with its largest error."""
    spaces = [AnswerSpace.draw(seed, num_answers) for seed in range(num_spaces)]
    return pd.DataFrame(
        {"check": name, "statement": statement, "spaces": num_spaces, "largest error": largest(map(error, spaces))}
        for name, (statement, error) in CHECKS.items()
    )


def check_negative_groups(num_spaces: int = 100, num_answers: int = 6) -> pd.DataFrame:
    """Check what negative groups of 2 to 5 answers say on average; return a row per statement, with its largest error.

    Errors are those of the mean over negative groups, without the factor (1-p)^G.
    """
    spaces = [AnswerSpace.draw(seed, num_answers) for seed in range(num_spaces)]
    groups = [NegativeGroups.of(s.pi.detach(), s.reward == 1, 2 + seed % 4) for seed, s in enumerate(spaces)]
    return pd.DataFrame(
        {"penalty": name, "mean update": statement, "spaces": num_spaces, "largest error": largest(map(error, groups))}
        for name, (statement, error) in NEGATIVE_GROUP_CHECKS.items()
    )


def largest(errors: Iterable[torch.Tensor]) -> str:
    """Return the size of the largest of all errors."""
    return f"{max(error.detach().abs().max().item() for error in errors):.1e}"


# --- where negative groups point -------------------------------------------------------------------------------------


def profile_table(size: int = 8, chances: tuple[float, ...] = (0.3, 0.01, 0.0001)) -> pd.DataFrame:
    """Return the cosines for each profile of six wrong answers and each p, to two digits; a dash if an update is 0."""
    rows = []
    for profile, shares in PROFILES.items():
        for p, found in zip(chances, compare_directions(float64(shares), chances, size), strict=True):
            cells = {name: "-" if np.isnan(found[name]) else f"{found[name]:.2f}" for name in COSINES}
            rows.append({"profile": profile, "p": f"{p:g}"} | cells)
    return pd.DataFrame(rows)


def random_table(num_policies: int = 100, size: int = 4, chances: tuple[float, ...] = (0.016, 0.0003)) -> pd.DataFrame:
    """Return the cosines of random policies, one right answer and four wrong ones: median (5th to 95th percentile).

    The logits of wrong answers are normal, with a standard deviation of 2.
    """
    logits = 2 * torch.randn(num_policies, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [compare_directions(shares, chances, size) for shares in logits.softmax(dim=1)]  # [policies][p]
    rows = []
    for p, of_p in zip(chances, zip(*found, strict=True), strict=True):
        low, middle, high = pd.DataFrame(of_p).quantile([0.05, 0.5, 0.95]).to_dict("records")
        cells = {name: f"{middle[name]:.2f} ({low[name]:.2f} to {high[name]:.2f})" for name in COSINES}
        rows.append({"p": f"{p:g}"} | cells)
    return pd.DataFrame(rows)


def float64(shares: Sequence[float]) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64)


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_w(path: Path) -> Path:
    """Draw the paper's figure 4, w(z), with the size of the gradient's weight, z / (1 - z), beside it."""
    z = torch.linspace(0, 0.98, 400, dtype=torch.float64)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
        axes.plot(z, w(z), color="#000000", label=r"$w(z) = \frac{1}{z} \log \frac{1}{1 - z} - 1$")
        axes.plot(z, z / (1 - z), color="#0072b2", linestyle="--", label=r"$w(z) + z\,w'(z) = \frac{z}{1 - z}$")
        axes.set(xlabel=r"$z = \pi(o|q) \, / \, D(q)$", ylabel="penalty of a wrong answer", xlim=(0, 1), ylim=(0, 5))
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.legend(loc="upper left")
        return save_figure(figure, path)


def draw_directions(path: Path, sizes: tuple[int, ...] = (2, 16)) -> Path:
    """Draw over p the cosines with grad pass@G and with the gradient of the entropy.

    There are two panels for each profile but the flat one, and a line for each penalty and G. The cosines of the
    uniform penalty do not depend on G.
    """
    chances = torch.logspace(-4, -0.3, 40, dtype=torch.float64).tolist()
    profiles = [name for name in PROFILES if name != "flat"]
    lines = {
        f"{label}, G = {size}": (name, size)
        for name, label in (("LENS", "LENS"), ("not centred", "LENS, not centred"))
        for size in sizes
    }
    lines["uniform, any G"] = ("uniform", sizes[0])
    with plt.rc_context(STYLE):
        figure, panels = make_panels(2 * len(profiles), columns=2, height=1.25)
        for row, profile in enumerate(profiles):
            shares = float64(PROFILES[profile])
            found = {size: pd.DataFrame(compare_directions(shares, chances, size)) for size in sizes}
            for axes, target in zip(panels[2 * row : 2 * row + 2], ("pass@G", "entropy"), strict=True):
                for number, (label, (name, size)) in enumerate(lines.items()):
                    color, dashes, _ = line_look(number)
                    cosines = found[size][f"{name}: {target}"]
                    axes.plot(chances, cosines, color=color, linestyle=dashes, linewidth=1.2, label=label)
                axes.set(title=f"{profile}: {target}", xscale="log", ylim=(-1.05, 1.05), yticks=(-1, -0.5, 0, 0.5, 1))
                axes.xaxis.set_minor_locator(NullLocator())
        figure.supylabel("cosine of the mean update and the gradient", fontsize=8)
        return finish_figure(figure, panels, "p, the probability of a right answer", path)
