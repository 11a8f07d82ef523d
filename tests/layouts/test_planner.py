"""What the planner chooses, and what it says of the rest."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh

import collective_einsum as ce
import layouts
from bench.paper import formulas as paper_forms
from layouts import BatchSharded, HeadSharded, WeightStationary2D
from layouts.cost.item_seconds import transfer_seconds
from layouts.cost.layer_items import Transfer
from layouts.layers.kv_cache import empty_cache
from layouts.mesh.slice_meshes import meshes
from layouts.models.named_models import MT_NLG_530B, PALM_540B, TINY_MULTIQUERY
from layouts.planning.defaults import default_reader
from layouts.planning.search import CHIPS

MESH = (4, 4, 4)


def decode(**how: Any) -> layouts.Plan:
    asked = {"phase": "decode", "batch": 64, "context": 2048, "weights": "int8"}
    return layouts.plan(PALM_540B, **(asked | how))


def test_the_papers_conclusions() -> None:
    """Sections 3.2.4, 3.3 and 4: for decode, for large prefill, and for one prompt."""
    chosen = {name: plan.best for name, _, plan in paper_forms.conclusions()}
    for name in ("decode, batch 512", "decode, batch 64, int8"):
        assert isinstance(chosen[name].partitioning.feedforward, WeightStationary2D)
        assert chosen[name].attention == "batch xyz"
    assert chosen["prefill, batch 512"].feedforward == "WG XYZ"
    assert chosen["prefill, batch 512"].attention == "batch xyz"
    assert isinstance(chosen["prefill, batch 1, int8"].partitioning.feedforward, WeightStationary2D)
    assert chosen["prefill, batch 1, int8"].attention == "heads"


def test_prefill_gathers_more_as_batches_grow() -> None:
    order = ["WS 2D position", "WS 2D", "WS 2D batch", "WG X", "WG XY", "WG XYZ"]
    places = [order.index(layout) for _, layout in paper_forms.prefill_crossovers()]
    assert places == sorted(places)
    assert places[0] < 3
    assert places[-1] == 5


def test_options_are_ranked_and_the_others_explained() -> None:
    found = decode(mesh_shape=MESH)
    seconds = [option.cost.step_seconds for option in found.feasible if option.cost]
    assert seconds == sorted(seconds)
    assert found.partitioning == found.best.partitioning
    assert found.cost.seconds == seconds[0] - found.cost.outside_seconds
    text = str(found)
    for word in ("ranked by latency", "predicted", "WS 2D batch, batch xyz", "x: attention"):
        assert word in text
    single = layouts.plan(PALM_540B, mesh_shape=MESH, phase="prefill", batch=1, length=2047)
    assert "would shard sequences over the same axes; use HeadSharded()" in str(single)
    # Batches and prompts are padded to what divides.
    assert "do not divide" not in str(single)


def test_a_batch_is_priced_as_it_is_padded() -> None:
    """It never excludes an option: over 64 chips one sequence costs as many as 64 do, and 60 tokens
    share what 64 would take."""
    costs = {
        batch: option.cost
        for option in decode(mesh_shape=MESH, batch=(1, 60, 64)).options
        for batch in [option.batch]
        if (option.feedforward, option.attention) == ("WS 2D batch", "batch xyz") and option.cost
    }
    assert costs[1].step_seconds == costs[60].step_seconds == costs[64].step_seconds
    assert costs[60].memory == costs[64].memory
    assert costs[60].mfu == pytest.approx(costs[64].mfu * 60 / 64)


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    found = decode(mesh_shape=MESH, batch=512, context=10_000)
    heads = next(o for o in found.options if (o.feedforward, o.attention) == ("WS 2D", "heads"))
    assert heads.cost is not None
    assert not heads.cost.fits
    assert heads.excluded.startswith("needs ")
    assert "of 32.0 GiB a chip" in heads.excluded
    assert heads not in found.feasible


def test_nothing_fits() -> None:
    found = decode(mesh_shape=(1, 1, 1))
    assert not found.feasible
    assert "GiB of the 32.0 GiB of a TPU v4; use more chips" in found.nearest
    assert found.nearest in str(found)
    with pytest.raises(ValueError, match="use more chips"):
        _ = found.partitioning


def test_nothing_is_fast_enough() -> None:
    found = decode(mesh_shape=MESH, max_seconds=1e-3)
    assert "no layout of palm-540b will do for this decode within 1 ms: the nearest" in str(found)
    assert "which takes" in found.nearest


def test_nothing_divides() -> None:
    found = decode(mesh_shape=(1, 1, 7))
    assert not found.feasible
    assert "does not divide over the 7 chips" in found.nearest


def test_chooses_the_mesh() -> None:
    found = decode(chips=128)
    shapes = {tuple(option.sizes.values()) for option in found.options}
    folded = {(1, 16, 8), (1, 8, 16), (1, 4, 32), (1, 32, 4)}
    assert shapes == {(8, 4, 4), (4, 8, 4), (4, 4, 8)} | folded
    assert found.best.chips == 128


def test_the_cheapest_point_under_a_latency_target() -> None:
    """Section 4.4 asks for the batch and the chips as well."""
    found = decode(batch=None, chips=(32, 64), objective="cost", max_seconds=0.040)
    assert found.cost.step_seconds <= 0.040
    spent = found.cost.chip_seconds_per_token
    assert spent <= min(o.cost.chip_seconds_per_token for o in found.feasible if o.cost) * 1.01
    # A looser target is met at a lower cost, with a larger batch.
    loose = decode(batch=None, chips=(32, 64), objective="cost", max_seconds=0.2)
    assert loose.cost.chip_seconds_per_token < spent
    assert loose.best.batch > found.best.batch
    fastest = decode(batch=None, chips=(32, 64))
    assert fastest.cost.step_seconds < found.cost.step_seconds


def test_the_fewest_chips_that_meet_a_target() -> None:
    few, more = (decode(chips=CHIPS, max_seconds=s).fewest_chips for s in (0.1, 0.025))
    assert few.chips < more.chips
    assert few.cost is not None
    assert few.cost.memory.total < ce.TPU_V4.hbm_bytes


def test_throughput_wants_the_largest_batch_that_fits() -> None:
    found = decode(batch=(1, 64, 512), mesh_shape=MESH, objective="throughput")
    assert found.best.batch == 512


def test_same_programs_stand_once() -> None:
    prefill = layouts.plan(PALM_540B, mesh_shape=MESH, phase="prefill", batch=512, length=2048)
    gathered = [option for option in prefill.options if option.feedforward == "WG XYZ"]
    assert [option.attention for option in gathered] == ["batch xyz"]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("chip", [ce.TPU_V4, ce.TPU_V5E, ce.H100], ids=lambda chip: chip.name)
@pytest.mark.parametrize("chips", [1, 6, 8, 64])
def test_meshes_have_all_chips(chip: ce.Chip, chips: int, folded: bool) -> None:
    found = meshes(chips, chip, folded=folded)
    assert found
    for sizes in found:
        assert math.prod(sizes.values()) == chips
    assert len({tuple(sizes.values()) for sizes in found}) == len(found)
    if chip is ce.TPU_V4 and chips == 64:
        shapes = {tuple(sizes.values()) for sizes in found}
        assert shapes - {(4, 4, 4)} == ({(1, 16, 4), (1, 4, 16)} if folded else set())
    if chip is ce.TPU_V5E and chips == 64:
        assert {tuple(sorted(s.values())) for s in found} == {(1, 8, 8)}


@pytest.mark.parametrize("model", ["gpt-oss-120b", "mixtral-8x22b", "llama-3.1-70b"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_folded_meshes_are_planned_too(model: str, phase: str) -> None:
    """But for prompts of dense models, whose rings would hop twice between neighbours."""
    length = {"context": 2048} if phase == "decode" else {"length": 2048}
    asked: dict[str, Any] = {"chip": "v5p", "phase": phase, "batch": 8, **length}
    found = layouts.plan(model, chips=8, **asked)
    shapes = {tuple(option.sizes.values()) for option in found.options}
    searched = phase == "decode" or found.config.experts is not None
    assert shapes == {(2, 2, 2)} | ({(1, 4, 2), (1, 2, 4)} if searched else set())
    assert (found.best.sizes["x"] == 1) == searched
    given = layouts.plan(model, mesh_shape=found.best.sizes, **asked)
    assert given.cost.step_seconds == found.cost.step_seconds


def test_a_chip_of_two_devices_reads_prompts_on_folded_meshes() -> None:
    asked: dict[str, Any] = {"chip": "tpu7x", "phase": "prefill", "batch": 1, "length": 2048}
    assert layouts.plan("llama-3.1-70b", chips=8, **asked).best.sizes["x"] == 1


def test_the_padding_of_a_plan_is_that_of_its_best_mesh() -> None:
    config = layouts.ModelConfig(2, 64, 128, 6, 6, 8, 64)
    found = layouts.padded_plan(config, chip="v5e", chips=16, phase="decode", batch=8, context=64)
    assert found.config == layouts.padded_for(config, found.best.sizes)
    for heads in (8, 16):
        padded = dataclasses.replace(config, padded_heads=heads)
        other = layouts.plan(padded, chip="v5e", chips=16, phase="decode", batch=8, context=64)
        assert other.cost.step_seconds >= found.cost.step_seconds


@pytest.mark.parametrize(("chip", "kind"), [("v5p", "all-gather"), ("v4", "all-reduce")])
def test_collectives_of_lax_use_all_sides_of_a_folded_mesh(chip: str, kind: Any) -> None:
    """Over y and z of 1x4x16 as over x, y and z of 4x4x4: these are the same links and chips."""
    folded = Transfer("", kind, ("y", "z"), 64, 2**19)
    straight = Transfer("", kind, ("x", "y", "z"), 64, 2**19)
    on = ce.as_chip(chip)
    seconds = transfer_seconds(folded, {"x": 1, "y": 4, "z": 16}, on)
    assert seconds == transfer_seconds(straight, {"x": 4, "y": 4, "z": 4}, on)
    # An axis of 16 along one side has more hops.
    assert seconds < transfer_seconds(folded, {"x": 2, "y": 4, "z": 16}, on)


def test_a_sweep_and_its_front() -> None:
    options = layouts.sweep(
        layouts.PALM_62B, phase="decode", context=2048, chips=(8, 16, 32), batches=(4, 64, 512)
    )
    assert {(o.chips, o.batch) for o in options} == {
        (chips, batch) for chips in (8, 16, 32) for batch in (4, 64, 512)
    }
    front = layouts.pareto(options)
    points = [(o.cost.seconds, o.cost.chip_seconds_per_token) for o in front if o.cost]
    assert points == sorted(points)
    assert [spent for _, spent in points] == sorted((s for _, s in points), reverse=True)
    for option in options:
        assert option.cost is not None
        assert any(
            s <= option.cost.seconds and t <= option.cost.chip_seconds_per_token for s, t in points
        )


def test_the_decoders_default() -> None:
    mesh = AbstractMesh(MESH, ("x", "y", "z"))
    planned = layouts.plan(PALM_540B, mesh_shape=MESH, phase="decode", batch=64, context=2048)
    assert layouts.default_decode(PALM_540B, mesh, 64, 2048) == planned.partitioning
    assert layouts.default_decode(PALM_540B, mesh, 1, 2048).attention == HeadSharded()
    assert layouts.default_decode(MT_NLG_530B, mesh, 64, 2048).attention == HeadSharded()


@pytest.mark.parametrize(
    ("batch", "length", "tiles"),
    [
        *(
            (1, *each)
            for each in ((5, 8), (40, 64), (100, 128), (129, 256), (513, 640), (1025, 1152))
        ),
        *((3, *each) for each in ((5, 5), (41, 42), (100, 126), (129, 168))),
        *((64, *each) for each in ((5, 6), (129, 130))),
        (200, 129, 129),
    ],
)
def test_prompts_between_tiles_are_read_as_whole_tiles_are(
    batch: int, length: int, tiles: int
) -> None:
    """The model takes no account of a part of a tile: 100 tokens took 485 us a layer, and 128 274."""
    mesh = AbstractMesh(MESH, ("x", "y", "z"))
    for config in (PALM_540B, MT_NLG_530B):
        one, other = (
            default_reader(config, mesh, batch, n, 4096, chip="v4") for n in (length, tiles)
        )
        assert one == other


@pytest.mark.parametrize("batch", [1, 4, 8, 64])
def test_default_steps_share_a_cache(batch: int) -> None:
    mesh = AbstractMesh(MESH, ("x", "y", "z"))
    reader = layouts.default_prefill(PALM_540B, mesh, batch, 2048, 4096)
    decoder = layouts.default_decode(PALM_540B, mesh, batch, 4096)
    cache = jax.eval_shape(lambda: empty_cache(PALM_540B, batch, 4096))
    specs = [layouts.cache_specs(PALM_540B, mesh, plan, cache) for plan in (reader, decoder)]
    assert jax.tree.leaves(specs[0]) == jax.tree.leaves(specs[1])
    if batch == 64:
        assert reader.attention == BatchSharded()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"objective": "speed"}, "objective='speed' is none of"),
        ({"overlap": "all"}, "overlap='all' is none of"),
        ({"mesh_shape": (4, 4)}, "must be three positive integers"),
        ({"mesh_shape": (4, 4, 4), "chips": 32}, "contradicts mesh_shape"),
        ({"chips": 0}, "chips=0 must be a positive integer"),
        ({"chips": ()}, "must each name at least one number"),
        ({"chip": "v4000"}, "chip='v4000': no chip is known by that name; give one of 'v4'"),
        ({"batch": -1}, "needs batch=, a positive integer; got -1"),
        ({"phase": "encode"}, "phase='encode' is neither"),
    ],
)
def test_errors(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(**how)


def test_a_model_that_no_mesh_divides() -> None:
    found = layouts.plan(TINY_MULTIQUERY, chips=9, phase="decode", batch=9, context=8)
    assert "d_model=32 does not divide over the 9 chips" in found.nearest
