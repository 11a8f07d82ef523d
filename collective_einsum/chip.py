"""What a chip can do: arithmetic, memory and links, each number with its source.

Sources, cited by letter beside the numbers:

* [C] the Google Cloud TPU pages, docs.cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e}. Their ICI figure
  is the line rate, 11% above what [S] says a link carries
* [S] "How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "TPUs" (the table of ICI
  bandwidth per link, one way) and chapter "Sharding" (about one microsecond a hop)
* [J] jax/_src/pallas/mosaic/tpu_info.py in jax 0.10.2: VMEM and CMEM per core, MXU count and size
* [N] the NVIDIA H100 and H200 SXM data sheets; dense figures, half of those quoted with sparsity
* [K] the TPU compiler (libtpu 0.0.42.1): the `estimated_cycles` it writes on the fusion of a dot,
  M x 4096 by 4096 x 4096 with the weights on chip unless said otherwise, and the schedules it makes
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_MIB = 2**20
_GIB = 2**30


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
      f32_flops: peak flop/s of an f32 dot at `Precision.HIGHEST`. On a TPU that is six bf16 passes
        (`Precision.DEFAULT` is one, so it runs at `bf16_flops`).
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
      overlaps_own_collectives: whether the compiler, by its default options, runs a plain
        all-gather beside an independent dot; where it does not, only permutes overlap.
      dot_fill_seconds: fixed cost of a dot, before its pipeline is full, in seconds. A dot takes
        this, plus the longer of its flops over `dot_efficiency * bf16_flops` and its larger operand
        over `stream_efficiency * hbm_bandwidth` with the rest over `vector_bandwidth`.
      dot_fill_bandwidth: bytes/s at which a dot of many rows first loads its larger operand.
      dot_efficiency: fraction of the peak that each further row of a dot runs at.
      stream_efficiency: fraction of `hbm_bandwidth` at which a dot reads its larger operand.
      vector_bandwidth: bytes/s, read and written together, of an elementwise pass or a copy.
      int8_convert_rate: elements/s at which int8 weights are widened to bf16 for a bf16 dot.
    """

    name: str
    bf16_flops: float
    int8_ops: float
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
    overlaps_own_collectives: bool
    dot_fill_seconds: float
    dot_fill_bandwidth: float
    dot_efficiency: float
    stream_efficiency: float
    vector_bandwidth: float
    int8_convert_rate: float

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


_HOP_SECONDS = 1e-6  # [S] about 1 us a hop, on every generation

TPU_V4 = Chip(
    name="TPU v4",
    bf16_flops=275e12,  # [C]
    int8_ops=275e12,  # [C] one figure for bf16 and int8
    f32_flops=275e12 / 6,  # six bf16 passes
    hbm_bytes=32 * _GIB,  # [C]
    hbm_bandwidth=1.2e12,  # [C]
    link_bandwidth=45e9,  # [S] six links: the 270 GB/s a chip of Pope et al., arXiv 2211.05102
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.05e9,  # Jouppi et al., arXiv 2304.01433; times 8 MXUs x 128 x 128 x 2 is 275e12
    vmem_bytes=2 * 16 * _MIB,  # [J] 16 MiB a core
    cmem_bytes=128 * _MIB,  # [J]
    overlaps_own_collectives=False,  # [K]
    dot_fill_seconds=7.1e-6,  # [K] intercept over rows of [M,4608]x[4608,1152]: 7.1; x[.,4608]: 13
    dot_fill_bandwidth=7.5e12,  # [K] likewise
    dot_efficiency=0.91,  # [K] 0.170 us a row of [M,4608]x[4608,4608] from M=1024 to 2048
    stream_efficiency=0.82,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    vector_bandwidth=0.59e12,  # [K] bf16 added to f32[2048,1152]
    int8_convert_rate=2.1e12,  # [K] +7.8 us at M=512
)

TPU_V5P = Chip(
    name="TPU v5p",
    bf16_flops=459e12,  # [C]
    int8_ops=918e12,  # [S]
    f32_flops=459e12 / 6,  # six bf16 passes
    hbm_bytes=95 * _GIB,  # [C]
    hbm_bandwidth=2.765e12,  # [C]
    link_bandwidth=90e9,  # [S]
    torus_dims=3,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=4,  # [S] the wrap-around links leave from cubes of 4x4x4
    clock_hz=1.75e9,  # 459e12 over 2 cores x 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=2 * 64 * _MIB,  # [J] 64 MiB a core
    cmem_bytes=0,  # [J]
    overlaps_own_collectives=False,  # [K]
    dot_fill_seconds=6.4e-6,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    dot_fill_bandwidth=math.inf,  # a part of the above
    dot_efficiency=0.86,  # [K] likewise, the slope from M=1024 to 2048
    stream_efficiency=0.51,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    vector_bandwidth=1.09e12,  # [K] bf16 added to f32[2048,1152]
    int8_convert_rate=1.6e13,  # [K] +1.07 us at M=512
)

