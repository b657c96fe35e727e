"""Grading: turn completions and gold answers into verdicts."""

from lens.grading.pool import Grade, Grader

__all__ = ["Grade", "Grader"]
