"""Layers on chips whose SparseCores run lax's collectives beside other work."""

import dataclasses
import re

import pytest
from jax.sharding import Mesh

import collective_einsum as ce
import layouts
from bench.decoder_suite.layers import mesh_of
from bench.decoder_suite.phases import PAPER_540B, Phase, model_of
from layouts.cost import cost
from layouts.cost.layer_items import Load
from layouts.planning.defaults import chip_of

LAYERS = [
    # Feedforward layout, sequences, and microseconds of one layer as replayed: half of what decode
    # steps of four and of two layers differ by, PaLM 540B on tpu7x:4x4x4 in bf16, all "blocking",
    # libtpu 0.0.50.1 under the options of `ce.jit`. With all 118 layers, one takes within 3% of it
    # (`python -m bench layers --target tpu7x:4x4x4 --phase decode --compiler_options chip`).
    ("WS 2D all-reduce", 64, 131.9),
    ("WS 2D", 64, 141.9),
    ("WS 2D batch", 64, 140.2),
    ("WS 2D batch", 256, 157.9),
]


@pytest.mark.tpu
@pytest.mark.parametrize(("layout", "batch"), [row[:2] for row in LAYERS])
def test_few_tokens_leave_collectives_to_sparse_cores(layout: str, batch: int) -> None:
    mesh = mesh_of("tpu7x:4x4x4")
    chosen = Phase(PAPER_540B, "decode", batch, 2048, "bf16", layout, "batch xyz", layers=2)
    # Rings and all-to-alls were 10% to 17% slower here, with what XLA overlaps by itself; but the
    # unembedding, which overlaps nothing else.
    assert _overlapped(chosen, mesh) <= {"unembed/all_gather_einsum[bidirectional]"}


@pytest.mark.tpu
@pytest.mark.parametrize(("prompts", "chunks"), [(1, set()), (2, {"1+2+4"}), (4, {"1+3+5"})])
def test_many_tokens_gather_before_w_out_in_chunks(prompts: int, chunks: set[str]) -> None:
    """Replayed, without chunks and with them: 593 and 637 us a layer of 1 prompt, 1186 and 1168 of 2,
    2252 and 2149 of 4; with chunks before w_o too, 2464 of 4 (libtpu 0.0.50.1)."""
    mesh = mesh_of("tpu7x:4x4x4")
    phase = Phase(PAPER_540B, "prefill", prompts, 2048, "bf16", "WS 2D", "heads", layers=2)
    found = {name for name in _overlapped(phase, mesh) if "unembed" not in name}
    assert found == {
        f"eval_jaxpr/all_gather_einsum[chunked {how} over 'm', async]" for how in chunks
    }


def _overlapped(phase: Phase, mesh: Mesh) -> set[str]:
    """The functions that a step calls with schedules other than "blocking", by their scopes."""
    text = phase.lower(mesh).as_text(debug_info=True).replace("\\'", "'")
    scopes = set(re.findall(r"[\"/]([a-z_]+/[a-z_]+\[[^\]]+\])", text))
    assert len(scopes) > 3
    return {scope for scope in scopes if not scope.endswith("[blocking]")}


@pytest.mark.parametrize(("layout", "batch", "replayed"), LAYERS)
def test_the_planner_counts_what_sparse_cores_overlap(
    layout: str, batch: int, replayed: float
) -> None:
    load, plan, sides = Load(batch, 1, 2048), f"{layout}, batch xyz", (4, 4, 8)
    overlapped, alone = (
        cost(model_of(PAPER_540B), plan, sides, load, ce.TPU_7X, overlap).seconds
        for overlap in ("auto", "none")
    )
    assert overlapped < alone
    layers = layouts.PALM_540B.layers
    assert overlapped / layers * 1e6 == pytest.approx(replayed, rel=0.15)


# Slices of chips whose SparseCores run all-gathers by an option, and decode steps of 2048 positions
# there, bf16, attention "batch xyz": whether a layer is faster with it, by the cost model. Replayed by
# libtpu 0.0.50.1, us a layer of a whole step without it and with it.
OPTIONAL = [
    ("v6e:4x4", "palm-62b", 64, "WS 2D batch", True),  # 207 and 208; of four layers, 204 and 182
    ("v6e:4x4", "palm-62b", 512, "WS 2D batch", True),  # 540 and 462
    ("v6e:4x4", "palm-62b", 64, "WS 2D all-reduce", True),  # 206 and 183
    ("v6e:4x4", "palm-62b", 256, "WS 2D all-reduce", True),  # 308 and 305
    ("v5p:4x4x4", "palm-540b", 64, "WS 2D all-reduce", True),  # 162 and 150
    ("v5p:4x4x4", "palm-540b", 256, "WS 2D batch", False),  # 253 and 274
    ("v5p:4x4x4", "palm-540b", 512, "WS 2D batch", False),  # 381 and 405
    ("v6e:4x4", "llama-3.1-70b", 32, "WS 2D batch", False),  # 231 and 257
    ("v6e:4x4", "llama-3.1-70b", 256, "WS 2D batch", False),  # 456 and 499
    ("v4:4x4x4", "palm-540b", 64, "WS 2D all-reduce", False),  # no such option
]


@pytest.mark.tpu
@pytest.mark.parametrize(("slice_", "model", "batch", "layout", "faster"), OPTIONAL)
def test_a_step_uses_sparse_cores_where_it_is_faster(
    slice_: str, model: str, batch: int, layout: str, faster: bool
) -> None:
    step = Phase(model, "decode", batch, 2048, "bf16", layout, "batch xyz")
    mesh = mesh_of(slice_)
    chip = chip_of(mesh)
    for schedule, used in (("auto", faster), ("blocking", False), ("latency", False)):
        options = dataclasses.replace(step, schedule=schedule).compiler_options(mesh)
        assert (options.items() >= dict(chip.sparse_core_options).items() > set()) == used
    load = Load(batch, 1, 2048)
    predicted = cost(step.config, step.plan, dict(mesh.shape), load, chip)
    assert predicted.sparse_cores == faster
    assert ("SparseCores" in str(predicted)) == faster
    alone = dataclasses.replace(chip, sparse_core_options=())
    without = cost(step.config, step.plan, dict(mesh.shape), load, alone)
    assert (predicted.seconds < without.seconds) == faster
    assert predicted.chip == chip


@pytest.mark.tpu
def test_a_step_on_sparse_cores_is_compiled_with_them() -> None:
    """And without them under other options, which `python -m bench layers` compares."""
    mesh = mesh_of("v6e:2x2")
    step = Phase("palm-8b", "decode", 64, 2048, "bf16", "WS 2D all-reduce", "batch xyz", layers=2)
    for options, used in (("step", True), ("chip", False)):
        chosen = dataclasses.replace(step, options=options)
        compiled = chosen.lower(mesh).compile(compiler_options=chosen.compiler_options(mesh))
        assert ("sparsecore" in (compiled.as_text() or "").lower()) == used
