"""Measured figures of links and collectives."""

from __future__ import annotations

from typing import Literal

from bench.truth.programs import Collective, Permute
from bench.truth.records import LINKS, Record, Source

_KIB, _MIB = 2**10, 2**20

MARIN = Source(
    name="marin-community/marin, issue 6736",
    how="ppermute round a ring, the slope over a loop; 1 to 16 KiB took 4.5 to 5.5 us on v5p-8 and 5.6 "
    "to 5.9 us on v6e-8, whose middles are the rows of 4 KiB",
)
IRONWOOD_GATHER = Source(
    name="AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood/collectives/all_gather.md",
    how="with collectives offloaded to the SparseCores",
)
SCALING_BOOK = Source(name="jax-ml/scaling-book, chapter Sharding")
SCALING_BOOK_RING = Source(
    name="jax-ml/scaling-book, pull request 82", how="95% of 45 GB/s a link, about 10 MB"
)
LLAMA_PROFILE = Source(
    name="jax-ml/jax-llm-examples, llama3/images/llama3_70B_decode_step.png",
    how="a profile of a step of decoding; 14.5 to 17.2 us on two chips, read off the picture",
)
MESHSLICE = Source(
    name="hwnam831/meshslice, Autotuner.py",
    how="its fits of wall-clock time, here for an array of 16 MiB a chip gathered over 4: a fixed cost "
    "(13 us; 26 us of a scatter), 5 us for each of 3 steps, and bytes at a bandwidth by axis; a send "
    "and receive 13 + 50 us",
)


def records() -> list[Record]:
    """All of them."""
    return [*_permutes(), *_ironwood(), *_scaling_book(), *_llama_profile(), *_meshslice()]


def _permutes() -> list[Record]:
    return [
        Record(
            group=LINKS,
            label=f"permute of {_size(size)}, ring of {chips}",
            source=MARIN,
            target=target,
            program=Permute(bytes=size),
            measured=us,
            unit="us",
        )
        for target, chips, by_bytes in (
            ("v5p:2x2x1", 4, {4 * _KIB: 5.0, _MIB: 16.94, 64 * _MIB: 781.98}),
            ("v6e:2x4", 8, {4 * _KIB: 5.75, _MIB: 17.45, 64 * _MIB: 776.34}),
        )
        for size, us in by_bytes.items()
    ]


def _ironwood() -> list[Record]:
    return [
        Record(
            group=LINKS,
            label=f"all-gather over 4 of f32[{n},8,128]",
            source=IRONWOOD_GATHER,
            target="tpu7x:2x2x1",
            program=Collective(
                kind="all-gather",
                shape=(n, 8, 128),
                dtype="float32",
                sides=(2, 2, 2),
                axes=("x", "y"),
            ),
            measured=us,
            unit="us",
        )
        for n, us in ((64, 21.9), (256, 48.7), (1024, 155.0), (4096, 576.0), (16384, 2252.0))
    ]


def _scaling_book() -> list[Record]:
    ring_bytes = 10 * _MIB
    return [
        Record(
            group=LINKS,
            label="all-gather over a line of 4 to bf16[2048,8192]",
            source=SCALING_BOOK,
            target="v5e:8x4",
            program=_line((512, 8192)),
            measured=680.0,
            unit="us",
        ),
        Record(
            group=LINKS,
            label="all-gather over a line of 4 to bf16[256,256]",
            source=SCALING_BOOK,
            target="v5e:8x4",
            program=_line((64, 256)),
            measured=8.0,
            unit="us",
        ),
        Record(
            group=LINKS,
            label="all-gather over a ring of 16 to 10 MiB",
            source=SCALING_BOOK_RING,
            target="v5e:8x16",
            program=Collective(
                kind="all-gather",
                shape=(ring_bytes // 16 // 2048, 1024),
                dtype="bfloat16",
                sides=(8, 16),
                axes=("y",),
            ),
            # A chip receives 15/16 of the result over two links.
            measured=ring_bytes * 15 / 16 / (2 * 0.95 * 45e9) * 1e6,
            unit="us",
        ),
    ]


def _meshslice() -> list[Record]:
    chips, steps_us = 4, 5.0
    gathered = 16 * _MIB
    received = gathered * (chips - 1) / chips
    shape = (gathered // chips // 2048, 1024)
    fits: tuple[tuple[Literal["all-gather", "reduce-scatter"], float, dict[str, float]], ...] = (
        ("all-gather", 13.0, {"x": 27.5, "y": 79.8}),
        ("reduce-scatter", 26.0, {"x": 37.5, "y": 63.2}),
    )
    return [
        Record(
            group=LINKS,
            label=f"{kind} of 16 MiB over 4, {axis}",
            source=MESHSLICE,
            target="v4:4x4x1",
            program=Collective(
                kind=kind, shape=shape, dtype="bfloat16", sides=(4, 4), axes=(axis,)
            ),
            measured=fixed + steps_us * (chips - 1) + received / gb * 1e-3,
            unit="us",
            upper_bound=True,
            quick=False,
        )
        for kind, fixed, by_axis in fits
        for axis, gb in by_axis.items()
    ]


def _llama_profile() -> list[Record]:
    return [
        Record(
            group=LINKS,
            label="all-reduce of bf16[8,8192] over 4 x 4",
            source=LLAMA_PROFILE,
            target="v5e:4x4",
            program=Collective(
                kind="all-reduce",
                shape=(8, 8192),
                dtype="bfloat16",
                sides=(4, 4),
                axes=("x", "y"),
            ),
            measured=15.9,
            unit="us",
        )
    ]


def _line(shape: tuple[int, ...]) -> Collective:
    """An all-gather of a shard over the second axis of 8x4."""
    return Collective(kind="all-gather", shape=shape, dtype="bfloat16", sides=(8, 4), axes=("y",))


def _size(size: int) -> str:
    return f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"
