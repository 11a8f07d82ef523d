"""Products of test parameters, of which most runs take a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def sampled(
    first: Sequence[Any], second: Sequence[Any], times: int = 1, *, few: Sequence[Any] | None = None
) -> list[Any]:
    """All pairs: each of the first, or of the `few` among them, with `times` of the second, in turn; the
    others are `exhaustive`."""
    kept = [i for i, one in enumerate(first) if few is None or one in few]
    taken = {(i, (i + j) % len(second)) for i in kept for j in range(times)}
    return [
        pytest.param(a, b, marks=() if (i, k) in taken else pytest.mark.exhaustive)
        for i, a in enumerate(first)
        for k, b in enumerate(second)
    ]


def mostly_exhaustive(values: Sequence[Any], few: Sequence[Any]) -> list[Any]:
    """All values, of which those that are not among the few are `exhaustive`."""
    return [
        pytest.param(value, marks=() if value in few else pytest.mark.exhaustive)
        for value in values
    ]
