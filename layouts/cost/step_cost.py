"""The analytical model: what a phase costs on a slice under a partitioning, from sizes alone.

Predicted, and built from `work.layer_work`: flops, bytes of HBM and of ICI, and their seconds on a
`Chip`. Einsums and collectives cost what the model behind `schedule="auto"` says (`choice.rank`),
which is bytes over bandwidth as in appendix A.1 of "Efficiently Scaling Transformer Inference"
(arXiv 2211.05102), with the fixed costs of `Chip`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from collective_einsum.chips import Chip, as_chip
from collective_einsum.cost import hops, links, slice_sides
from collective_einsum.text import Shown

from .. import tuning
from ..arguments import check_word
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..mesh.slice_meshes import ShapeLike, as_shape, shape_name
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..partitionings.attention_placement import place
from ..partitionings.feedforward_layout import token_axes
from ..partitionings.param_specs import vocab_axes
from ..partitionings.partitioning import Partitioning, PlanLike, as_plan
from . import einsum_cost, norm_cost
from .item_seconds import transfer_seconds
from .layer_cost import layer_seconds
from .layer_items import ACTIVATION_BYTES, Attention, Einsum, Item, Load, Transfer
from .layer_kinds import layer_kinds
from .memory import Memory, memory
from .workload import padded_load

Overlap = Literal["none", "auto"]


@dataclasses.dataclass(frozen=True)
class Cost(Shown):
    """The cost of one step of a phase, on each chip; of all layers, unless it says otherwise.

    Attributes:
      config, plan, sizes, load, chip: what it is the cost of.
      items: what a layer does; of a model whose layers have several windows, what a layer of each does,
        one after the other.
      overlap: "none" (every collective by itself, as `schedule="blocking"`) or "auto" (hidden
        behind the einsum next to it as far as the schedule that auto would choose hides it).
      sparse_cores: whether the step is compiled with all-gathers on SparseCores, as the decoder's
        functions do for `schedule="auto"` where that is predicted to be faster (v5p, v6e).
      flops: of matmuls and attention.
      weight_bytes, cache_bytes, activation_bytes: moved between the chip and HBM.
      ici_bytes: that a chip sends, by mesh axis; a collective over several axes uses all their
        links, and counts on each in their proportion.
      hops: of all collectives, one after another.
      matmul_seconds: of matmuls, those of `overlap` with what a schedule adds to them.
      attention_seconds: of scores, softmax and values.
      exposed_seconds: of collectives that nothing hides.
      rest_seconds: of what stands between.
      outside_seconds: of embedding and unembedding.
      memory: bytes on a chip.
    """

    config: ModelConfig
    plan: Partitioning
    sizes: Mapping[str, int]
    load: Load
    chip: Chip
    items: tuple[Item, ...]
    overlap: Overlap
    flops: float
    weight_bytes: float
    cache_bytes: float
    activation_bytes: float
    ici_bytes: Mapping[str, float]
    hops: int
    matmul_seconds: float
    attention_seconds: float
    exposed_seconds: float
    rest_seconds: float
    outside_seconds: float
    memory: Memory
    sparse_cores: bool = False

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.sizes.values())

    @property
    def hbm_bytes(self) -> float:
        """Weights, cache and activations."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def seconds(self) -> float:
        """Seconds of the layers."""
        return (
            self.matmul_seconds + self.attention_seconds + self.exposed_seconds + self.rest_seconds
        )

    def __repr__(self) -> str:
        where, load = shape_name(self.sizes), self.load
        return (
            f"Cost({self.config.name}, {load.batch} sequences of {load.new} new positions after "
            f"{load.past}, on {where} {self.chip.name}: {self.seconds * 1e3:.4g} ms)"
        )

    def __str__(self) -> str:
        parts = (
            ("matmuls", self.matmul_seconds),
            ("attention", self.attention_seconds),
            ("exposed communication", self.exposed_seconds),
            ("what stands between", self.rest_seconds),
            ("all layers", self.seconds),
            ("embedding and unembedding", self.outside_seconds),
        )
        memory = f"{self.memory.total / 2**30:.1f} GiB of {self.chip.hbm_bytes / 2**30:.1f} a chip"
        offloaded = ", with all-gathers on SparseCores" if self.sparse_cores else ""
        return "\n".join(
            [
                f"{self!r}, predicted by the analytical model{offloaded}",
                *(f"{name:26}{seconds * 1e3:12.4g} ms" for name, seconds in parts),
                f"MFU {self.mfu:.1%}, {self.chip_seconds_per_token * 1e3:.3g} chip-ms a token, {memory}",
            ]
        )

    @property
    def step_seconds(self) -> float:
        """Seconds of the step: the layers, embedding and unembedding."""
        return self.seconds + self.outside_seconds

    @property
    def flop_seconds(self) -> float:
        """Flops over the chip's peak, that of int8 where activations are: no step is faster."""
        narrow = self.config.int8_activations and self.load.weight_bytes == 1
        peak = self.chip.int8_ops if narrow else self.chip.bf16_flops
        return self.flops / max(peak, self.chip.bf16_flops)

    @property
    def hbm_seconds(self) -> float:
        """Weights and cache over the bandwidth of HBM: no step is faster."""
        return (self.weight_bytes + self.cache_bytes) / self.chip.hbm_bandwidth

    @property
    def limit_seconds(self) -> float:
        """The longer of the two."""
        return max(self.hbm_seconds, self.flop_seconds)

    @property
    def ici_seconds(self) -> float:
        """Bytes over the links' bandwidth, and hops; the links of different axes do not share."""
        per_axis = (
            moved / (links(self.chip, self.sizes[axis]) * self.chip.device_link_bandwidth)
            for axis, moved in self.ici_bytes.items()
        )
        return max(per_axis, default=0.0) + self.hops * self.chip.hop_seconds

    @property
    def mfu(self) -> float:
        """Flops of the parameters that a token uses, without padding and embedding, over what all chips
        could do in the seconds of the layers (section 2, "Inference cost tradeoffs")."""
        flops = 2 * self.config.active_layer_parameters * self.load.tokens
        return flops / (self.chips * self.chip.bf16_flops * self.seconds)

    @property
    def chip_seconds_per_token(self) -> float:
        """Chips times seconds of the layers, over the tokens of the step: the cost of figure 1."""
        return self.chips * self.seconds / self.load.tokens

    @property
    def fits(self) -> bool:
        """Whether a chip's HBM holds it."""
        return self.memory.total <= self.chip.hbm_bytes


