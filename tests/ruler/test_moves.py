"""Data movement without an estimate is not free."""

from __future__ import annotations

import dataclasses

import pytest

from collective_einsum.chips.known_chips import H100, TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo.moves import move_seconds

CMEM = "{1,0:T(8,128)(2,1)S(3)}"
HBM = "{1,0:T(8,128)(2,1)}"
SCALAR = "s32[]{:T(128)S(6)}"


def only(text: str) -> tuple[hlo.Computation, hlo.Instruction]:
    """The computation of a module and its root."""
    entry = hlo.parse(
        f"HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {{\n{text}\n}}"
    ).entry
    return entry, entry.root


def update(
    rows: int, columns: int, dtype: str = "bf16", where: str = CMEM, config: str = ""
) -> str:
    whole, part = f"{dtype}[{rows},{4 * columns}]{where}", f"{dtype}[{rows},{columns}]{where}"
    return (
        f"  %a = {whole} parameter(0)\n  %b = {part} parameter(1)\n"
        f"  %i = {SCALAR} parameter(2)\n"
        f"  ROOT %c = {whole} dynamic-update-slice(%a, %b, %i, %i){config}"
    )


@pytest.mark.parametrize("where", [CMEM, HBM])
def test_update_costs_a_slice_of_the_same_size(where: str) -> None:
    """The compiler's own estimate for slicing [512, 1152] bf16 on v4 is 6505 cycles."""
    seconds = move_seconds(TPU_V4, *only(update(512, 1152, where=where)))
    assert seconds == pytest.approx(6505 / TPU_V4.clock_hz, rel=0.1)


@pytest.mark.parametrize("chip", [TPU_V4, TPU_V5P, TPU_V5E, TPU_V6E])
@pytest.mark.parametrize("dtype", ["s8", "bf16", "f32"])
def test_more_takes_longer(chip, dtype: str) -> None:
    small, large = (move_seconds(chip, *only(update(rows, 1152, dtype))) for rows in (64, 2048))
    assert small is not None
    assert large is not None
    assert 0.3e-6 < small < large < 40e-6


def test_an_estimate_stands() -> None:
    config = ', backend_config={"estimated_cycles":"7"}'
    assert move_seconds(TPU_V4, *only(update(512, 1152, config=config))) is None


def test_copies() -> None:
    """On the chip they cost; to HBM they are DMAs, charged by their bytes; scalars are nothing."""

    def copy(source: str, result: str) -> float | None:
        return move_seconds(
            TPU_V4, *only(f"  %a = {source} parameter(0)\n  ROOT %c = {result} copy(%a)")
        )

    assert copy(f"bf16[512,1152]{CMEM}", f"bf16[512,1152]{CMEM}") == pytest.approx(5.9e-6, rel=0.1)
    assert copy(f"bf16[512,1152]{CMEM}", f"bf16[512,1152]{HBM}") is None
    assert copy(SCALAR, SCALAR) == 0


def test_other_ops_are_no_movement() -> None:
    add = f"  %a = f32[8,128]{CMEM} parameter(0)\n  ROOT %c = f32[8,128]{CMEM} add(%a, %a)"
    assert move_seconds(TPU_V4, *only(add)) is None


def test_an_unknown_chip_moves_at_the_speed_of_its_memory() -> None:
    own = dataclasses.replace(H100, name="mine")
    seconds = move_seconds(own, *only(update(512, 1152)))
    assert seconds == pytest.approx(512 * 1152 * 2 / own.hbm_bandwidth)
