"""The chips that are known, each number with its source.

Sources, cited by letter beside the numbers:

* [C] the Google Cloud TPU pages, docs.cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e}. Their ICI figure
  is the line rate, 11% above what [S] says a link carries
* [S] "How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "TPUs" (the table of ICI
  bandwidth per link, one way) and chapter "Sharding" (about one microsecond a hop)
* [J] jax/_src/pallas/mosaic/tpu_info.py in jax 0.10.2: VMEM and CMEM per core, MXU count and size
* [N] the NVIDIA H100 and H200 SXM data sheets; dense figures, half of those quoted with sparsity
* [K] the TPU compiler (libtpu 0.0.42.1): the `estimated_cycles` it writes on the fusion of a dot,
  M x 4096 by 4096 x 4096 with the weights on chip unless said otherwise, and the schedules it makes
* [D] `estimated_cycles` of dots by dtype and precision (libtpu 0.0.50.1); see `dot_rates`
"""

from __future__ import annotations

import math
from dataclasses import replace

from .chip import Chip

_MIB = 2**20
_GIB = 2**30

_HOP_SECONDS = 1e-6  # [S] about 1 us a hop, on every generation

TPU_V4 = Chip(
    name="TPU v4",
    bf16_flops=275e12,  # [C]
    int8_ops=275e12,  # [C] one figure for bf16 and int8
    f32_default_flops=275e12,  # [D] one bf16 dot
    f32_high_flops=275e12 / 3,  # [D] three bf16 dots
    f32_flops=275e12 / 6,  # [D] six bf16 dots
    hbm_bytes=32 * _GIB,  # [C]
    hbm_bandwidth=1.2e12,  # [C]
    link_bandwidth=45e9,  # [S] six links: the 270 GB/s a chip of Pope et al., arXiv 2211.05102
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.05e9,  # Jouppi et al., arXiv 2304.01433; times 8 MXUs x 128 x 128 x 2 is 275e12
    vmem_bytes=2 * 16 * _MIB,  # [J] 16 MiB a core
    cmem_bytes=128 * _MIB,  # [J]
    asynchronous=(),  # [K]
    asynchronous_by_options=("all_gather", "all_to_all"),  # [K]
    compiler_options=(
        ("xla_enable_async_all_gather", True),
        ("xla_tpu_enable_async_all_to_all", True),
    ),
    no_prefetch_options=(("xla_msa_max_cross_program_prefetches", 0),),
    dot_fill_seconds=7.1e-6,  # [K] intercept over rows of [M,4608]x[4608,1152]: 7.1; x[.,4608]: 13
    dot_fill_bandwidth=7.5e12,  # [K] likewise
    dot_efficiency=0.91,  # [K] 0.170 us a row of [M,4608]x[4608,4608] from M=1024 to 2048
    stream_efficiency=0.82,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    vector_bandwidth=0.59e12,  # [K] bf16 added to f32[2048,1152]
    int8_convert_rate=2.1e12,  # [K] +7.8 us at M=512
    int8_slice_passes=4.0,  # [K] copied before their dots in rings of int8 weights
    sum_bytes=0,  # each sum is charged to HBM, beside the dot's arithmetic
    # [K] those of [8192,4608] cost no more where activations travel, and 120 to 250 us where weights do
    large_sum_bytes=(256 * _MIB, 128 * _MIB),
    sum_bandwidth=0.59e12,  # [K] rings of [16384,4096] and [16384,18432] x [.,18432]: 0.55 to 0.67e12
    remote_dot_waits=0.0,  # [K] none seen in [M,4608] x [4608,4608]
    scatter_passes=(2.1, 2.85, 3.6),  # [K] schedules of [M,4608], scattered in 4, 16, chunks
    scatter_fill_seconds=7.1e-6,  # as of a dot
    exchange_passes=2.1,  # [K] [M,4608] in 4 and 16, M=64 to 8192, whole and in chunks: 2.0 to 2.3
    turns_lanes=False,  # [K] [M,4608] scattered in 4
)

