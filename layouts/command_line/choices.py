"""What the commands choose: the best plan over all meshes, each with the padding that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from collective_einsum.chips import Chip, chip_for

from ..mesh.slice_meshes import as_shape
from ..models.config import ModelConfig
from ..partitionings.mesh_fit import padded_for
from ..partitionings.named_layouts import ATTENTIONS, FEEDFORWARDS
from ..partitionings.partitioning import Partitioning
from ..planning.plan import Plan
from ..planning.search import plan, searched_meshes


def best_plan(
    config: ModelConfig,
    *,
    chip: Chip | str,
    chips: int | None = None,
    mesh_shape: tuple[int, ...] | None = None,
    **asked: Any,
) -> Plan:
    """`layouts.plan` with the heads and tokens that the meshes need: of the paddings that make one of
    the meshes possible, the one with the fastest plan.

    Args:
      config: without padding.
      chip: a `Chip`, or the kind of a device.
      chips, mesh_shape: as `layouts.plan`; one of them.
      asked: further arguments of it.
    """
    chip = chip_for(chip) if isinstance(chip, str) else chip
    if mesh_shape is not None:
        shapes: list[Mapping[str, int]] = [as_shape("mesh_shape", mesh_shape)]
        where: dict[str, Any] = {"mesh_shape": mesh_shape}
    else:
        shapes, where = [*searched_meshes(chips or 1, chip)], {"chips": chips}
    paddings = dict.fromkeys(padded_for(config, shape) for shape in shapes)
    plans = [plan(padded, chip=chip, **where, **asked) for padded in paddings]
    return min(plans, key=_seconds)


def _seconds(found: Plan) -> tuple[int, float]:
    """Of a token; plans without an option that will do come last, and last of them impossible ones."""
    first = found.options[0]
    if first.cost is None:
        return 2, 0.0
    return int(bool(first.excluded)), first.cost.step_seconds / first.cost.load.tokens


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
