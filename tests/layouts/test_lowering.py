"""The programs that run, lowered from shapes and compiled for TPU v4, with no TPU there."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import collective_einsum as ce
import layouts
from bench.decoder_suite.layers import mesh_of as tpu_mesh
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from layouts.cost.layer_items import Load
from layouts.decoding.compiled_step import Program
from layouts.decoding.decoder import extender
from layouts.models.named_models import PALM_540B, TINY_GROUPED, TINY_MULTIQUERY
from layouts.models.open_models import LLAMA_31_70B, MIXTRAL_8X22B
from layouts.models.params import params_shapes

AXES = ("x", "y", "z")
# Large enough for the TPU compiler to lay out as it would a large model, and quick to compile.
SMALL = dataclasses.replace(
    PALM_540B, layers=4, d_model=2048, d_ff=8192, heads=12, padded_heads=16, vocab=4096
)
BATCH, CONTEXT = 16, 2048


@functools.cache
def slice_of_8() -> Any:
    return target("v4:2x2x2").mesh((2, 2, 2), AXES)


@functools.cache
def decode(weights: str = "bf16", int8_cache: bool = False) -> Any:
    return layouts.lower_decode_step(
        SMALL,
        slice_of_8(),
        batch=BATCH,
        context=CONTEXT,
        weights=weights,
        int8_cache=int8_cache,
        unrolled=False,
    ).compile()


def cache_bytes(itemsize: int) -> int:
    """Of the keys and values on one of 8 chips."""
    return 2 * SMALL.layers * (BATCH // 8) * CONTEXT * SMALL.d_head * itemsize


@pytest.mark.tpu
@pytest.mark.parametrize("int8_cache", [False, True])
def test_a_decode_step_holds_one_cache(int8_cache: bool) -> None:
    memory = decode(int8_cache=int8_cache).memory_analysis()
    cache = cache_bytes(1 if int8_cache else 2)
    # What comes in is what goes out: the donated buffers.
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache / 4


@pytest.mark.tpu
def test_no_copy_of_the_cache_in_the_loop() -> None:
    """Nothing inside the loop over layers makes an array as large as one layer's keys."""
    module = hlo.parse(decode().as_text() or "")
    loops = [i for i in module.entry if i.opcode == "while"]
    assert len(loops) == 1
    keys = cache_bytes(2) // 2
    # The loop holds the cache, so that it is known what to look for.
    assert any(
        leaf.bytes == keys and CONTEXT in leaf.dims for leaf in shapes.leaves(loops[0].shape)
    )
    made = [
        f"{i.name}: {i.shape}"
        for i in module.computations[loops[0].called("body")]
        for leaf in shapes.leaves(i.shape)
        if not work.is_free(i) and CONTEXT in leaf.dims and leaf.bytes >= keys // SMALL.layers
    ]
    assert not made


@pytest.mark.tpu
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_prefill_and_decode_compile(weights: str) -> None:
    prefill, unrolled = (
        layouts.lower_prefill(
            SMALL, slice_of_8(), batch=1, length=256, weights=weights, unrolled=unrolled
        )
        for unrolled in (False, True)
    )
    for compiled in (prefill.compile(), unrolled.compile(), decode(weights)):
        assert "is_scheduled=true" in (compiled.as_text() or "")


@pytest.mark.tpu
def test_layouts_store_the_weights_alike() -> None:
    """Prefill under one layout, decode under another: compiled for the same shards of the weights."""
    mesh = slice_of_8()
    gathered = layouts.Partitioning(layouts.WeightGathered(), layouts.BatchSharded())
    prefill = layouts.lower_prefill(
        SMALL, mesh, batch=BATCH, length=128, plan=gathered, unrolled=False
    ).compile()
    held, read = (
        jax.tree.map(lambda sharding: sharding.spec, program.input_shardings[0][0])
        for program in (decode(), prefill)
    )
    assert held == read
    assert held["blocks"]["w_in"] == PartitionSpec(None, "x", ("y", "z"))


@pytest.mark.tpu
def test_palm_540b_fits() -> None:
    """A decode step of all 118 layers, int8 weights, batch 64, context 2048, on 64 chips."""
    config, mesh = PALM_540B, target("v4:4x4x4").mesh((4, 4, 4), AXES)
    compiled = layouts.lower_decode_step(
        config, mesh, batch=64, context=2048, weights="int8", unrolled=False
    ).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    held = memory.argument_size_in_bytes
    assert held > config.stored_parameters / 64
    chip = target("v4:4x4x4").chip
    assert chip is not None
    assert held + memory.temp_size_in_bytes < chip.hbm_bytes


