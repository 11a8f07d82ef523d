"""A pair of layouts, and what it asks of a model and a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from jax.sharding import PartitionSpec as P

from collective_einsum.text import plain, shown

from ..mesh.axes import AxesLike, MeshLike, named, naming
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
    """The pair of layouts in which a step is computed.

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


class HasPartitioning(Protocol):
    """Anything with a pair of layouts, such as a `Plan` or an `Option`."""

    @property
    def partitioning(self) -> Partitioning:
        """The layouts."""
        ...


# The values that a function takes as plan=; see `as_plan`.
PlanLike = Partitioning | HasPartitioning | str


def as_plan(plan: PlanLike) -> Partitioning:
    """The pair of layouts that `plan` names.

    Args:
      plan: a `Partitioning`; a `Plan`, whose best option is taken; an `Option`; or the words that the
        planner prints for an option, such as "WS 2D all-reduce, batch xyz". Further words, for a mesh
        and a batch, are ignored.

    Raises:
      ValueError: `plan` is something else, or a `Plan` without a feasible option.
    """
    if isinstance(plan, Partitioning):
        return plan
    if isinstance(plan, str):
        return _read(plan)
    # The class is asked first: the property of a Plan without a feasible option raises.
    layouts = plan.partitioning if hasattr(type(plan), "partitioning") else None
    if isinstance(layouts, Partitioning):
        return layouts
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
    """The pair of layouts that the words of the planner name."""
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
      axes: the mesh axes that x, y and z stand for, if they are called otherwise; a `MeshAxes`.

    Raises:
      ValueError: `layout` is no feedforward layout, or `axes` names other things.
    """
    with naming(axes):
        return named(boundary_spec(as_feedforward(layout)))


def placement(config: ModelConfig, mesh: MeshLike, plan: Partitioning) -> Placement:
    """The placement of heads and sequences in attention under `plan`; see `place`.

    Raises:
      ValueError: the mesh has other axes, or the layouts cannot shard the model over it.
    """
    sizes = check_mesh(mesh)
    check_model(config, sizes)
    return place(config, plan.feedforward, plan.attention, sizes)


def misfit(config: ModelConfig, sizes: Mapping[str, int], plan: Partitioning) -> str:
    """Why layouts cannot shard a model over a mesh, and what to do about it; "" if they can.

    The planner excludes such layouts, and every step refuses them.
    """
    reason = model_misfit(config, sizes)
    return reason or misplaced(config, plan.feedforward, plan.attention, sizes)


def check_model(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh that cannot hold a model under any layout.

    Raises:
      ValueError: d_model or d_ff does not divide over all chips, or heads do not over y and z.
    """
    _refuse(model_misfit(config, sizes))


def _refuse(reason: str) -> None:
    if reason:
        raise ValueError(reason)
