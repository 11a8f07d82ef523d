"""Reading HLO text: shapes, replica groups, instructions, and the trip counts of loops."""

from __future__ import annotations

import pytest

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import trip_counts as scalars
from collective_einsum.ruler.hlo.replica_groups import parse_replica_groups
from collective_einsum.ruler.hlo.shapes import CMEM, HBM, Shape, TupleShape, leaves, parse_shape


@pytest.mark.parametrize(
    ("text", "size", "nbytes", "space"),
    [
        ("bf16[4,8]{1,0}", 32, 64, HBM),
        ("bf16[4,8]{1,0:T(8,128)(2,1)S(3)}", 32, 8 * 128 * 2, CMEM),
        ("bf16[512,288]{0,1:T(8,128)(2,1)}", 512 * 288, 512 * 288 * 2, HBM),
        ("bf16[512,288]{1,0:T(8,128)(2,1)}", 512 * 288, 512 * 384 * 2, HBM),
        ("f8e4m3fn[3]{0}", 3, 3, HBM),
        ("s4[6]{0:E(4)}", 6, 3, HBM),
        ("pred[]", 1, 1, HBM),
        ("u32[]{:S(2)}", 1, 4, 2),
    ],
)
def test_shape(text: str, size: int, nbytes: int, space: int) -> None:
    shape = parse_shape(text)
    assert isinstance(shape, Shape)
    assert (shape.size, shape.bytes, shape.memory_space) == (size, nbytes, space)


def test_tuple_shape_with_comments() -> None:
    shape = parse_shape("(bf16[2]{0}, (s32[], /*index=1*/f32[3]{0}), token[])")
    assert isinstance(shape, TupleShape)
    assert [leaf.dtype for leaf in leaves(shape)] == ["bf16", "s32", "f32", "token"]
    assert len(shape.elements) == 3


def test_unknown_dtype_and_shape() -> None:
    shape = parse_shape("weird[2]")
    with pytest.raises(ValueError, match="weird"):
        _ = leaves(shape)[0].bytes
    with pytest.raises(ValueError, match="cannot read a shape"):
        parse_shape("?")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{}", ()),
        ("[2,3]<=[6]", ((0, 1, 2), (3, 4, 5))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=3] {'b'}", ((0, 1, 2), (3, 4, 5))),
        ("mesh['a'=2,'b'=3] {'a'}", ((0, 3), (1, 4), (2, 5))),
        ("mesh['a'=2,'b'=2] {'b','a'}", ((0, 2, 1, 3),)),
        ("mesh['a'=1,'b'=4],device_ids=([2,2]T(1,0)) {'b'}", ((0, 2, 1, 3),)),
        ("mesh['x'=2,'y'=2],device_ids=(0,2,1,3) {'y'}", ((0, 2), (1, 3))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ((0, 1, 4, 5), (2, 3, 6, 7))),
    ],
)
def test_replica_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert parse_replica_groups(text) == groups


def test_unknown_replica_groups() -> None:
    with pytest.raises(ValueError, match="cannot read the replica groups"):
        parse_replica_groups("everyone")


MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=8

%fused (p0: bf16[4,8], p1: bf16[8,2]) -> bf16[4,2] {
  %p1 = bf16[8,2]{1,0} parameter(1)
  %p0 = bf16[4,8]{1,0} parameter(0)
  ROOT %c = bf16[4,2]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%sparse (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0)
}, execution_thread="sparsecore"

