"""Source lines of instructions, read from the text of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

import collective_einsum
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo.stack_frames import SourceLine, callers_lines, parse_stacks
from collective_einsum.ruler.replay.events import Event
from collective_einsum.ruler.replay.source_lines import by_line, line_table
from collective_einsum.ruler.replay.tables import WIDTH

PACKAGE = Path(collective_einsum.__file__).parent
TABLES = f"""
FileNames
1 "/home/you/model.py"
2 "{PACKAGE}/normalize.py"
3 "/elsewhere/lib/collective_einsum/normalize.py"

FunctionNames
1 "Model.__call__"
2 "run"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=8 end_line=9 column=2 end_column=31}}
2 {{file_name_id=2 function_name_id=2 line=35 end_line=35 column=2 end_column=24}}
3 {{file_name_id=3 function_name_id=2 line=36 end_line=36 column=2 end_column=24}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=2}}

"""
MODEL = SourceLine(file="/home/you/model.py", line=8, function="Model.__call__")


def module(metadata: str, tables: str = TABLES) -> hlo.Module:
    return hlo.parse(
        f"HloModule m, is_scheduled=true\n{tables}\n"
        "ENTRY %main (p: s8[8]) -> s8[8] {\n"
        "  %p = s8[8]{0} parameter(0)\n"
        f"  ROOT %n = s8[8]{{0}} negate(%p), metadata={{{metadata}}}\n}}\n"
    )


def stack(metadata: str, tables: str = TABLES) -> tuple[SourceLine, ...]:
    read = module(metadata, tables)
    return read.stack_of(read.entry["n"])


def test_the_innermost_line_comes_first() -> None:
    assert stack('op_name="jit(f)/neg" stack_frame_id=1') == (MODEL,)
    inner, outer = stack('op_name="jit(f)/neg" stack_frame_id=2')
    assert (inner.file, inner.line, inner.function) == (f"{PACKAGE}/normalize.py", 35, "run")
    assert outer == MODEL


def test_parents_that_are_numbered_from_one() -> None:
    """As a version of XLA would print them that adds nothing."""
    tables = TABLES.replace("parent_frame_id=1", "parent_frame_id=0")
    tables = tables.replace("parent_frame_id=2", "parent_frame_id=1")
    assert parse_stacks(tables.splitlines()) == parse_stacks(TABLES.splitlines())


def test_the_metadata_of_older_modules() -> None:
    metadata = 'op_name="jit(f)/neg" source_file="/home/you/model.py" source_line=8'
    assert stack(metadata, "") == (SourceLine(file="/home/you/model.py", line=8),)
    assert stack('op_name="jit(f)/neg"', "") == ()
    assert stack('op_name="jit(f)/neg" stack_frame_id=9') == ()


@pytest.mark.parametrize("frame", [1, 2, 3])
def test_the_callers_line_is_outside_this_library(frame: int) -> None:
    """Also where the module was traced with the library in another folder."""
    assert callers_lines(stack(f"stack_frame_id={frame}")) == (MODEL,)


def test_where_all_is_the_librarys_its_innermost_line_stands() -> None:
    own = stack("stack_frame_id=2")[:1]
    assert callers_lines(own) == own
    assert callers_lines(()) == ()


def test_lines_of_pythons_own_start_are_left_out() -> None:
    frozen = SourceLine(file="<frozen runpy>", line=88, function="_run_code")
    stdin = SourceLine(file="<stdin>", line=1)
    assert callers_lines((MODEL, stdin, frozen)) == (MODEL, stdin)


def test_lines_of_an_installed_library_of_layers_are_not_the_models() -> None:
    """A model that is installed itself is the caller's code, and so are files of a library's name."""
    linear = SourceLine(file="/venv/lib/python3.13/site-packages/flax/nnx/nn/linear.py", line=568)
    installed = SourceLine(file="/venv/lib/python3.13/site-packages/MaxText/decoders.py", line=9)
    mine = SourceLine(file="/home/you/flax/block.py", line=4)
    assert callers_lines((linear, MODEL)) == (MODEL,)
    assert callers_lines((linear, installed, linear, MODEL)) == (installed, MODEL)
    assert callers_lines((mine, linear)) == (mine,)
    assert callers_lines((linear,)) == (linear,)


def test_tables_that_were_cut() -> None:
    kept = [line for line in TABLES.splitlines() if not line.startswith("3 {file_name_id=3")]
    with pytest.raises(ValueError, match=r"stack frame 3 .* pass the whole text"):
        module("stack_frame_id=1", "\n".join(kept))


def test_long_names_end_in_the_line_and_fit_a_terminal() -> None:
    deep = SourceLine(
        file="/home/you/" + "layers/" * 20 + "mlp.py", line=123, function="a.<locals>.mlp"
    )
    event = Event("compute", "fusion", 0, 1.0, "dot", lines=(deep, MODEL))
    text = str(line_table(by_line([event], callers=1), 123456.0))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "mlp.py:123 mlp  " in text