TPU_V5E = Chip(
    name="TPU v5e",
    bf16_flops=197e12,  # [C]
    int8_ops=394e12,  # [S]
    f32_flops=197e12 / 6,  # six bf16 passes
    hbm_bytes=16 * _GIB,  # [C]
    hbm_bandwidth=819e9,  # [C]
    link_bandwidth=45e9,  # [S]
    torus_dims=2,  # [C]
    hop_seconds=_HOP_SECONDS,
    wrap_multiple=16,  # [S] only a full side of the 16x16 pod wraps
    clock_hz=1.5e9,  # [S]; 197e12 over 4 MXUs [J] x 128 x 128 x 2
    vmem_bytes=128 * _MIB,  # [J]
    cmem_bytes=0,  # [J]
    overlaps_own_collectives=True,  # [K]
    dot_fill_seconds=7.5e-6,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    dot_fill_bandwidth=math.inf,  # a part of the above
    dot_efficiency=0.83,  # [K] likewise, the slope from M=1024 to 2048
    stream_efficiency=0.67,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    vector_bandwidth=0.45e12,  # [K] bf16 added to f32[2048,1152]
    int8_convert_rate=4.7e12,  # [K] +3.57 us at M=512
)

TPU_V6E = Chip(
    name="TPU v6e",
    bf16_flops=918e12,  # [C]
    int8_ops=1836e12,  # [C]
    f32_flops=918e12 / 6,  # six bf16 passes
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
    overlaps_own_collectives=False,  # [K]
    dot_fill_seconds=7.8e-6,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    dot_fill_bandwidth=math.inf,  # a part of the above
    dot_efficiency=0.60,  # [K] likewise, the slope from M=1024 to 2048
    stream_efficiency=0.84,  # [K] [M,4608] x [4608,4608], weights in HBM: M=64, 1024 and 2048
    vector_bandwidth=1.42e12,  # [K] bf16 added to f32[2048,1152]
    int8_convert_rate=1.3e13,  # [K] +1.28 us at M=512
)

# No compiler gives Hopper's cycles: its dots are peaks of the instruction set, and its fill and hop
# the figures of TPU v4.
H100 = Chip(
    name="NVIDIA H100 SXM",
    bf16_flops=989.4e12,  # [N]
    int8_ops=1978.9e12,  # [N]
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
    overlaps_own_collectives=True,  # each runs on a stream of its own
    dot_fill_seconds=4e-6,
    dot_fill_bandwidth=math.inf,
    dot_efficiency=1.0,
    stream_efficiency=0.9,  # an assumption: 90% of the peak, as a plain copy reaches
    vector_bandwidth=3.0e12,  # a device-to-device copy on an H100 SXM, read and written
    int8_convert_rate=132 * 64 * 1.83e9,  # 64 conversions a cycle and SM (CUDA C++ guide, cc 9.0)
)

# The H200 is an H100 with more and faster memory [N].
H200 = replace(H100, name="NVIDIA H200 SXM", hbm_bytes=141 * 10**9, hbm_bandwidth=4.8e12)

# Compile-only topologies and attached chips report the same kinds; both spellings of v5e, v5p and
# v6e occur [J]. Emulated CPU devices stand in for TPU v4, the chip the schedules were made for.
_CHIP_OF_KIND: dict[str, Chip] = {
    "TPU v4": TPU_V4,
    "TPU v5": TPU_V5P,
    "TPU v5p": TPU_V5P,
    "TPU v5 lite": TPU_V5E,
    "TPU v5e": TPU_V5E,
    "TPU v6 lite": TPU_V6E,
    "TPU v6e": TPU_V6E,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "cpu": TPU_V4,
}


def chip_for(device_kind: str) -> Chip:
    """The chip that a jax device of this kind is.

    `device_kind` is `jax.Device.device_kind`, or that of
    `jax.sharding.get_abstract_mesh().abstract_device` while tracing. "cpu" gives TPU_V4: on
    emulated devices a schedule is chosen as it would be there.

    Raises:
      ValueError: if no chip is known by that kind; the message lists those that are.
    """
    chip = _CHIP_OF_KIND.get(device_kind)
    if chip is None:
        known = ", ".join(repr(kind) for kind in _CHIP_OF_KIND)
        raise ValueError(
            f"no chip is known for device kind {device_kind!r}; known kinds are {known}. "
            "Pass chip= with one of the constants, or a Chip of your own."
        )
    return chip
