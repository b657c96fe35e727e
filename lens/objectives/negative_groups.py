"""What negative groups say on average, summed over every group that can be drawn.

G answers are drawn from a policy pi, and p is the probability of a right one. With the chance (1-p)^G all are wrong. An
objective then gives each an advantage A_i, and the update adds sum_i A_i s(o_i), where s(o) = grad log pi(o) is the
score of the whole answer. Write Cov for the covariance among wrong answers. The expectation of this update is,

* for A_i = -1, the uniform penalty: grad pass@G = G (1-p)^(G-1) grad p, the gradient of the chance that one of G
  answers is right. A wrong answer's mean score is grad log(1-p) = -grad p / (1-p): to leave wrong answers is to come
  to right ones, though none was seen.
* for A_i = -w(o_i): mean(w) grad pass@G - G (1-p)^G Cov(w, s).
* for A_i = -(w(o_i) - the group's mean): -(G-1) (1-p)^G Cov(w, s). Centring removes all of the pass@G part, and one
  part in G of the other. With w = log pi this is (G-1) (1-p)^G times the gradient of the entropy of wrong answers.

These hold for any policy and any parameters, in the first update of a round. A loss that divides an answer by its
length |o_i| has A_i / |o_i| for A_i. That is not centred, so the second formula holds, with -A_i / |o_i| for w.
Clipping, and a denominator that depends on what was drawn, break exactness.

Here groups are those of a softmax over a few answers, where an answer is one action and the parameters are its logits;
lens/objectives/negative_group_checks.py checks each statement. Cosines are those of such policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from lens.objectives.controls import uniform_advantages
from lens.objectives.lens import calibrated_rewards, lens_advantages

# Verdicts and confidences [N, G] -> advantages [N, G]. alpha scales them and changes no direction.
PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "LENS": partial(lens_advantages, alpha=1.0),
    "not centred": calibrated_rewards,
    "uniform": uniform_advantages,
}
# How six wrong answers share the probability of a wrong answer, up to a constant.
PROFILES: dict[str, tuple[float, ...]] = {
    "flat": (1, 1, 1, 1, 1, 1),
    "slope": (6, 5, 4, 3, 2, 1),
    "long tail": (1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6),
    "one confident": (0.9, 0.02, 0.02, 0.02, 0.02, 0.02),
}
NO_LENGTH = 1e-14  # a gradient of this norm is 0 but for rounding, and has no direction


# --- enumeration -----------------------------------------------------------------------------------------------------


@lru_cache
def multisets(num_kinds: int, size: int) -> tuple[Tensor, Tensor]:
    """Return all multisets of ``size`` out of ``num_kinds``, int64 [N, size], and their numbers of orders, float64 [N].

    N is (num_kinds + size - 1)! / (size! (num_kinds - 1)!).
    """
    members = torch.tensor(list(combinations_with_replacement(range(num_kinds), size)))
    counts = torch.nn.functional.one_hot(members, num_kinds).sum(dim=1).double()  # [N, kinds]
    return members, (torch.lgamma(torch.tensor(size + 1.0).double()) - torch.lgamma(counts + 1).sum(dim=1)).exp()


@dataclass(frozen=True)
class NegativeGroups:
    """Every negative group of a policy over a few answers. An objective must not look at the order in a group.

    Attributes:
        pi: float64 [O], the policy; it sums to 1.
        right: bool [O], which answers are right.
        answers: int64 [N, G], the wrong answers of each group.
        chance: float64 [N], the chance of each group, in any order, given that the group is negative.
    """

    pi: Tensor
    right: Tensor
    answers: Tensor
    chance: Tensor

    @classmethod
    def of(cls, pi: Tensor, right: Tensor, size: int) -> NegativeGroups:
        """Return the groups of ``size`` answers that are all wrong."""
        wrong = (~right).nonzero().flatten()
        members, orders = multisets(len(wrong), size)
        answers = wrong[members]
        return cls(pi, right, answers, orders * (pi / pi[wrong].sum())[answers].prod(dim=1))

    @property
    def size(self) -> int:
        return self.answers.shape[1]

    def advantages(self, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return what an objective gives each answer, float64 [N, G]. An answer's confidence is its probability."""
        return objective(torch.zeros_like(self.answers, dtype=torch.bool), self.pi[self.answers]).double()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over groups of values [N, ...]."""
        return torch.tensordot(self.chance, values, dims=1)

    def received(self, advantages: Tensor) -> Tensor:
        """Return what each answer receives in a group on average, [O]: the mean of the sum of its advantages."""
        weighted = (self.chance[:, None] * advantages).flatten()
        return torch.zeros_like(self.pi).index_add(0, self.answers.flatten(), weighted)

    def update(self, advantages: Tensor) -> Tensor:
        """Return the mean update, in the space of logits, [O]: the mean of sum_i A_i grad log pi(o_i)."""
        return update_of(self.received(advantages), self.pi)


def update_of(received: Tensor, pi: Tensor) -> Tensor:
    """Return the sum over answers of what each has received times its grad log pi, which is e_o - pi; [O]."""
    return received - received.sum() * pi


# --- what an update is held against ----------------------------------------------------------------------------------


def pass_at(pi: Tensor, right: Tensor, k: int) -> Tensor:
    """Return pass@k, the chance that one of k answers is right."""
    return 1 - (1 - pi[right].sum()) ** k


def entropy(pi: Tensor) -> Tensor:
    """Return the entropy of the policy, in nats."""
    return -(pi * pi.log()).sum()


def entropy_of_wrong(pi: Tensor, right: Tensor) -> Tensor:
    """Return the entropy of the policy's choice among wrong answers, in nats."""
    return entropy(pi[~right] / pi[~right].sum())


