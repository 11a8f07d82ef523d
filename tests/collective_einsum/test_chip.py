"""Chips: their numbers against independent sources, and the device kinds they go by."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from collective_einsum.chips import known_chips as chips
from collective_einsum.chips import names as chip_names
from collective_einsum.chips.chip import Chip
from collective_einsum.chips.names import UnlistedChipWarning, as_chip, chip_for

TPUS = {
    "v4": chips.TPU_V4,
    "v5p": chips.TPU_V5P,
    "v5e": chips.TPU_V5E,
    "v6e": chips.TPU_V6E,
    "7x": chips.TPU_7X,
}
ALL = [*TPUS.values(), chips.H100, chips.H200]


def name_of(chip: Chip) -> str:
    return chip.name


@pytest.mark.parametrize("version", TPUS)
def test_numbers_agree_with_those_jax_holds(version: str) -> None:
    chip = TPUS[version]
    kind = pltpu.ChipVersion(version)
    info = pltpu.get_tpu_info_for_chip(kind, 2 if kind.supports_megacore else 1)
    cores = info.num_cores
    assert chip.vmem_bytes == cores * info.vmem_capacity_bytes
    assert chip.bf16_flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.01)
    assert chip.hbm_bytes == pytest.approx(cores * info.hbm_capacity_bytes, rel=0.02)
    # jax's 2.46e12 for v5p is 11% below the data sheet; on the others the two agree to 3%.
    tolerance = 0.13 if version == "v5p" else 0.03
    assert chip.hbm_bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=tolerance)
    assert chip.cmem_bytes == pytest.approx(cores * info.cmem_capacity_bytes, rel=0.01)
    if info.int8_ops_per_second:
        assert chip.int8_ops == pytest.approx(cores * info.int8_ops_per_second, rel=0.01)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("version", "topology", "options"),
    [
        ("v4", "v4:2x2x1", {"chip_config_name": "megacore"}),
        ("v5p", "v5p:2x2x1", {}),
        ("v5e", "v5e:2x2", {}),
        ("v6e", "v6e:2x2", {}),
        ("7x", "tpu7x:2x2x1", {}),
    ],
)
def test_kind_of_a_compile_only_device(
    version: str, topology: str, options: dict[str, str]
) -> None:
    described = topologies.get_topology_desc(topology, platform="tpu", **options)
    assert chip_for(described.devices[0].device_kind) is TPUS[version]


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5p", chips.TPU_V5P),
        ("TPU v5e", chips.TPU_V5E),
        ("TPU v6e", chips.TPU_V6E),
        ("NVIDIA H100 80GB HBM3", chips.H100),
        ("NVIDIA H200", chips.H200),
    ],
)
def test_kind_of_an_attached_device(kind: str, chip: Chip) -> None:
    assert chip_for(kind) is chip


def test_emulated_devices_stand_in_for_v4() -> None:
    # But for options, which the CPU's compiler does not know.
    plain = dataclasses.replace(
        chips.TPU_V4, compiler_options=(), no_prefetch_options=(), weights_ahead_options=()
    )
    assert chip_for(jax.devices()[0].device_kind) == plain


@pytest.fixture
def unsaid() -> Iterator[None]:
    """As in a process that has warned of no kind."""
    chip_names._nearest.cache_clear()
    yield
    chip_names._nearest.cache_clear()


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v2", chips.TPU_V4),
        ("TPU v3", chips.TPU_V4),
        ("TPU v4 lite", chips.TPU_V4),
        ("TPU v5 lite pod", chips.TPU_V5E),
        ("TPU8t", chips.TPU_7X),
        ("TPU v8e", chips.TPU_V6E),
        ("NVIDIA A100-SXM4-80GB", chips.H100),
        ("NVIDIA H100 PCIe", chips.H100),
        ("Tesla V100-SXM2-16GB", chips.H100),
        ("NVIDIA GeForce RTX 4090", chips.H100),
        ("NVIDIA GH200 480GB", chips.H200),
        ("NVIDIA B200", chips.H200),
        ("NVIDIA GB200", chips.H200),
    ],
)
@pytest.mark.usefixtures("unsaid")
def test_an_unlisted_kind_is_taken_for_the_nearest_of_its_maker(kind: str, chip: Chip) -> None:
    with pytest.warns(UnlistedChipWarning, match=f"{kind!r}.*{chip.name!r}.*chip="):
        assert chip_for(kind) is chip


@pytest.mark.parametrize("kind", ["AMD Instinct MI300X", "gfx942", "abacus", ""])
@pytest.mark.usefixtures("unsaid")
def test_a_kind_of_another_maker_is_a_generic_one(kind: str) -> None:
    with pytest.warns(UnlistedChipWarning, match=f"{kind!r}.*'generic accelerator'"):
        chip = chip_for(kind)
    assert not chip.compiler_options


@pytest.mark.usefixtures("unsaid")
def test_an_unlisted_kind_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for kind in ("TPU8t", "TPU v3", "TPU8t", "TPU v3", "TPU8t"):
            chip_for(kind)
    assert ["TPU8t" in str(each.message) for each in said] == [True, False]
    assert "TPU v3" in str(said[1].message)
    # Where it is an error it is one every time: nothing goes on with another chip unsaid.
    chip_names._nearest.cache_clear()
    for _ in range(2):
        with pytest.raises(UnlistedChipWarning):
            chip_for("TPU8t")


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("v4", chips.TPU_V4),
        ("TPU v4", chips.TPU_V4),
        ("tpu-v4", chips.TPU_V4),
        ("TPU_V5P", chips.TPU_V5P),
        ("v5 lite", chips.TPU_V5E),
        ("V5E", chips.TPU_V5E),
        ("TPU v6 lite", chips.TPU_V6E),
        ("v7x", chips.TPU_7X),
        ("tpu7x", chips.TPU_7X),
        ("h100", chips.H100),
        ("NVIDIA H100", chips.H100),
        ("NVIDIA H100 80GB HBM3", chips.H100),
        ("H200", chips.H200),
        *((chip.name, chip) for chip in ALL),
    ],
)
def test_names_of_chips(name: str, chip: Chip) -> None:
    assert as_chip(name) is chip
    assert as_chip(chip) is chip


@pytest.mark.parametrize("given", ["a100", "NVIDIA A100-SXM4-80GB", "", "v", 4, None, Chip])
def test_what_names_no_chip_is_refused(given: Any) -> None:
    with pytest.raises(
        ValueError, match=r"chip=.*'v4', 'v5p', 'v5e', 'v6e', 'v7x', 'h100', 'h200'"
    ):
        as_chip(given)


@pytest.mark.parametrize(
    ("chip", "wrapping", "open_sizes"),
    [
        (chips.TPU_V4, (1, 4, 8, 12, 16), (2, 3, 5, 6, 7)),
        (chips.TPU_V5P, (1, 4, 8, 12, 16), (2, 3, 5, 6, 7)),
        (chips.TPU_7X, (1, 4, 8, 12, 16), (2, 3, 5, 6, 7)),
        (chips.TPU_V5E, (1, 16), (2, 4, 8, 12)),
        (chips.TPU_V6E, (1, 16), (2, 4, 8, 12)),
        (chips.H100, (1, 2, 3, 7, 8), ()),
    ],
    ids=lambda value: value.name if isinstance(value, Chip) else "",
)
def test_wraps(chip: Chip, wrapping: tuple[int, ...], open_sizes: tuple[int, ...]) -> None:
    assert [size for size in wrapping if not chip.wraps(size)] == []
    assert [size for size in open_sizes if chip.wraps(size)] == []


@pytest.mark.parametrize("size", [0, -4])
def test_an_axis_without_chips_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"axis_size is {size}")):
        chips.TPU_V4.wraps(size)


@pytest.mark.parametrize("chip", ALL, ids=name_of)
def test_a_chip_is_a_value(chip: Chip) -> None:
    copy = dataclasses.replace(chip)
    assert copy == chip
    assert hash(copy) == hash(chip)
    assert dataclasses.replace(chip, hop_seconds=2e-6) != chip
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.name = "another"  # pyright: ignore[reportAttributeAccessIssue]


def test_chips_differ() -> None:
    assert len(set(ALL)) == len(ALL)


@pytest.mark.parametrize("chip", ALL, ids=name_of)
def test_peaks_are_ordered(chip: Chip) -> None:
    assert 0 < chip.f32_flops < chip.f32_high_flops <= chip.f32_default_flops <= chip.bf16_flops
    assert chip.bf16_flops <= chip.int8_ops
    assert chip.link_bandwidth < chip.hbm_bandwidth


def test_links_of_v4_add_up_to_the_bandwidth_of_the_paper() -> None:
    # Pope et al., arXiv 2211.05102: 270 GB/s a chip.
    assert 2 * chips.TPU_V4.torus_dims * chips.TPU_V4.link_bandwidth == 270e9
