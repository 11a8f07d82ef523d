"""What of a parallel block runs beside what, where a compiler runs its own collectives beside work."""

from __future__ import annotations

from jax import lax

from collective_einsum.chips import traced_chip
from collective_einsum.cost import all_gather_seconds, all_to_all_seconds
from collective_einsum.ops import as_schedule

from ..cost import einsum_cost
from ..cost.layer_cost import attention_seconds
from ..cost.layer_items import Attention, Load
from ..cost.layer_work import inputs
from ..mesh import axis_collectives as ax
from ..partitionings.feedforward_layout import Outgoing
from .layer_context import Past, Step

# How much longer than attention a chain is that is worth parting at the nonlinearity. Seen on v4: of
# PaLM 540B a step of 512 or 1024 rows gains 4 to 6%, and those of up to 384, 1.77 times as long, lose
# up to 4%.
MUCH = 1.8


def beside_attention(step: Step, past: Past | None) -> float:
    """Seconds of attention that the last of the projections' scatters can run beside, if these are of
    rows; 0 where the schedule is given, or where the compiler runs none of its own beside work."""
    chip = traced_chip()
    if not step.feedforward.cuts_rows:
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


def in_turn(o: Outgoing, h: Outgoing, step: Step, attention: float) -> list[Outgoing]:
    """What attention and the feedforward send out, behind attention both if that is to come first.

    The last scatter over x, and the gather after the nonlinearity, are a chain, which the compiler
    hides behind attention as far as that goes. Where attention is much shorter, the scatter is to
    run beside it, and the gather beside its output matrix. A scatter that is a ring runs beside its
    own matmul.

    Args:
      o: of attention.
      h: of the feedforward.
      step: what layers share.
      attention: what `project_in` reckoned with, of `beside_attention`.
    """
    sides = [ax.axis_size("x")]
    if not attention or sides == [1]:
        return [o, h]
    chip, size = traced_chip(), h.h.size * h.h.dtype.itemsize * sides[0]
    chain = all_to_all_seconds(chip, sides, size) + all_gather_seconds(chip, sides, size)
    if chain < MUCH * attention or not _scatters_directly(h, step, attention):
        return [o, h]
    first, then = lax.optimization_barrier((o.h, h.h))
    return [o._replace(h=first), h._replace(h=then, in_turn=True)]


def _scatters_directly(h: Outgoing, step: Step, attention: float) -> bool:
    """Whether that is how `project_in` makes what becomes h."""
    batch = step.lengths.shape[0] * ax.size(step.placement.batch_axes)
    load = Load(batch, step.new, 0, ax.values(h.w).dtype.itemsize)
    sizes = ax.local_sizes()
    item = inputs(step.config, step.feedforward, step.placement, sizes, load)
    chosen = einsum_cost.schedule(item, sizes, traced_chip(), attention)
    return chosen.direction == "async"