def gradient_at(pi: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a function of the policy, in the space of logits, [O]."""
    logits = pi.log().requires_grad_()
    return torch.autograd.grad(value(logits.softmax(dim=0)), logits)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two vectors; NaN if one is 0."""
    norms = a.norm(), b.norm()
    return (a @ b / (norms[0] * norms[1])).item() if min(norms) > NO_LENGTH else torch.nan


# --- where negative groups point -------------------------------------------------------------------------------------


def make_policy(shares: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return a policy [O] and which answers are right [O]: one right answer of probability p, then the wrong ones.

    ``shares``, float64 [O-1], says how the wrong answers share 1 - p, up to a constant.
    """
    pi = torch.cat([shares.new_tensor([p]), (1 - p) * shares / shares.sum()])
    return pi, torch.arange(len(pi)) == 0


def compare_directions(shares: Tensor, chances: Sequence[float], size: int) -> list[dict[str, float]]:
    """Return where the mean updates of negative groups point, a dict for each p in ``chances``.

    Args:
        shares: how the wrong answers share 1 - p; see `make_policy`.
        chances: values of p, the probability of the one right answer, in (0, 1).
        size: G.

    Returns:
        "NAME: TARGET" -> cosine, for each name in PENALTIES and the gradients of pass@G, of the entropy, and of the
        entropy of wrong answers. "norm left" is the norm that centring leaves of the update, as a fraction.
    """
    # These penalties see ratios of confidences alone, so what an answer receives does not depend on p.
    groups = NegativeGroups.of(*make_policy(shares, chances[0]), size)
    received = {name: groups.received(groups.advantages(objective)) for name, objective in PENALTIES.items()}
    rows = []
    for p in chances:
        pi, right = make_policy(shares, p)
        targets = {
            "pass@G": gradient_at(pi, lambda pi, right=right: pass_at(pi, right, size)),
            "entropy": gradient_at(pi, entropy),
            "entropy of wrong": gradient_at(pi, lambda pi, right=right: entropy_of_wrong(pi, right)),
        }
        updates = {name: update_of(total, pi) for name, total in received.items()}
        row = {f"{name}: {to}": cosine(u, target) for name, u in updates.items() for to, target in targets.items()}
        rows.append(row | {"norm left": (updates["LENS"].norm() / updates["not centred"].norm()).item()})
    return rows
