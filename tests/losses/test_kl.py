"""The estimate of the KL divergence."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.losses.kl import kl_to_reference


@given(st.floats(-5, 0), st.floats(-5, 0))
def test_kl_is_zero_at_equality_and_positive_elsewhere(logprob, reference):
    estimate = kl_to_reference(*(torch.tensor([x], dtype=torch.float64) for x in (logprob, reference))).item()
    assert estimate >= -torch.finfo(torch.float64).eps  # exp(d) - d - 1 rounds
    if logprob == reference:
        assert estimate == 0
    elif abs(logprob - reference) > 1e-6:
        assert estimate > 0


def test_kl_estimate_is_zero_for_equal_policies():
    logprobs = torch.linspace(-9, 0, 50)
    assert torch.equal(kl_to_reference(logprobs, logprobs), torch.zeros(50))


def test_kl_estimate_has_the_divergence_as_its_expectation():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    divergence = (policy.exp() * (policy - reference)).sum()
    expectation = (policy.exp() * kl_to_reference(policy, reference)).sum()
    torch.testing.assert_close(expectation, divergence, atol=1e-14, rtol=1e-12)