ENTRY %main (a: bf16[4,8], b: bf16[8,2]) -> bf16[4,2] {
  %a = bf16[4,8]{1,0} parameter(0), metadata={op_name="x (a, \\"b\\")"}
  %b = bf16[8,2]{1,0} parameter(1)
  %quoted = s32[2]{0} constant({1, 2}), metadata={op_name="a), b={"}
  %g = bf16[4,8]{1,0} all-gather(%a), replica_groups=mesh['r'=1,'s'=8], device_ids=([2,4]T(1,0)) {'s'}, dimensions={0}
  %p = bf16[4,8]{1,0} collective-permute(%g), source_target_pairs={{0,1},{1,0}}
  ROOT %f = bf16[4,2]{1,0} fusion(%p, bf16[8,2]{1,0} %b), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/dot"}, backend_config={"window_config":{"estimated_cycles":"123"},"list":[1,2]}
}
"""  # noqa: E501


def test_module() -> None:
    module = hlo.parse(MODULE)
    assert (module.name, module.is_scheduled, module.num_partitions) == ("jit_f", True, 8)
    assert set(module.computations) == {"fused", "sparse", "main"}
    names = ["a", "b", "quoted", "g", "p", "f"]
    assert [instruction.name for instruction in module.entry] == names
    fusion = module.entry.root
    assert fusion.operands == ("p", "b")
    assert fusion.calls == ("fused",)
    assert fusion.estimated_cycles == 123
    assert fusion.backend_config["list"] == [1, 2]
    assert fusion.op_name == "jit(f)/dot"
    assert module.entry["quoted"].op_name == "a), b={"
    assert module.entry["quoted"].estimated_cycles is None
    assert module.entry["g"].replica_groups == ((0, 4, 1, 5, 2, 6, 3, 7),)
    assert module.entry["p"].source_target_pairs == ((0, 1), (1, 0))
    fused = module.computations["fused"]
    assert [parameter.name for parameter in fused.parameters] == ["p0", "p1"]
    assert [user.name for user in module.entry.users["p"]] == ["f"]


@pytest.mark.parametrize(
    ("text", "words"), [("func.func @main", "HloModule"), ("HloModule m", "no ENTRY")]
)
def test_no_module(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hlo.parse(text)


def loop_module(condition: str, step: str = "1", start: str = "0", config: str = "") -> str:
    """A module with one loop whose counter is element 0 of its state, and limit element 1."""
    state = "(s32[], s32[], f32[4]{0})"
    return f"""HloModule m, is_scheduled=true

%add (x: s32[], y: s32[]) -> s32[] {{
  %x = s32[] parameter(0)
  %y = s32[] parameter(1)
  ROOT %sum = s32[] add(%x, %y)
}}

%body (s: (s32[], s32[], f32[4])) -> (s32[], s32[], f32[4]) {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %v = f32[4]{{0}} get-tuple-element(%s), index=2
  %one = s32[] constant({step})
  %next = s32[] fusion(%i, %one), kind=kLoop, calls=%add
  ROOT %t = {state} tuple(%next, %n, %v)
}}

%condition (s: (s32[], s32[], f32[4])) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %v = f32[4]{{0}} get-tuple-element(%s), index=2
  %seven = s32[] constant(7)
  ROOT %lt = pred[] {condition}
}}

ENTRY %main (v: f32[4], d: s32[]) -> (s32[], s32[], f32[4]) {{
  %v = f32[4]{{0}} parameter(0)
  %d = s32[] parameter(1)
  %zero = s32[] constant({start})
  %copied = s32[] copy(%zero)
  %five = s32[] constant(5)
  %t = {state} tuple(%copied, %five, %v)
  ROOT %w = {state} while(%t), condition=%condition, body=%body{config}
}}
"""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (loop_module("compare(%i, %seven), direction=LT"), 7),
        (loop_module("compare(%i, %n), direction=LT"), 5),
        (loop_module("compare(%i, %seven), direction=LE", step="2"), 4),
        (loop_module("compare(%i, %n), direction=GT", step="-1", start="9"), 4),
        (loop_module("compare(%i, %n), direction=GT"), 0),
        (loop_module("compare(%i, %v), direction=LT"), None),
        (
            loop_module(
                "compare(%i, %v), direction=LT",
                config=', backend_config={"known_trip_count":{"n":"3"}}',
            ),
            3,
        ),
    ],
)
def test_trip_count(text: str, count: int | None) -> None:
    module = hlo.parse(text)
    assert scalars.trip_count(module, module.entry["w"], module.entry) == count


@pytest.mark.parametrize("more", ["", ',other="1"', "}, metadata={x=1"])
def test_a_kernel_whose_attributes_go_on_over_lines(more: str) -> None:
    """As Pallas kernels have them: a line that begins with a brace need not end a computation."""
    name, metadata = 'custom_call_target="tpu_custom_call"', 'metadata={op_name="splash"}'
    module = hlo.parse(f"""HloModule m, is_scheduled=true

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %k = f32[8]{{0}} custom-call(%a), {name}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 512}}"
}}{more}}}, {metadata}, backend_config={{"estimated_cycles":"7"}}
  ROOT %n = f32[8]{{0}} negate(%k)
}}
""")
    assert list(module.entry.instructions) == ["a", "k", "n"]
    assert module.entry.root.name == "n"
    assert module.entry["k"].estimated_cycles == 7
