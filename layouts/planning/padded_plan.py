"""The plan of a model with the padding that its meshes need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collective_einsum.chips import TPU_V4, Chip, as_chip

from ..mesh.slice_meshes import ShapeLike
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..partitionings.mesh_fit import padded_for
from .plan import Plan
from .search import plan, planned_meshes, rank_of


def padded_plan(
    config: ModelConfig | str,
    *,
    chip: Chip | str = TPU_V4,
    mesh_shape: ShapeLike | None = None,
    chips: int | Sequence[int] | None = None,
    **asked: Any,
) -> Plan:
    """`layouts.plan` with the heads and tokens that the meshes need: of the paddings that make one of
    the meshes possible, the one with the best plan.

    Args:
      config: the model without padding, or its name.
      chip, mesh_shape, chips, asked: the arguments of `layouts.plan`.

    Returns:
      A `Plan`, whose `config` is padded.

    Raises:
      ValueError: as `layouts.plan`.
    """
    config, chip = as_config(config), as_chip(chip)
    shapes = planned_meshes(chip, mesh_shape, chips)
    # Of no meshes, `plan` says what is wrong.
    paddings = list(dict.fromkeys(padded_for(config, shape) for shape in shapes)) or [config]
    where: dict[str, Any] = {"chip": chip, "mesh_shape": mesh_shape, "chips": chips}
    plans = [plan(padded, **where, **asked) for padded in paddings]
    return min(plans, key=lambda found: rank_of(found.options[0], found.objective))
