"""Which collectives a chip's compiler overlaps with compute, how, and under which options."""

from __future__ import annotations

from dataclasses import dataclass

# The value of an XLA option.
CompilerOption = bool | int | str


@dataclass(frozen=True, kw_only=True)
class CompilerHabits:
    """Which collectives a chip's compiler overlaps with compute, how, and under which options.

    Attributes:
      asynchronous: the collectives of lax ("all_gather", "reduce_scatter", "all_to_all",
        "all_reduce") that the compiler, by its default options, overlaps with independent dots. Of
        the others, only those made of permutes overlap.
      asynchronous_by_options: further ones that it overlaps under `compiler_options`.
      compiler_options: names and values; see `collective_einsum.compiler_options`.
      no_prefetch_options: further options, under which a program does not end with a copy into
        on-chip memory of what its next run reads first.
      weights_ahead_options: further options, under which weights that are arrays of their own are copied
        into on-chip memory earlier, while collectives before their matmul are under way, and whole: for
        steps of few tokens that wait for HBM.
      sparse_core_options: further options, under which SparseCores run all-gathers, asynchronously; not
        in `compiler_options`, since a gather that nothing overlaps takes `offload_seconds` longer.
      sparse_core_queue_options: further options, under which SparseCores run all-gathers and
        reduce-scatters one after another, while later ones queue behind them: for programs that gather
        weights and scatter their gradients.
      sparse_cores_queue: whether the collectives that SparseCores are given while they run one are
        taken to run one after another; if not, to share the links.
      starts_hops_early: whether the compiler starts the hops of an all-gather's ring, where it sends
        both ways, two dots before they must have arrived, so that the dots of both directions hide
        them; if not, one dot before.
      copies_second_shard: whether, of the shards that arrive from both directions of an all-gather's
        ring, the compiler copies the second into on-chip memory during the dot of the first, as it does
        not with those of one direction.
      widens_in_rows: whether dots of int8 weights are faster where what was gathered from parts of tiles
        of lanes, which the compiler lays out in columns, is laid out in rows before them.
    """

    asynchronous: tuple[str, ...]
    asynchronous_by_options: tuple[str, ...]
    compiler_options: tuple[tuple[str, CompilerOption], ...]
    no_prefetch_options: tuple[tuple[str, CompilerOption], ...]
    weights_ahead_options: tuple[tuple[str, CompilerOption], ...] = ()
    sparse_core_options: tuple[tuple[str, CompilerOption], ...] = ()
    sparse_core_queue_options: tuple[tuple[str, CompilerOption], ...] = ()
    sparse_cores_queue: bool = False
    starts_hops_early: bool = False
    copies_second_shard: bool = False
    widens_in_rows: bool = False
