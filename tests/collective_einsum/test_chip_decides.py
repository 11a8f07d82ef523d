"""The chip decides how many rings a program has: the one that is given, or the mesh's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import collective_einsum as ce
from collective_einsum.chips import compile_context, names
from collective_einsum.chips.names import UnlistedChipWarning

AXES = ("x", "y")
RINGS = ("unidirectional", "bidirectional", "latency")


def permutes(schedule: str, **arguments: Any) -> int:
    """The permutes in the program of an all-gather and an einsum on a 4x4 mesh."""

    def local(x: jax.Array, w: jax.Array) -> jax.Array:
        return ce.all_gather_einsum(
            "me,ef->mf", x, w, axis_name=AXES, gather="m", schedule=schedule, **arguments
        )

    sharded = jax.shard_map(
        local,
        mesh=AbstractMesh((4, 4), AXES, axis_types=(AxisType.Auto,) * 2),
        in_specs=(PartitionSpec(AXES), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    x = jax.ShapeDtypeStruct((256, 64), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
    lowered = jax.jit(sharded).trace(x, w).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count("stablehlo.collective_permute")


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The mesh is of a device kind that is not listed."""
    names._nearest.cache_clear()
    monkeypatch.setattr(compile_context, "_mesh_chip", lambda: names.chip_for("Acme X1"))
    yield
    names._nearest.cache_clear()


@pytest.mark.parametrize("schedule", RINGS)
def test_a_given_chip_changes_the_program(schedule: str) -> None:
    """Four chips close into a ring on v4, where two Hamiltonian rings share the work; not on v5e."""
    assert permutes(schedule, chip="v4") == 2 * permutes(schedule, chip="v5e")
    assert permutes(schedule, chip=ce.TPU_V5E) == permutes(schedule, chip="v5e")


@pytest.mark.parametrize("schedule", RINGS)
def test_a_mesh_of_an_unlisted_kind_is_as_the_nearest_chip(schedule: str, unlisted: None) -> None:
    with pytest.warns(UnlistedChipWarning, match="Acme X1"):
        count = permutes(schedule)
    assert count == permutes(schedule, chip=names._GENERIC)


@pytest.mark.parametrize("schedule", ["auto", *RINGS])
def test_a_given_chip_stands_for_a_mesh_of_an_unlisted_kind(schedule: str, unlisted: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count = permutes(schedule, chip="v5e")
    assert schedule == "auto" or count > 0