TPU_V5P = Chip(
    name="TPU v5p",
    bf16_flops=459e12,  # [C]
    int8_ops=918e12,  # [S]
    f32_default_flops=459e12,  # [D] one bf16 dot
    f32_high_flops=459e12 / 3,  # [D] three bf16 dots
    f32_flops=459e12 / 6,  # [D] six bf16 dots
    hbm_bytes=95 * _GIB,  # [C]
    hbm_bandwidth=2.765e12,  # [C]
    link_bandwidth=90e9,  # [S]
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.75e9,  # 459e12 over 2 cores x 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=2 * 64 * _MIB,  # [J] 64 MiB a core
    cmem_bytes=0,  # [J]
    asynchronous=(),  # [K]
    # Fusions of all-gathers with dots would do it too, but a later compiler says that they are neither
    # supported nor safe but on v5e.
    asynchronous_by_options=("all_to_all",),  # [K]
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    dot_fill_seconds=4.2e-6,  # [K] [64,4608] x [4608,1152]: 12.5 us, less what is streamed
    dot_fill_bandwidth=math.inf,  # a part of the above
    # [K] 0.87 is the slope of [M,4608] x [4608,4608], M=512 to 8192; its blocks reach 0.92
    dot_efficiency=0.88,
    # [K] [M,4608] x [4608,4608], fitted to M=64 (36 us; M=1 is 0.51) and 256
    stream_efficiency=0.46,
    vector_bandwidth=1.39e12,  # [K] sums of a scatter ring of [2048,4608]: 40.6 us for 57 MB
    int8_convert_rate=1.6e13,  # [K] +1.07 us at M=512
    # [K] fitted to rings of [M,4608] x [4608,4608], rows cut in 4, M=64 and 512
    int8_slice_passes=3.4,
    sum_bytes=0,  # [K] that of [512,4608] goes through HBM
    large_sum_bytes=(0, 0),  # [K] likewise
    # [K] rings of [M,1152] x [1152,4608]: 1.3e12 to 2.2e12 from M=512 to 8192
    sum_bandwidth=1.7e12,
    remote_dot_waits=0.0,  # [K] gathered operands are in HBM too
    # [K] [2048,4608] in 4: 11 us, in 16: none, in chunks: 31 and 62 us
    scatter_passes=(0.6, 0.0, 2.6),
    scatter_fill_seconds=2e-6,  # [K] [64,4608] in 4: 2.7 us
    exchange_passes=4.0,  # [K] [M,4608] in 4 and 16, chunks: 3.0 to 4.7; whole, 0.2 to 2
    turns_lanes=False,  # [K] [M,4608] scattered in 4
)

TPU_V5E = Chip(
    name="TPU v5e",
    bf16_flops=197e12,  # [C]
    int8_ops=394e12,  # [S]
    f32_default_flops=197e12,  # [D] one bf16 dot
    f32_high_flops=197e12 / 3,  # [D] three bf16 dots
    f32_flops=197e12 / 6,  # [D] six bf16 dots
    hbm_bytes=16 * _GIB,  # [C]
    hbm_bandwidth=819e9,  # [C]
    link_bandwidth=45e9,  # [S]
    torus_dims=2,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=16,  # [S] only a full side of the 16x16 pod wraps
    clock_hz=1.5e9,  # [S]; 197e12 over 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=128 * _MIB,  # [J]
    cmem_bytes=0,  # [J]
    asynchronous=("all_gather",),  # [K]
    asynchronous_by_options=("all_to_all",),  # [K]
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    # [K] [64,18432] x [18432,4608] as four dots: 1 us each longer in bf16, 10 us in int8
    dot_fill_seconds=3e-6,
    dot_fill_bandwidth=math.inf,  # a part of the above
    # [K] [M,4608] x [4608,18432], M=512 to 8192, the M rows on the chip: 0.92 to 0.97
    dot_efficiency=0.95,
    # [K] [64,4608] x [4608,18432] and [64,18432] x [18432,4608]: 0.64 to 0.75
    stream_efficiency=0.70,
    # [K] sums of scatter rings of [2048,18432], by the bytes that the cost model counts: 0.50e12
    # for one lane, 0.76e12 for two
    vector_bandwidth=0.55e12,
    int8_convert_rate=4.7e12,  # [K] +3.57 us at M=512
    int8_slice_passes=4.2,  # [K] rings of [M,18432] x [18432,4608], rows cut in 4: M=64 and 512
    sum_bytes=64 * _MIB,  # [K] that of [512,18432] stays, that of [2048,18432] does not
    large_sum_bytes=(64 * _MIB, 64 * _MIB),  # [K] likewise
    # [K] rings of [M,1152] x [1152,18432]: 0.86e12 for M=2048, 0.40e12 for 8192, where those of
    # [8192,4608] x [4608,4608] are 0.14e12
    sum_bandwidth=0.4e12,
    # [K] [M,4608] x [4608,18432] and [M,18432] x [18432,4608], M=256 to 8192: 0.09 to 0.43
    remote_dot_waits=0.17,
    # [K] [2048,4608] in 4: 31 us; [2048,18432] in chunks: 351; others as v5p
    scatter_passes=(0.8, 0.0, 2.5),
    scatter_fill_seconds=2e-6,  # [K] [64,4608] in 4: 3.3 us
    exchange_passes=2.5,  # [K] [8192,18432] in chunks, in 4 over x: 4.3, over y: 0.1
    turns_lanes=False,  # [K] [M,4608] scattered in 4
)

