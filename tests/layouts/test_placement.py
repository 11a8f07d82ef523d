"""Which heads and sequences each chip has in attention, by sizes alone."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import layouts
from layouts.mesh.axis_collectives import AXES
from layouts.models.config import ModelConfig
from layouts.models.named_models import MT_NLG_530B, PALM_540B, TINY_GROUPED
from layouts.partitionings import attention_placement
from layouts.partitionings.attention_layouts import BatchSharded, HeadSharded
from layouts.partitionings.attention_placement import Placement, place
from layouts.partitionings.named_layouts import ATTENTIONS as NAMED_ATTENTIONS
from layouts.partitionings.named_layouts import FEEDFORWARDS as NAMED
from layouts.partitionings.param_specs import block_specs
from layouts.partitionings.partitioning import as_plan

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS

STATIONARY = layouts.WeightStationary2D()
CUBE = dict.fromkeys(AXES, 4)
# As the paper stores it.
PADDED_540B = dataclasses.replace(PALM_540B, padded_heads=64)
PAIRS = [*itertools.product(FEEDFORWARDS, ATTENTIONS), (BY_POSITION, HeadSharded())]


def grouped(heads: int, kv_heads: int) -> ModelConfig:
    return dataclasses.replace(TINY_GROUPED, heads=heads, kv_heads=kv_heads, d_head=64)


def test_paper() -> None:
    """PaLM 540B on 4x4x4: heads replicate the one key-value head, batch does not."""
    heads = place(PADDED_540B, STATIONARY, HeadSharded(), CUBE)
    assert (heads.batch_axes, heads.kv_axes) == ((), ())
    assert heads.queries.kept == ("y", "z", "x")
    batch = place(PADDED_540B, STATIONARY, BatchSharded(), CUBE)
    assert (batch.batch_axes, batch.kv_axes, batch.token_sharded) == (("x", "y", "z"), (), True)
    multihead = place(MT_NLG_530B, STATIONARY, HeadSharded(), CUBE)
    assert multihead.kv_axes == ("y", "z", "x")


def table() -> list[tuple[str, str, str]]:
    """The table of the module: feedforward layout, attention layout, sharding."""
    lines = [line for line in (attention_placement.__doc__ or "").splitlines() if "|" in line]
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return [
        (row[0], name, cell) for row in rows for name, cell in zip(head[1:], row[1:], strict=True)
    ]


@pytest.mark.parametrize(("feedforward", "attention", "sharding"), table())
def test_the_table_is_what_is_done(feedforward: str, attention: str, sharding: str) -> None:
    plan = as_plan(f"{feedforward}, {attention}")
    if sharding == "refused":
        with pytest.raises(ValueError, match="positions"):
            place(PADDED_540B, plan.feedforward, plan.attention, CUBE)
        return
    found = place(PADDED_540B, plan.feedforward, plan.attention, CUBE)
    batch, heads = "".join(found.batch_axes), "".join(found.queries.kept)
    assert sharding.split() == [f"B{batch}", f"H{heads}"]


def test_the_table_has_every_pair_of_layouts() -> None:
    assert {pair[:2] for pair in table()} == set(itertools.product(NAMED, NAMED_ATTENTIONS))


def local_heads(total: int, kept: tuple[str, ...], sizes: Any, at: Any) -> list[int]:
    """The query heads of the chip at `at`, from how columns are cut: y, then z, then x."""
    axes = ["y", "z", *(["x"] if "x" in kept else [])]
    ids = np.arange(total).reshape([*(sizes[a] for a in axes), -1])
    own = ids[tuple(at[a] if a in kept else slice(None) for a in axes)]
    return [int(head) for head in own.reshape(-1)]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 2), (1, 4, 2), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("config", [grouped(16, k) for k in (1, 2, 4, 8, 16)], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_chip_has_the_heads_that_it_reads(pair: Any, config: Any, sizes: Any) -> None:
    shape = dict(zip(AXES, sizes, strict=True))
    feedforward, attention = pair
    found = place(config, feedforward, attention, shape)
    kept = found.queries.kept
    for at in itertools.product(*(range(shape[a]) for a in kept)):
        chip = dict(zip(kept, at, strict=True))
        queries = local_heads(config.heads, kept, shape, chip)
        held = kv_heads_of(found, config, shape, chip)
        read = held if found.selection is None else [held[i] for i in found.selection[at]]
        run = len(queries) // len(read)
        assert [read[i // run] for i in range(len(queries))] == [
            h // config.queries_per_kv for h in queries
        ]


def kv_heads_of(found: Placement, config: ModelConfig, shape: Any, chip: Any) -> list[int]:
    """The key-value heads that the cache's sharding puts on a chip."""
    index, count = 0, 1
    for axis in found.kv_axes:
        index, count = index * shape[axis] + chip[axis], count * shape[axis]
    size = config.kv_heads // count
    return list(range(index * size, (index + 1) * size))


@pytest.mark.parametrize(
    ("sizes", "stored"),
    [((1, 4, 4), "y"), ((1, 2, 4), "yz"), ((1, 16, 2), ""), ((1, 1, 16), ""), ((4, 8, 2), "y")],
    ids=str,
)
def test_key_value_heads_are_stored_over_what_divides_them(
    sizes: tuple[int, int, int], stored: str
) -> None:
    """8 heads of 64 queries; a chip that attends with two of them multiplies with no more columns."""
    shape, config = dict(zip(AXES, sizes, strict=True)), grouped(64, 8)
    spec = block_specs(config, shape)["w_kv"]
    assert spec == P("x", tuple(stored) or None)
    found = place(config, NAMED["WS 2D all-reduce"], HeadSharded(), shape)
    assert found.keys.sharded == found.kv_axes[: len(stored)] == tuple(stored)


def test_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"48 heads do not divide .* set padded_heads=64"):
        place(
            PALM_540B,
            STATIONARY,
            HeadSharded(),
            {"x": 2, "y": 8, "z": 4},
        )
    odd = dataclasses.replace(TINY_GROUPED, heads=4, kv_heads=1, d_head=6, rotary=None)
    with pytest.raises(
        ValueError, match=r"4 heads .* features of queries.* do not divide over x=4"
    ):
        place(odd, STATIONARY, HeadSharded(), {"x": 4, "y": 2, "z": 2})
    with pytest.raises(ValueError, match=r'choose \("z",\), \("y", "z"\) or \("x", "y", "z"\)'):
        BatchSharded(("x",))


def test_an_odd_number_of_columns_of_keys_is_cut_between_key_and_value() -> None:
    """One head of 3: 3 features of keys do not divide over x=2, but 6 of keys and values do."""
    odd = dataclasses.replace(TINY_GROUPED, kv_heads=1, d_head=3, rotary=None)
    found = place(odd, STATIONARY, HeadSharded(), {"x": 2, "y": 2, "z": 2})
    assert found.keys.gathered == ("x",)
