"""How a chip's compiler treats dots and collectives: the figures that refine a predicted cost."""

from __future__ import annotations

from dataclasses import dataclass

# The value of an XLA option.
CompilerOption = bool | int | str


@dataclass(frozen=True, kw_only=True)
class CompilerFigures:
    """How a chip's compiler treats dots and collectives, as far as the cost model reads it.

    The figures refine predictions and choices; no bound depends on them. The model's formulas are in
    `collective_einsum.cost`; a "memory pass" reads and writes an array once, in a copy or an
    elementwise operation.

    Attributes:
      asynchronous: the collectives of lax ("all_gather", "reduce_scatter", "all_to_all",
        "all_reduce") that the compiler, by its default options, overlaps with independent dots. Of
        the others, only those made of permutes overlap.
      asynchronous_by_options: further ones that it overlaps under `compiler_options`.
      compiler_options: names and values; see `collective_einsum.compiler_options`.
      no_prefetch_options: further options, under which a program does not end with a copy into
        on-chip memory of what its next run reads first.
      vector_bandwidth: bytes/s, read and written together, of a memory pass.
      int8_slice_passes: memory passes over int8 weights that a ring slices by rows.
      sum_bytes: size in bytes of the largest 32-bit sum that stays in on-chip memory between two
        dots that add to it; a larger one is read from and written to HBM while the dot computes.
      large_sum_bytes: sizes in bytes of the largest 32-bit sum that a ring's dot adds to at no
        further cost: where the operand that moves has the rows, and where the other one has.
      sum_bandwidth: bytes/s at which a ring's dot reads a larger sum, added to the dot's own time.
      remote_dot_waits: time that a dot waits for a smaller operand in HBM, as a fraction of its
        arithmetic. The operand that a collective or another dot made is in on-chip memory.
      scatter_passes: memory passes over a result when lax scatters its last dimension and a row of
        a block is no multiple of 512 bytes: with blocks of full tiles, with other blocks, and with
        blocks that are a dimension of their own.
      scatter_fill_seconds: fixed cost of such a scatter, in seconds.
      exchange_passes: memory passes over a result whose last dimension an all-to-all scatters.
      transposes_scatter: whether the compiler transposes such a result and scatters it where its rows
        fill their tiles as well as its columns; if not, it makes an all-reduce and a slice, which move
        twice the bytes.
      sparse_core_options: further options, under which SparseCores run all-gathers, asynchronously; not
        in `compiler_options`, since a gather that nothing overlaps takes `offload_seconds` longer.
    """

    asynchronous: tuple[str, ...]
    asynchronous_by_options: tuple[str, ...]
    compiler_options: tuple[tuple[str, CompilerOption], ...]
    no_prefetch_options: tuple[tuple[str, CompilerOption], ...]
    vector_bandwidth: float
    int8_slice_passes: float
    sum_bytes: int
    large_sum_bytes: tuple[int, int]
    sum_bandwidth: float
    remote_dot_waits: float
    scatter_passes: tuple[float, float, float]
    scatter_fill_seconds: float
    exchange_passes: float
    transposes_scatter: bool
    sparse_core_options: tuple[tuple[str, CompilerOption], ...] = ()
