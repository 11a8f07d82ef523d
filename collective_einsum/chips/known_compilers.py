"""Which collectives the compilers of known chips overlap with compute, how, and under which options.

All of it was seen with libtpu 0.0.42.1 and 0.0.50.1. What compilers make of dots and memory passes is in
the files that `observations` reads.
"""

from __future__ import annotations

from dataclasses import replace

from .compiler_habits import CompilerHabits

# No program's operands reach this size, so no einsum of the user's becomes a loop of permutes ("windowed
# einsum"), by which most programs are slower: H21 in docs/compiler.md.
NO_WINDOWED_EINSUM = (("xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000"),)
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
_GATHERS_ON_SPARSE_CORES = tuple(
    (f"{_OFFLOAD}{gather}", True) for gather in ("all_gather", "2d_all_gather", "3d_all_gather")
)
_QUEUE_OF_SPARSE_CORES = (
    *_GATHERS_ON_SPARSE_CORES,
    (f"{_OFFLOAD}reduce_scatter", True),
    ("xla_tpu_enable_sparse_core_offload_queuing_in_lhs", True),
)
_WEIGHTS_AHEAD = (
    ("xla_tpu_sliced_prefetch_max_slices", 0),
    ("xla_msa_preferred_overlap_to_async_copy_ratio", "6.0"),
)

TPU_V4 = CompilerHabits(
    asynchronous=(),  # H2 in docs/compiler.md
    asynchronous_by_options=("all_gather", "all_to_all"),
    compiler_options=(
        *NO_WINDOWED_EINSUM,
        ("xla_enable_async_all_gather", True),
        ("xla_tpu_enable_async_all_to_all", True),
    ),
    no_prefetch_options=(("xla_msa_max_cross_program_prefetches", 0),),
    weights_ahead_options=_WEIGHTS_AHEAD,
    starts_hops_early=True,
    widens_in_rows=True,
)

TPU_V5P = CompilerHabits(
    asynchronous=(),
    # Fusions of all-gathers with dots would do it too, but a later compiler says that they are neither
    # supported nor safe but on v5e.
    asynchronous_by_options=("all_to_all",),
    compiler_options=(*NO_WINDOWED_EINSUM, ("xla_tpu_enable_async_all_to_all", True)),
    no_prefetch_options=(),
    weights_ahead_options=_WEIGHTS_AHEAD,
    sparse_core_options=_GATHERS_ON_SPARSE_CORES,
    sparse_core_queue_options=_QUEUE_OF_SPARSE_CORES,
    sparse_cores_queue=True,
    copies_second_shard=True,
)

TPU_V5E = CompilerHabits(
    asynchronous=("all_gather",),
    asynchronous_by_options=("all_to_all",),
    compiler_options=(*NO_WINDOWED_EINSUM, ("xla_tpu_enable_async_all_to_all", True)),
    no_prefetch_options=(),
    weights_ahead_options=_WEIGHTS_AHEAD,
    starts_hops_early=True,
)

# As v5p, but that it copies no shard.
TPU_V6E = replace(TPU_V5P, copies_second_shard=False)

# The options of v6e, and one that spares copies of weights: H14 in docs/compiler.md.
TPU_7X = replace(
    TPU_V6E,
    compiler_options=(
        *TPU_V6E.compiler_options,
        ("xla_tpu_control_large_2nd_minor_layout_for_x16", False),
    ),
    # Its SparseCores run them, with no option (libtpu 0.0.42.1 and 0.0.50.1).
    asynchronous=("all_gather", "reduce_scatter", "all_reduce"),
    sparse_core_options=(),
    sparse_core_queue_options=(),
    # Its schedules of layers were chosen by replays of such collectives side by side.
    sparse_cores_queue=False,
    starts_hops_early=True,
)

# Its dots run at the instruction set's peaks: no compiler estimates its cycles.
H100 = CompilerHabits(
    # Each runs on a stream of its own.
    asynchronous=("all_gather", "reduce_scatter", "all_to_all", "all_reduce"),
    asynchronous_by_options=(),
    compiler_options=(),
    no_prefetch_options=(),
)
