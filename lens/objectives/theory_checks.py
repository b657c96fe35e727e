"""Checks the paper's theory on answer spaces small enough to sum over. Each check returns errors that must be 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lens.objectives.theory import j_mle, log_likelihood, multiplier, w


@dataclass(frozen=True)
class AnswerSpace:
    """A policy over a few answers, of which some are right; float64 throughout.

    Attributes:
        logits: [O], with gradients; the policy is their softmax.
        reward: [O], 1 for a right answer, 0 for a wrong one.
        chance: [O] in (0, 1), the chance that each answer is judged right; for statements about a noisy reward.
        lengths: [O], numbers of tokens, as float64.
    """

    logits: Tensor
    reward: Tensor
    chance: Tensor
    lengths: Tensor

    @classmethod
    def draw(cls, seed: int, num_answers: int) -> AnswerSpace:
        """Return a random space in which pi <= 0.95 D for every wrong answer, under the deterministic reward."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(num_answers, generator=generator, dtype=torch.float64)
        reward = torch.zeros(num_answers, dtype=torch.float64)
        reward[torch.randperm(num_answers, generator=generator)[: 1 + seed % 3]] = 1
        while (logits.softmax(dim=0) * (1 - reward)).max() > 0.95 / reward.sum():
            logits = 0.8 * logits
        chance = 0.01 + 0.98 * torch.rand(num_answers, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, 9, (num_answers,), generator=generator).double()
        return cls(logits.requires_grad_(), reward, chance, lengths)

    @property
    def pi(self) -> Tensor:
        return self.logits.softmax(dim=0)

    @property
    def difficulty(self) -> Tensor:
        return 1 / self.reward.sum()

    def policy_gradient(self, weights: Tensor) -> Tensor:
        """Return E_pi[weight * grad log pi]. For a softmax, grad log pi(o) is e_o - pi."""
        pi = self.pi.detach()
        return (pi * weights) @ (torch.eye(len(pi), dtype=pi.dtype) - pi)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]


def theorem_1(space: AnswerSpace) -> Tensor:
    """Compare -grad L with (1/n) sum multiplier * grad log pi, for answers from another policy, the uniform one."""
    generator = torch.Generator().manual_seed(len(space.logits))
    drawn = torch.randint(len(space.logits), (32,), generator=generator)
    counts = torch.bincount(drawn, minlength=len(space.logits)) / len(drawn)  # [O]
    by_autograd = space.gradient((counts * log_likelihood(space.pi, space.reward, space.difficulty)).sum())
    pi = space.pi.detach()
    weights = counts * multiplier(pi, space.reward, space.difficulty)
    return by_autograd - weights @ (torch.eye(len(pi), dtype=pi.dtype) - pi)


def theorem_2(space: AnswerSpace) -> Tensor:
    """Compare grad J_MLE with E_pi[multiplier * grad log pi], on-policy."""
    weights = multiplier(space.pi.detach(), space.reward, space.difficulty)
    return space.gradient(j_mle(space.pi, space.reward, space.difficulty)) - space.policy_gradient(weights)


def graded_rewards(space: AnswerSpace) -> Tensor:
    """Check theorem 2 with rewards between 0 and 1 in place of verdicts."""
    difficulty = space.pi.detach().max() / 0.9  # above every pi
    weights = multiplier(space.pi.detach(), space.chance, difficulty)
    return space.gradient(j_mle(space.pi, space.chance, difficulty)) - space.policy_gradient(weights)


def consistency(space: AnswerSpace) -> Tensor:
    """Return the expected multiplier of every answer at pi = p* D, over its noisy reward. It must be 0."""
    difficulty = 1 / space.chance.sum()
    return multiplier(space.chance * difficulty, space.chance, difficulty)


def equation_of_w(space: AnswerSpace) -> Tensor:
    """Return the relative difference between w + z w', by autograd, and z / (1 - z)."""
    z = (space.pi * (1 - space.reward) / space.difficulty).detach().requires_grad_()
    values = w(z)
    (slope,) = torch.autograd.grad(values.sum(), z)
    return (values + z * slope - z / (1 - z)) / (1 + z / (1 - z))