def cost(
    config: ModelConfig | str,
    plan: PlanLike,
    sizes: ShapeLike,
    asked: Load,
    chip: Chip | str,
    overlap: Overlap = "auto",
) -> Cost:
    """The cost of one step, at the sizes that the decoder pads to; see `padded_sizes`.

    Args:
      config: the model.
      plan: the layouts, as `layouts.decode_step` takes them.
      sizes: of the mesh axes x, y and z, a dict, a tuple or a mesh.
      asked: what the step has to do; see `load`.
      chip: whose peaks and constants to reckon with.
      overlap: see `Cost`.

    Raises:
      ValueError: the mesh does not divide the model's heads.
    """
    if not isinstance(asked, Load):
        raise ValueError(f"asked={asked!r} is no Load; make it with layouts.cost.load(phase, ...)")
    check_word("overlap", overlap, get_args(Overlap))
    config, plan, chip = as_config(config), as_plan(plan), as_chip(chip)
    sizes = as_shape("sizes", sizes)
    padded = padded_load(asked, config, plan, sizes)
    kinds = layer_kinds(config, plan, sizes, padded, chip)

    def on(chip: Chip) -> _Parts:
        each = [_parts(config, plan, k.items, sizes, padded, chip, overlap) for k in kinds]
        columns = zip(*each, strict=True)
        return _Parts(*(sum(k.count * x for k, x in zip(kinds, c, strict=True)) for c in columns))

    parts, gains = on(chip), False
    if overlap == "auto" and _may_use_sparse_cores(plan, sizes, chip):
        offloaded = on(chip.with_sparse_cores())
        gains = sum(parts) >= (1 + tuning.OFFLOAD_WORTHWHILE) * sum(offloaded)
        # The faster ones, though a step takes the others for less than `OFFLOAD_WORTHWHILE`: with that
        # threshold, more work could be predicted to take less time.
        parts = min(parts, offloaded, key=sum)
    moved = [ici_bytes(k.items, sizes, chip) for k in kinds]
    return Cost(
        config=config,
        plan=plan,
        sizes=dict(sizes),
        load=asked,
        chip=chip,
        items=tuple(item for k in kinds for item in k.items),
        overlap=overlap,
        flops=sum(n * _total(items, "flops") for n, items in kinds),
        weight_bytes=sum(n * _streamed_bytes(items, Einsum) for n, items in kinds),
        cache_bytes=sum(n * _streamed_bytes(items, Attention) for n, items in kinds),
        activation_bytes=sum(n * _total(items, "activation_bytes") for n, items in kinds),
        ici_bytes={
            axis: sum(k.count * by_axis[axis] for k, by_axis in zip(kinds, moved, strict=True))
            for axis in AXES
        },
        hops=sum(n * _hops(t, sizes, chip) for n, items in kinds for t in transfers(items)),
        matmul_seconds=parts.matmul,
        attention_seconds=parts.attention,
        exposed_seconds=parts.exposed,
        rest_seconds=parts.rest,
        outside_seconds=_outside_seconds(config, sizes, padded, chip),
        memory=memory(config, plan, sizes, padded, kinds[0].items),
        sparse_cores=gains,
    )


