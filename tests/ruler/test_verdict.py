"""The scheduler's log, read from text and from a real compile."""

from __future__ import annotations

from pathlib import Path

import pytest

from collective_einsum.ruler.replay.scheduler_log import parse_verdict, scheduler_verdict
from collective_einsum.ruler.replay.simulation import replay

pytestmark = pytest.mark.tpu

PREFIX = "I1122 13:18:22.976 13909 latency_hiding_scheduler.cc:4271] "
LOG = "\n".join(
    [
        f"{PREFIX}[latency-hiding-scheduler] Statistics before scheduling:",
        f"{PREFIX}For computation: body, module jit_f(0)",
        f"{PREFIX}Total wasted cycles: 331772",
        f"{PREFIX}Wasted cycles for collective-permute: 331772",
        f"{PREFIX}Total cycles: 1.17021e+06",
        "I1122 13:18:22.977 13909 other.cc:1] Total wasted cycles: 5",
        f"{PREFIX}[latency-hiding-scheduler] Statistics after scheduling:",
        f"{PREFIX}For computation: body, module jit_f(0)",
        f"{PREFIX}Total wasted cycles: 1200",
        f"{PREFIX}Wasted cycles for all-reduce: 0",
        f"{PREFIX}Wasted cycles for collective-permute: 1200",
        f"{PREFIX}Total cycles: 838439",
        f"{PREFIX}For computation: main, module jit_f(0)",
        f"{PREFIX}Total wasted cycles: 0",
        f"{PREFIX}Total cycles: 100",
    ]
)


def test_log() -> None:
    verdict = parse_verdict(LOG)
    assert [each.computation for each in verdict.computations] == ["body", "main"]
    body = verdict.computations[0]
    assert (body.wasted_before, body.wasted_cycles, body.total_cycles) == (331772, 1200, 838439)
    assert body.wasted_by_kind == {"collective-permute": 1200}
    assert (verdict.wasted_cycles, verdict.total_cycles) == (1200, 838539)
    assert "838439" in str(verdict)


def test_empty_log() -> None:
    verdict = parse_verdict("")
    assert verdict.computations == ()
    assert "no asynchronous ops" in str(verdict)


def test_refused() -> None:
    with pytest.raises(ValueError, match="module:function"):
        scheduler_verdict("no such thing")
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        scheduler_verdict("no_such_module:function")


PROGRAM = """
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from collective_einsum.ruler.compile import target


def build(hidden):
    slice_ = target("v4:4x4x4")
    mesh = slice_.mesh((4, 4, 4), ("x", "y", "z"))

    def shard(x, w):
        moved = lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)])
        return jnp.tanh((x if hidden else moved) @ w), moved

    f = jax.shard_map(shard, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    spec = NamedSharding(mesh, P("x"))
    x, w = (jax.ShapeDtypeStruct((8192, n), jnp.bfloat16, sharding=spec) for n in (2048, 8192))
    return slice_.compile(f, x, w), mesh
"""


def test_two_rulers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permute that its dot needs is waited for, one that it does not need is not."""
    (tmp_path / "program_for_verdict.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    import program_for_verdict  # pyright: ignore[reportMissingImports]

    entry = "program_for_verdict:build"
    waiting, hidden = scheduler_verdict(entry, False), scheduler_verdict(entry, True)
    assert 0 == hidden.wasted_cycles < waiting.wasted_cycles < waiting.total_cycles
    exposed = [replay(*program_for_verdict.build(h)).exposed_seconds for h in (False, True)]
    assert exposed[0] > 10 * exposed[1]
