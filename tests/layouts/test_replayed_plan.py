"""The planner's first options, compiled for a slice and replayed: their figures, order and words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import collective_einsum as ce
import layouts
from collective_einsum import ruler
from collective_einsum.ruler.compile import slice_name
from layouts.models.named_models import PALM_540B
from layouts.replayed_plan import _first, _replayed

# Large enough to be laid out as a large model is, and quick to compile.
SMALL = dataclasses.replace(PALM_540B, layers=6, d_model=1024, d_ff=4096, heads=8, vocab=1024)


def planned(config: layouts.ModelConfig = SMALL, **how: Any) -> layouts.Plan:
    asked: dict[str, Any] = {"chip": "v5e", "chips": 8, "phase": "decode", "batch": 16}
    asked |= {} if how.get("phase") == "prefill" else {"context": 1024}
    return layouts.plan(config, **(asked | how))


def predicted(option: layouts.Option, *, unrolled: bool = False) -> float:
    """Seconds of a decode step, predicted in this process."""
    lowered = layouts.lower_decode_step(
        SMALL,
        ruler.mesh("v5e:2x4", option.sizes),
        batch=option.batch,
        context=1024,
        plan=option.partitioning,
        unrolled=unrolled,
    )
    return ruler.predict(lowered).total_seconds


@pytest.mark.tpu
def test_options_are_ranked_by_their_replays() -> None:
    plan = planned()
    found = layouts.replay_plan(plan, first=2)
    assert len(found.replayed) == 2
    for each in found.replayed:
        assert each.option in plan.feasible
        assert each.step_seconds == pytest.approx(predicted(each.option), rel=1e-9)
        assert 0 < each.exposed_seconds < each.step_seconds
    seconds = [each.step_seconds for each in found.replayed]
    assert seconds == sorted(seconds)
    assert found.partitioning == found.replayed[0].option.partitioning
    text = str(found)
    assert "scanned layers: ranked by latency" in text
    assert f"and {len(plan.feasible) - 2} more that were not replayed" in text
    for each in found.replayed:
        assert f"{each.step_seconds * 1e3:.4g}" in text
    assert "1.00x" in text


@pytest.mark.tpu
def test_unrolled_layers_are_replayed() -> None:
    found = layouts.replay_plan(planned(), first=1, unrolled=True)
    (only,) = found.replayed
    assert only.step_seconds == pytest.approx(predicted(only.option, unrolled=True), rel=1e-9)
    assert "unrolled layers: ranked by latency" in str(found)


@pytest.mark.tpu
def test_prompts_and_int8_are_replayed() -> None:
    prompts = planned(phase="prefill", length=256, batch=(8, 16), mesh_shape=(2, 4, 1))
    found = layouts.replay_plan(prompts, first=2)
    assert {each.option.batch for each in found.replayed} == {8, 16}
    assert all(each.step_seconds > 0 for each in found.replayed)
    narrow = layouts.replay_plan(planned(cache="int8", weights="int8"), first=1)
    assert narrow.replayed[0].step_seconds > 0


@pytest.mark.tpu
def test_what_takes_too_long_by_its_replay_is_excluded() -> None:
    plan = planned()
    late = dataclasses.replace(plan, max_seconds=1e-6)
    # No option is excluded by the analytical model, as if it had predicted less.
    found = layouts.replay_plan(late, first=1)
    assert found.replayed[0].excluded.endswith("more than 0.001 ms")
    assert found.replayed[0].excluded in str(found)
    with pytest.raises(ValueError, match="none of the 1 options that were replayed will do"):
        _ = found.best


@pytest.mark.tpu
def test_what_does_not_fit_by_the_compiler_is_excluded() -> None:
    option = planned(PALM_540B).options[0]
    assert "needs" in option.excluded
    seconds, _, excluded = _replayed(PALM_540B, option, "v5e:2x4", unrolled=False)
    assert seconds == 0
    assert excluded.startswith("does not fit: ")


def test_the_best_of_each_mesh_comes_first() -> None:
    plan = planned(layouts.model("llama-3.1-70b"), chips=64, chip="v4")
    chosen = _first(plan.feasible, 4)
    shapes = [tuple(option.sizes.values()) for option in chosen]
    assert len(shapes) == 4
    assert set(shapes[:3]) == {(4, 4, 4), (1, 4, 16), (1, 16, 4)}
    assert chosen[0] == plan.best
    # Over two sides of a torus x and y exchange their names.
    alike = planned(chips=16).feasible
    seconds = [option.cost.step_seconds for option in _first(alike, len(alike)) if option.cost]
    assert len(seconds) == len(set(seconds)) < len(alike)


@pytest.mark.parametrize(
    ("chip", "devices", "name"),
    [
        (ce.TPU_V4, 64, "v4:4x4x4"),
        (ce.TPU_V5P, 8, "v5p:2x2x2"),
        (ce.TPU_V5P, 4, "v5p:2x2x1"),
        (ce.TPU_V5E, 16, "v5e:4x4"),
        (ce.TPU_V6E, 8, "v6e:2x4"),
        (ce.TPU_7X, 8, "tpu7x:2x2x1"),
    ],
)
def test_the_name_of_a_slice(chip: ce.Chip, devices: int, name: str) -> None:
    assert slice_name(chip, devices) == name
    sides = [int(side) for side in name.partition(":")[2].split("x")]
    assert slice_name(chip, devices, sides) == name


@pytest.mark.parametrize(
    ("chip", "devices", "message"),
    [
        (ce.H100, 8, "no TPU compiler for NVIDIA H100.*choose a chip of v4, v5p, v5e, v6e, tpu7x"),
        (ce.TPU_V5E, 2, "no slice of 2 devices of TPU v5e.*another number of chips"),
        (ce.TPU_7X, 7, "no slice of 7 devices"),
        (ce.TPU_7X, 1, "no slice of 1 devices"),
    ],
)
def test_there_is_no_such_slice(chip: ce.Chip, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slice_name(chip, devices)


@pytest.mark.tpu
def test_a_slice_that_is_not_compact_is_replayed() -> None:
    plan = planned(chips=None, mesh_shape=(2, 8, 1), batch=8)
    long = layouts.replay_plan(plan, first=1, sides=(2, 8)).replayed[0]
    square = layouts.replay_plan(plan, first=1).replayed[0]
    assert long.option == square.option
    assert long.step_seconds != square.step_seconds


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="a slice of 4x4 chips of TPU v5e has not 8 devices"):
        layouts.replay_plan(planned(), sides=(4, 4))
    with pytest.raises(ValueError, match="use more chips"):
        layouts.replay_plan(planned(PALM_540B))
    with pytest.raises(ValueError, match="first=0"):
        layouts.replay_plan(planned(), first=0)
    with pytest.raises(ValueError, match="unrolled='yes' must be True or False"):
        layouts.replay_plan(planned(), unrolled="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no TPU compiler for NVIDIA H100"):
        layouts.replay_plan(planned(chip="h100"))
