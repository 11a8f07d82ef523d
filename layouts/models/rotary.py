"""The settings of rotary position embedding, which `functions` computes."""

from __future__ import annotations

import dataclasses
import numbers

from ..arguments import as_flag


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864).

    Attributes:
      base: the wavelengths grow from 2 pi to 2 pi * base positions.
      fraction: of each head's d_head, the leading part that is rotated; in (0, 1].
      interleaved: pairs are (0, 1), (2, 3), ..., as in PaLM and GPT-J; otherwise i is paired with
        i + half, as in Llama.
    """

    base: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        for field in ("base", "fraction"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise ValueError(f"rotary {field}={value!r} must be a number")
        object.__setattr__(self, "interleaved", as_flag("interleaved", self.interleaved))
        if not self.base > 1:
            raise ValueError(f"rotary base={self.base} must be greater than 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"rotary fraction={self.fraction} must be in (0, 1]; use rotary=None for none"
            )

    def dims(self, d_head: int) -> int:
        """Number of a head's `d_head` dimensions that are rotated; always even in a ModelConfig."""
        return round(self.fraction * d_head)
