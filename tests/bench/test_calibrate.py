"""What the installed compiler makes of dots, against the files of the chips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

import collective_einsum as ce
from bench import __main__ as command
from bench.calibration import observe, report
from bench.calibration.dots import Dot, dots
from bench.calibration.passes import Pass, passes
from collective_einsum import cost
from collective_einsum.chips import Chip, DotObservation, Observations, PassObservation
from collective_einsum.ruler.compile import in_processes
from collective_einsum.ruler.replay import WIDTH
from tests.observed_chips import CHIPS as OBSERVED
from tests.observed_chips import SLICES

CHIPS = {SLICES[name]: chip for name, chip in OBSERVED.items()}
BF16, INT8 = "bfloat16", "int8"
SMALL = Dot(rows=64, contracted=1152, columns=1152, lhs=BF16, rhs=BF16)
WIDE = (
    SMALL,
    dataclasses.replace(SMALL, adds=True),
    dataclasses.replace(SMALL, gathered=True),
    dataclasses.replace(SMALL, scattered="whole"),
    dataclasses.replace(SMALL, scattered="ring"),
    Dot(rows=512, contracted=256, columns=1152, lhs=BF16, rhs=BF16),
)
# One of each kind.
PASSES = tuple(one for one in passes() if one.rows in (64, 4608) and one.columns != 1152)
NARROW = (
    dataclasses.replace(SMALL, rhs=INT8),
    *(one for one in PASSES if one.is_narrow),
)
# It waits for HBM on all chips but these, whose bandwidth is higher in comparison with the peak.
COMPUTING = ("v5p:2x2x1",)
BETWEEN = Dot(rows=256, contracted=640, columns=2304, lhs=BF16, rhs=BF16)


def in_file(chip: Chip, asked: Dot | Pass) -> DotObservation | PassObservation:
    """The observation of a dot or a pass in the file of a chip."""
    seen = chip.observations
    assert seen is not None
    fields = dataclasses.asdict(asked)
    return next(
        one
        for one in (seen.dots if isinstance(asked, Dot) else seen.passes)
        if {k: v for k, v in vars(one).items() if k in fields} == fields
    )


def without_cycles(one: DotObservation | PassObservation) -> DotObservation | PassObservation:
    return dataclasses.replace(one, cycles=0)


@pytest.mark.tpu
@pytest.mark.parametrize("slice_", CHIPS)
def test_the_compiler_has_not_drifted(slice_: str, tmp_path: Path) -> None:
    """From the file of the installed version, or the nearest; `python -m bench calibrate` makes it."""
    for one in (*WIDE, *(one for one in PASSES if not one.is_narrow)):
        now, then = observe.observe(one, slice_, tmp_path), in_file(CHIPS[slice_], one)
        assert without_cycles(now) == without_cycles(then)
        assert now.cycles == pytest.approx(then.cycles, rel=0.1), one


@pytest.mark.tpu
def test_narrow_dots_and_passes_have_not_drifted(tmp_path: Path) -> None:
    """In one process for all chips, which dumps bundles."""
    asked = [(one, slice_, str(tmp_path)) for slice_ in CHIPS for one in NARROW]
    for scattered in ("whole", "ring"):
        one = dataclasses.replace(NARROW[0], scattered=scattered)
        asked.append((one, "v6e:2x2", str(tmp_path)))
    for place, now in in_processes(observe.observe, asked, 1):
        then = in_file(CHIPS[asked[place][1]], asked[place][0])
        assert without_cycles(now) == without_cycles(then)
        assert now.cycles == pytest.approx(then.cycles, rel=0.1), asked[place]


@pytest.mark.tpu
@pytest.mark.parametrize("slice_", CHIPS)
def test_a_dot_between_the_observed_sizes(slice_: str, tmp_path: Path) -> None:
    """The cost model interpolates; the compiler's own figure is the oracle."""
    chip = CHIPS[slice_]
    now = observe.observe(BETWEEN, slice_, tmp_path)
    asked = cost.Dot(rows=BETWEEN.rows, contracted=BETWEEN.contracted, columns=BETWEEN.columns)
    # Weights and a result of bf16; the ruler charges a dot that waits for them no more than their time.
    moved = 2 * BETWEEN.columns * (BETWEEN.contracted + BETWEEN.rows)
    streaming = moved / (chip.hbm_efficiency * chip.hbm_bandwidth) + chip.hbm_fill_seconds
    compiled = now.cycles / chip.clock_hz
    expected = min(compiled, streaming) if slice_ not in COMPUTING else compiled
    assert cost.matmul_seconds(chip, asked) == pytest.approx(expected, rel=0.25)