def any_preference(space: AnswerSpace) -> Tensor:
    """Check theorem 2 and consistency for a random preference, through which no gradient flows."""
    generator = torch.Generator().manual_seed(len(space.logits) + 1)
    rho = 0.1 + torch.rand(space.pi.shape, generator=generator, dtype=torch.float64)
    difficulty = 1 / (space.chance * rho).sum()
    optimum = multiplier(space.chance * difficulty * rho, space.chance, difficulty, rho)
    largest = (space.pi.detach() / rho).max() / 0.9  # a D above every pi / rho
    weights = multiplier(space.pi.detach(), space.reward, largest, rho)
    gradients = space.gradient(j_mle(space.pi, space.reward, largest, rho)) - space.policy_gradient(weights)
    return torch.cat([optimum, gradients])


def preference_policy(space: AnswerSpace) -> Tensor:
    """Check that with rho = pi every wrong answer weighs -1 / (D - 1). Here D = 1 / sum p* pi, which is above 1."""
    pi = space.pi.detach()
    difficulty = 1 / (space.reward * pi).sum()
    wrong = space.reward == 0
    return multiplier(pi, space.reward, difficulty, pi)[wrong] + 1 / (difficulty - 1)


def preference_length(space: AnswerSpace) -> Tensor:
    """Check that with rho = gamma^|o| every wrong answer weighs -1 / (D (gamma/pibar)^|o| - 1).

    gamma is above every pibar, and D = 1.
    """
    pi = space.pi.detach()
    pibar = pi ** (1 / space.lengths)
    gamma = pibar.max() / 0.97
    wrong = space.reward == 0
    weights = multiplier(pi, space.reward, 1.0, gamma**space.lengths)
    return (weights + 1 / ((gamma / pibar) ** space.lengths - 1))[wrong]


def first_order_in_length(space: AnswerSpace) -> Tensor:
    """Check that the paper's (1/|o|) pibar / (gamma - pibar) bounds the size of that weight, and equals it at gamma.

    Returns how far the weight exceeds the bound, and the relative error at pibar = gamma (1 - 1e-9). The neglected
    order, the length times 1e-9, and rounding are taken off that error.
    """
    pibar = space.pi.detach() ** (1 / space.lengths)
    gamma, n = pibar.max() / 0.97, space.lengths

    def exact(ratio: Tensor) -> Tensor:
        return 1 / torch.expm1(n * ratio.log())

    missed = (exact(gamma / pibar) - 1 / (n * (gamma / pibar - 1))).clamp(min=0)
    near = torch.full_like(n, 1e-9)
    relative = (1 - exact(1 / (1 - near)) * n * (1 / (1 - near) - 1)).abs()
    return torch.cat([missed, (relative - n * 1e-9 - 1e-7).clamp(min=0)])


CHECKS: dict[str, tuple[str, Callable[[AnswerSpace], Tensor]]] = {
    "Theorem 1": ("-grad L = (1/n) sum (r - (1-r) pi/(D-pi)) grad log pi", theorem_1),
    "Theorem 2": ("grad J_MLE = E[(r - (1-r) pi/(D-pi)) grad log pi]", theorem_2),
    "Graded rewards": ("theorem 2 for rewards r in [0, 1]", graded_rewards),
    "Consistency": ("at pi = p* D the expected multiplier is 0", consistency),
    "Equation of w": ("w(z) + z w'(z) = z/(1-z)", equation_of_w),
    "Any preference": ("theorem 2 and consistency with D rho for D", any_preference),
    "rho = pi": ("the multiplier is the constant -1/(D-1)", preference_policy),
    "rho = gamma^|o|": ("the multiplier is -1/(D (gamma/pibar)^|o| - 1)", preference_length),
    "its first order": ("(1/|o|) pibar/(gamma-pibar) bounds its size, and equals it near gamma", first_order_in_length),
}
