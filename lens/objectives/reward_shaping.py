"""Changes rewards between grading and the objective. A shaping takes what objectives can ask for (inputs.py)."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(
    rewards: Tensor, *, lengths: Tensor, max_completion_length: int, buffer: int = 4, factor: float = 1.0
) -> Tensor:
    """Lower the reward of an answer that comes close to the token limit L, by at most ``factor``.

    An answer of up to L - buffer tokens keeps its reward. Beyond, it loses factor x (tokens beyond) / buffer.
    Source: DAPO (arXiv 2503.14476, eq. 13), "soft overlong punishment".

    Args:
        rewards: float [Q, G].
        lengths: int [Q, G], numbers of tokens.
        max_completion_length: L, in tokens.
        buffer: tokens before the limit at which the penalty begins.
        factor: the penalty at the limit.

    Returns:
        float [Q, G].

    Raises:
        ValueError: the buffer is longer than the limit.
    """
    if buffer > max_completion_length:
        raise ValueError(f"buffer={buffer} must be at most the {max_completion_length} tokens of an answer")
    beyond = (lengths - (max_completion_length - buffer)).clamp(0, buffer)
    return rewards - factor * beyond / buffer
