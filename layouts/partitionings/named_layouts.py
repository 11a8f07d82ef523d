"""A pair of layouts, and the names that the planner gives to layouts, which are taken wherever layouts
are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from collective_einsum.text import did_you_mean, plain, shown

from ..mesh.axis_collectives import AXES
from .attention_placement import AttentionLayout, BatchSharded, HeadSharded
from .feedforward_layout import FeedForwardLayout
from .weight_gathered import WeightGathered
from .weight_stationary import WeightStationary1D, WeightStationary2D

FEEDFORWARDS: dict[str, FeedForwardLayout] = {
    "WS 2D": WeightStationary2D(),
    "WS 2D batch": WeightStationary2D(by_batch=True),
    "WS 2D all-reduce": WeightStationary2D(by_batch=True, all_reduce=True),
    "WS 2D position": WeightStationary2D(by_position=True),
    "WS 1D": WeightStationary1D(),
    "WG X": WeightGathered(("x",)),
    "WG XY": WeightGathered(("x", "y")),
    "WG XYZ": WeightGathered(AXES),
}
ATTENTIONS: dict[str, AttentionLayout] = {
    "batch xyz": BatchSharded(AXES),
    "batch yz": BatchSharded(("y", "z")),
    "batch z": BatchSharded(("z",)),
    "heads": HeadSharded(),
}
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
        if _is_attention(self.feedforward) and _is_feedforward(self.attention):
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
    if _is_feedforward(plan):
        layout = _instance(plan)
        hint = (
            f"that is a feedforward layout alone; write layouts.Partitioning({layout}, "
            f"HeadSharded()) or layouts.Partitioning({layout}, BatchSharded())"
        )
    elif _is_attention(plan):
        hint = (
            "that is an attention layout alone; write layouts.Partitioning(WeightStationary2D(), "
            f"{_instance(plan)})"
        )
    else:
        hint = f'write {_EXAMPLE}, or in the planner\'s words "WS 2D, heads"'
    raise ValueError(f"plan={shown(plan)} is no Partitioning: {hint}")


def as_feedforward(layout: Any) -> FeedForwardLayout:
    """A feedforward layout, by itself, its class or the planner's name.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(layout, str):
        return _by_name(layout, FEEDFORWARDS, "feedforward")
    if _is_feedforward(layout):
        return _instance(layout)
    raise ValueError(
        f"{shown(layout)} is no feedforward layout{_other(layout)}; choose WeightStationary1D(), "
        "WeightStationary2D(), WeightGathered() or a name: " + _names(FEEDFORWARDS)
    )


def as_attention(layout: Any) -> AttentionLayout:
    """An attention layout, by itself, its class or the planner's name.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(layout, str):
        return _by_name(layout, ATTENTIONS, "attention")
    if _is_attention(layout):
        return _instance(layout)
    raise ValueError(
        f"{shown(layout)} is no attention layout{_other(layout)}; choose HeadSharded(), BatchSharded() "
        "or a name: " + _names(ATTENTIONS)
    )


def _read(text: str) -> Partitioning:
    """See `as_plan`."""
    feedforward, *rest = text.split(",")
    if not rest:
        name = next((n for n in FEEDFORWARDS if plain(n) == plain(text)), "WS 2D")
        raise ValueError(
            f"plan={text!r} must name a feedforward layout and an attention layout, such as "
            f"{name + ', heads'!r}; the former are {_names(FEEDFORWARDS)}, the latter "
            f"{_names(ATTENTIONS)}"
        )
    return Partitioning(as_feedforward(feedforward.strip()), as_attention(rest[0].strip()))


def _by_name(name: str, layouts: Mapping[str, Any], kind: str) -> Any:
    for each, layout in layouts.items():
        if plain(each) == plain(name):
            return layout
    raise ValueError(
        f"no {kind} layout is called {name!r}; there are {_names(layouts)}"
        f"{did_you_mean(name, layouts)}"
    )


def _names(layouts: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, layouts))


def _is_feedforward(layout: Any) -> bool:
    return hasattr(layout, "project_in")


def _is_attention(layout: Any) -> bool:
    return hasattr(layout, "batch_axes") and not _is_feedforward(layout)


def _instance(layout: Any) -> Any:
    """A layout of its class, unless it is one itself."""
    return layout() if isinstance(layout, type) else layout


def _other(layout: Any) -> str:
    if _is_feedforward(layout) or _is_attention(layout):
        return f", but {'a feedforward' if _is_feedforward(layout) else 'an attention'} layout"
    return f", but {type(layout).__name__} with both" if isinstance(layout, Partitioning) else ""
