"""Dots that are timed on the attached device, for which CPU devices stand in."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from bench import __main__ as command
from bench.calibration import attached
from bench.calibration.dots import LAYERS, Dot
from collective_einsum.chips import DotObservation, Observations

BF16, F32 = "bfloat16", "float32"
TINY = Dot(rows=8, contracted=128, columns=128, lhs=BF16, rhs=BF16)


def scripted(*seconds: float) -> attached.Stopwatch:
    """Calls take these seconds, one after another."""
    ticks = itertools.chain.from_iterable((0.0, one) for one in seconds)
    return attached.Stopwatch(least_seconds=0.05, repetitions=3, now=lambda: next(ticks))


def measured(dot: Dot, watch: attached.Stopwatch) -> DotObservation:
    return attached.measure(dot, ce.TPU_V4, jax.devices()[0], watch)


@pytest.mark.parametrize("adds", [False, True])
def test_the_loop_multiplies_by_every_weight(adds: bool) -> None:
    dot = Dot(rows=2, contracted=4, columns=3, lhs=BF16, rhs=BF16, adds=adds)
    rng = np.random.default_rng(0)
    x, stack = (rng.integers(-4, 5, shape.shape) for shape in dot.operands)
    carry = jnp.asarray(x, jnp.bfloat16), dot.first
    expected = np.zeros((2, 3))
    for w in stack:
        expected = 2 * (2 * expected + 2 * x @ w) if adds else 2 * x @ w
    result = jax.jit(dot.loop)(carry, jnp.asarray(stack, jnp.bfloat16))[1]
    np.testing.assert_array_equal(np.asarray(result, np.float64), expected)
    _, beside = jax.jit(dot.loop_without)((carry[0], carry[1] + 1) if adds else (carry[0],) * 2)
    # Two passes over the sum in each layer, or one over the left operand.
    expected = np.full((2, 3), 4.0**LAYERS) if adds else 2 * x
    np.testing.assert_array_equal(np.asarray(beside, np.float64), expected)


def test_the_median_less_that_of_the_loop_counts() -> None:
    # One round takes 10 ms, so 6 are tried for 50 ms; then three calls with the dots, three without.
    watch = scripted(0.010, 0.060, 0.12, 0.50, 0.11, 0.02, 0.01, 0.90)
    seconds = (0.12 - 0.02) / (6 * LAYERS)
    seen = measured(TINY, watch)
    assert seen == DotObservation(
        **vars(TINY), cycles=round(seconds * ce.TPU_V4.clock_hz), source="measured"
    )


def test_a_dot_that_takes_no_time_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the loop with the dots of .*took 0.1 s, .*without 0.2 s"
    ):
        measured(TINY, scripted(0.06, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2))


def test_more_arithmetic_takes_longer() -> None:
    # CPU seconds, in which a busy machine does not show.
    watch = attached.Stopwatch(least_seconds=0.02, repetitions=3, now=time.process_time)
    small, large = (
        measured(Dot(rows=n, contracted=n, columns=n, lhs=F32, rhs=F32, adds=True), watch)
        for n in (256, 768)
    )
    assert large.cycles > 4 * small.cycles


def test_other_devices_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["calibrate", "--target", "attached"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for words in ("'cpu'", "TPU v4, TPU v5p", "Run it on such a TPU", "--target v6e:2x2"):
        assert words in line


def test_the_command_writes_a_measured_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_all(
        asked: list[Dot], chip: ce.Chip, device: object
    ) -> Iterator[tuple[int, DotObservation]]:
        assert (chip, device) == (ce.TPU_7X, "a device")
        for place, dot in enumerate(asked):
            yield place, DotObservation(**vars(dot), cycles=7 * dot.rows, source="measured")

    monkeypatch.setattr(attached, "device", lambda: (ce.TPU_7X, "a device"))
    monkeypatch.setattr(attached, "measure_all", measure_all)
    monkeypatch.setattr("bench.calibration.observe.versions", lambda: {"libtpu": "9.1", "jax": "8"})
    assert command.main(["calibrate", "--target", "attached", "--out", str(tmp_path)]) == 0
    assert "TPU7x, measured on the attached device with libtpu 9.1" in capsys.readouterr().out
    seen = Observations.from_json((tmp_path / "tpu7x-libtpu-9.1.json").read_text())
    assert seen.measured
    assert seen.command == "python -m bench calibrate --target attached"
    assert {dot.cycles / dot.rows for dot in seen.dots} == {7}
    # Nothing is scattered on one device, and passes are what the compiler makes of them.
    assert not any(dot.scattered for dot in seen.dots)
    predicted = ce.TPU_7X.observations
    assert predicted is not None
    assert seen.passes == predicted.passes
