"""SPO (arXiv 2509.13232): compare each reward with what its problem earned in earlier rounds, not with its group."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lens.objectives.groups import all_valid, normalise
from lens.objectives.options import not_negative
from lens.objectives.tracker import BetaTracker


class SPO:
    """Advantages r_i - v_q, then centred and divided by the standard deviation over the whole round.

    v_q is the success rate of problem q in earlier rounds, by `BetaTracker`. All answers of a group have the same v_q.
    The round's own verdicts enter v_q after its advantages, so v_q does not depend on the answer that it is taken from.

    Args:
        decay: what a round leaves of a problem's old counts, the paper's rho. 0.875 is its lowest value, and the
            constant of the authors' code.
        eps: added to the standard deviation over the round.

    Raises:
        ValueError: decay is outside [0, 1], or eps is below 0.
    """

    def __init__(self, *, decay: float = 0.875, eps: float = 1e-8) -> None:
        not_negative(eps=eps)
        self.eps = eps
        self.tracker = BetaTracker(decay)

    def __call__(
        self,
        correct: Tensor,
        *,
        problem_ids: Sequence[str],
        rewards: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the advantages of a round, float32 [Q, G], and remember its verdicts.

        Args:
            correct, valid: bool [Q, G]. Invalid answers get 0, and count neither in the round nor in the memory.
            problem_ids: Q names.
            rewards: [Q, G]; None: the verdicts. The memory is of verdicts in any case.
        """
        valid = all_valid(correct, valid)
        rates = self.tracker.rates(problem_ids).to(correct.device)  # [Q, 1]
        surprise = (correct if rewards is None else rewards).double() - rates  # [Q, G]
        whitened = normalise(surprise.reshape(1, -1), valid.reshape(1, -1), eps=self.eps).reshape(correct.shape)
        self.tracker.update(problem_ids, (correct & valid).sum(dim=1), valid.sum(dim=1))
        return whitened.float()

    def state_dict(self) -> dict:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.tracker.load_state_dict(state)
