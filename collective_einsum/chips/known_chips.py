"""The data sheets of known chips, each number with its source.

Sources, cited by letter:

* [C] the Google Cloud TPU pages, docs.cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e,tpu7x}. Their ICI figure
  is the line rate, 11% above what [S] says a link carries
* [S] "How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "TPUs" (the table of ICI
  bandwidth per link, one way) and chapter "Sharding" (about one microsecond a hop)
* [J] jax/_src/pallas/mosaic/tpu_info.py in jax 0.10.2: VMEM and CMEM per core, MXU count and size
* [N] the NVIDIA H100 and H200 SXM data sheets; dense figures, half of those quoted with sparsity
* [I] AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood/collectives/all_gather.md: all-gathers of
  f32[n,8,128] a device over four devices, n = 64 to 16384, measured by others, take 11 to 15 us longer
  than their bytes over the links and two hops
* [T] figures that others measured, the records of `bench.truth`, each with its source
* [D] products of bf16 that XLA:TPU makes of an f32 dot; see `peaks`

What the compilers overlap stands in `known_compilers`.
"""

from __future__ import annotations

from dataclasses import replace

from . import known_compilers
from .chip import Chip

_MIB = 2**20
_GIB = 2**30

# [T] The residuals of `python -m bench truth` before and after each of these are in docs/truth.md.
_HBM_EFFICIENCY = 0.87  # copies: 0.83 on v6e, 0.87 on TPU7x; decoding on v5e reads at 0.91
_HBM_FILL_SECONDS = (
    3e-6  # dots on v5e and v6e, [64,18432] x [18432,4608] as four: 1 to 3.3 us each longer
)
_HOP_SECONDS = 1e-6  # [S] about 1 us a hop, on every generation
_PERMUTE_SECONDS = 4e-6  # permutes of 4 KiB and 1 MiB alone, on v5p and v6e: 4.0 to 4.8 us
_COLLECTIVE_SECONDS = 2e-6  # all-gather and all-reduce on v5e: 1 to 3 us; decoding on v4
# [I] of TPU7x; v5p and v6e, whose SparseCores were not timed, take it too
_OFFLOAD_SECONDS = 11e-6 - _COLLECTIVE_SECONDS

TPU_V4 = Chip(
    name="TPU v4",
    bf16_flops=275e12,  # [C]
    int8_ops=275e12,  # [C] one figure for bf16 and int8
    f32_default_flops=275e12,  # [D] one bf16 dot
    f32_high_flops=275e12 / 3,  # [D] three bf16 dots
    f32_flops=275e12 / 6,  # [D] six bf16 dots
    hbm_bytes=32 * _GIB,  # [C]
    hbm_bandwidth=1.2e12,  # [C]
    hbm_efficiency=_HBM_EFFICIENCY,
    hbm_fill_seconds=_HBM_FILL_SECONDS,
    link_bandwidth=45e9,  # [S] six links: the 270 GB/s a chip of Pope et al., arXiv 2211.05102
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.05e9,  # Jouppi et al., arXiv 2304.01433; times 8 MXUs x 128 x 128 x 2 is 275e12
    vmem_bytes=2 * 16 * _MIB,  # [J] 16 MiB a core
    cmem_bytes=128 * _MIB,  # [J]
    observed="v4",
    **vars(known_compilers.TPU_V4),
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
    hbm_efficiency=_HBM_EFFICIENCY,
    hbm_fill_seconds=_HBM_FILL_SECONDS,
    link_bandwidth=90e9,  # [S]
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.75e9,  # 459e12 over 2 cores x 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=2 * 64 * _MIB,  # [J] 64 MiB a core
    cmem_bytes=0,  # [J]
    offload_seconds=_OFFLOAD_SECONDS,
    observed="v5p",
    **vars(known_compilers.TPU_V5P),
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
    hbm_efficiency=_HBM_EFFICIENCY,
    hbm_fill_seconds=_HBM_FILL_SECONDS,
    link_bandwidth=45e9,  # [S]
    torus_dims=2,  # [C]
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=16,  # [S] only a full side of the 16x16 pod wraps
    clock_hz=1.5e9,  # [S]; 197e12 over 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=128 * _MIB,  # [J]
    cmem_bytes=0,  # [J]
    observed="v5e",
    **vars(known_compilers.TPU_V5E),
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
    hbm_efficiency=_HBM_EFFICIENCY,
    hbm_fill_seconds=_HBM_FILL_SECONDS,
    link_bandwidth=90e9,  # [S]
    torus_dims=2,  # [C]
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=16,  # [S] only a full side of the 16x16 pod wraps
    # By libtpu 0.0.42.1, [4096,8192]x[8192,8192] reaches 459,392 flops a cycle, beyond the 262,144
    # of two MXUs of 256x256 [C]; at twice that, the peak of 918e12 takes 1.75 GHz.
    clock_hz=1.75e9,
    vmem_bytes=128 * _MIB,  # [J]
    cmem_bytes=0,  # [J]
    offload_seconds=_OFFLOAD_SECONDS,
    observed="v6e",
    **vars(known_compilers.TPU_V6E),
)