@pytest.fixture
def observed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observing takes no compiler: everything has a thousand cycles a row."""

    def observe_all(
        asked: list[Dot | Pass], name: str, cache_directory: str, workers: int
    ) -> Iterator[tuple[int, DotObservation | PassObservation]]:
        assert cache_directory
        assert workers == 2
        for place, one in reversed(list(enumerate(asked))):
            cycles = 1000 * one.rows
            if isinstance(one, Dot):
                yield place, DotObservation(**vars(one), cycles=cycles, source="estimate")
            else:
                fields = {"bytes": 8 * cycles, "cycles": cycles, "source": "estimate"}
                yield place, PassObservation(**vars(one), **fields)

    monkeypatch.setattr(observe, "observe_all", observe_all)


@pytest.mark.tpu
@pytest.mark.usefixtures("observed_at_once")
def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", "--target", "v6e:2x2", "--out", str(tmp_path)]
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    for column in (
        "dtypes",
        "sizes",
        "us",
        "Tflop/s",
        "source",
        "add",
        "copy int8",
        "array",
        "GB/s",
    ):
        assert f"{column}: " in " ".join(printed.split())
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("v6e-libtpu-")
    assert printed.endswith(f"\nwritten to {file}\n")
    seen = Observations.from_json(file.read_text())
    assert seen.chip == "TPU v6e"
    assert seen.command == "python -m bench calibrate --target v6e:2x2"
    asked = dots(ce.TPU_V6E)
    assert [(dot.rows, dot.adds, dot.cycles) for dot in seen.dots] == [
        (dot.rows, dot.adds, 1000 * dot.rows) for dot in asked
    ]
    assert len(json.loads(file.read_text())["dots"]) == len(asked) > 50
    assert [(one.kind, one.columns, one.cycles) for one in seen.passes] == [
        (one.kind, one.columns, 1000 * one.rows) for one in passes()
    ]


@pytest.mark.parametrize("words", [["--target", "cpu:8"], ["--target", "v9"], ["--json", "x"]])
def test_wrong_arguments(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["calibrate", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_conclusion_names_the_rate_that_is_reached() -> None:
    dot = Dot(rows=1000, contracted=1000, columns=1000, lhs=BF16, rhs=BF16)
    seconds = 2e9 / (0.5 * ce.TPU_V4.bf16_flops)
    row = DotObservation(**vars(dot), cycles=round(seconds * ce.TPU_V4.clock_hz), source="estimate")
    seen = Observations(
        chip="TPU v4",
        compiler="libtpu 1",
        jax="1",
        command="",
        clock_hz=ce.TPU_V4.clock_hz,
        dots=(row, dataclasses.replace(row, cycles=2 * row.cycles)),
        passes=(),
    )
    assert "dots reach: bf16 x bf16 at most 50%." in report.print_observations(seen)


def test_tpu7x_has_fp8_dots_and_v4_has_none() -> None:
    fp8 = jnp.dtype(jnp.float8_e4m3fn).name
    assert any(dot.lhs == fp8 for dot in dots(ce.TPU_7X))
    assert not any(dot.lhs == fp8 for dot in dots(ce.TPU_V4))
