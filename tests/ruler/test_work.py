"""Flops and HBM bytes of instructions, fusions looked into."""

from __future__ import annotations

import pytest

from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo


def entry(lines: str, *computations: str) -> hlo.Module:
    """A scheduled module around some lines."""
    body = "\n".join("  " + line.strip() for line in lines.strip().splitlines())
    whole = "\n\n".join([*computations, f"ENTRY %main () -> f32[] {{\n{body}\n}}"])
    return hlo.parse(f"HloModule m, is_scheduled=true\n\n{whole}\n")


def of_root(module: hlo.Module) -> tuple[int, int]:
    """(flops, HBM bytes) of the last instruction."""
    root = module.entry.root
    return work.flops(module, module.entry, root), work.hbm_bytes(module, module.entry, root)


def test_dot() -> None:
    module = entry(
        """%a = bf16[4,6,8]{2,1,0} parameter(0)
        %b = bf16[4,8,10]{2,1,0:S(3)} parameter(1)
        ROOT %d = f32[4,6,10]{2,1,0:S(1)} dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, \
lhs_contracting_dims={2}, rhs_contracting_dims={1}"""
    )
    assert of_root(module) == (2 * 4 * 6 * 8 * 10, 4 * 6 * 8 * 2)


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "attributes", "flops"),
    [
        ("bf16[6,8]", "bf16[8,10]", "bf16[6,10]", "dim_labels=bf_io->bf", 2 * 6 * 8 * 10),
        # A batched dot as the TPU compiler writes it: the batch is a dilated spatial dimension.
        (
            "bf16[4,6,8]",
            "bf16[4,8,10]",
            "bf16[4,6,10]",
            "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            2 * 4 * 6 * 8 * 10,
        ),
        # Three taps over five places padded by one on either side: 13 of 15 are not padding.
        (
            "f32[1,2,5]",
            "f32[3,2,7]",
            "f32[1,7,5]",
            "window={size=3 pad=1_1}, dim_labels=bf0_0io->bf0",
            2 * 13 * 2 * 7,
        ),
    ],
)
def test_convolution(lhs: str, rhs: str, out: str, attributes: str, flops: int) -> None:
    module = entry(
        f"""%a = {lhs} parameter(0)
        %b = {rhs} parameter(1)
        ROOT %d = {out} convolution(%a, %b), {attributes}"""
    )
    assert of_root(module)[0] == flops


SLICE = """%slice (p0: bf16[9,8,4], p1: s32[]) -> bf16[8,4] {
  %p0 = bf16[9,8,4]{2,1,0} parameter(0)
  %p1 = s32[]{:S(6)} parameter(1)
  %zero = s32[]{:S(6)} constant(0)
  %ds = bf16[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %b = bf16[8,4]{1,0} bitcast(%ds)
}"""
DOT = """%dot (p0: bf16[2,8], p1: bf16[9,8,4], p2: s32[]) -> bf16[2,4] {
  %p0 = bf16[2,8]{1,0:S(3)} parameter(0)
  %p1 = bf16[9,8,4]{2,1,0} parameter(1)
  %p2 = s32[]{:S(6)} parameter(2)
  %w = bf16[8,4]{1,0} fusion(%p1, %p2), kind=kLoop, calls=%slice
  ROOT %c = bf16[2,4]{1,0} convolution(%p0, %w), dim_labels=bf_io->bf
}"""


def test_fusion_reads_only_its_slice() -> None:
    module = entry(
        """%a = bf16[2,8]{1,0:S(3)} parameter(0)
        %w = bf16[9,8,4]{2,1,0} parameter(1)
        %i = s32[]{:S(6)} parameter(2)
        ROOT %f = bf16[2,4]{1,0} fusion(%a, %w, %i), kind=kOutput, calls=%dot""",
        SLICE,
        DOT,
    )
    read, written = 8 * 4 * 2, 2 * 4 * 2
    assert of_root(module) == (2 * 2 * 8 * 4, read + written)


RETILE = """%retile (p0: bf16[9,8,4]) -> bf16[9,8,4] {
  %p0 = bf16[9,8,4]{2,1,0:T(32,128)} parameter(0)
  ROOT %c = bf16[9,8,4]{2,1,0:T(8,128)} copy(%p0)
}"""


def test_an_operand_seen_in_other_tiles_is_not_read_whole() -> None:
    # The compiler's way to slice a stack of int8 weights: a copy that is none, as its aliasing says.
    through = "%v = bf16[9,8,4]{2,1,0:T(8,128)} fusion(%p0), kind=kLoop, calls=%retile"
    aliased = through + ", output_to_operand_aliasing={{}: (0, {})}"
    for line, moved in ((aliased, 8 * 4), (through, 9 * 8 * 4)):
        looking = SLICE.replace("  %zero", f"  {line}\n  %zero", 1)
        looking = looking.replace("dynamic-slice(%p0,", "dynamic-slice(%v,")
        module = entry(
            """%a = bf16[2,8]{1,0:S(3)} parameter(0)
            %w = bf16[9,8,4]{2,1,0} parameter(1)
            %i = s32[]{:S(6)} parameter(2)
            ROOT %f = bf16[2,4]{1,0} fusion(%a, %w, %i), kind=kOutput, calls=%dot""",
            RETILE,
            looking,
            DOT,
        )
        assert of_root(module)[1] == moved * 2 + 2 * 4 * 2