class _Parts(NamedTuple):
    """Seconds of a layer, or of all; see `Cost`."""

    matmul: float
    attention: float
    exposed: float
    rest: float


def _parts(
    config: ModelConfig,
    plan: Partitioning,
    items: tuple[Item, ...],
    sizes: Mapping[str, int],
    padded: Load,
    chip: Chip,
    overlap: Overlap,
) -> _Parts:
    """The seconds of a layer, for what the options of this chip make asynchronous."""
    layer = layer_seconds(config, items, sizes, chip, overlap)
    passed = tuning.ACTIVATION_PASSES * layer.activation_bytes + layer.moved_bytes
    passed += norm_cost.replicated_bytes(config, plan.feedforward, sizes, padded.tokens)
    rest = tuning.LAYER_SECONDS + passed / chip.vector_bandwidth
    if padded.weight_bytes == 1:
        matrices = sum(len(item.f) for item in items if isinstance(item, Einsum))
        rest += matrices * tuning.SCALE_SECONDS
    served = chip.under_options()
    waits = norm_cost.waiting_seconds(
        config, plan.feedforward, sizes, padded.tokens, served, overlap
    )
    where = place(config, plan.feedforward, plan.attention, sizes)
    heads = norm_cost.query_key_seconds(config, where, sizes, padded, served, overlap)
    exposed = layer.exposed + waits + heads.waits
    return _Parts(layer.matmul, layer.attention, exposed, rest + heads.rest)


def _may_use_sparse_cores(plan: Partitioning, sizes: Mapping[str, int], chip: Chip) -> bool:
    """Whether options let SparseCores run all-gathers that other work of a step can overlap; not where
    these bring tokens over several axes, as `tuning.SPARSE_CORE_AXES` says."""
    split = token_axes(plan.feedforward)
    over = [axis for axis in WEIGHT_AXES if axis in split and sizes[axis] > 1]
    return bool(chip.sparse_core_options) and len(over) <= tuning.SPARSE_CORE_AXES


def transfers(items: tuple[Item, ...]) -> list[Transfer]:
    """All collectives, those before and after einsums included."""
    collectives: list[Transfer] = []
    for item in items:
        if isinstance(item, Einsum):
            collectives += item.transfers
        elif isinstance(item, Transfer):
            collectives.append(item)
    return collectives


def ici_bytes(items: tuple[Item, ...], sizes: Mapping[str, int], chip: Chip) -> dict[str, float]:
    """Bytes that a chip sends, by axis."""
    by_axis = dict.fromkeys(AXES, 0.0)
    for transfer in transfers(items):
        shares = {axis: links(chip, sizes[axis]) for axis in transfer.axes}
        for axis, share in shares.items():
            by_axis[axis] += transfer.sent_bytes * share / sum(shares.values())
    return by_axis


def _hops(transfer: Transfer, sizes: Mapping[str, int], chip: Chip) -> int:
    once = hops(chip, slice_sides(chip, sizes, transfer.axes))
    return once * (2 if transfer.kind == "all-reduce" else 1)


def _outside_seconds(
    config: ModelConfig, sizes: Mapping[str, int], asked: Load, chip: Chip
) -> float:
    """The embedding's sums over chips, and the logits of the last positions."""
    axes = tuple(axis for axis in AXES if sizes[axis] > 1)
    rows = asked.tokens * config.d_model * ACTIVATION_BYTES
    embedding = 0.0
    if axes:
        sums = Transfer("embedded", "reduce-scatter", axes, size(axes, sizes), rows)
        last = dataclasses.replace(sums, kind="all-gather", bytes=rows / asked.new)
        embedding = sum(transfer_seconds(transfer, sizes, chip) for transfer in (sums, last))
    tokens = config.stored_vocab // size(vocab_axes(config, sizes), sizes)
    logits = Einsum(
        ("unembedding",), asked.batch, config.d_model, (tokens,), asked.weight_bytes, None
    )
    return embedding + einsum_cost.seconds(logits, sizes, chip, "none").compute


def _streamed_bytes(items: tuple[Item, ...], kind: type[Einsum | Attention]) -> float:
    return sum(item.streamed_bytes for item in items if isinstance(item, kind))


def _total(items: tuple[Item, ...], name: str) -> float:
    return math.fsum(getattr(item, name, 0.0) for item in items)
