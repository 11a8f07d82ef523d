"""The schedules of a layer's collectives, decided from sizes before the layer is traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import collective_einsum as ce
from collective_einsum.chips import Chip
from collective_einsum.cost import all_gather_seconds, all_to_all_seconds
from collective_einsum.ops import as_schedule

from .. import tuning
from ..cost import einsum_cost, experts_cost, norm_cost, streamed_cost, two_part_cost
from ..cost.item_seconds import on_sparse_cores
from ..cost.layer_items import ACTIVATION_BYTES, Load, gathered_weight
from ..cost.layer_work import Layer
from ..cost.overlaps import independent
from ..layers.layer_schedules import LayerSchedules, Overlaps
from ..layers.streamed_feedforward import gathered_columns
from ..mesh.axis_collectives import WEIGHT_AXES, ScheduleLike, size, values
from ..models.cache import Entries
from ..models.config import ModelConfig
from ..models.stacked_params import LayerWeights
from ..partitionings.attention_placement import Placement
from ..partitionings.expert_rooms import ExpertRooms
from ..partitionings.feedforward_layout import FeedForwardLayout, inner_token_axes, token_axes
from ..partitionings.weight_gathered import WeightGathered


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """The facts that the schedules of a layer are decided from.

    Attributes:
      config: the model.
      layout: the feedforward layout, which is also that of attention's projections.
      placement: where attention happens; None for a feedforward by itself.
      schedule: as the caller gave it.
      batch: sequences, of all chips of x, y and z.
      new: positions of each sequence in this step.
      keys: the cached keys that are read, of which the shape and the dtype matter; None if there are
        none.
      activation_bytes: bytes of an element of the activations.
      sizes: of the mesh axes x, y and z.
      chip: the chip, as its compiler serves the program.
      window: of the layer's attention, in positions; None for all.
    """

    config: ModelConfig
    layout: FeedForwardLayout
    placement: Placement | None
    schedule: ScheduleLike
    batch: int
    new: int
    keys: Entries | None = None
    activation_bytes: int
    sizes: Mapping[str, int]
    chip: Chip
    window: int | None = None

    @property
    def auto(self) -> bool:
        """Whether the caller left the schedule open."""
        return as_schedule(self.schedule) is None

    @property
    def rows(self) -> int:
        """Rows of a chip's activations between layers."""
        return self.batch * self.new // size(token_axes(self.layout), self.sizes)


def attention_schedules(case: LayerSizes, weights: LayerWeights) -> LayerSchedules:
    """The schedules of attention by itself."""
    del weights
    return _first(case)


def serial_schedules(case: LayerSizes, weights: LayerWeights) -> LayerSchedules:
    """The schedules of a serial block, or of a feedforward by itself.

    Args:
      case: the sizes.
      weights: of one layer or of several alike, by name; only their kinds matter.
    """
    schedules = _first(case)
    rooms = _expert_rooms(case, weights)
    if rooms is not None:
        return dataclasses.replace(schedules, rooms=rooms)
    if _splits_d_ff(case, weights):
        return dataclasses.replace(schedules, splits_d_ff=True)
    ring = _weight_ring(case, weights, schedules.projections, ("w_out",))
    return dataclasses.replace(schedules, weight_ring=ring)


def parallel_schedules(case: LayerSizes, weights: LayerWeights) -> LayerSchedules:
    """The schedules of a parallel block; arguments as `serial_schedules`."""
    schedules = _first(case)
    ring = _weight_ring(case, weights, schedules.projections, ("w_o", "w_out"))
    if ring is not None:
        return dataclasses.replace(schedules, weight_ring=ring)
    load = _load(case, weights)
    overlaps = _overlaps(case, load)
    return dataclasses.replace(
        schedules,
        outputs="blocking" if _leaves_outputs(case, load, overlaps) else None,
        overlaps=overlaps,
        feedforward_last=_feedforward_last(case, load, overlaps.inputs),
    )


def block_schedules(case: LayerSizes, weights: LayerWeights) -> LayerSchedules:
    """The schedules of the block that the config says; arguments as `serial_schedules`."""
    decide = parallel_schedules if case.config.block == "parallel" else serial_schedules
    return decide(case, weights)


def _first(case: LayerSizes) -> LayerSchedules:
    """Those that do not depend on the weights."""
    return LayerSchedules(
        given=case.schedule,
        projections=_projections(case),
        norms_in_hops=norm_cost.sums_overlap(case.layout, case.chip),
    )


def _projections(case: LayerSizes) -> ScheduleLike:
    """See `LayerSchedules.projections`."""
    whole = isinstance(case.layout, WeightGathered) and "all_gather" in case.chip.asynchronous
    return "blocking" if case.auto and whole else case.schedule


def _weight_ring(
    case: LayerSizes, weights: LayerWeights, schedule: ScheduleLike, outgoing: Sequence[str]
) -> ce.Schedule | None:
    """The ring that brings the input and the `outgoing` matrices, where one does.

    A ring schedule that sends full shards does so. "auto" does where the model says that it is
    faster; nowhere if the compiler overlaps full all-gathers with other work.
    """
    # A ring brings columns of experts in no order.
    if case.config.experts is not None or not gathered_columns(case.layout, case.sizes):
        return None
    given = as_schedule(schedule)
    if given is not None:
        shards = given.kind == "ring" and given.direction != "bidirectional"
        return given if shards and given.wire_dtype is None else None
    config = case.config
    columns = {"w_o": config.stored_heads * config.d_head}
    items = [
        item
        for name in (*config.input_names, *outgoing)
        for item in gathered_weight(
            name,
            case.rows,
            config.d_model,
            columns.get(name, config.hidden_columns),
            WEIGHT_AXES,
            "out" if name in outgoing else "in",
            case.layout.batch_axes,
            case.sizes,
            1 if isinstance(weights[name], ce.Quantized) else ACTIVATION_BYTES,
            1 if config.int8_activations else ACTIVATION_BYTES,
        )
    ]
    saved = streamed_cost.saving(items, config.input_names, outgoing, case.sizes, case.chip)
    return None if saved is None else ce.Schedule("ring", "latency")


