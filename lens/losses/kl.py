"""Computes the KL penalty towards a reference model, token by token."""

from __future__ import annotations

from torch import Tensor


def kl_to_reference(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) for each token, [n] -> [n].

    It is exp(d) - d - 1, with d the reference's log-probability minus the policy's.
    Source: J. Schulman, "Approximating KL divergence" (2020); TRL and verl use the same.
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1