@pytest.mark.tpu
@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("d_head", [64, 128, 192])
@pytest.mark.parametrize("slice_", ["v4:2x2x1", "v5e:2x2"])
def test_no_cache_is_copied_into_another_layout(slice_: str, d_head: int, unrolled: bool) -> None:
    """Of features that fill no tile the compiler stores positions last; new ones are written there."""
    config = dataclasses.replace(
        TINY_GROUPED, d_model=512, d_ff=1024, heads=16, kv_heads=8, d_head=d_head, layers=4
    )
    slice_of = target(slice_)
    mesh = slice_of.mesh((*slice_of.sides, 1)[:3], AXES)
    text = (
        layouts.lower_decode_step(
            config,
            mesh,
            batch=32,
            context=1024,
            plan="WS 2D all-reduce, batch z",
            unrolled=unrolled,
        )
        .compile()
        .as_text()
    )
    assert text is not None
    stored = rf"bf16\[4,\d+,\d+,1024,{d_head}\]\S*"
    assert len(re.findall(rf"{stored} parameter\(", text)) >= 2
    assert not re.findall(rf"= {stored} copy\(", text)


@pytest.mark.tpu
def test_an_unrolled_step_copies_no_cache_of_several_heads() -> None:
    """Two heads of 32 sequences a chip: what is new is written after the last read. Without that, a
    step had 116 MiB of temporaries beside 192 MiB of cache."""
    config = dataclasses.replace(LLAMA_31_70B, layers=6, vocab=16384)
    lowered = layouts.lower_decode_step(
        config,
        target("v5e:4x4").mesh((1, 4, 4), AXES),
        batch=128,
        context=2048,
        weights="int8",
        int8_cache=True,
        plan="WS 2D all-reduce, batch z",
        unrolled=True,
    )
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 32 * 2**20


@pytest.mark.tpu
@pytest.mark.parametrize(("batch", "context"), [(512, 10_700), (128, 43_000)])
def test_the_longest_contexts_fit(batch: int, context: int) -> None:
    """Table 1 of arXiv 2211.05102, whose lengths no tile divides: no copy of the cache is made."""
    slice_ = target("v4:4x4x4")
    compiled = layouts.lower_decode_step(
        PALM_540B, slice_.mesh((4, 4, 4), AXES), batch=batch, context=context, unrolled=False
    ).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert slice_.chip is not None
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < slice_.chip.hbm_bytes
    assert memory.temp_size_in_bytes < 2**28


def test_a_capacity_costs_what_the_next_multiple_does() -> None:
    """By the same program, which does not know what was asked for."""

    def lowered(context: int) -> str:
        return layouts.lower_decode_step(
            SMALL, slice_of_8(), batch=BATCH, context=context
        ).as_text()

    whole = lowered(2048)
    for context in (2017, 2040, 2047):
        assert lowered(context) == whole
    assert lowered(2049) != whole


def test_lowers_what_runs(mesh_of: Any) -> None:
    """From shapes comes the very program that comes from the arrays of `decode_step`."""
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    plan = layouts.default_decode(config, mesh, 8, 16)
    lowered = layouts.lower_decode_step(config, mesh, batch=8, context=16, plan=plan)
    params = layouts.init(config, mesh, jax.random.key(0), jnp.bfloat16)
    cache = layouts.init_cache(config, mesh, 8, 16, plan=plan)
    everywhere = NamedSharding(mesh, PartitionSpec())
    tokens, counts = (
        jax.device_put(jnp.ones(shape, jnp.int32), everywhere) for shape in ((8, 1), (8,))
    )
    run = extender(Program(config=config, mesh=mesh, plan=plan))
    assert run.lower(params, cache, tokens, counts, reads=True).as_text() == lowered.as_text()


