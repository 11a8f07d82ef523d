"""Measured figures of whole steps: Llamas, and those of the paper that `bench.paper` publishes."""

from __future__ import annotations

from bench.decoder_suite.phases import Phase
from bench.paper import rows as paper_rows
from bench.truth.programs import Step
from bench.truth.records import MODELS, PAPER, Record, Source

JAX_LLM_EXAMPLES = Source(
    name="jax-ml/jax-llm-examples, llama3",
    how="tokens/s of one sequence on v5e-16, jax 0.6.0, int8 weights and cache with room for 2048 "
    "positions, of which a kernel reads the blocks that are filled; our programs have this project's "
    "layouts, their layers written out, and a cache of 512 positions",
)
PYTORCH = Source(
    name="LLaMA-1 7B by PyTorch/XLA on TPU v4",
    how="bf16, batch 1, context 256, 1D tensor parallel; our programs have this project's layouts",
)
POPE = Source(
    name="Pope et al., arXiv 2211.05102",
    how="the layers alone, PaLM 540B on 64 chips; our programs have the paper's layouts, every "
    "schedule blocking",
)
# The compilers of `Record.public_ms`: the public program was lowered for v5e:4x4 as it is, its own
# kernel of decoding attention off, so that it reads all 2048 positions, and compiled with bundles. At
# batch 128 it does not fit so: four of its layers were compiled, and the others take as the third.
PUBLIC_VERSIONS = "libtpu 0.0.50.1, jax 0.12.0.1"

# Positions of Llama's cache that a step reads. The published runs have room for 2048, 4096 and 8192, and
# their steps hardly grow with it: 6.29, 6.85 and 6.85 ms at batch 8, where reading all of it would add
# 0.9 and then 1.9 ms. Their kernel reads blocks of 512 positions as far as they are filled, and the
# published seconds of prefill allow prompts of at most 862 tokens: all flops of 16 chips in 0.309 s,
# over 8 prompts of 2 x 70.6e9 flops a token.
_POSITIONS_READ = 512
# Weights stay, columns and rows over all chips; sums over all chips are all-reduced.
_MEGATRON = ("WS 2D all-reduce", "heads", "blocking")
# By batch: measured tokens/s of one sequence; the public program's predicted ms.
_TP16 = {8: (159.0, 8.08), 32: (108.0, 12.6), 128: (39.3, 28.3)}
_DP2_TP8 = {8: 84.4, 128: 50.2}


def records() -> list[Record]:
    """The Llamas."""
    return [*_llama_70b(), *_llama_7b()]


def paper_records() -> list[Record]:
    """The paper's: every line of `bench paper` with a published figure, once.

    The lines with rings of one direction stand for a figure that has its own line.
    """
    return [
        Record(
            group=PAPER,
            label=f"{line.blocking.kind}, {line.label}",
            source=POPE,
            target=line.target,
            program=Step(phase=line.blocking, layers_only=True),
            measured=line.published_seconds * 1e3,
            unit="ms",
            quick=line.quick,
        )
        for line in paper_rows.entries()
        if line.published_seconds is not None
    ]


def _llama_70b() -> list[Record]:
    def step(batch: int, sides: tuple[int, ...]) -> Step:
        model = ("llama-3.1-70b", "decode", batch, _POSITIONS_READ, "int8")
        phase = Phase(*model, *_MEGATRON, int8_cache=True, unrolled=True, sides=sides)
        return Step(phase=phase, bundles=True)

    tensor_parallel = [
        Record(
            group=MODELS,
            label=f"Llama-3.1-70B, TP16, batch {batch}",
            source=JAX_LLM_EXAMPLES,
            target="v5e:4x4",
            program=step(batch, (1, 4, 4)),
            measured=1e3 / tokens,
            unit="ms",
            public_ms=public_ms,
        )
        for batch, (tokens, public_ms) in _TP16.items()
    ]
    # Replicas do not communicate: one of them, with its half of the batch, on its half of the slice.
    replicas = [
        Record(
            group=MODELS,
            label=f"Llama-3.1-70B, DP2 x TP8, batch {batch}",
            source=JAX_LLM_EXAMPLES,
            target="v5e:2x4",
            program=step(batch // 2, (1, 2, 4)),
            measured=1e3 / tokens,
            unit="ms",
        )
        for batch, tokens in _DP2_TP8.items()
    ]
    return tensor_parallel + replicas


def _llama_7b() -> list[Record]:
    return [
        Record(
            group=MODELS,
            label=f"LLaMA-1 7B, TP{sides[1] * sides[2]}, batch 1",
            source=PYTORCH,
            target=target,
            program=Step(
                phase=Phase("llama-7b", "decode", 1, 256, "bf16", *_MEGATRON, sides=sides)
            ),
            measured=ms,
            unit="ms",
        )
        for target, sides, ms in (("v4:2x2x1", (1, 2, 2), 4.7), ("v4:2x2x2", (1, 2, 4), 3.8))
    ]
