"""A weight-gathered feedforward whose matrices arrive while it multiplies.

Instead of one all-gather and one matmul after the other, one ring over y and z brings the shards of the
input and the output matrices. From each shard of the input matrices a chip makes a slice of the hidden
activations. Shards of the output matrices are put into place as they come; `project_out` gathers them
over x, with the matmuls that read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import lax

import collective_einsum as ce

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Activations, Axes, Weight
from ..models.config import ModelConfig
from ..models.functions import BIASES, hidden, scale_rows
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import FeedForwardLayout, Outgoing
from ..partitionings.weight_gathered import WeightGathered

# The number of shards that have arrived, and, as far as they are there, the hidden activations and the
# output matrices.
Carry = tuple[jax.Array | np.int32, jax.Array, dict[str, jax.Array]]


def gathered_columns(layout: FeedForwardLayout, sizes: Mapping[str, int]) -> Axes:
    """The axes of more than one device over which columns of weights are gathered."""
    gathered = layout.axes if isinstance(layout, WeightGathered) else ()
    return tuple(axis for axis in WEIGHT_AXES if axis in gathered and sizes[axis] > 1)


def stream(
    c: Activations,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    before: Sequence[Outgoing],
    schedule: ce.Schedule,
) -> list[Outgoing]:
    """The operands of `project_out` of a feedforward, after those of `before`.

    Args:
      c: [rows, E], E unsharded.
      factor: [rows, 1], what the columns of the input matrices are to be multiplied by; or None.
      weights: of the feedforward, by name, as they are stored.
      before: other columns on their way out, whose matrices arrive meanwhile.
      schedule: a ring that sends full shards.
    """
    axes, names = gathered_columns(layout, ax.local_sizes()), config.input_names
    shards = {name: ax.all_gather(weights[name], ("x",), 0, schedule) for name in names}
    out = {f"before_{i}": term.w for i, term in enumerate(before)} | {"w_out": weights["w_out"]}
    shards |= {name: ax.values(w) for name, w in out.items()}
    shards |= {name: weights[name] for name in BIASES if name in weights}
    ways = 2 if schedule.direction == "latency" else 1
    columns = shards["w_out"].shape[0]
    h = lax.empty((c.shape[0], columns * ax.size(axes)), c.dtype)

    def arrive(carry: Carry, groups: Sequence[LayerWeights], index: jax.Array) -> Carry:
        number, h, whole = carry
        shards = {name: shard for group in groups for name, shard in group.items()}
        inner = [ax.local_einsum("me,ef->mf", c, shards[name]).astype(c.dtype) for name in names]
        made = hidden([scale_rows(y, factor) for y in inner], shards, config)
        h = lax.dynamic_update_slice_in_dim(h, made, number * columns, 1)
        # The slices of `before` are in order; the rest stands as it came, at places known beforehand.
        whole = {
            name: lax.dynamic_update_slice_in_dim(
                w, shards[name], (number if name == "w_out" else index) * shards[name].shape[0], 0
            )
            for name, w in whole.items()
        }
        return number + 1, h, whole

    _, h, whole = ce.all_gather_fold(
        arrive,
        (np.int32(0), h, {name: _whole(shards[name], axes) for name in out}),
        _groups(shards, ways * len(names)),
        axis_name=ax.names(axes),
        schedule=schedule,
    )
    terms = [*before, Outgoing(h, weights["w_out"])]
    return [
        term._replace(w=_with_values(term.w, whole[name]), features_gathered=True)
        for term, name in zip(terms, out, strict=True)
    ]


def _groups(shards: LayerWeights, dots: int) -> list[LayerWeights]:
    """Shards in groups that are sent one after the other, each during one of so many dots."""
    pairs = list(shards.items())
    groups = [*(dict([pair]) for pair in pairs[: dots - 1]), dict(pairs[dots - 1 :])]
    return [group for group in groups if group]


def _with_values(w: Weight, values: jax.Array) -> Weight:
    """`w` with other values; the scales of an output matrix are those of E, alike on all shards."""
    return dataclasses.replace(w, values=values) if isinstance(w, ce.Quantized) else values


def _whole(shard: jax.Array, axes: Axes) -> jax.Array:
    return lax.empty((shard.shape[0] * ax.size(axes), *shard.shape[1:]), shard.dtype)