# A device of jax is half a chip: all but the links is half of what [C] says of a chip.
TPU_7X = Chip(
    name="TPU7x",
    bf16_flops=2307e12 / 2,  # [C]
    int8_ops=2307e12 / 2,  # its matrix units take bf16 and fp8; int8 is widened
    fp8_flops=4614e12 / 2,  # [C]
    f32_default_flops=2307e12 / 2 / 1.8,  # [D] the cycles of 1.8 bf16 dots
    f32_high_flops=2307e12 / 2 / 3.5,  # [D] of 3.5
    f32_flops=2307e12 / 2 / 5.7,  # [D] of 5.7
    hbm_bytes=192 * _GIB // 2,  # [C]
    hbm_bandwidth=7.38e12 / 2,  # [C]
    hbm_efficiency=_HBM_EFFICIENCY,
    hbm_fill_seconds=_HBM_FILL_SECONDS,
    link_bandwidth=90e9,  # 1200 GB/s both ways over six links [C], less the 10% of v5p's links
    devices_per_chip=2,  # [C]
    die_bandwidth=6 * 90e9,  # [C] six times as fast as a link
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=4,  # [C] as v5p
    clock_hz=2.2e9,  # libtpu 0.0.50.1's description of the topology
    vmem_bytes=64 * _MIB,  # libtpu 0.0.50.1: "vmem_size" of its description of the topology
    cmem_bytes=0,
    offload_seconds=_OFFLOAD_SECONDS,
    observed="tpu7x",
    **vars(known_compilers.TPU_7X),
)

# Its hop and the fixed costs of its transfers are those of the TPUs.
H100 = Chip(
    name="NVIDIA H100 SXM",
    bf16_flops=989.4e12,  # [N]
    int8_ops=1978.9e12,  # [N]
    f32_default_flops=494.7e12,  # [N] XLA:GPU multiplies TF32
    f32_high_flops=494.7e12,  # [N] TF32 too
    f32_flops=66.9e12,  # [N] CUDA cores; the tensor cores only take TF32
    hbm_bytes=80 * 10**9,  # [N]
    hbm_bandwidth=3.35e12,  # [N]
    hbm_efficiency=0.9,  # an assumption: 90% of the peak, as a plain copy reaches
    hbm_fill_seconds=4e-6,  # an assumption: TPU v4's fill, as far as a compiler reports one
    link_bandwidth=450e9,  # [N] NVLink 4: 900 GB/s, both ways together
    torus_dims=0,  # NVSwitch
    hop_seconds=_HOP_SECONDS,
    permute_seconds=_PERMUTE_SECONDS,
    collective_seconds=_COLLECTIVE_SECONDS,
    wrap_multiple=1,  # the switch joins any two
    clock_hz=1.83e9,  # 989.4e12 over 132 SMs x 4096 flops
    vmem_bytes=132 * 228 * 1024,  # [N] shared memory, 228 KiB an SM
    cmem_bytes=50 * _MIB,  # [N] L2
    **vars(known_compilers.H100),
)

# The H200 is an H100 with more and faster memory [N].
H200 = replace(H100, name="NVIDIA H200 SXM", hbm_bytes=141 * 10**9, hbm_bandwidth=4.8e12)
