"""What the commands chose, in words."""

from __future__ import annotations

import dataclasses

from ..models.config import ModelConfig
from ..partitionings.named_layouts import ATTENTIONS, FEEDFORWARDS
from ..partitionings.partitioning import Partitioning


def name_of(chosen: Partitioning) -> str:
    """The planner's words for a pair of layouts."""
    by_layout: dict[object, str] = {layout: name for name, layout in FEEDFORWARDS.items()}
    by_layout |= {layout: name for name, layout in ATTENTIONS.items()}
    parts = (chosen.feedforward, chosen.attention)
    return ", ".join(by_layout.get(part, str(part)) for part in parts)


def changes(plain: ModelConfig, padded: ModelConfig) -> list[str]:
    """The fields in which a padded model differs, as text."""
    return [
        f"{field.name}={getattr(padded, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if getattr(plain, field.name) != getattr(padded, field.name)
    ]
