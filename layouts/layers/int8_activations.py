"""Activations as int8, one scale for each token, before the int8 matrices that they multiply."""

from __future__ import annotations

from collections.abc import Sequence

import jax

import collective_einsum as ce

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Activations, ScheduleLike
from ..models.config import ModelConfig
from ..partitionings.feedforward_layout import FeedForwardLayout, Outgoing, boundary_axes


def incoming(
    c: jax.Array, config: ModelConfig, layout: FeedForwardLayout, schedule: ScheduleLike
) -> Activations:
    """c [rows, E over the rest], as `project_in` is to take it under a schedule: int8 if the config says
    so."""
    if not config.int8_activations:
        return c
    if c.shape[-1] == config.d_model:
        return ax.int8_rows(c, (), (), schedule)
    axes, summed = boundary_axes(layout), layout.summed_axes
    return ax.int8_rows(c, [axis for axis in axes if axis not in summed], summed, schedule)


def outgoing(
    terms: Sequence[Outgoing],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> list[Outgoing]:
    """The terms as `project_out` is to take them, likewise."""
    if not config.int8_activations:
        return list(terms)
    return [_outgoing(term, layout, schedule) for term in terms]


def _outgoing(term: Outgoing, layout: FeedForwardLayout, schedule: ScheduleLike) -> Outgoing:
    if not isinstance(term.w, ce.Quantized) or isinstance(term.h, ce.Quantized):
        return term
    axes = WEIGHT_AXES if term.token_sharded else layout.features(WEIGHT_AXES)
    summed = [axis for axis in axes if axis in WEIGHT_AXES]
    gathered = [axis for axis in axes if axis not in WEIGHT_AXES]
    return term._replace(h=ax.int8_rows(term.h, gathered, summed, schedule))
