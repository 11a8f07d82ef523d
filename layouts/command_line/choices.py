"""What the commands were asked for, and what they chose, in words."""

from __future__ import annotations

import argparse
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


def as_asked(config: ModelConfig, options: argparse.Namespace) -> ModelConfig:
    """The config with what the options change of it.

    Raises:
      ValueError: `--int8_activations` without int8 weights, or of a model that cannot have them.
    """
    if options.int8_activations and options.weights != "int8":
        raise ValueError("--int8_activations are multiplied with int8 matrices; add --weights int8")
    return dataclasses.replace(config, int8_activations=options.int8_activations)


def changes(plain: ModelConfig, padded: ModelConfig) -> list[str]:
    """The fields in which a padded model differs, as text."""
    return [
        f"{field.name}={getattr(padded, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if getattr(plain, field.name) != getattr(padded, field.name)
    ]
