"""What of a parallel block runs beside what, where a compiler runs its own collectives beside work."""

from __future__ import annotations

from jax import lax

from collective_einsum.chip import Chip
from collective_einsum.choice import mesh_chip
from collective_einsum.cost_lax import exchange_seconds, torus_seconds
from collective_einsum.schedule import as_schedule

from . import axes as ax
from . import einsum_cost
from .items import Attention, Einsum
from .layer_cost import attention_seconds
from .projections import Outgoing
from .step import Past, Step

# How much longer than attention a chain is that is worth parting sums from the nonlinearity after them.
MUCH = 1.5


def beside_attention(step: Step, past: Past | None) -> float:
    """Seconds of attention that the last of the projections' scatters can run beside, if these are of
    rows; 0 where the schedule is given, or where the compiler runs none of its own beside work."""
    chip, layout = mesh_chip(), step.feedforward
    if not layout.cuts_rows:
        return 0.0
    if as_schedule(step.schedule) is not None or "all_to_all" not in chip.asynchronous:
        return 0.0
    config, where = step.config, step.placement
    work = Attention(
        step.lengths.shape[0],
        step.queries,
        step.new,
        config.stored_heads / ax.size(where.queries.kept),
        max(1, config.stored_kv_heads / ax.size(where.kv_axes)),
        config.d_head,
        0 if past is None else past[0].values.shape[-2],
        2 if past is None else past[0].values.dtype.itemsize,
    )
    return attention_seconds(work, chip)


def in_turn(o: Outgoing, h: Outgoing, attention: float) -> list[Outgoing]:
    """What attention and the feedforward send out, behind attention both if that is to come first.

    The last scatter over x, and the gather after the nonlinearity, are a chain, which the compiler
    hides behind attention as far as that goes. Where attention is much shorter, the scatter is to
    run beside it, and the gather beside its output matrix, if that is not much shorter either.

    Args:
      o: of attention.
      h: of the feedforward.
      attention: what `project_in` reckoned with, of `beside_attention`.
    """
    sides = [lax.axis_size("x")]
    if not attention or sides == [1]:
        return [o, h]
    chip, size = mesh_chip(), h.h.size * h.h.dtype.itemsize * sides[0]
    gather = torus_seconds(chip, sides, size)
    chain = exchange_seconds(chip, sides, size) + gather
    if chain < MUCH * attention or gather > MUCH * _matmul_seconds(o, chip):
        return [o, h]
    first, then = lax.optimization_barrier((o.h, h.h))
    return [o._replace(h=first), h._replace(h=then, in_turn=True)]


def _matmul_seconds(o: Outgoing, chip: Chip) -> float:
    """Of all rows of o and its matrix."""
    w = ax.values(o.w)
    rows = o.h.shape[0] * lax.axis_size("x")
    item = Einsum(("w_o",), rows, w.shape[0], (w.shape[1],), w.dtype.itemsize)
    return einsum_cost.seconds(item, ax.local_sizes(), chip, "none").compute
