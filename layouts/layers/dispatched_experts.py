"""The feedforward whose tokens are sent to the chips that have their experts, and the results back.

Experts are stationary, and tokens sharded over the same chips. Both ways are an all-to-all with room for
the tokens of an even router; what does not fit goes in further rounds, so that no token is dropped.
Where all tokens have a feedforward beside their experts, it is computed while these all-to-alls are
under way.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from collective_einsum.rings import together

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import ScheduleLike
from ..models.config import ModelConfig
from ..models.stacked_params import LayerWeights
from ..partitionings.expert_columns import expert_columns
from ..partitionings.expert_rooms import ExpertRooms
from ..partitionings.feedforward_layout import FeedForwardLayout, token_axes
from .grouped_experts import Experts, held_experts, multiplied, weighed_sum
from .layer_schedules import LayerSchedules
from .routing import Routing
from .shared_feedforward import shared_in, shared_out
from .sorted_rows import SortedRows, in_rounds, sort_rows, take, with_a_gradient

# Names the ops of this way to compute.
SCOPE = "sent_to_experts"


def dispatched_experts(
    c: jax.Array,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    routing: Routing,
    rooms: ExpertRooms,
) -> jax.Array:
    """A feedforward by itself, without the bias of its result.

    Args:
      c: [tokens, E], those of a chip between layers; where layers shard tokens so, a norm is complete
        before the feedforward, and no factor is left.
      weights, config, schedules: as `projected`.
      layout: with tokens sharded over y and z, on a mesh whose x is 1.
      routing: of these tokens.
      rooms: the rows of a round.

    Returns:
      As `c`.
    """
    owners = expert_columns(config, layout, ax.local_sizes()).owners
    chips, blocks = owners.size // owners.shape[-1], owners.shape[-1]
    experts = held_experts(weights, config, layout, schedules, blocks)
    shared = {name: w for name, w in weights.items() if name.startswith("w_shared")}
    run = functools.partial(
        _summed,
        owners=owners.reshape(chips, blocks),
        config=config,
        layout=layout,
        schedules=schedules,
    )
    most = c.shape[0] * min(routing.experts.shape[1], blocks)
    with jax.named_scope(SCOPE):
        summed = with_a_gradient(run, rooms, ExpertRooms(expert=chips * c.shape[0], chip=most))
        return summed(c, routing, experts, shared).astype(c.dtype)


def _summed(
    rooms: ExpertRooms,
    c: jax.Array,
    routing: Routing,
    experts: Experts,
    shared: LayerWeights,
    *,
    owners: np.ndarray,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
) -> jax.Array:
    """The weighed sum of what each token's experts make of it, and of the feedforward beside them, whose
    weights are `shared`: [tokens, E]; wide.

    `owners` has the expert of each block, [chips, blocks].
    """
    assert rooms.chip is not None
    axes, schedule = token_axes(layout), schedules.given
    (chips, blocks), (tokens, per_token), room = owners.shape, routing.experts.shape, rooms.chip
    # The blocks of each expert, [experts, parts], numbered through all chips: where a chip has some
    # columns of an expert, others have the rest.
    places = np.argsort(owners.reshape(-1), kind="stable").reshape(config.expert_count, -1)
    parts = places.shape[1]
    # The last row is of tokens without an expert.
    slots = take(jnp.asarray([*places, [owners.size] * parts], jnp.int32), routing.experts)
    pairs = sort_rows(slots.reshape(-1), chips * blocks)
    shares = jnp.repeat(routing.weights, parts, axis=1)
    counts = ax.all_gather(pairs.counts[None], axes, 0, "blocking").reshape(chips, chips, blocks)
    # How many rows each chip sends to each expert of this one.
    ends = jnp.cumsum(jnp.take(counts, ax.axis_index(axes), axis=1), axis=1, dtype=jnp.int32)
    pairs = pairs.joined(blocks)

    def one(index: jax.Array | int, total: jax.Array) -> jax.Array:
        sent = take(c, pairs.taken(room, index) // (per_token * parts))
        # The feedforward beside the experts: one half of it during each all-to-all, before which it does
        # not start and after which nothing goes on without it. In the loop, so it is computed again in
        # further rounds, which are rare.
        beside = None
        if config.shared_width:
            sent, beside = together(sent, c)
        came = _exchanged(sent, chips, axes, schedule)
        if beside is not None:
            beside = shared_in(beside, None, shared, config, layout, schedules, routing)
            came, beside = together(came, beside)
        within = index * room + jnp.arange(room, dtype=jnp.int32)
        block = jnp.sum(within[:, None] >= ends[:, None, :], axis=2, dtype=jnp.int32)
        by_expert = sort_rows(block.reshape(-1), blocks)
        made = _multiplied(came, by_expert, experts, rooms.expert, chips * tokens, config)
        if beside is not None:
            made, beside = together(made, beside)
        rows = _exchanged(made, chips, axes, schedule)
        if beside is not None:
            rows, beside = together(rows, shared_out(beside, shared, layout, schedules))
            total = total + jnp.where(index == 0, beside, 0).astype(total.dtype)
        return total + weighed_sum(rows, *pairs.found(room, index), shares)

    rounds = -(-jnp.max(jnp.sum(counts, axis=2, dtype=jnp.int32)) // room)
    total = jnp.zeros((tokens, config.d_model), shares.dtype)
    return in_rounds(1 if room >= tokens * min(per_token, blocks) else rounds, one, total)


def _exchanged(rows: jax.Array, chips: int, axes: ax.Axes, schedule: ScheduleLike) -> jax.Array:
    """Sends rows [chips * room, E], those for one chip after another: those that came, alike."""
    blocks = rows.reshape(chips, -1, rows.shape[1])
    return ax.all_to_all(blocks, axes, 0, 0, schedule).reshape(rows.shape)


def _multiplied(
    x: jax.Array, pairs: SortedRows, experts: Experts, room: int, most: int, config: ModelConfig
) -> jax.Array:
    """Rows x [n, E], sorted by the experts of a chip, through these; of the same shape.

    An expert has `most` of the rows at most, and takes `room` a round.
    """

    def one(index: jax.Array | int, made: jax.Array) -> jax.Array:
        count = pairs.counts.shape[0]
        rows = multiplied(take(x, pairs.taken(room, index)), None, experts, count, config)
        places, present = pairs.found(room, index)
        return jnp.where(present[:, None], take(rows, places), made)

    # What no round writes is no token's: a fill would be a memory pass.
    made = lax.empty(x.shape, x.dtype)
    return in_rounds(1 if room >= most else pairs.rounds(room), one, made)
