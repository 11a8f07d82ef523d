"""Bundles of small kernels, counted, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collective_einsum.chips.known_chips import TPU_V4
from collective_einsum.ruler.bundles import count, parse_kernel
from collective_einsum.ruler.bundles.dump import annotated
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.op_seconds import basis_notes, op_seconds, pipeline_seconds


def kernel(*bundles: str, name: str = "fusion.1") -> str:
    """The text of final bundles, with addresses; what follows "@" in a bundle is a comment behind it."""
    split = [bundle.partition("@") for bundle in bundles]
    first, *rest = (
        f" {at:#x} LB: > {{ {operations} }} /* {comment} */"
        for at, (operations, _, comment) in enumerate(split)
    )
    head = f"LB: loop body\n= control target key end\n\n{first} /* entry bundle: %{name} = fusion(%a) */"
    return "\n".join([head, *rest])


# A loop of 8 turns, which are 6 windows and 2 to fill and drain the pipeline. Turns 2 to 7 enter the
# region of three bundles; in the last of these the fourth is not skipped either.
WINDOWS = (
    "%1_s9 = smov 7  ;;  %s1_s4 = smov 0 /* copy for cssa */",
    "%s2_s4 = sphi %s1_s4, %s5_s4 /* iteration index, stage = 0 */ @ Start region 3 :: Start region 1",
    "%p1_p0 = scmp.lt.s32.totalorder %s2_s4, 2  ;;  %s3_s5 = sadd.s32 4294967295, %s2_s4 /* iteration "
    "index, stage = 2,\n second line */",
    "%p2_p1 = scmp.ne.s32.totalorder %s3_s5, 6",
    "%7 = sbr.rel (%p1_p0) target = $region20",
    "%v1_v0 = vld [vmem:[#allocation2]] /* issued after the branch, in any case */",
    "%v2_v0 = vmatmul.bf16.gmra.mxu0 %v1_v0",
    "%8 = sbr.rel (%p2_p1) target = $region20",
    "%v3_v0 = vmatres.f32.mxu0",
    "%9 = vst [vmem:[#allocation3]] %v3_v0",
    "%s5_s4 = sadd.s32 1, %s2_s4 @ Start/End empty region 20",
    "%p3_p2 = scmp.ge.s32.totalorder %s5_s4, 8 /* loop exit test */",
    "%10 = sbr.rel (!%p3_p2) target = $region1",
    "",
    "%11 = vsyncpa [#allocation4], 1",
)
PER_TURN, IN_REGION, IN_LAST = 9, 3, 1


def test_loops_and_predicated_regions_are_followed() -> None:
    counted = count(parse_kernel(kernel(*WINDOWS)))
    assert counted.bundles == 1 + 8 * PER_TURN + 6 * IN_REGION + IN_LAST + 1
    assert counted.assumed == 0
    assert counted.windows == 6


def test_what_depends_on_data_is_counted_and_said() -> None:
    """The region is entered in all turns, and the loop's turns are those of its exit test."""
    text = kernel(*WINDOWS).replace("smov 0 /*", "sld [smem:[#allocation9]] /*")
    counted = count(parse_kernel(text))
    assert counted.bundles == 1 + 8 * (PER_TURN + IN_REGION + IN_LAST) + 1
    assert counted.assumed == 8 * 3


def test_the_first_core_is_followed() -> None:
    skip = "%3 = sbr.rel (%p1_p0) target = $region4"
    test = "%p1_p0 = scmp.ne.s32.totalorder %s1_s6, 0"
    core = "%s1_s6 = sld [smem:[#allocation0]] /* core id */"
    assert count(parse_kernel(kernel(core, test, skip, "", "", ""))).bundles == 6
    other = core.replace("sld [smem:[#allocation0]] /* core id */", "smov 1")
    assert count(parse_kernel(kernel(other, test, skip, "", "", ""))).bundles == 4


def test_scalars_that_are_spilled_come_back() -> None:
    spilled = (
        "%s1_s6 = smov 1",
        "%2 = sst [smem:[#allocation7_spill]] %s1_s6",
        "%s2_s6 = smov 0",
        "%s3_s7 = sld [smem:[#allocation7_spill]]",
        "%p1_p0 = scmp.eq.s32.totalorder %s3_s7, 1",
        "%3 = sbr.rel (%p1_p0) target = $region4",
        *[""] * 5,
    )
    assert count(parse_kernel(kernel(*spilled))).bundles == 7
    guarded = "%2 = sst [smem:[#allocation7_spill]] (%p9_p5), %s2_s6"
    kept = ("%p9_p5 = pmov 0", *spilled[:3], guarded, *spilled[3:])
    assert count(parse_kernel(kernel(*kept))).bundles == 9


