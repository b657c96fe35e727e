"""Problems: load every source in one form, and mix sources into the training set of a run."""

from lens.problems.decontamination import overlap
from lens.problems.mixture import load_evaluation_sets, load_mixture
from lens.problems.sources import load_problems

__all__ = ["load_evaluation_sets", "load_mixture", "load_problems", "overlap"]
