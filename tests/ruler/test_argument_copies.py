"""Notes on arguments that are copied into another layout, on made-up modules and by the compiler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum import ruler
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.simulation import replay_module

from .schedules import CHIP, RING

CYCLES = 'backend_config={"estimated_cycles":"200"}'


def notes(*lines: str) -> tuple[str, ...]:
    """The notes of a module with two arguments, w of 1000 bytes and v, and these ops."""
    body = "\n".join(f"  {line}" for line in lines)
    module = hlo.parse(f"""HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (w: s8[10,100], v: s8[10,100]) -> s8[10,100] {{
  %w = s8[10,100]{{1,0}} parameter(0), metadata={{op_name="params[\\'table\\']"}}
  %v = s8[10,100]{{1,0}} parameter(1), metadata={{op_name="v"}}
{body}
}}
""")
    return replay_module(module, RING, CHIP).notes


def test_the_argument_and_its_share_are_named() -> None:
    (note,) = notes(
        f"%c = s8[10,100]{{0,1}} copy(%w), {CYCLES}",
        f"ROOT %n = s8[10,100]{{0,1}} negate(%c), {CYCLES}",
    )
    assert note.startswith(
        "1 argument copied into another layout in each run, 200.0 us (50.0%): params['table'] 200.0 us; "
    )


def test_several_arguments_are_summed() -> None:
    (note,) = notes(
        f"%c = s8[10,100]{{0,1}} copy(%w), {CYCLES}",
        "%b = s8[10,100]{1,0} bitcast(%v)",
        f"ROOT %d = s8[10,100]{{0,1}} copy(%b), {CYCLES}",
    )
    assert note.startswith(
        "2 arguments copied into another layout in each run, 400.0 us (100.0%): "
    )


@pytest.mark.parametrize(
    "copy",
    [
        "copy(%w)",  # of the same layout, as of an argument that is not donated
        "negate(%w)",
    ],
)
def test_other_ops_have_no_note(copy: str) -> None:
    assert notes(f"ROOT %c = s8[10,100]{{1,0}} {copy}, {CYCLES}") == ()
    assert notes(f"ROOT %c = s8[10,100]{{0,1:S(1)}} copy(%w), {CYCLES}") == ()


def test_a_small_share_has_no_note() -> None:
    long = CYCLES.replace("200", "200000")
    lines = (
        f"%c = s8[10,100]{{0,1}} copy(%w), {CYCLES}",
        f"ROOT %n = s8[10,100]{{0,1}} negate(%c), {long}",
    )
    assert notes(*lines) == ()


@pytest.mark.tpu
def test_what_the_note_says_helps() -> None:
    """A table in the default layout of jit, and in the layout that the compiler chooses."""
    replicated = NamedSharding(ruler.mesh("v5e:2x4", {"x": 8}), P())
    tokens = jax.ShapeDtypeStruct((16, 1), jnp.int32, sharding=replicated)
    table = jax.ShapeDtypeStruct((32768, 2880), jnp.bfloat16)

    def rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return table[tokens]

    given = jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=replicated)
    slow = ruler.predict(rows, given, tokens)
    assert "1 argument copied into another layout in each run" in slow.notes[-1]
    assert "table" in slow.notes[-1]
    chosen = jax.jit(rows, in_shardings=(Format(Layout.AUTO, replicated), replicated))
    fast = ruler.predict(chosen.lower(table, tokens))
    assert "copied" not in "".join(fast.notes)
    assert fast.total_seconds < 0.1 * slow.total_seconds