def test_an_operand_seen_in_other_tiles_by_a_nested_fusion_is_read() -> None:
    """Of int8 weights [6144, 16384] that a dot reads from HBM, libtpu 0.0.50.1 for v6e makes a fusion,
    which makes another that aliases them, and a bitcast of that."""
    aliased = "kind=kLoop, output_to_operand_aliasing={{}: (0, {})}"
    tiles = f"""%tiles (q0: bf16[9,8,4]) -> bf16[9,8,4] {{
  %q0 = bf16[9,8,4]{{2,1,0:T(32,128)}} parameter(0)
  %v = bf16[9,8,4]{{2,1,0:T(8,128)}} fusion(%q0), {aliased}, calls=%retile
  ROOT %b = bf16[9,8,4]{{2,1,0:T(8,128)}} bitcast(%v)
}}"""
    negated = """%negated (r0: bf16[9,8,4]) -> bf16[9,8,4] {
  %r0 = bf16[9,8,4]{2,1,0:T(32,128)} parameter(0)
  %t = bf16[9,8,4]{2,1,0:T(8,128)} fusion(%r0), kind=kLoop, calls=%tiles
  ROOT %n = bf16[9,8,4]{2,1,0:T(8,128)S(1)} negate(%t)
}"""
    module = entry(
        """%w = bf16[9,8,4]{2,1,0:T(32,128)} parameter(0)
        ROOT %f = bf16[9,8,4]{2,1,0:T(8,128)S(1)} fusion(%w), kind=kOutput, calls=%negated""",
        RETILE,
        tiles,
        negated,
    )
    # 4 columns fill a tile of 128.
    assert of_root(module)[1] == 9 * 8 * 128 * 2


UPDATE = """%update (p0: bf16[9,8], p1: bf16[1,8], p2: s32[]) -> bf16[9,8] {
  %p0 = bf16[9,8]{1,0} parameter(0)
  %p1 = bf16[1,8]{1,0} parameter(1)
  %p2 = s32[]{:S(6)} parameter(2)
  ROOT %dus = bf16[9,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}"""


def test_update_in_place_moves_only_the_update() -> None:
    module = entry(
        """%a = bf16[9,8]{1,0} parameter(0)
        %u = bf16[1,8]{1,0} parameter(1)
        %i = s32[]{:S(6)} parameter(2)
        ROOT %f = bf16[9,8]{1,0} fusion(%a, %u, %i), kind=kLoop, calls=%update""",
        UPDATE,
    )
    assert of_root(module) == (0, 2 * 8 * 2)


@pytest.mark.parametrize(
    "line",
    [
        "bitcast(%a)",
        'custom-call(), custom_call_target="AllocateBuffer"',
        'custom-call(%a), custom_call_target="ConcatBitcast"',
    ],
)
def test_free(line: str) -> None:
    module = entry(f"%a = bf16[9,8]{{1,0}} parameter(0)\nROOT %f = bf16[9,8]{{1,0}} {line}")
    assert of_root(module) == (0, 0)


def test_plain_op_reads_and_writes() -> None:
    module = entry(
        "%a = bf16[9,8]{1,0} parameter(0)\nROOT %f = f32[9,8]{1,0} convert(%a)",
    )
    assert of_root(module) == (0, 9 * 8 * 2 + 9 * 8 * 4)


def test_an_operand_behind_a_fusion_that_only_reshapes_it_is_read() -> None:
    """As weights of a matmul in a fusion: the inner fusion is a bitcast of its parameter."""
    reshape = "%inner (p: s8[8,16]) -> s8[128] {\n  %p = s8[8,16]{1,0} parameter(0)\n"
    reshape += "  ROOT %b = s8[128]{0} bitcast(%p)\n}"
    outer = "%outer (w: s8[8,16]) -> s8[128] {\n  %w = s8[8,16]{1,0} parameter(0)\n"
    outer += "  %f = s8[128]{0} fusion(%w), kind=kLoop, calls=%inner\n"
    outer += "  ROOT %n = s8[128]{0:S(1)} negate(%f)\n}"
    module = entry(
        """%w = s8[8,16]{1,0} parameter(0)
        ROOT %r = s8[128]{0:S(1)} fusion(%w), kind=kLoop, calls=%outer""",
        reshape,
        outer,
    )
    assert of_root(module) == (0, 128)


@pytest.mark.parametrize(
    ("said", "moved"),
    [
        (None, 8 * 64 * 128 * 2 + 64 * 128 * 2),
        (0, 9 * 64 * 128 * 2),
        (40000, 40000),
        (10**9, 147456),
    ],
)
def test_a_kernel_that_reads_a_part_of_its_operands(said: int | None, moved: int) -> None:
    """Such as one layer of the keys of all: what its author says, where that is less than all."""
    config = "" if said is None else f'"cost_estimate":{{"flops":"8","bytes_accessed":"{said}"}}'
    module = entry(
        f"""%keys = bf16[8,64,128]{{2,1,0}} parameter(0)
        %q = bf16[64,128]{{1,0:S(1)}} parameter(1)
        ROOT %k = bf16[64,128]{{1,0}} custom-call(%q, %keys), custom_call_target="tpu_custom_call", \
backend_config={{"custom_call_config":{{{config}}}}}"""
    )
    assert of_root(module) == (0, moved)
