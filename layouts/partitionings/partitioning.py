"""A pair of layouts, and what it asks of a model and a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from collective_einsum.text import plain, shown

from ..mesh.axes import AxesLike, named, naming
from ..mesh.axis_collectives import check_mesh
from ..models.config import ModelConfig
from .attention_layouts import AttentionLayout
from .attention_placement import Placement, misplaced, place
from .feedforward_layout import FeedForwardLayout, boundary_spec
from .mesh_fit import model_misfit
from .named_layouts import (
    ATTENTIONS,
    FEEDFORWARDS,
    as_attention,
    as_feedforward,
    instance,
    is_attention,
    is_feedforward,
    names,
)

_EXAMPLE = "layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())"


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """The layouts of a phase.

    Attributes:
      feedforward: WeightStationary1D(), WeightStationary2D() or WeightGathered(...), which is also
        that of attention's projections.
      attention: HeadSharded() or BatchSharded(...).

    Raises:
      ValueError: either is something else; the planner's name of a layout, such as "WS 2D" or
        "heads", or its class, stands for the layout.
    """

    feedforward: FeedForwardLayout
    attention: AttentionLayout

    def __post_init__(self) -> None:
        if is_attention(self.feedforward) and is_feedforward(self.attention):
            raise ValueError(
                f"Partitioning({self.feedforward}, {self.attention}): the feedforward layout comes "
                f"first; write Partitioning({self.attention}, {self.feedforward})"
            )
        object.__setattr__(self, "feedforward", as_feedforward(self.feedforward))
        object.__setattr__(self, "attention", as_attention(self.attention))


def as_plan(plan: Any) -> Partitioning:
    """The layouts that are meant.

    Args:
      plan: a `Partitioning`; or what has one: a `Plan`, of which the best, or an `Option`; or what
        the planner prints of an option, such as "WS 2D all-reduce, batch xyz", in which a mesh and a
        batch may follow, and count for nothing.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(plan, Partitioning):
        return plan
    if isinstance(plan, str):
        return _read(plan)
    # Asked of the class: a Plan in which nothing is feasible says so.
    found = plan.partitioning if hasattr(type(plan), "partitioning") else None
    if isinstance(found, Partitioning):
        return found
    if is_feedforward(plan):
        layout = instance(plan)
        hint = (
            f"that is a feedforward layout alone; write layouts.Partitioning({layout}, "
            f"HeadSharded()) or layouts.Partitioning({layout}, BatchSharded())"
        )
    elif is_attention(plan):
        hint = (
            "that is an attention layout alone; write layouts.Partitioning(WeightStationary2D(), "
            f"{instance(plan)})"
        )
    else:
        hint = f'write {_EXAMPLE}, or in the planner\'s words "WS 2D, heads"'
    raise ValueError(f"plan={shown(plan)} is no Partitioning: {hint}")


def _read(text: str) -> Partitioning:
    """See `as_plan`."""
    feedforward, *rest = text.split(",")
    if not rest:
        name = next((n for n in FEEDFORWARDS if plain(n) == plain(text)), "WS 2D")
        raise ValueError(
            f"plan={text!r} must name a feedforward layout and an attention layout, such as "
            f"{name + ', heads'!r}; the former are {names(FEEDFORWARDS)}, the latter "
            f"{names(ATTENTIONS)}"
        )
    return Partitioning(as_feedforward(feedforward.strip()), as_attention(rest[0].strip()))


def activation_spec(layout: FeedForwardLayout, axes: AxesLike = None) -> P:
    """The partition spec of activations [batch, length, E] between layers.

    Args:
      layout: WeightStationary1D(), WeightStationary2D() or WeightGathered(...).
      axes: what the mesh calls x, y and z, if something else; a `MeshAxes`.

    Raises:
      ValueError: `layout` is no feedforward layout, or `axes` names other things.
    """
    with naming(axes):
        return named(boundary_spec(as_feedforward(layout)))


def placement(config: ModelConfig, mesh: Any, plan: Any) -> Placement:
    """Where attention happens under `plan`; see `placement.place`.

    Raises:
      ValueError: the mesh has other axes, or the layouts cannot shard the model over it.
    """
    sizes = check_mesh(mesh)
    check_layouts(config, sizes, plan)
    return place(config, plan.feedforward, plan.attention, sizes)


def misfit(config: ModelConfig, sizes: Mapping[str, int], plan: Any) -> str:
    """Why layouts cannot shard a model over a mesh, and what to do about it; "" if they can.

    What the planner excludes, and what every step refuses.
    """
    why = model_misfit(config, sizes)
    return why or misplaced(config, plan.feedforward, plan.attention, sizes)


def check_model(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh that cannot hold a model under any layout.

    Raises:
      ValueError: d_model or d_ff does not divide over all chips, or heads do not over y and z.
    """
    _refuse(model_misfit(config, sizes))


def check_layouts(config: ModelConfig, sizes: Mapping[str, int], plan: Any) -> None:
    """Refuses layouts that cannot shard a model over a mesh.

    Raises:
      ValueError: `misfit` says why.
    """
    _refuse(misfit(config, sizes, plan))


def _refuse(why: str) -> None:
    if why:
        raise ValueError(why)