def test_delays_are_cycles() -> None:
    assert count(parse_kernel(kernel("%0 = vdelay 5", ""))).bundles == 2 + 5


def test_too_long_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="more scalar bundles than are followed"):
        count(parse_kernel(kernel(*WINDOWS)), most_steps=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no text of final bundles"),
        (kernel("", "").replace("0x1", "0x3"), "has address 0x3 where 0x1 is next"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_kernel(text)


SHAPES = ("bf16[64,512]{1,0:T(8,128)(2,1)}", "s8[512,1024]{1,0:T(8,128)(4,1)}")
RESULT = "bf16[64,1024]{1,0:T(8,128)(2,1)}"


def fused(number: int) -> str:
    return f"""
%body.{number} (a.{number}: bf16[64,512], b.{number}: s8[512,1024]) -> bf16[64,1024] {{
  %a.{number} = {SHAPES[0]} parameter(0)
  %b.{number} = {SHAPES[1]} parameter(1)
  ROOT %c.{number} = {RESULT} convolution(%a.{number}, %b.{number}), dim_labels=bf_io->bf
}}
"""


def calls(number: int) -> str:
    config = '{"window_config":{"estimated_cycles":"20000"}}'
    return (
        f"  %fusion.{number} = {RESULT} fusion(%x, %w), kind=kOutput, calls=%body.{number}, "
        f'metadata={{op_name="f{number}"}}, backend_config={config}\n'
    )


def module(config: str = "") -> str:
    return f"""HloModule m, is_scheduled=true
{fused(1)}{fused(2)}
ENTRY %main (x: bf16[64,512], w: s8[512,1024]) -> bf16[64,1024] {{
  %x = {SHAPES[0]} parameter(0)
  %w = {SHAPES[1]} parameter(1)
{calls(1)}{calls(2)}  %k = {RESULT} custom-call(%fusion.2), custom_call_target="tpu_custom_call"{config}
  ROOT %n = {RESULT} negate(%k), backend_config={{"estimated_cycles":"10"}}
}}
"""


def dumped(folder: Path, config: str = "") -> hlo.Module:
    """The module with the counts of three files; `config` is the kernel's."""
    for name, bundles in (("fusion.1", WINDOWS), ("k", ("", "")), ("n", ("", ""))):
        (folder / f"17-{name}-01-final_bundles.txt").write_text(kernel(*bundles, name=name))
        (folder / f"17-{name}-00-schedule-analysis_final_bundles.txt").write_text("no bundles")
    return hlo.parse(annotated(module(config), folder))


def test_counts_are_written_into_the_module(tmp_path: Path) -> None:
    """Ops of the same code share a file; a parameter has none."""
    entry = dumped(tmp_path).entry
    counted = {op.name: (op.issued_bundles, op.windows) for op in entry}
    assert counted["fusion.1"] == counted["fusion.2"] == (93, 6)
    assert counted["k"] == (2, 1)
    assert counted["n"] == (2, 1)
    assert counted["x"] == (None, 1)
    assert [op.estimated_cycles for op in entry][2:] == [20000, 20000, None, 10]


def test_dots_of_16_bits_are_not_counted(tmp_path: Path) -> None:
    """For them the estimate is fair, so the file that is there is not read."""
    wide = module().replace("s8[512,1024]{1,0:T(8,128)(4,1)}", "bf16[512,1024]{1,0:T(8,128)(2,1)}")
    for name in ("fusion.1", "n"):
        (tmp_path / f"17-{name}-01-final_bundles.txt").write_text(kernel("", "", name=name))
    entry = hlo.parse(annotated(wide.replace("s8[", "bf16["), tmp_path)).entry
    assert [op.issued_bundles for op in entry][2:] == [None, None, None, 2]


def test_a_file_stands_for_what_does_the_same_in_another_order(tmp_path: Path) -> None:
    """The compiler emits one code for two fusions whose operands are in another order."""

    def added(number: int, order: tuple[str, str]) -> str:
        lines = [
            f"  %{name}.{number} = f32[8,128]{{1,0}} parameter({at})\n"
            for at, name in enumerate(order)
        ]
        return (
            f"%sum.{number} (a.{number}: f32[8,128], b.{number}: f32[8,128]) -> f32[8,128] {{\n"
            + "".join(lines)
            + f"  %n.{number} = f32[8,128]{{1,0}} negate(%a.{number})\n"
            f"  ROOT %s.{number} = f32[8,128]{{1,0}} add(%n.{number}, %b.{number})\n}}\n"
        )

    config = 'backend_config={"window_config":{"estimated_cycles":"1900"}}'
    text = f"""HloModule m, is_scheduled=true

{added(1, ("a", "b"))}
{added(2, ("b", "a"))}
ENTRY %main (x: f32[8,128], y: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0}} parameter(0)
  %y = f32[8,128]{{1,0}} parameter(1)
  %first = f32[8,128]{{1,0}} fusion(%x, %y), kind=kLoop, calls=%sum.1, {config}
  ROOT %second = f32[8,128]{{1,0}} fusion(%y, %first), kind=kLoop, calls=%sum.2, {config}
}}
"""
    (tmp_path / "17-first-01-final_bundles.txt").write_text(kernel("", "", "", name="first"))
    entry = hlo.parse(annotated(text, tmp_path)).entry
    assert [op.issued_bundles for op in entry] == [None, None, 3, 3]


@pytest.mark.parametrize("fields", ["{}", '{"custom_call_config":{"body":"x"}}'])
def test_a_count_joins_what_is_there(tmp_path: Path, fields: str) -> None:
    kernel_op = dumped(tmp_path, f", backend_config={fields}").entry["k"]
    kept = {k: v for k, v in kernel_op.backend_config.items() if not k.startswith("issued_")}
    assert kernel_op.backend_config["issued_bundles"] == "2"
    assert kept == json.loads(fields)


def test_a_count_joins_what_goes_on_over_lines(tmp_path: Path) -> None:
    more = ', frontend_attributes={kernel_metadata={\n"a":"b"\n}}, backend_config={"c":"d"}'
    config = dumped(tmp_path, more).entry["k"].backend_config
    assert (config["issued_bundles"], config["c"]) == ("2", "d")


def test_a_dot_takes_its_bundles_its_bytes_or_the_peak(tmp_path: Path) -> None:
    entry = dumped(tmp_path).entry
    rate, clock = TPU_V4.hbm_efficiency * TPU_V4.hbm_bandwidth, TPU_V4.clock_hz
    least = 1 / clock
    seconds, basis = op_seconds(TPU_V4, entry, entry["fusion.1"], 0, least)
    assert (seconds, basis) == (pytest.approx(93 / clock), "bundles")
    # Bytes that take nearly as long as the estimate, 20000 cycles, and twice as many.
    moved = int(19000 / clock * rate)
    for times in (1, 2):
        seconds, basis = op_seconds(TPU_V4, entry, entry["fusion.1"], times * moved, least)
        assert (seconds, basis) == (pytest.approx(times * moved / rate, rel=0.01), "bundles")
    assert op_seconds(TPU_V4, entry, entry["k"], 0, 0) == (2 / clock, "bundles")
    # The matrix unit multiplies for longer than either says.
    for multiplying in (10000 / clock, 30000 / clock):
        seconds, basis = op_seconds(TPU_V4, entry, entry["fusion.1"], 0, multiplying)
        assert seconds == pytest.approx(multiplying)


def test_what_is_no_dot_issues_its_bundles_or_waits_for_hbm(tmp_path: Path) -> None:
    """On the chip it takes its 2 bundles, whatever the estimate; from HBM the shorter of the estimate
    and of bytes, fill and bundles."""
    small, large = dumped(tmp_path).entry["n"], "100000"
    entry = hlo.parse(annotated(module().replace('"10"', f'"{large}"'), tmp_path)).entry
    rate, clock = TPU_V4.hbm_efficiency * TPU_V4.hbm_bandwidth, TPU_V4.clock_hz
    assert op_seconds(TPU_V4, entry, entry["n"], 0, 0) == (2 / clock, "bundles")
    assert op_seconds(TPU_V4, entry, small, 1 << 20, 0) == (10 / clock, "confirmed")
    seconds, basis = op_seconds(TPU_V4, entry, entry["n"], 1 << 20, 0)
    assert basis == "bundles"
    assert seconds == pytest.approx((1 << 20) / rate + TPU_V4.hbm_fill_seconds + 2 / clock)


@pytest.mark.parametrize(
    ("fetching", "issuing", "windows", "seconds"),
    # One window is fetched, then computed. Of many, the longer of the two remains.
    [(3, 5, 1, 8), (4, 2, 2, 5), (2, 4, 2, 5), (6, 3, 3, 7), (0, 5, 4, 5), (1, 9, 1000, 9.001)],
)
def test_windows_are_fetched_while_others_are_computed(
    fetching: float, issuing: float, windows: int, seconds: float
) -> None:
    assert pipeline_seconds(fetching, issuing, windows) == pytest.approx(seconds)


def test_the_note_says_how_many_used_which() -> None:
    assert basis_notes(["estimate", "none"]) == ()
    (note,) = basis_notes(["bundles", "estimate", "confirmed", "confirmed"])
    assert note.startswith("3 ops have their issued bundles counted: 1 charged by bundles")
    assert "; 2 by the compiler's estimate" in note
