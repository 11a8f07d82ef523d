"""The names that the planner gives to layouts; a name, or a class, is taken wherever layouts are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from collective_einsum.text import did_you_mean, plain, shown

from ..mesh.axis_collectives import AXES
from .attention_layouts import AttentionLayout, BatchSharded, HeadSharded
from .feedforward_layout import FeedForwardLayout
from .weight_gathered import WeightGathered
from .weight_stationary import WeightStationary1D, WeightStationary2D

Layout = TypeVar("Layout")

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


def as_feedforward(
    layout: FeedForwardLayout | type[FeedForwardLayout] | str,
) -> FeedForwardLayout:
    """A feedforward layout from a layout, its class or its name, such as "WS 2D".

    Raises:
      ValueError: `layout` is something else.
    """
    if isinstance(layout, str):
        return _by_name(layout, FEEDFORWARDS, "feedforward")
    if is_feedforward(layout):
        return layout() if isinstance(layout, type) else layout
    raise ValueError(
        f"{shown(layout)} is no feedforward layout{_other(layout)}; choose WeightStationary1D(), "
        "WeightStationary2D(), WeightGathered() or a name: " + names(FEEDFORWARDS)
    )


def as_attention(
    layout: AttentionLayout | type[AttentionLayout] | str,
) -> AttentionLayout:
    """An attention layout from a layout, its class or its name, such as "heads".

    Raises:
      ValueError: `layout` is something else.
    """
    if isinstance(layout, str):
        return _by_name(layout, ATTENTIONS, "attention")
    if is_attention(layout):
        return layout() if isinstance(layout, type) else layout
    raise ValueError(
        f"{shown(layout)} is no attention layout{_other(layout)}; choose HeadSharded(), BatchSharded() "
        "or a name: " + names(ATTENTIONS)
    )


def _by_name(name: str, layouts: Mapping[str, Layout], kind: str) -> Layout:
    for known, layout in layouts.items():
        if plain(known) == plain(name):
            return layout
    raise ValueError(
        f"no {kind} layout is called {name!r}; there are {names(layouts)}"
        f"{did_you_mean(name, layouts)}"
    )


def names(layouts: Iterable[str]) -> str:
    return ", ".join(map(repr, layouts))


def is_feedforward(layout: object) -> bool:
    return hasattr(layout, "project_in")


def is_attention(layout: object) -> bool:
    return hasattr(layout, "batch_axes") and not is_feedforward(layout)


def instance(layout: object) -> object:
    """The layout itself, or a layout of the class."""
    return layout() if isinstance(layout, type) else layout


def _other(layout: object) -> str:
    if is_feedforward(layout) or is_attention(layout):
        return f", but {'a feedforward' if is_feedforward(layout) else 'an attention'} layout"
    both = hasattr(layout, "feedforward") and hasattr(layout, "attention")
    return f", but {type(layout).__name__} with both" if both else ""
