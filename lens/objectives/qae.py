"""QAE: the baseline is a quantile of the group's verdicts, so each group teaches by its rarer verdict alone."""

from __future__ import annotations

from torch import Tensor

from lens.objectives.groups import all_valid, centre, group_std


def qae_advantages(correct: Tensor, *, quantile: float = 0.4, eps: float = 1e-6, valid: Tensor | None = None) -> Tensor:
    """Return A_i = (r_i - b) / (std(r) + eps), where b is the K-quantile of the verdicts of the group.

    The quantile is the smallest verdict that at least the share K of the group does not exceed. So b = 0, and only
    correct answers teach, while at least the share K is wrong; else b = 1, and only wrong answers teach. Groups of one
    kind get 0. Wu et al., arXiv 2509.22611, equations 3 and 4.

    Args:
        correct: bool [Q, G], the verdicts r on G answers to each of Q questions.
        quantile: K, in (0, 1).
        eps: added to the sample standard deviation.
        valid: bool [Q, G]. Invalid answers do not count in quantile and std, and get 0. None: all are valid.

    Returns:
        float32 [Q, G].

    Raises:
        ValueError: the quantile is not in (0, 1).
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile={quantile}: must lie between 0 and 1")
    valid = all_valid(correct, valid)
    size = valid.sum(dim=1, keepdim=True).clamp(min=1)  # [Q, 1]
    # The share wrong/size is rounded as the number K is, so the two are equal where they should be; 1 - K need not be.
    share_wrong = (~correct & valid).sum(dim=1, keepdim=True).double() / size
    above_baseline = correct.double() - (share_wrong < quantile).double()  # [Q, G], r - b
    return (above_baseline * valid / (group_std(centre(correct, valid), valid) + eps)).float()
