"""Says what a surrogate loss is given and what it returns, and holds what several of them compute.

A surrogate loss turns advantages into a loss of each token. It is a pure function of keyword arguments. Those that its
signature names out of INPUTS are given to it. All others are options with defaults, and become keys of its yaml. Flat
tensors hold the n tokens of S whole completions, one completion after the other.

* logprobs: [n], log-probabilities of the sampled tokens under the current policy. The gradient flows through these.
* old_logprobs: [n], under the policy that sampled them.
* advantages: [n], the advantage of each token.
* sequence: int64 [n], the completion that each token belongs to, 0..S-1.
* sequence_advantages: [S], the advantage of each completion. A loss that names it works on whole answers, so it is
  refused beside an objective whose advantages differ from token to token.

Weights of tokens, importance weights, and KL and entropy terms stay outside. A loss of a whole answer returns its value
at every token of the answer, so that loss_agg_mode=seq-mean-token-mean averages it exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lens.objectives.inputs import call_by_name, find_inputs

INPUTS = ("logprobs", "old_logprobs", "advantages", "sequence", "sequence_advantages")


class Surrogate(NamedTuple):
    """What a surrogate loss returns, for each of n tokens.

    Attributes:
        losses: [n], the loss before tokens are averaged.
        clipped: bool [n], tokens that the loss's clip holds back. Each loss says whether it takes their gradient or
            bounds their weight.
    """

    losses: Tensor
    clipped: Tensor


def call_surrogate(
    loss: Callable[..., Surrogate], logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor
) -> Surrogate:
    """Call a loss with what it names.

    Args:
        loss: as this module describes.
        logprobs, old_logprobs, advantages: [n], of whole completions, one after the other.
        lengths: int64 [S], tokens of each completion, at least 1.

    Raises:
        ValueError: the loss takes one advantage for each answer, but those of an answer's tokens differ.
    """
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths).to(logprobs.device)  # [n]
    of_answers = advantages[lengths.cumsum(0) - lengths]  # [S], those of first tokens
    if "sequence_advantages" in find_inputs(loss, INPUTS) and not torch.equal(of_answers[sequence], advantages):
        raise ValueError("the loss takes one advantage for each answer, but an answer's tokens have several")
    inputs = dict(zip(INPUTS, (logprobs, old_logprobs, advantages, sequence, of_answers), strict=True))
    return call_by_name(loss, inputs, INPUTS)


def sum_sequences(values: Tensor, sequence: Tensor) -> Tensor:
    """Return the sum of each completion's values, [n] -> [S].

    Terms are added in the order of tokens on a CPU, so the result does not depend on the other completions. The
    gradient flows through it.
    """
    return values.new_zeros(count_sequences(sequence)).index_add(0, sequence, values)


def average_sequences(values: Tensor, sequence: Tensor) -> Tensor:
    """Return the mean of each completion's values, [n] -> [S]; see `sum_sequences`."""
    return sum_sequences(values, sequence) / sum_sequences(torch.ones_like(values), sequence)


def count_sequences(sequence: Tensor) -> int:
    """Return S, the number of completions."""
    return int(sequence[-1]) + 1


def clip_ratio(ratio: Tensor, advantages: Tensor, *, epsilon_low: float, epsilon_high: float) -> Surrogate:
    """Return PPO's -min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A) for each token.

    A clipped token has no gradient: its ratio is beyond the range in the direction in which its advantage pushes.

    Args:
        ratio, advantages: [n].
        epsilon_low, epsilon_high: clip range below and above 1.
    """
    bounded = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)  # [n]
    losses = torch.maximum(-ratio * advantages, -bounded * advantages)  # [n]
    fallen, risen = ratio < 1 - epsilon_low, ratio > 1 + epsilon_high
    return Surrogate(losses, (fallen & (advantages < 0)) | (risen & (advantages > 0)))