def _splits_d_ff(case: LayerSizes, weights: LayerWeights) -> bool:
    """Whether "auto" computes a feedforward between layers in two fractions of d_ff.

    It does in token-sharded weight-stationary layouts with two input matrices in 16 bits, where the
    compiler overlaps lax's collectives with matmuls and the model says that it is faster.
    """
    config = case.config
    names = (*config.input_names, "w_out")
    plain = all(values(weights[name]).dtype.itemsize == ACTIVATION_BYTES for name in names)
    single = config.experts is None
    if not (case.auto and plain and single and config.gated and _exchanges_tokens(case.layout)):
        return False
    yz = size(WEIGHT_AXES, case.sizes)
    feedforward = two_part_cost.TokenShardedFeedForward(
        tokens=case.rows * yz,
        d_model=config.d_model // case.sizes["x"],
        d_ff=config.d_ff // yz,
        inputs=len(config.input_names),
        x=(case.sizes["x"],),
        yz=tuple(case.sizes[axis] for axis in WEIGHT_AXES),
        chip=case.chip,
    )
    return two_part_cost.saving(feedforward) > 0


def _expert_rooms(case: LayerSizes, weights: LayerWeights) -> ExpertRooms | None:
    """See `LayerSchedules.rooms`."""
    element_bytes = 1 if isinstance(weights["w_out"], ce.Quantized) else ACTIVATION_BYTES
    tokens = case.batch * case.new
    work = experts_cost.grouped(
        case.config, case.layout, case.sizes, tokens, element_bytes, case.chip
    )
    return None if work is None else work.rooms


def _exchanges_tokens(layout: FeedForwardLayout) -> bool:
    """Whether tokens are sharded over y and z between layers, and over x inside of them."""
    return token_axes(layout) == WEIGHT_AXES and inner_token_axes(layout) == ("x",)


def _load(case: LayerSizes, weights: LayerWeights) -> Load:
    """The workload; `weights` as `serial_schedules`."""
    weight_bytes, keys = values(weights["w_out"]).dtype.itemsize, case.keys
    if keys is None:
        return Load(case.batch, case.new, 0, weight_bytes, ACTIVATION_BYTES)
    return Load(case.batch, case.new, keys.size, weight_bytes, keys.values.dtype.itemsize)


def _overlaps(case: LayerSizes, load: Load) -> Overlaps:
    """The compute that collectives overlap in a parallel block.

    Where SparseCores run lax's all-gathers and reduce-scatters, the latter overlap what does not depend
    on them, attention with its all-to-alls among that; and the all-gathers before the two output
    matrices overlap each other's fixed cost, that before w_o also the matmul of w_out. Elsewhere,
    attention overlaps an all-to-all, in layouts that are token-sharded. None is counted where the
    schedule is given.
    """
    chip, where = case.chip, case.placement
    exchanged = case.layout.moves_tokens and "all_to_all" in chip.asynchronous
    if not case.auto or where is None or not (exchanged or on_sparse_cores(chip)):
        return Overlaps()
    layer = Layer(case.config, case.layout, where, case.sizes, load, case.window)
    items = (*layer.attention(), layer.input_einsum(), layer.w_out_einsum())
    work = independent(case.config, items, case.sizes, chip)
    return Overlaps(
        heads=work.inputs,
        inputs=work.attention + work.exchanges,
        w_o=work.outputs + work.w_out,
        w_out=work.outputs,
    )


def _leaves_outputs(case: LayerSizes, load: Load, overlaps: Overlaps) -> bool:
    """Whether SparseCores gather before the output matrices of a parallel block without chunks: those of
    w_out gain less than `tuning.OUTPUTS_WORTHWHILE`."""
    where, sizes, chip = case.placement, case.sizes, case.chip
    if not case.auto or where is None or not on_sparse_cores(chip):
        return False
    einsum = Layer(case.config, case.layout, where, sizes, load).w_out_einsum()
    return einsum_cost.gain(einsum, sizes, chip, overlaps.w_out) < tuning.OUTPUTS_WORTHWHILE


def _feedforward_last(case: LayerSizes, load: Load, overlap_seconds: float) -> bool:
    """See `LayerSchedules.feedforward_last`.

    The last reduce-scatter over x, and the all-gather after the nonlinearity, are a chain that the
    compiler overlaps with attention as far as that goes. Where attention is much shorter, the
    reduce-scatter overlaps it, and the all-gather overlaps attention's output projection. A
    reduce-scatter that is a ring overlaps its own matmul.

    Args:
      case: the sizes.
      load: the workload.
      overlap_seconds: of attention, which the last reduce-scatter can overlap.
    """
    config, sizes, chip = case.config, case.sizes, case.chip
    x, yz = sizes["x"], size(WEIGHT_AXES, sizes)
    if not overlap_seconds or x == 1:
        return False
    hidden = case.batch * case.new * (config.hidden_columns // yz) * case.activation_bytes
    chain = all_to_all_seconds(chip, [x], hidden) + all_gather_seconds(chip, [x], hidden)
    if chain < tuning.CHAIN_TO_ATTENTION * overlap_seconds:
        return False
    assert case.placement is not None
    einsum = Layer(config, case.layout, case.placement, sizes, load).input_einsum()
    return einsum_cost.schedule(einsum, sizes, chip, overlap_seconds).direction == "async"