TPU_V6E = Chip(
    name="TPU v6e",
    bf16_flops=918e12,  # [C]
    int8_ops=1836e12,  # [C]
    f32_default_flops=918e12,  # [D] one bf16 dot
    f32_high_flops=918e12 / 3,  # [D] three bf16 dots
    f32_flops=918e12 / 6,  # [D] six bf16 dots
    hbm_bytes=32 * _GIB,  # [C]
    hbm_bandwidth=1638e9,  # [C]
    link_bandwidth=90e9,  # [S]
    torus_dims=2,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=16,  # [S] only a full side of the 16x16 pod wraps
    # [K] [4096,8192]x[8192,8192] reaches 459,392 flops a cycle, beyond the 262,144 of two MXUs of
    # 256x256 [C]; at twice that, the peak of 918e12 takes 1.75 GHz.
    clock_hz=1.75e9,
    vmem_bytes=128 * _MIB,  # [J]
    cmem_bytes=0,  # [J]
    asynchronous=(),  # [K]
    # Fusions of all-gathers with dots would do it too, but a later compiler says that they are neither
    # supported nor safe but on v5e.
    asynchronous_by_options=("all_to_all",),  # [K]
    compiler_options=(("xla_tpu_enable_async_all_to_all", True),),
    no_prefetch_options=(),
    dot_fill_seconds=3e-6,  # [K] [64,18432] x [18432,4608] as four dots: 3.3 us each longer
    dot_fill_bandwidth=math.inf,  # a part of the above
    # [K] [M,4608] x [4608,18432] and [M,18432] x [18432,4608], M=2048 and 8192, the M rows on the
    # chip: 0.75 to 0.89
    dot_efficiency=0.80,
    stream_efficiency=0.82,  # [K] [64,4608] x [4608,18432]; [64,18432] x [18432,4608] is 0.86
    vector_bandwidth=1.49e12,  # [K] sums of a scatter ring of [2048,18432]: 152 us for 226 MB
    int8_convert_rate=1.3e13,  # [K] +1.28 us at M=512
    int8_slice_passes=7.0,  # [K] rings of [M,18432] x [18432,4608], rows cut in 4: M=64 and 512
    sum_bytes=64 * _MIB,  # [K] that of [512,18432] stays, that of [2048,18432] does not
    large_sum_bytes=(64 * _MIB, 64 * _MIB),  # [K] likewise
    # [K] rings of [M,1152] x [1152,18432]: 0.97e12 for M=2048, 0.85e12 for 8192
    sum_bandwidth=0.95e12,
    # [K] [M,4608] x [4608,18432] and [M,18432] x [18432,4608], M=256 to 8192: 0.16 to 0.38
    remote_dot_waits=0.28,
    # [K] [2048,4608] in 4: 6.6 us; [2048,18432] in chunks: 26; others as v5p
    scatter_passes=(0.4, 0.0, 0.5),
    scatter_fill_seconds=2e-6,  # [K] [64,4608] in 4: 2.7 us
    exchange_passes=1.5,  # [K] [8192,18432] in chunks, in 4 over x: 2.4, over y: 0.6
    turns_lanes=True,  # [K] [M,4608] scattered in 4
)

# No compiler gives Hopper's cycles: its dots are peaks of the instruction set, and its fill and hop
# the figures of TPU v4.
H100 = Chip(
    name="NVIDIA H100 SXM",
    bf16_flops=989.4e12,  # [N]
    int8_ops=1978.9e12,  # [N]
    f32_default_flops=494.7e12,  # [N] XLA:GPU multiplies TF32
    f32_high_flops=494.7e12,  # [N] TF32 too
    f32_flops=66.9e12,  # [N] CUDA cores; the tensor cores only take TF32
    hbm_bytes=80 * 10**9,  # [N]
    hbm_bandwidth=3.35e12,  # [N]
    link_bandwidth=450e9,  # [N] NVLink 4: 900 GB/s, both ways together
    torus_dims=0,  # NVSwitch
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=1,  # the switch joins any two
    clock_hz=1.83e9,  # 989.4e12 over 132 SMs x 4096 flops
    vmem_bytes=132 * 228 * 1024,  # [N] shared memory, 228 KiB an SM
    cmem_bytes=50 * _MIB,  # [N] L2
    # Each runs on a stream of its own.
    asynchronous=("all_gather", "reduce_scatter", "all_to_all", "all_reduce"),
    asynchronous_by_options=(),
    compiler_options=(),
    no_prefetch_options=(),
    dot_fill_seconds=4e-6,
    dot_fill_bandwidth=math.inf,
    dot_efficiency=1.0,
    stream_efficiency=0.9,  # an assumption: 90% of the peak, as a plain copy reaches
    vector_bandwidth=3.0e12,  # a device-to-device copy on an H100 SXM, read and written
    int8_convert_rate=132 * 64 * 1.83e9,  # 64 conversions a cycle and SM (CUDA C++ guide, cc 9.0)
    int8_slice_passes=0.0,
    sum_bytes=0,
    large_sum_bytes=(0, 0),
    sum_bandwidth=math.inf,  # assumed to pass beside the dot
    remote_dot_waits=0.0,
    scatter_passes=(0.0, 0.0, 0.0),  # NCCL scatters any blocks
    scatter_fill_seconds=0.0,
    exchange_passes=0.0,
    turns_lanes=False,
)

# The H200 is an H100 with more and faster memory [N].
H200 = replace(H100, name="NVIDIA H200 SXM", hbm_bytes=141 * 10**9, hbm_bandwidth=4.8e12)
