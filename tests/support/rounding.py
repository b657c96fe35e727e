"""How far two computations of one number may be apart, by its data type and by how many terms they add."""

from __future__ import annotations

import torch


def rounding(dtype: str, terms: int) -> float:
    """The bound of the difference between two sums of the same terms in another order, relative to their sizes.

    Each addition rounds by at most half of eps, in either of the sums. Source: Higham, "Accuracy and Stability of
    Numerical Algorithms" (2002), section 4.2.
    """
    return terms * torch.finfo(getattr(torch, dtype)).eps


# What a token's way adds in the models of these tests: in each of two layers and in the head some hundred terms for
# each of a dozen products, forward and back; and a gradient adds the tokens of its batch.
TERMS = 2000
TOLERANCE = {dtype: rounding(dtype, TERMS) for dtype in ("float32", "float64")}

# Of the numbers of a group, which has at most forty answers; advantages and rewards are of size 1, in float32.
IN_A_GROUP = rounding("float32", 40)
