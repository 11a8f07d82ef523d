"""The abilities of a chip: arithmetic, memory and links. `known_chips` holds those that are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .compiler_habits import CompilerHabits
from .memory_passes import memory_passes
from .observations import Observations, PassKind, observed


@dataclass(frozen=True, kw_only=True)
class Chip(CompilerHabits):
    """One accelerator chip, or the half of one that is a device, and its links: a value, hashable.

    These fields are data-sheet numbers. Those that `CompilerHabits` adds say which collectives the
    chip's compiler overlaps; what it makes of dots and memory passes is in the file that `observed`
    names. `dataclasses.replace(TPU_V4, ...)` makes a chip of your own.

    Attributes:
      name: the chip's name in tables and messages, such as "TPU v4".
      bf16_flops: peak flop/s of a bf16 dot; a multiply-add is two flops.
      int8_ops: peak op/s of an int8 x int8 dot; `bf16_flops` where int8 is no faster.
      f32_default_flops: peak flop/s of an f32 dot at `Precision.DEFAULT`. On a TPU it is one bf16
        dot.
      f32_high_flops: at `Precision.HIGH`. On a TPU it is three bf16 dots.
      f32_flops: at `Precision.HIGHEST`. On a TPU it is six bf16 dots.
      hbm_bytes: capacity of HBM, in bytes.
      hbm_bandwidth: peak HBM bandwidth, in bytes/s.
      link_bandwidth: bytes/s that one link carries in one direction.
      torus_dims: dimensions of the torus, with two links of each chip along each; 0 for a switch,
        over which one link of a chip reaches every other chip.
      hbm_efficiency: fraction of `hbm_bandwidth` that programs reach.
      hbm_fill_seconds: seconds of an operation that streams from HBM beside its bytes: before the
        first window has arrived, and after the last one.
      hop_seconds: latency of a link, in seconds, of each hop.
      permute_seconds: fixed cost of a permute besides its hops, in seconds, from its start to when
        what waits for it goes on.
      collective_seconds: the same of one of the compiler's own collectives.
      wrap_multiple: an axis of the slice closes into a ring when its size is a multiple of this.
      clock_hz: cycles/s of the cores.
      vmem_bytes: software-managed vector memory, in bytes, over all cores of the chip.
      cmem_bytes: on-chip memory shared by the cores, in bytes; 0 where there is none.
      fp8_flops: peak flop/s of an fp8 dot; 0 where it is no faster than a bf16 dot.
      devices_per_chip: devices of jax on one chip, which share its links. Where it is 2, the other
        fields are those of a device, half a chip; but `link_bandwidth` is that of the chip's link.
      die_bandwidth: bytes/s one way between the two devices of a chip; 0 where a chip is a device.
      observed: the chip's name in the files of what compilers were observed to make of its dots and
        memory passes, such as "v4"; "" where there are none: dots run at the peaks, and the passes that
        schedules add cost nothing.
      offload_seconds: fixed cost of a collective that SparseCores run, besides `collective_seconds`.
    """

    name: str
    bf16_flops: float
    int8_ops: float
    f32_default_flops: float
    f32_high_flops: float
    f32_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    hbm_efficiency: float
    hbm_fill_seconds: float
    link_bandwidth: float
    torus_dims: int
    hop_seconds: float
    permute_seconds: float
    collective_seconds: float
    wrap_multiple: int
    clock_hz: float
    vmem_bytes: int
    cmem_bytes: int
    fp8_flops: float = 0.0
    devices_per_chip: int = 1
    die_bandwidth: float = 0.0
    offload_seconds: float = 0.0
    observed: str = ""

    @property
    def observations(self) -> Observations | None:
        """What the installed libtpu makes of dots on this chip, as the nearest version that was observed
        does (`Observations.compiler` says which; the newest where libtpu is not installed). None for a
        chip whose compiler was not observed."""
        return observed(self.observed) if self.observed else None

    @property
    def vector_bandwidth(self) -> float:
        """Bytes/s, read and written together, of a pass over memory that adds two arrays; those of HBM
        for a chip whose compiler was not observed."""
        passes = memory_passes(self.observed)
        return passes.bandwidth if passes else self.reached_hbm_bandwidth

    @property
    def transposes_scatter(self) -> bool:
        """Whether the compiler transposes a dot's result whose columns are scattered where its rows fill
        their tiles as well; see `MemoryPasses`."""
        passes = memory_passes(self.observed)
        return passes is not None and passes.transposes_scatter

    @property
    def copies_during_hop(self) -> bool:
        """Whether the compiler copies int8 weights for a ring's dots while its first hop is under way;
        see `MemoryPasses`."""
        passes = memory_passes(self.observed)
        return passes is not None and passes.copies_during_hop

    def pass_seconds(self, kind: PassKind, size: float, arrays: float = 1) -> float:
        """Seconds of a memory pass over arrays of `size` bytes in all, as `PassObservation` names and
        counts them; 0.0 for a chip whose compiler was not observed."""
        passes = memory_passes(self.observed)
        return passes.seconds(kind, size, arrays) if passes else 0.0

    @property
    def on_chip_bytes(self) -> int:
        """Bytes of memory on the chip that hold operands: `vmem_bytes` and `cmem_bytes`."""
        return self.vmem_bytes + self.cmem_bytes

    @property
    def reached_hbm_bandwidth(self) -> float:
        """Bytes/s of HBM that programs reach."""
        return self.hbm_efficiency * self.hbm_bandwidth

    @property
    def device_link_bandwidth(self) -> float:
        """Bytes/s one way that a device has of a link while all devices of its chip send over it."""
        return self.link_bandwidth / self.devices_per_chip

    def under_options(self) -> Chip:
        """The chip, `asynchronous` holding what its compiler overlaps under `compiler_options`."""
        both = tuple(dict.fromkeys((*self.asynchronous, *self.asynchronous_by_options)))
        return replace(self, asynchronous=both)

    def with_sparse_cores(self) -> Chip:
        """The chip, `sparse_core_options`, if it has any, being among its `compiler_options`."""
        if not self.sparse_core_options:
            return self
        return replace(
            self,
            asynchronous_by_options=(*self.asynchronous_by_options, "all_gather"),
            compiler_options=(*self.compiler_options, *self.sparse_core_options),
            sparse_core_options=(),
            sparse_core_queue_options=(),
        )

    def with_sparse_core_queue(self) -> Chip:
        """The chip, `sparse_core_queue_options`, if it has any, being among its `compiler_options`.

        Schedules are chosen as without them: rings go beside SparseCores, which have the weights.
        """
        return replace(
            self,
            compiler_options=(*self.compiler_options, *self.sparse_core_queue_options),
            sparse_core_options=(),
            sparse_core_queue_options=(),
        )

    def wraps(self, axis_size: int) -> bool:
        """Whether a mesh axis of `axis_size` chips closes into a ring; if not, it is a line.

        This axis alone decides. On v4 and v5p the other sides of the slice must be multiples of four
        too: a 2x2x4 slice has no wrap-around links at all. One chip needs no link.

        Raises:
          ValueError: if `axis_size` is not positive.
        """
        if axis_size < 1:
            raise ValueError(f"a mesh axis has at least one chip; axis_size is {axis_size}")
        return axis_size == 1 or axis_size % self.wrap_multiple == 0
