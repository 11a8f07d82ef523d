"""The checks of the main job can fail, and leave nothing out."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
from bench import correctness
from collective_einsum.ruler.compile.targets import target


def test_every_function_is_checked() -> None:
    mesh = target("cpu:8").mesh((2, 4), ("x", "y"))
    names = {check.name.split(",")[0].split(" ")[0] for check in correctness._checks(mesh)}
    functions = {
        name
        for name, value in vars(ce).items()
        if inspect.isfunction(value) and "schedule" in inspect.signature(value).parameters
    }
    assert names == functions


def test_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    slice_ = target("cpu:8")
    checks = correctness._checks(slice_.mesh((2, 4), ("x", "y")))
    gather = next(check for check in checks if check.name == "all_gather")
    monkeypatch.setattr(correctness, "_checks", lambda _: [gather])
    outcomes = {outcome.schedule: outcome for outcome in correctness.run(slice_)}
    assert tuple(outcomes) == correctness.SCHEDULES
    # [16, 64] in float32, of which each device has an eighth.
    assert outcomes["latency"].sent == outcomes["blocking"].sent == 16 * 64 * 4 * 7 / 8
    assert outcomes["latency"].error == 0
    # A collective by itself has nothing to split into chunks.
    assert outcomes["chunked"].error is None
    assert all(outcome.passed for outcome in outcomes.values())


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    slice_ = target("cpu:8")
    mesh = slice_.mesh((2, 4), ("x", "y"))
    right = next(check for check in correctness._checks(mesh) if check.name == "all_gather")
    expected = jax.tree.map(lambda result: result + 1, right.expected)
    wrong = dataclasses.replace(right, name="wrong", expected=expected)
    monkeypatch.setattr(correctness, "_checks", lambda _: [wrong])
    outcomes = list(correctness.run(slice_))
    assert not outcomes[0].passed
    assert "WRONG" in correctness.print_outcomes(outcomes)
    assert correctness.largest_error(outcomes) > 0.1


def test_nan_is_wrong() -> None:
    assert not correctness.Outcome("f", "auto", float(jnp.nan), 0).passed
