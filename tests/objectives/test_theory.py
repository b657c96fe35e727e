"""w(z), and the theorem that it comes from, on bandits small enough to sum over every answer."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from lens.objectives import theory, w

SWITCH = 1e-2  # below it, w is its series


def exact(z: float) -> float:
    """w(z) with 400 digits."""
    with localcontext() as context:
        context.prec = 400
        z = Decimal(z)
        return float(-(1 - z).ln() / z - 1)


def test_w_is_zero_at_zero_and_keeps_shape_and_type():
    assert w(0.0).item() == 0 and w(0).item() == 0
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(w(zeros), zeros)
    assert w(torch.zeros(2, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("z", [1e-300, 1e-12, 1e-4, 0.0099, 0.0101, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_w_is_exact_in_double_precision(z):
    assert w(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(exact(z), rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_w_does_not_jump_where_the_series_ends(dtype, tolerance):
    border = torch.tensor(SWITCH, dtype=dtype)
    below, above = (torch.nextafter(border, torch.tensor(end, dtype=dtype)) for end in (0.0, 1.0))
    for z in (below, border, above):
        assert w(z).item() == pytest.approx(exact(z.item()), rel=tolerance)


def test_w_rises_without_bound():
    z = torch.linspace(0, 1 - 1e-6, 10_001, dtype=torch.float64)
    assert (w(z).diff() > 0).all()
    assert w(torch.tensor(1 - 1e-15, dtype=torch.float64)).item() > 30


def test_w_solves_its_differential_equation():
    # pi w(pi/D) has the derivative w(z) + z w'(z) at z = pi/D, which theorem 1 wants to be pi/(D - pi) = z/(1 - z).
    z = torch.cat([torch.logspace(-9, -1, 50), torch.linspace(0.005, 0.995, 200)]).double().requires_grad_()
    values = w(z)
    (slope,) = torch.autograd.grad(values.sum(), z)
    torch.testing.assert_close(values + z * slope, z / (1 - z), rtol=1e-10, atol=0)


def test_the_slope_at_zero_is_a_half():
    z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    w(z).backward()
    assert z.grad.item() == 0.5


@pytest.mark.parametrize("outside", [-1e-9, -1.0, 1.0, 1.5, math.inf, math.nan])
def test_w_refuses_what_is_outside_its_domain(outside):
    with pytest.raises(ValueError, match="0 <= z < 1"):
        w(outside)
    with pytest.raises(ValueError, match="0 <= z < 1"):
        w(torch.tensor([0.5, outside, 0.1]))


# --- theorem 2 ---


def random_bandit(seed: int, answers: int = 10) -> tuple[Tensor, Tensor, float]:
    """Logits, rewards and difficulty 1/(number of right answers), with pi < D for every wrong answer."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(answers, generator=generator, dtype=torch.float64)
    number_right = 1 + seed % 3
    rewards = torch.zeros(answers, dtype=torch.float64)
    rewards[torch.randperm(answers, generator=generator)[:number_right]] = 1
    difficulty = 1 / number_right
    while (logits.softmax(dim=0) * (1 - rewards)).max() > 0.95 * difficulty:
        logits = 0.8 * logits  # flatter, until it holds
    return logits.requires_grad_(), rewards, difficulty


def log_likelihood(pi: Tensor, rewards: Tensor, difficulty: float) -> Tensor:
    """-L of every answer, eq. 8."""
    return rewards * pi.log() + (1 - pi / difficulty * (1 - rewards)).log()


@pytest.mark.parametrize("seed", range(30))
def test_the_gradient_of_the_likelihood_is_that_of_the_objective(seed):
    logits, rewards, difficulty = random_bandit(seed)
    pi = logits.softmax(dim=0)
    wrong = 1 - rewards
    objective = (pi * rewards).sum() - (pi * w(pi / difficulty * wrong) * wrong).sum()  # eq. 11; z = 0 where right
    (of_objective,) = torch.autograd.grad(objective, logits, retain_graph=True)

    # Theorem 1 on-policy: E[(r - (1 - r) pi/(D - pi)) grad log pi], where grad log pi(o) of a softmax is e_o - pi.
    p = pi.detach()
    multiplier = rewards - wrong * p / (difficulty - p * wrong)
    of_theorem = (p * multiplier) @ (torch.eye(len(p), dtype=torch.float64) - p)
    torch.testing.assert_close(of_objective, of_theorem, rtol=1e-10, atol=1e-13)

    (of_likelihood,) = torch.autograd.grad(p @ log_likelihood(pi, rewards, difficulty), logits)
    torch.testing.assert_close(of_objective, of_likelihood, rtol=1e-10, atol=1e-13)
    assert of_objective.norm() > 1e-3


@pytest.mark.parametrize("seed", range(10))
def test_the_true_policy_is_a_stationary_point(seed):
    # Rewards are chances p* in (0, 1) here, and the policy is p* D with D = 1 / sum p*.
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(8, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    difficulty = 1 / chances.sum()
    logits = (chances * difficulty).log().requires_grad_()
    pi = logits.softmax(dim=0)
    objective = (pi * chances).sum() - (pi * w(pi / difficulty) * (1 - chances)).sum()
    objective.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-14, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_the_functions_are_the_equations(seed):
    logits, rewards, difficulty = random_bandit(seed)
    pi = logits.softmax(dim=0).detach()
    torch.testing.assert_close(theory.log_likelihood(pi, rewards, difficulty), log_likelihood(pi, rewards, difficulty))
    wrong = rewards == 0
    rho = 1 + torch.rand(len(pi), dtype=torch.float64)
    weights = theory.multiplier(pi, rewards, difficulty, rho)
    torch.testing.assert_close(weights[wrong], -pi[wrong] / (difficulty * rho[wrong] - pi[wrong]))
    assert (weights[~wrong] == 1).all()
    by_hand = pi[~wrong].sum() - (pi[wrong] * w(pi[wrong] / (difficulty * rho[wrong]))).sum()
    torch.testing.assert_close(theory.j_mle(pi, rewards, difficulty, rho), by_hand)
