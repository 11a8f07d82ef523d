"""Measured figures of one chip: dots, and copies in HBM."""

from __future__ import annotations

from bench.truth.programs import Copy, Dot
from bench.truth.records import MEMORY, Record, Source

TRILLIUM = Source(name="AI-Hypercomputer/tpu-recipes, microbenchmarks/README.md")
IRONWOOD = Source(name="AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood/README.md")
HBM = Source(
    name="AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood/hbm/hbm.md",
    how="bytes read and written over the time of a copy",
)

_IRONWOOD_TFLOPS = {
    128: 2.59,
    256: 18.29,
    512: 105.08,
    1024: 349.73,
    2048: 679.28,
    4096: 892.94,
    16384: 950.13,
}
_COPIED = 2**25


def records() -> list[Record]:
    """All of them."""
    return [
        Record(
            group=MEMORY,
            label="bf16 8192 x 8192 x 8192, 64 MiB of VMEM",
            source=TRILLIUM,
            target="v6e:2x2",
            program=Dot(m=8192, k=8192, n=8192),
            measured=1328.8,
            unit="us",
            options=(("xla_tpu_scoped_vmem_limit_kib", 65536),),
        ),
        Record(
            group=MEMORY,
            label="copy of 33.5 MB",
            source=HBM,
            target="v6e:2x2",
            program=Copy(bytes=_COPIED),
            measured=1359.6,
            unit="GB/s",
        ),
        Record(
            group=MEMORY,
            label="copy of 33.5 MB",
            source=HBM,
            target="tpu7x:2x2x1",
            program=Copy(bytes=_COPIED),
            measured=3210.0,
            unit="GB/s",
        ),
        *(
            Record(
                group=MEMORY,
                label=f"bf16 {n} x {n} x {n}",
                source=IRONWOOD,
                target="tpu7x:2x2x1",
                program=Dot(m=n, k=n, n=n),
                measured=tflops,
                unit="TFLOP/s",
            )
            for n, tflops in _IRONWOOD_TFLOPS.items()
        ),
    ]