def test_lowers_any_batch_and_context(mesh_of: Any) -> None:
    """What is asked for comes in and out; the cache is stored larger."""
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    lowered = layouts.lower_decode_step(config, mesh, batch=6, context=33, plan=plan)
    logits, cache = lowered.out_info
    assert logits.shape == (6, config.vocab)
    assert cache.k.values.shape == (config.layers, 8, 1, 64, config.d_head)
    assert cache.lengths.shape == (6,)
    assert cache.max_length == 33


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 8, "context": 16, "weights": "fp8"}, "weights='fp8' must be one of 'bf16'"),
        ({"batch": 0, "context": 16}, "needs batch=, a positive integer; got 0"),
    ],
)
def test_refuses_in_words(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layouts.lower_decode_step(PALM_540B, slice_of_8(), **arguments)


def test_refuses_a_mesh_that_does_not_divide_the_model() -> None:
    config = dataclasses.replace(PALM_540B, d_ff=73729)
    with pytest.raises(ValueError, match=r"d_ff=73729 .* 64 chips of a mesh 4x4x4; .* 73792"):
        layouts.lower_prefill(config, AbstractMesh((4, 4, 4), AXES), batch=1, length=8)
    with pytest.raises(ValueError, match=r"mesh with the axes .*got \('data', 'model'\)"):
        layouts.lower_prefill(PALM_540B, AbstractMesh((4, 4), ("data", "model")), batch=1, length=8)


@pytest.mark.tpu
def test_options_that_keep_a_table_out_of_on_chip_memory() -> None:
    # A chip of 32 has 131 MB of PaLM 62B's table in bf16, which fits 128 MiB; one of 16, twice that.
    mesh = tpu_mesh("v4:2x4x4")
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())

    def options(slice_: Any, schedule: str = "auto", **how: Any) -> dict[str, Any]:
        params = params_shapes(layouts.PALM_62B, jnp.bfloat16, **how)
        found = Program.of(layouts.PALM_62B, slice_, plan, schedule, params)
        return dict(found.compiler_options)

    plain = ce.compiler_options(ce.TPU_V4)
    assert options(mesh, unrolled=False) == plain
    assert options(mesh, unrolled=True) == plain | dict(ce.TPU_V4.no_prefetch_options)
    assert options(tpu_mesh("v4:2x2x4"), unrolled=True) == plain
    assert options(tpu_mesh("v4:2x2x4"), unrolled=True, int8=True) != plain
    assert options(mesh, "blocking", unrolled=True) == {}


@pytest.mark.tpu
def test_weights_come_early_where_they_take_longer_from_hbm_than_to_be_multiplied() -> None:
    mesh, plan = tpu_mesh("v5e:4x4"), "WS 2D all-reduce, heads"

    def early(load: Load | None, config: Any = LLAMA_31_70B, **how: Any) -> bool:
        params = params_shapes(config, jnp.bfloat16, **({"unrolled": True} | how))
        program = Program.of(config, mesh, plan, "auto", params, load=load)
        ahead = ce.compiler_options(ce.TPU_V5E, weights_ahead=True)
        assert program.weights_ahead == (program.compiler_options.items() >= ahead.items())
        return program.weights_ahead

    # 197e12 flops take as long as 0.87 of 819e9 bytes with 276 rows for two bytes.
    assert early(Load(256, 1, 2048, 2))
    assert not early(Load(288, 1, 2048, 2))
    assert not early(Load(1, 288, 0, 2))
    assert not early(Load(256, 1, 2048, 1), int8=True)
    assert early(Load(128, 1, 2048, 1), int8=True)
    # Of 8 experts, each has a quarter of the tokens.
    assert early(Load(512, 1, 2048, 1), MIXTRAL_8X22B, int8=True)
    narrow = dataclasses.replace(LLAMA_31_70B, int8_activations=True)
    assert early(Load(256, 1, 2048, 1), narrow, int8=True)
    assert not early(None)
    assert not early(Load(8, 1, 2048, 2), unrolled=False)


def test_a_program_of_unrolled_weights_asks_the_mesh_for_its_sizes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def check_mesh(mesh: Any) -> dict[str, int]:
        asked.append(mesh)
        return dict(zip(AXES, mesh.axis_sizes, strict=True))

    monkeypatch.setattr("layouts.decoding.compiled_step.check_mesh", check_mesh)
    params = params_shapes(layouts.PALM_62B, jnp.bfloat16, unrolled=True)
    mesh = AbstractMesh((2, 4, 4), AXES)
    Program.of(layouts.PALM_62B, mesh, "WS 2D, batch xyz", "auto", params)
    assert asked == [mesh]
