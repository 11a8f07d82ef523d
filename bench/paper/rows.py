"""The programs behind the report: for each result of the paper, what is compiled, and what was
published of it."""

from __future__ import annotations

import dataclasses

from bench.decoder_suite.phases import PAPER_540B, Phase
from bench.paper import published
from layouts import PALM_540B, padded_for, plan
from layouts.mesh import shape_name

SLICE = "v4:4x4x4"
# The slice for each chip count of `paper.md`; its sides are x, y and z.
SLICES = {
    8: "v4:2x2x2",
    16: "v4:2x4x2",
    32: "v4:4x2x4",
    64: SLICE,
    128: "v4:8x4x4",
    256: "v4:4x8x8",
}
CONTEXT = 2048
ONE_WAY = "Figure 7 again: batch 64, its weights gathered in rings of one direction"
# A note printed below a section.
NOTES = {
    ONE_WAY: "In this section *blocking* stands for rings of one direction. Gathering all weights on "
    "all three axes at once is faster than what was published for batch 64: 28 s is 38 GB/s for the "
    "9.1 GB of each layer, less than one direction of one of six links carries (45 GB/s), and batch "
    "128 was published to take as long. No row is fitted to that; it is the largest miss of the "
    "blocking column."
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the report.

    Attributes:
      section: the figure or table.
      label: name of the line in the section.
      blocking: the paper's layouts, every schedule blocking.
      best: our program at its best; the layouts of `plan`, unless the line is about a layout.
      target: the slice.
      published_seconds: time of a step's layers; None where there is no figure.
      quick: whether it is part of the quick report.
    """

    section: str
    label: str
    blocking: Phase
    best: Phase
    target: str = SLICE
    published_seconds: float | None = None
    quick: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The programs compiled for the line."""
        return (self.blocking, self.best)


def ours(phase: Phase, target: str) -> Phase:
    """The phase scheduled by cost; of PaLM 540B without padded heads where its own divide."""
    divides = padded_for(PALM_540B, shape_of(target)).padded_heads is None
    model = PALM_540B.name if phase.model == PAPER_540B and divides else phase.model
    return dataclasses.replace(phase, model=model, schedule="auto")


def shape_of(target: str) -> str:
    """The sides of a slice, such as "4x4x4", which are the sizes of the mesh axes x, y and z."""
    return target.partition(":")[2]


def planned(phase: Phase, target: str) -> Phase:
    """The phase under the layouts that `plan` chooses."""
    best = plan(
        phase.config,
        mesh_shape=shape_of(target),
        phase=phase.kind,
        batch=phase.batch,
        weights=phase.weights,
        context=phase.length,
        length=phase.length,
    ).best
    assert shape_name(best.sizes) == shape_of(target)
    return dataclasses.replace(phase, feedforward=best.feedforward, attention=best.attention)


def entry(
    section: str,
    label: str,
    phase: Phase,
    target: str = SLICE,
    seconds: float | None = None,
    *,
    quick: bool = False,
    layouts_too: bool = True,
) -> Entry:
    """A line; `layouts_too` says whether the best program may have other layouts."""
    best = ours(phase, target)
    best = planned(best, target) if layouts_too else best
    plain = dataclasses.replace(phase, schedule="blocking")
    return Entry(section, label, plain, best, target, seconds, quick)


def entries() -> list[Entry]:
    """All lines that programs are compiled for, section by section."""
    return [
        *_decode(),
        *_table_2(),
        *_table_3(),
        *_figure_7(),
        *_one_way(),
        *_figure_6(),
        *_figure_8(),
        *_longest(),
        *_serial(),
        *_figure_b1(),
        *_sweep(),
    ]


def _decode() -> list[Entry]:
    section = "Figure 1, C.1: decoding, PaLM 540B on 64 chips, context 2048"
    return [
        entry(
            section,
            f"batch {batch}, {weights}",
            Phase(PAPER_540B, "decode", batch, CONTEXT, weights),
            seconds=ms * 1e-3,
            quick=True,
        )
        for (weights, batch), ms in published.DECODE_MS.items()
    ]


def _table_2() -> list[Entry]:
    section = "Table 2: configurations of PaLM 540B on 64 chips"
    decoded = published.DECODED_TOKENS
    model = PAPER_540B
    return [
        entry(
            section,
            "low-latency prefill, batch 1, int8",
            Phase(model, "prefill", 1, CONTEXT, "int8", attention="heads"),
            seconds=published.LOW_LATENCY_PREFILL,
            quick=True,
        ),
        entry(
            section,
            "low-latency decode, batch 64, int8, a token",
            Phase(model, "decode", 64, CONTEXT, "int8"),
            seconds=published.LOW_LATENCY_DECODE / decoded,
            quick=True,
        ),
        entry(
            section,
            "high-throughput prefill, batch 512, bf16",
            Phase(model, "prefill", 512, CONTEXT, "bf16", "WG XYZ"),
            seconds=published.HIGH_THROUGHPUT_PREFILL,
            quick=True,
        ),
        entry(
            section,
            "high-throughput decode, batch 512, bf16, a token",
            Phase(model, "decode", 512, CONTEXT, "bf16"),
            seconds=published.HIGH_THROUGHPUT_DECODE / decoded,
            quick=True,
        ),
    ]


def _table_3() -> list[Entry]:
    section = "Table 3: configurations of PaLM 62B"
    model = "palm-62b"
    return [
        entry(section, label, phase, SLICES[chips])
        for chips, label, phase in (
            (
                16,
                "low-latency prefill, batch 1, int8, 16 chips",
                Phase(model, "prefill", 1, CONTEXT, "int8", attention="heads"),
            ),
            (
                16,
                "low-latency decode, batch 32, int8, 16 chips",
                Phase(model, "decode", 32, CONTEXT, "int8"),
            ),
            (
                32,
                "high-throughput prefill, batch 512, bf16, 32 chips",
                Phase(model, "prefill", 512, CONTEXT, "bf16", "WG XYZ"),
            ),
            (
                8,
                "high-throughput decode, batch 512, bf16, 8 chips",
                Phase(model, "decode", 512, CONTEXT, "bf16"),
            ),
        )
    ]


def _figure_7() -> list[Entry]:
    section = "Figure 7: prefill of 2048 tokens, PaLM 540B on 64 chips, bf16"
    return [
        entry(
            section,
            f"batch {batch}, {layout}",
            Phase(PAPER_540B, "prefill", batch, CONTEXT, "bf16", layout),
            seconds=published.seconds_of(mfu, batch * CONTEXT),
            layouts_too=False,
        )
        for batch, mfus in published.PREFILL_MFU.items()
        for layout, mfu in zip(("WS 2D", "WG XYZ"), mfus, strict=True)
    ]


def _one_way() -> list[Entry]:
    """Batch 64 of figure 7, with weights gathered in one link direction."""
    phase = Phase(PAPER_540B, "prefill", 64, CONTEXT, "bf16", "WG XYZ", schedule="unidirectional")
    best = ours(phase, SLICE)
    return [Entry(ONE_WAY, "batch 64, WG XYZ, rings of one direction", phase, best)]


def _figure_6() -> list[Entry]:
    section = "Figure 6: decoding, PaLM 540B, batch 512, bf16, over chips"
    return [
        entry(
            section,
            f"{chips} chips, {layout}",
            Phase(PAPER_540B, "decode", 512, CONTEXT, "bf16", layout),
            SLICES[chips],
            layouts_too=False,
        )
        for chips in (64, 128, 256)
        for layout in ("WS 1D", "WS 2D")
    ]


def _figure_8() -> list[Entry]:
    section = "Figure 8: decoding, 8 layers of PaLM 540B on 64 chips, batch 128, over context"
    kinds = {
        "multihead": ("palm-540b multihead", "heads"),
        "multiquery, heads": ("palm-540b 8 layers", "heads"),
        "multiquery, batch": ("palm-540b 8 layers", "batch xyz"),
    }
    return [
        entry(
            section,
            f"context {context}, {name}",
            Phase(model, "decode", 128, context, "bf16", attention=attention),
            layouts_too=False,
        )
        for context in (128, 512, 2048, 8192, 32768)
        for name, (model, attention) in kinds.items()
    ]


def _longest() -> list[Entry]:
    section = "Table 1: decoding at the longest contexts, PaLM 540B on 64 chips, bf16"
    return [
        entry(
            section,
            f"batch {batch}, context {context}",
            Phase(PAPER_540B, "decode", batch, context, "bf16"),
        )
        for (attention, batch), context in published.LONGEST_CONTEXT.items()
        if attention == "multiquery, batch"
    ]


def _serial() -> list[Entry]:
    section = "Section 4.3: a serial block, decoding, PaLM 540B on 64 chips, batch 512, bf16"
    parallel = published.DECODE_MS["bf16", 512] * 1e-3
    return [
        entry(
            section,
            "serial",
            Phase("palm-540b serial", "decode", 512, CONTEXT, "bf16"),
            seconds=parallel * (1 + published.SERIAL_COST),
        ),
    ]


def _figure_b1() -> list[Entry]:
    section = "Figure B.1: prefill of one sequence, PaLM 540B on 64 chips, int8, over length"
    return [
        entry(
            section,
            f"{length} tokens",
            Phase(PAPER_540B, "prefill", 1, length, "int8", attention="heads"),
        )
        for length in (32, 64, 128, 256, 512, 1024)
    ]


def _sweep() -> list[Entry]:
    section = "Figure 1, C.1: decoding, smaller models, context 2048"
    return [
        entry(
            section,
            f"{model}, {chips} chips, batch {batch}, {weights}",
            Phase(model, "decode", batch, CONTEXT, weights),
            SLICES[chips],
        )
        for model, chips in (("palm-8b", 8), ("palm-62b", 16), ("palm-62b", 32))
        for batch, weights in ((64, "int8"), (64, "bf16"), (512, "bf16"))
    ]
