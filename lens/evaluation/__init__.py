"""Evaluation: turn sampled answers to every problem into pass@k, overall, by level and by subject."""

from lens.evaluation.evaluator import EvaluationSet, Evaluator
from lens.evaluation.scores import pass_at_k

__all__ = ["EvaluationSet", "Evaluator", "pass_at_k"]
