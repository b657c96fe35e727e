"""Rollouts of random tokens, and the completions of rollouts by question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts

GENERATIONS = 2
PROMPT_LENGTHS = (5, 1, 9)
LENGTHS = (4, 1, 7, 6, 1, 8)
ALL = [[0, 1], [2], [3], [5, 4]]


def random_rollouts(prompt_lengths: Sequence[int], lengths: Sequence[int], vocabulary: int = 100) -> Rollouts:
    """Completions of random tokens; what is beyond their lengths is random too, and must not matter."""
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(0, vocabulary, shape, generator=generator)

    return Rollouts(
        prompts=[Prompt(f"p{number}", tuple(tokens(n).tolist())) for number, n in enumerate(prompt_lengths)],
        num_generations=len(lengths) // len(prompt_lengths),
        completion_ids=tokens(len(lengths), max(lengths) + 2),
        logprobs=torch.zeros(len(lengths), max(lengths) + 2),
        lengths=torch.tensor(lengths),
        finish_reasons=["stop"] * len(lengths),
        texts=[""] * len(lengths),
    )


def completions(rollouts: Rollouts, question: int) -> list[list[int]]:
    rows = range(question * rollouts.num_generations, (question + 1) * rollouts.num_generations)
    return [rollouts.completion_ids[row, : rollouts.lengths[row]].tolist() for row in rows]


def by_question(rollouts: Rollouts) -> dict[str, list[list[int]]]:
    return {prompt.problem_id: completions(rollouts, place) for place, prompt in enumerate(rollouts.prompts)}
