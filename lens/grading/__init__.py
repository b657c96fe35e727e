"""Grading: completions and gold answers become verdicts."""

from lens.grading.pool import Grade, Grader

__all__ = ["Grade", "Grader"]
