"""What of a parallel block runs beside what, where a compiler runs its own collectives beside work."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax

from collective_einsum.choice import mesh_chip
from collective_einsum.cost_lax import exchange_seconds, torus_seconds
from collective_einsum.schedule import as_schedule

from . import axes as ax
from .cost import attention_seconds
from .items import Attention
from .projections import Outgoing
from .step import Past, Step


# How much longer than attention a chain is that is worth parting sums from the nonlinearity after them.
MUCH = 1.5


def beside_attention(step: Step, past: Past | None) -> float:
    """Seconds of attention that the last of the projections' scatters can run beside; 0 where the
    schedule is given, or where the compiler runs none of its own beside anything."""
    chip = mesh_chip()
    if as_schedule(step.schedule) is not None or "all_to_all" not in chip.asynchronous:
        return 0.0
    config, where = step.config, step.placement
    work = Attention(
        step.lengths.shape[0],
        step.new,
        config.stored_heads / ax.size(where.queries.kept),
        max(1, config.stored_kv_heads / ax.size(where.kv_axes)),
        config.d_head,
        0 if past is None else past[0].values.shape[-2],
        2 if past is None else past[0].values.dtype.itemsize,
    )
    return attention_seconds(work, chip)


def in_turn(
    inner: Sequence[jax.Array], o: Outgoing, attention: float
) -> tuple[Sequence[jax.Array], Outgoing, bool]:
    """The feedforward's columns and their factor, behind attention if that is to come first.

    The last scatter over x, and the gather after the nonlinearity, are a chain, which the compiler
    hides behind attention as far as that goes. Where attention is much shorter, the scatter is to
    run beside it, and the gather beside its output matrix.

    Args:
      inner: what `project_in` made.
      o: what attention sends out.
      attention: from `beside_attention`.

    Returns:
      inner, o, and whether the gather of what is made of inner is to run beside `o`'s matmul.
    """
    chip, sides = mesh_chip(), [lax.axis_size("x")]
    size = inner[0].size * inner[0].dtype.itemsize * sides[0]
    chain = exchange_seconds(chip, sides, size) + torus_seconds(chip, sides, size)
    if not attention or sides == [1] or chain < MUCH * attention:
        return inner, o, False
    h, *inner = lax.optimization_barrier((o.h, *inner))
    return inner, o._replace(h=h), True
