"""What the attention of some layers has for itself, which `ModelConfig.attention_kinds` lists."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..arguments import as_size
from .rotary import Rotary


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What the attention of some layers has for itself.

    Attributes:
      window: how many positions a query sees, its own and those before it; None for all.
      rotary: rotary position embedding of these layers, or None; "model" for that of the config.

    Raises:
      ValueError: a setting is something else.
    """

    window: int | None = None
    rotary: Rotary | Literal["model"] | None = "model"

    def __post_init__(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", as_size("AttentionKind: window", self.window))
        if self.rotary not in (None, "model") and not isinstance(self.rotary, Rotary):
            raise ValueError(
                f'AttentionKind: rotary={self.rotary!r} must be a Rotary(), None or "model"'
            )
