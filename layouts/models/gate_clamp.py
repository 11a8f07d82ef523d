"""The bounds of a gated feedforward, which `functions` applies."""

from __future__ import annotations

import dataclasses

from ..arguments import is_number


@dataclasses.dataclass(frozen=True)
class GateClamp:
    """Bounds of a gated feedforward, as gpt-oss has them: its hidden activations are

      (clip(u, -limit, limit) + offset) * g * sigmoid(alpha * g), of g = min(gate, limit),

    where u and gate are the products with both input matrices.

    Attributes:
      limit: positive.
      alpha: positive.
      offset: any number.

    Raises:
      ValueError: one of them is something else.
    """

    limit: float = 7.0
    alpha: float = 1.702
    offset: float = 1.0

    def __post_init__(self) -> None:
        for field in ("limit", "alpha", "offset"):
            value = getattr(self, field)
            if not is_number(value) or not (field == "offset" or float(value) > 0):
                kind = "a number" if field == "offset" else "a positive number"
                raise ValueError(f"GateClamp: {field}={value!r} must be {kind}")
            object.__setattr__(self, field, float(value))
