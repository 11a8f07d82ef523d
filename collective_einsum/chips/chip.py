"""What a chip can do: arithmetic, memory and links. The chips that are known are in `chips`."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip and the links that leave it: a value, hashable.

    The fields up to `cmem_bytes` are data-sheet numbers. Those after it are how the compiler
    behaves and what a dot costs by its account; they refine a choice and never enter a bound.
    `dataclasses.replace` makes a chip of your own.

    Attributes:
      name: name for people, such as "TPU v4".
      bf16_flops: peak bf16 matmul flop/s, a multiply-add being two flops.
      int8_ops: peak op/s of an int8 x int8 dot; `bf16_flops` where int8 is no faster.
      f32_default_flops: peak flop/s of an f32 dot at `Precision.DEFAULT`. On a TPU it is one bf16
        dot.
      f32_high_flops: at `Precision.HIGH`. On a TPU it is three bf16 dots.
      f32_flops: at `Precision.HIGHEST`. On a TPU it is six bf16 dots.
      hbm_bytes: capacity of HBM, in bytes.
      hbm_bandwidth: peak HBM bandwidth, in bytes/s.
      link_bandwidth: bytes/s that one link carries in one direction.
      torus_dims: torus dimensions, each with two links a chip; 0 for a switch, where the one link
        of a chip reaches every other.
      hop_seconds: latency of one neighbour-to-neighbour transfer, in seconds.
      wrap_multiple: an axis of the slice closes into a ring when its size is a multiple of this.
      clock_hz: cycles/s of the cores.
      vmem_bytes: software-managed vector memory, in bytes, over all cores of the chip.
      cmem_bytes: on-chip memory shared by the cores, in bytes; 0 where there is none.
      asynchronous: which of lax's collectives ("all_gather", "reduce_scatter", "all_to_all",
        "all_reduce") the compiler, by its default options, runs beside an independent dot; where it
        does not, only permutes overlap.
      asynchronous_by_options: which others it does under `compiler_options`.
      compiler_options: names and values; see `collective_einsum.compiler_options`.
      no_prefetch_options: further ones, which keep it from bringing what the next run of a program
        reads first into on-chip memory at the end of a run.
      dot_fill_seconds: fixed cost of a dot, before its pipeline is full, in seconds. A dot takes
        this, plus the longer of its flops over `dot_efficiency * bf16_flops` and its larger operand
        over `stream_efficiency * hbm_bandwidth` with the rest over `vector_bandwidth`.
      dot_fill_bandwidth: bytes/s at which a dot of many rows first loads its larger operand.
      dot_efficiency: fraction of the peak that each further row of a dot runs at.
      stream_efficiency: fraction of `hbm_bandwidth` at which a dot reads its larger operand.
      vector_bandwidth: bytes/s, read and written together, of an elementwise pass or a copy.
      int8_convert_rate: elements/s at which int8 weights are widened to bf16 for a bf16 dot.
      int8_slice_passes: how often int8 weights are read and written when rows of them are sliced.
      sum_bytes: size of the largest sum in 32 bits that stays on the chip from one dot that adds to
        it to the next; a larger one goes through HBM beside the arithmetic.
      large_sum_bytes: sizes of the largest sum that costs a dot no more than that, where the rows
        are of the operand that travels, and where they are of the one that stays.
      sum_bandwidth: bytes/s at which a dot reads a larger one, in addition to its own time.
      remote_dot_waits: share of its arithmetic for which a dot waits whose smaller operand comes
        from HBM; that of a collective, or of another dot before, is on the chip.
      scatter_passes: how often a result is read and written when lax scatters its last dimension in
        blocks that are no whole number of tiles' lanes: blocks of whole tiles, others, and as a
        dimension of their own.
      scatter_fill_seconds: fixed cost of that, in seconds.
      exchange_passes: likewise how often, in blocks of the last dimension that an all-to-all moves.
      turns_lanes: whether the compiler turns such a result, so that its scatter stays one; else
        that is an all-reduce and a slice.
    """

    name: str
    bf16_flops: float
    int8_ops: float
    f32_default_flops: float
    f32_high_flops: float
    f32_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    torus_dims: int
    hop_seconds: float
    wrap_multiple: int
    clock_hz: float
    vmem_bytes: int
    cmem_bytes: int
    asynchronous: tuple[str, ...]
    asynchronous_by_options: tuple[str, ...]
    compiler_options: tuple[tuple[str, bool | int | str], ...]
    no_prefetch_options: tuple[tuple[str, bool | int | str], ...]
    dot_fill_seconds: float
    dot_fill_bandwidth: float
    dot_efficiency: float
    stream_efficiency: float
    vector_bandwidth: float
    int8_convert_rate: float
    int8_slice_passes: float
    sum_bytes: int
    large_sum_bytes: tuple[int, int]
    sum_bandwidth: float
    remote_dot_waits: float
    scatter_passes: tuple[float, float, float]
    scatter_fill_seconds: float
    exchange_passes: float
    turns_lanes: bool

    def under_options(self) -> Chip:
        """The chip as its compiler serves programs that are compiled under `compiler_options`."""
        both = tuple(dict.fromkeys((*self.asynchronous, *self.asynchronous_by_options)))
        return replace(self, asynchronous=both)

    def wraps(self, axis_size: int) -> bool:
        """Whether a mesh axis of `axis_size` chips closes into a ring; else it is a line.

        Judged from this axis alone. On v4 and v5p the slice's other sides must be multiples of
        four too (a 2x2x4 slice has no wrap-around links at all). One chip needs no link.

        Raises:
          ValueError: if `axis_size` is not positive.
        """
        if axis_size < 1:
            raise ValueError(f"a mesh axis has at least one chip; axis_size is {axis_size}")
        return axis_size == 1 or axis_size % self.wrap_multiple == 0
