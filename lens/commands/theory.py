"""Checks the paper's theory on small answer spaces, and draws its figure 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

from lens.objectives.theory import w
from lens.objectives.theory_checks import CHECKS, AnswerSpace
from lens.reporting.figures import COLUMN_WIDTH, STYLE, save_figure


def check_theory(num_spaces: int = 100, num_answers: int = 10) -> pd.DataFrame:
    """Check every statement on random answer spaces; return a row per statement, with its largest error."""
    spaces = [AnswerSpace.draw(seed, num_answers) for seed in range(num_spaces)]
    rows = []
    for name, (statement, error) in CHECKS.items():
        largest = max(error(space).detach().abs().max().item() for space in spaces)
        rows.append({"check": name, "statement": statement, "spaces": num_spaces, "largest error": f"{largest:.1e}"})
    return pd.DataFrame(rows)


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
