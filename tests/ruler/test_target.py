"""Targets by name, and the meshes made of them."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from collective_einsum import chip_for
from collective_einsum.chips import known_chips as chips
from collective_einsum.ruler.compile import targets
from collective_einsum.ruler.compile.targets import target


def test_emulated() -> None:
    eight = target("cpu:8")
    assert eight.can_run
    assert eight.chip is None
    mesh = eight.mesh((2, 3), ("x", "y"))
    assert mesh.shape == {"x": 2, "y": 3}
    compiled = eight.compile(lambda x: x * 2, jax.ShapeDtypeStruct((4,), jnp.float32))
    assert compiled(jnp.ones(4)).tolist() == [2, 2, 2, 2]
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(4))
    assert eight.compile(lowered)(jnp.ones(4)).tolist() == [2, 2, 2, 2]


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("name", "count", "chip"),
    [
        ("v4:4x4x4", 64, chips.TPU_V4),
        ("v4:2x4x2", 16, chips.TPU_V4),
        ("v5p:4x4x4", 64, chips.TPU_V5P),
        ("v5e:4x4", 16, chips.TPU_V5E),
        ("v6e:4x4", 16, chips.TPU_V6E),
        ("tpu7x:2x2x2", 16, chips.TPU_7X),
        ("tpu7x:4x4x4", 128, chips.TPU_7X),
    ],
)
def test_topology(name: str, count: int, chip: chips.Chip) -> None:
    slice_ = target(name)
    assert not slice_.can_run
    assert (len(slice_.devices), slice_.chip) == (count, chip)
    assert chip_for(slice_.devices[0].device_kind) == chip
    # One device at each coordinate, but for a chip that is two.
    assert len({tuple(d.coords) for d in slice_.devices}) == count // chip.devices_per_chip


@pytest.mark.tpu
def test_mesh_of_a_topology() -> None:
    slice_ = target("v5e:4x4")
    assert slice_.mesh((4, 4), ("x", "y")).shape == {"x": 4, "y": 4}
    # Axes that split one of the torus.
    assert slice_.mesh((2, 2, 4), ("x", "y", "z")).shape == {"x": 2, "y": 2, "z": 4}
    with pytest.raises(ValueError, match="has 8 devices but target 'v5e:4x4' has 16"):
        slice_.mesh((2, 4), ("x", "y"))
    with pytest.raises(ValueError, match="one size and one name"):
        slice_.mesh((4, 4), ("x",))


@pytest.mark.parametrize("name", ["", "v4", "v3:4x4", "cpu", "cpu:0", "cpu:-1", "gpu:1"])
def test_unknown(name: str) -> None:
    with pytest.raises(ValueError, match="v4:4x4x4") as error:
        target(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    "name", ["v4:4x4", "v5e:4x4x4", "v4:3x4x4", "v6e:4x3", "v5p:0x4x4", "v4:4x4x4x4", "v4:4xx4"]
)
def test_impossible_topology(name: str) -> None:
    with pytest.raises(ValueError, match="is no slice of TPU"):
        target(name)


def test_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs an accelerator but jax sees only CPUs"):
        target("attached")
    with pytest.raises(ValueError, match="needs 9 emulated devices but jax has started with 8"):
        target("cpu:9")
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[bench\]'"):
        target("v4:4x4x4")
    monkeypatch.undo()
    assert importlib.util.find_spec("libtpu") is not None
