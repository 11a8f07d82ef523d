"""The closed forms of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102): what the
feedforward layer of each layout sends, and where the best layout changes (section 3.2, figure 3,
appendix A.2). Two matrices E x F, and (K - 1)/K counted as 1, as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size


def weight_stationary_1d(tokens: float, d_model: int, *, element_bytes: float = 2) -> float:
    """Bytes on each chip, 2 BLE (section 3.2.1): however many chips there are."""
    return 2 * element_bytes * tokens * d_model


def weight_stationary_2d(
    tokens: float, d_model: int, d_ff: int, sizes: Mapping[str, int], *, element_bytes: float = 2
) -> float:
    """Bytes on each chip, 2 BL (E/X + F/YZ) (section 3.2.2)."""
    return 2 * element_bytes * tokens * (d_model / sizes["x"] + d_ff / size(WEIGHT_AXES, sizes))


def weight_gathered(
    tokens: float,
    d_model: int,
    d_ff: int,
    sizes: Mapping[str, int],
    axes: Sequence[str],
    *,
    element_bytes: float = 2,
    weight_bytes: float | None = None,
) -> float:
    """Bytes on each chip, 2 EFN/n of weights gathered over N chips and 2 BLE/N of activations, which
    stay where they are if N is all n chips (section 3.2.3).

    `weight_bytes` are those of a weight's element, if not `element_bytes`.
    """
    n, gathered = size(AXES, sizes), size(axes, sizes)
    weight_bytes = element_bytes if weight_bytes is None else weight_bytes
    activations = 2 * element_bytes * tokens * d_model / gathered if gathered < n else 0.0
    return 2 * weight_bytes * d_model * d_ff * gathered / n + activations


def crossovers(
    d_model: int, d_ff: int, sizes: Mapping[str, int], *, element_bytes: float = 2
) -> dict[str, float]:
    """Tokens from which each of the weight-gathered layouts sends less than the one before it: 2D
    weight-stationary, X, XY, XYZ (figure 3)."""

    def line(index: int) -> tuple[float, float]:
        """Bytes without tokens, and for each token."""
        if index == 0:
            per_token = weight_stationary_2d(1, d_model, d_ff, sizes, element_bytes=element_bytes)
            return 0.0, per_token
        axes = AXES[:index]
        fixed, one = (
            weight_gathered(tokens, d_model, d_ff, sizes, axes, element_bytes=element_bytes)
            for tokens in (0, 1)
        )
        return fixed, one - fixed

    tokens_from = {}
    for index in range(1, len(AXES) + 1):
        (fixed, per_token), (next_fixed, next_per_token) = line(index - 1), line(index)
        saved = per_token - next_per_token
        tokens_from["".join(AXES[:index]).upper()] = (
            (next_fixed - fixed) / saved if saved > 0 else math.inf
        )
    return tokens_from


def best_x(chips: int, d_model: int, d_ff: int) -> float:
    """X of the fewest bytes in 2D weight-stationary, sqrt(n E/F): half of sqrt(n) if F = 4 E
    (appendix A.2.1)."""
    return math.sqrt(chips * d_model / d_ff)


def best_gathered(tokens: float, chips: int, d_ff: int) -> float:
    """N of the fewest bytes in weight-gathered layouts, sqrt(BL n/F) (appendix A.2.2)."""
    return math.sqrt(tokens * chips / d_ff)
