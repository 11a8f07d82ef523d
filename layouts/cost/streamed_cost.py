"""Seconds of a feedforward whose gathered weights arrive while it multiplies; see `stream`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp

from collective_einsum.chips import Chip
from collective_einsum.cost import WORTHWHILE, Dot, matmul_seconds
from collective_einsum.rings import ring_directions

from ..models.config import ModelConfig
from . import einsum_cost
from .einsum_cost import Seconds
from .layer_items import Einsum, Item, Transfer


def outgoing(config: ModelConfig) -> tuple[str, ...]:
    """The output matrices that a block streams with its input matrices."""
    return ("w_o", "w_out") if config.block == "parallel" else ("w_out",)


def saving(
    items: Iterable[Item],
    into: Sequence[str],
    out: Sequence[str],
    sizes: Mapping[str, int],
    chip: Chip,
    worthwhile: float = WORTHWHILE,
) -> Seconds | None:
    """Seconds that streaming these matrices saves of a layer's einsums and transfers, against one gather
    and matmul after the other; None where that is a smaller fraction than is `worthwhile`, or nothing is
    gathered."""
    items = [item for item in items if _streamed(item, (*into, *out))]
    ways = [
        [i for i in items if isinstance(i, Einsum) and i.names[0] in names] for names in (into, out)
    ]
    if not all(ways) or not chip.torus_dims:
        return None
    apart = [_apart(item, sizes, chip) for item in items]
    compute, exposed = (sum(seconds[i] for seconds in apart) for i in (0, 1))
    together = _together(ways[0], ways[1], sizes, chip)
    saved = Seconds(compute - together.compute, exposed - together.exposed)
    return saved if sum(saved) > worthwhile * (compute + exposed) else None


def _streamed(item: Item, names: Sequence[str]) -> bool:
    """Whether it is the gather of a matrix's columns, with its matmul or over x before that."""
    if isinstance(item, Transfer):
        return item.name in names
    if not isinstance(item, Einsum) or not item.gathers_weight or item.gather is None:
        return False
    return item.names[0] in names and item.gather[1].axes != ("x",)


def _apart(item: Item, sizes: Mapping[str, int], chip: Chip) -> Seconds:
    if isinstance(item, Einsum):
        return einsum_cost.seconds(item, sizes, chip, "auto")
    assert isinstance(item, Transfer)
    return Seconds(0.0, einsum_cost.gather_seconds(item, sizes, chip))


def _together(
    into: Sequence[Einsum], out: Sequence[Einsum], sizes: Mapping[str, int], chip: Chip
) -> Seconds:
    """Hop by hop: one ring over all axes, a shard each way during the dots of those before."""
    assert out[0].gather is not None
    n, x = out[0].gather[1].chips, sizes["x"]
    dots = sum(
        matmul_seconds(
            chip,
            Dot(
                rows=einsum.m,
                contracted=einsum.e,
                columns=f / n,
                lhs=jnp.dtype(jnp.int8 if einsum.input_bytes == 1 else jnp.bfloat16),
                rhs=jnp.dtype(jnp.int8 if einsum.weight_bytes == 1 else jnp.bfloat16),
            ),
        )
        for einsum in into
        for f in einsum.f
    )
    arriving = sum(einsum.streamed_bytes / x for einsum in out)
    hop = (
        (sum(einsum.streamed_bytes for einsum in into) + arriving) / n / chip.device_link_bandwidth
    )
    hop += chip.hop_seconds + chip.permute_seconds
    exposed, before = 0.0, 1
    ways = ring_directions(n, "latency", 1)
    for number in range(1, max(way.hops for way in ways) + 1):
        exposed += max(0.0, hop - before * dots)
        before = sum(way.hops >= number for way in ways)
    exposed += sum(
        einsum_cost.gather_seconds(gather, sizes, chip)
        for einsum in into
        if (gather := _over_x(einsum, einsum.streamed_bytes / n, sizes)) is not None
    )
    # Arriving slices of the output matrices are put into their place.
    compute = n * dots + 2 * arriving / chip.vector_bandwidth
    for einsum in out:
        gather = _over_x(einsum, einsum.streamed_bytes, sizes)
        last = Einsum(
            einsum.names,
            einsum.m,
            einsum.e,
            einsum.f,
            einsum.weight_bytes,
            gather and ("f", gather),
            gathers_weight=True,
            input_bytes=einsum.input_bytes,
        )
        last_seconds = einsum_cost.seconds(last, sizes, chip, "auto")
        compute, exposed = compute + last_seconds.compute, exposed + last_seconds.exposed
    return Seconds(compute, exposed)


def _over_x(einsum: Einsum, size: float, sizes: Mapping[str, int]) -> Transfer | None:
    if sizes["x"] == 1:
        return None
    return Transfer(einsum.names[0], "all-gather", ("x",), sizes["x"], math.ceil(size))
