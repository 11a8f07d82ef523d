"""Seconds of a layer's matmuls, attention and collectives, and which collectives stay exposed.

The items of a layer run on two clocks: one of the chip, and one of the links that bring weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from collective_einsum.chips import Chip

from ..models.config import ModelConfig
from ..tuning import WIDE_SCATTER_PASSES
from . import einsum_cost, streamed_cost, two_part_cost
from .item_seconds import on_sparse_cores, transfer_seconds
from .layer_items import EXPERTS_TOKENS, Attention, Copies, Einsum, Item, Transfer
from .overlaps import independent, input_einsums

HEADS = ("w_q", "w_kv")
OUTPUTS = ("w_o", "w_out")
# Transfers to attention, which a parallel block's matmuls can overlap.
TO_ATTENTION = ("queries", "keys and values")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSeconds:
    """Seconds of a layer, but for its norms and sums.

    Attributes:
      matmul: seconds of matmuls, with what their schedules add to them.
      attention: seconds of scores, softmax and values.
      exposed: seconds of collectives that nothing overlaps.
      activation_bytes: bytes that matmuls read and write, weights excepted.
      moved_bytes: bytes that memory passes around collectives read and write.
    """

    matmul: float
    attention: float
    exposed: float
    activation_bytes: float
    moved_bytes: float


def layer_seconds(
    config: ModelConfig,
    items: tuple[Item, ...],
    sizes: Mapping[str, int],
    chip: Chip,
    overlap: str,
) -> LayerSeconds:
    """Seconds of the items of a layer; `overlap` as in `cost.Cost`."""
    clocks = _Clocks(config, items, sizes, chip, overlap)
    for item in _combined(_as_run(items, clocks.late_inputs)):
        clocks.run(item)
    matmul, exposed, served = clocks.matmul, clocks.exposed, clocks.served
    # Experts' columns are neither split nor brought by a ring.
    mixed = config.experts is not None
    if overlap == "auto" and not mixed and not clocks.gathers_weights_ahead:
        out = streamed_cost.outgoing(config)
        inputs = config.input_names
        saved = streamed_cost.saving(items, inputs, out, sizes, chip, worthwhile=0.0)
        if saved is not None:
            matmul, exposed = matmul - saved.compute, exposed - saved.exposed
    if overlap == "auto" and not mixed:
        exposed -= two_part_cost.layer_saving(config, items, sizes, served)
    return LayerSeconds(
        matmul=matmul,
        attention=clocks.attention,
        exposed=exposed,
        activation_bytes=clocks.activation_bytes,
        moved_bytes=clocks.moved_bytes,
    )


class _Clocks:
    """The chip's clock and the links', while the items of a layer run one after another.

    Weights are in memory from the start: where the compiler makes lax's all-gathers asynchronous, the
    links bring weights ahead of the chip, whatever it is at. All other collectives start once the chip
    has what they send.

    Attributes:
      served: the chip, as its compiler serves a program of this `overlap`.
      gathers_weights_ahead: whether the links bring weights ahead.
      overlaps_attention: whether attention and a parallel block's feedforward overlap each other's
        collectives.
      on_sparse_cores: whether SparseCores run lax's all-gathers and reduce-scatters of a parallel block,
        each of which overlaps what does not depend on it.
      attention: seconds of attention.
      now, links: seconds at which the chip, and the links with weights, are done.
      independent: the work of a parallel block that collectives can overlap.
      spare: seconds of its attention and exchanges that nothing overlaps yet.
      beside: the same of the matmuls of a feedforward beside the experts, which overlap the all-to-alls
        of these; see `dispatched_experts`.
      matmul, exposed, activation_bytes, moved_bytes: as `LayerSeconds`.
    """

    def __init__(
        self,
        config: ModelConfig,
        items: tuple[Item, ...],
        sizes: Mapping[str, int],
        chip: Chip,
        overlap: str,
    ) -> None:
        parallel = config.block == "parallel"
        self.sizes, self.chip, self.overlap = sizes, chip, overlap
        self.served = chip.under_options() if overlap == "auto" else chip
        self.gathers_weights_ahead = "all_gather" in self.served.asynchronous
        self.overlaps_attention = parallel and bool(self.served.asynchronous)
        self.late_inputs = config.input_names if parallel and self.gathers_weights_ahead else ()
        self.on_sparse_cores = parallel and on_sparse_cores(self.served)
        einsums = [item for item in items if isinstance(item, Einsum)]
        self.outputs = [item for item in einsums if item.names[0] in OUTPUTS]
        self.inputs = input_einsums(config, items)
        self.independent = independent(config, items, sizes, self.served)
        self.attention = self.independent.attention
        overlapped = self.attention + self.independent.exchanges
        self.spare = overlapped if self.overlaps_attention else 0.0
        exchanges = "all_to_all" in self.served.asynchronous
        self.beside = self._beside(config, einsums) if exchanges else 0.0
        self.now = self.links = 0.0
        self.matmul = self.exposed = self.activation_bytes = self.moved_bytes = 0.0

    def _beside(self, config: ModelConfig, einsums: Iterable[Einsum]) -> float:
        own = {*config.shared_input_names, *config.output_names[1:]}
        return sum(
            einsum_cost.seconds(einsum, self.sizes, self.served, "none").compute
            for einsum in einsums
            if own.issuperset(einsum.names)
        )

    def run(self, item: Item) -> None:
        """Runs the next item."""
        waits = 0.0
        if isinstance(item, Einsum):
            waits = self._einsum(item)
        elif isinstance(item, Transfer):
            waits = self._transfer(item)
        elif isinstance(item, Copies):
            self.moved_bytes += item.bytes
        else:
            self.now += self.attention
        self.exposed += waits
        self.now += waits

    def _einsum(self, item: Einsum) -> float:
        """The seconds for which an einsum's collectives hold the chip up."""
        ahead = item.gathers_weight and self.gathers_weights_ahead
        spent = self._priced(item, "none" if ahead else self.overlap)
        self.matmul += spent.compute
        self.activation_bytes += item.activation_bytes
        self.now += spent.compute
        if not ahead:
            return spent.exposed
        self.links += spent.exposed
        return max(0.0, self.links - (self.now - spent.compute))

    def _priced(self, item: Einsum, overlap: str) -> einsum_cost.Seconds:
        """The einsum's seconds, with attention and other matrices to overlap where tokens are what its
        collectives split, or SparseCores run them."""
        mates = overlapping = 0.0
        if item.moves_tokens or self.on_sparse_cores or self._gathers_alone(item):
            mates = self._mates(item) if self.overlaps_attention else 0.0
            waited_for = self.on_sparse_cores and item not in self.inputs
            overlapping = mates if waited_for else mates + self.spare
        spent = einsum_cost.seconds(item, self.sizes, self.served, overlap, overlapping)
        if overlapping:
            # Collectives that overlap attention already leave the rest of it for others.
            alone = einsum_cost.seconds(item, self.sizes, self.served, overlap, mates)
            self.spare = max(0.0, self.spare - (sum(alone) - sum(spent)))
        return spent

    def _gathers_alone(self, item: Einsum) -> bool:
        """Whether an einsum with one of the output matrices has a gather of features, of those that
        lax makes asynchronously, and no scatter."""
        alone = item in self.outputs and item.scatter is None and not item.gathers_weight
        return self.gathers_weights_ahead and alone

    def _mates(self, item: Einsum) -> float:
        """Seconds of other matrices that can overlap this one's collectives: the other output matrix, or
        what `independent` says where SparseCores run them."""
        others = [other for other in self.outputs if item in self.outputs and other is not item]
        if self.on_sparse_cores:
            heads = self.independent.inputs if item.names == HEADS else 0.0
            fixed = self.independent.outputs if others else heads
            return fixed + (self.independent.w_out if item.names == ("w_o",) else 0.0)
        return sum(einsum_cost.seconds(i, self.sizes, self.served, "none").compute for i in others)

    def _transfer(self, item: Transfer) -> float:
        """The seconds for which a collective by itself holds the chip up."""
        waits, seconds = 0.0, transfer_seconds(item, self.sizes, self.chip)
        overlapped = (
            self.overlaps_attention
            and item.name in TO_ATTENTION
            and "all_to_all" in self.served.asynchronous
        )
        if item.of_weight and self.gathers_weights_ahead:
            self.links += seconds
        elif not overlapped:
            hidden = min(self.beside, seconds) if item.name == EXPERTS_TOKENS else 0.0
            waits, self.beside = seconds - hidden, self.beside - hidden
            self.links = max(self.links, self.now) + seconds
        if item.of_lanes and self.chip.torus_dims:
            moving = self.chip.pass_seconds("move", item.bytes)
            self.moved_bytes += moving * self.chip.vector_bandwidth
            if len(item.axes) > 1 and item.bytes > self.chip.cmem_bytes:
                self.moved_bytes += WIDE_SCATTER_PASSES * item.bytes
        return waits


def _as_run(items: tuple[Item, ...], feeds: tuple[str, ...]) -> list[Item]:
    """The items in the order of the compiled program: `feeds`, a parallel block's inputs of the
    feedforward, come after attention if they stand alone."""

    def late(item: Item) -> bool:
        if isinstance(item, Attention):
            return False
        return set(item.names if isinstance(item, Einsum) else (item.name,)) <= set(feeds)

    last = max((i for i, item in enumerate(items) if isinstance(item, Attention)), default=-1)
    before = items[: last + 1]
    early = [item for item in before if not late(item)]
    return [*early, *filter(late, before), *items[last + 1 :]]


def _combined(items: Iterable[Item]) -> list[Item]:
    """The items, all-reduces in a row as the one that compilers make of them."""
    combined: list[Item] = []
    for item in items:
        # H9 in docs/compiler.md.
        last = combined[-1] if combined else None
        if isinstance(item, Transfer) and isinstance(last, Transfer) and item.joins(last):
            item = dataclasses.replace(last, bytes=last.bytes + item.bytes)
            combined.pop()
        combined.append(item)
    return combined
