"""How compilers treat dots and collectives on each chip, read from compiled programs.

Most figures are of libtpu 0.0.42.1 with jax 0.10.2. They were read from the `estimated_cycles` that the
compiler writes on each instruction, and from the schedules that it makes, of the programs that a comment
names; shapes are those of one chip, "x" is a dot, times are microseconds. `collective_einsum.ruler`
compiles such a program without a TPU and replays it:

    target("v4:2x2x1").compile(f, *shapes).as_text()    # ruler.compile; estimated_cycles are in it
    print(replay(compiled, mesh))                       # ruler.replay

Figures marked [D] are of libtpu 0.0.50.1 with jax 0.12.0.1. What compilers make of dots alone is in the
files that `observations` reads. `tests/ruler` and
`tests/collective_einsum/test_schedules_tpu.py` compare predictions with replays under the installed
compiler.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .compiler_figures import CompilerFigures

_MIB = 2**20

_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
_GATHERS_ON_SPARSE_CORES = tuple(
    (f"{_OFFLOAD}{gather}", True) for gather in ("all_gather", "2d_all_gather", "3d_all_gather")
)

TPU_V4 = CompilerFigures(
    asynchronous=(),  # H2 in docs/compiler.md
    asynchronous_by_options=("all_gather", "all_to_all"),
    compiler_options=(
        ("xla_enable_async_all_gather", True),
        ("xla_tpu_enable_async_all_to_all", True),
    ),
    no_prefetch_options=(("xla_msa_max_cross_program_prefetches", 0),),
    vector_bandwidth=0.59e12,  # bf16 added to f32[2048,1152]
    int8_slice_passes=4.0,  # copied before their dots in rings of int8 weights
    sum_bytes=0,  # each sum is charged to HBM, while the dot computes
    # those of [8192,4608] cost no more where activations travel, and 120 to 250 us where weights do
    large_sum_bytes=(256 * _MIB, 128 * _MIB),
    sum_bandwidth=0.59e12,  # rings of [16384,4096] and [16384,18432] x [.,18432]: 0.55 to 0.67e12
    remote_dot_waits=0.0,  # none seen in [M,4608] x [4608,4608]
    scatter_passes=(2.1, 2.85, 3.6),  # schedules of [M,4608], scattered in 4, 16, chunks
    scatter_fill_seconds=7.1e-6,  # as of a dot
    exchange_passes=2.1,  # [M,4608] in 4 and 16, M=64 to 8192, in one and in several chunks: 2.0 to 2.3
    transposes_scatter=False,  # [M,4608] scattered in 4
)

TPU_V5P = CompilerFigures(
    asynchronous=(),
    # Fusions of all-gathers with dots would do it too, but a later compiler says that they are neither
    # supported nor safe but on v5e.
    asynchronous_by_options=("all_to_all",),
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    vector_bandwidth=1.39e12,  # sums of a scatter ring of [2048,4608]: 40.6 us for 57 MB
    # fitted to rings of [M,4608] x [4608,4608], rows sliced in 4, M=64 and 512
    int8_slice_passes=3.4,
    sum_bytes=0,  # that of [512,4608] goes through HBM
    large_sum_bytes=(0, 0),  # as the line above
    # rings of [M,1152] x [1152,4608]: 1.3e12 to 2.2e12 from M=512 to 8192
    sum_bandwidth=1.7e12,
    remote_dot_waits=0.0,  # gathered operands are in HBM too
    # [2048,4608] in 4: 11 us, in 16: none, in chunks: 31 and 62 us
    scatter_passes=(0.6, 0.0, 2.6),
    scatter_fill_seconds=2e-6,  # [64,4608] in 4: 2.7 us
    exchange_passes=4.0,  # [M,4608] in 4 and 16, chunks: 3.0 to 4.7; one chunk: 0.2 to 2
    sparse_core_options=_GATHERS_ON_SPARSE_CORES,
    transposes_scatter=False,  # [M,4608] scattered in 4
)

TPU_V5E = CompilerFigures(
    asynchronous=("all_gather",),
    asynchronous_by_options=("all_to_all",),
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    # sums of scatter rings of [2048,18432], by the bytes that the cost model counts: 0.50e12
    # in one direction, 0.76e12 in two
    vector_bandwidth=0.55e12,
    int8_slice_passes=4.2,  # rings of [M,18432] x [18432,4608], rows sliced in 4: M=64 and 512
    sum_bytes=64 * _MIB,  # that of [512,18432] stays, that of [2048,18432] does not
    large_sum_bytes=(64 * _MIB, 64 * _MIB),  # as the line above
    # rings of [M,1152] x [1152,18432]: 0.86e12 for M=2048, 0.40e12 for 8192, where those of
    # [8192,4608] x [4608,4608] are 0.14e12
    sum_bandwidth=0.4e12,
    # [M,4608] x [4608,18432] and [M,18432] x [18432,4608], M=256 to 8192: 0.09 to 0.43
    remote_dot_waits=0.17,
    # [2048,4608] in 4: 31 us; [2048,18432] in chunks: 351; others as v5p
    scatter_passes=(0.8, 0.0, 2.5),
    scatter_fill_seconds=2e-6,  # [64,4608] in 4: 3.3 us
    exchange_passes=2.5,  # [8192,18432] in chunks, in 4 over x: 4.3, over y: 0.1
    transposes_scatter=False,  # [M,4608] scattered in 4
)

TPU_V6E = CompilerFigures(
    asynchronous=(),
    # Fusions of all-gathers with dots would do it too, but a later compiler says that they are neither
    # supported nor safe but on v5e.
    asynchronous_by_options=("all_to_all",),
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    vector_bandwidth=1.49e12,  # sums of a scatter ring of [2048,18432]: 152 us for 226 MB
    int8_slice_passes=7.0,  # rings of [M,18432] x [18432,4608], rows sliced in 4: M=64 and 512
    # rings of [512,4608] x [4608,18432] in 4: one sum of 36 MiB stays; of two, one goes through HBM
    # (libtpu 0.0.50.1)
    sum_bytes=64 * _MIB,
    large_sum_bytes=(64 * _MIB, 64 * _MIB),  # as the line above
    # rings of [M,1152] x [1152,18432]: 0.97e12 for M=2048, 0.85e12 for 8192
    sum_bandwidth=0.95e12,
    # [M,4608] x [4608,18432] and [M,18432] x [18432,4608], M=256 to 8192: 0.16 to 0.38
    remote_dot_waits=0.28,
    # [2048,4608] in 4: 6.6 us; [2048,18432] in chunks: 26; others as v5p
    scatter_passes=(0.4, 0.0, 0.5),
    scatter_fill_seconds=2e-6,  # [64,4608] in 4: 2.7 us
    exchange_passes=1.5,  # [8192,18432] in chunks, in 4 over x: 2.4, over y: 0.6
    sparse_core_options=_GATHERS_ON_SPARSE_CORES,
    transposes_scatter=True,  # [M,4608] scattered in 4
)

# TPU7x has v6e's matrix unit (256x256) and v5p's torus. How it treats dots was not read from compiled
# programs, but for the figures with a comment; the others are v6e's.
TPU_7X = replace(
    TPU_V6E,
    # Its SparseCores run them, with no option (libtpu 0.0.42.1 and 0.0.50.1).
    asynchronous=("all_gather", "reduce_scatter", "all_reduce"),
    sparse_core_options=(),
)

# No compiler estimates Hopper's cycles: its dots run at the instruction set's peaks, and the fixed
# cost of a dot is TPU v4's.
H100 = CompilerFigures(
    # Each runs on a stream of its own.
    asynchronous=("all_gather", "reduce_scatter", "all_to_all", "all_reduce"),
    asynchronous_by_options=(),
    compiler_options=(),
    no_prefetch_options=(),
    vector_bandwidth=3.0e12,  # a device-to-device copy on an H100 SXM, read and written
    int8_slice_passes=0.0,
    sum_bytes=0,
    large_sum_bytes=(0, 0),
    sum_bandwidth=math.inf,  # assumed to overlap with the dot
    remote_dot_waits=0.0,
    scatter_passes=(0.0, 0.0, 0.0),  # NCCL scatters any blocks
    scatter_fill_seconds=0.0,
    exchange_passes=0.0,
    transposes_scatter=False,
)
