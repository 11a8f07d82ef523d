"""More work never costs less: the model's every argument, for every pair of layouts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import collective_einsum as ce
import layouts
from collective_einsum.chips import TILE_ROWS
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.mesh.axis_collectives import AXES
from layouts.mesh.slice_meshes import meshes
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    MT_NLG_530B,
    PALM_8B,
    PALM_62B,
    PALM_540B,
)
from layouts.partitionings.attention_placement import place
from layouts.partitionings.param_specs import vocab_axes
from layouts.partitionings.partitioning import misfit
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS

pytestmark = pytest.mark.slow

MODELS = (PALM_8B, PALM_62B, PALM_540B, MT_NLG_530B)
CHIPS = (ce.TPU_V4, ce.TPU_V5E, ce.TPU_V5P, ce.TPU_V6E, ce.H100)
# Of a chip, the rates: half of one is more time. Then what more of is more time.
RATES = ("bf16_flops", "hbm_bandwidth", "hbm_efficiency", "link_bandwidth")
WAITS = ("hop_seconds", "permute_seconds", "collective_seconds", "hbm_fill_seconds")
# Of sums in another order.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of `cost`."""

    config: ModelConfig
    plan: Any
    sizes: Mapping[str, int]
    chip: ce.Chip
    overlap: str
    load: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Of a step."""
        asked: Any = (load(**self.load), self.chip, self.overlap)
        return cost(self.config, self.plan, self.sizes, *asked).step_seconds

    def of_load(self, **change: Any) -> Asked:
        return dataclasses.replace(self, load={**self.load, **change})

    def of_model(self, **change: Any) -> Asked:
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **change))

    def of_chip(self, **change: Any) -> Asked:
        return dataclasses.replace(self, chip=dataclasses.replace(self.chip, **change))

    @property
    def cut(self) -> Any:
        """How heads and the vocabulary are sharded, which may change with their numbers."""
        where = place(self.config, self.plan.feedforward, self.plan.attention, self.sizes)
        return where, vocab_axes(self.config, self.sizes)


def draw(rng: np.random.Generator, plan: Any) -> Asked:
    """A model, mesh, chip and step that the layouts can shard."""
    while True:
        sizes = dict(zip(AXES, map(int, rng.choice([1, 2, 3, 4, 8], 3)), strict=True))
        config = dataclasses.replace(
            MODELS[rng.integers(len(MODELS))], block=str(rng.choice(["serial", "parallel"]))
        )
        if math.prod(sizes.values()) <= 256 and not misfit(config, sizes, plan):
            break
    phase = str(rng.choice(["decode", "prefill"]))
    positions = {"context" if phase == "decode" else "length": int(2 ** rng.integers(0, 13))}
    words = {name: str(rng.choice(["bf16", "int8"])) for name in ("weights", "cache")}
    chip, overlap = CHIPS[rng.integers(len(CHIPS))], str(rng.choice(["auto", "none"]))
    batch = int(rng.choice([rng.integers(1, 9), rng.integers(1, 1025)]))
    asked = {"phase": phase, "batch": batch, **positions, **words}
    return Asked(config, plan, sizes, chip, overlap, asked)


def more_sequences(rng: np.random.Generator, asked: Asked) -> tuple[Asked, ...]:
    """Steps of more and more sequences. They fill tiles of rows: where blocks of a scatter do not, a
    TPU makes an all-reduce of it, and more rows do take less time."""
    unit = TILE_ROWS * math.prod(asked.sizes.values())
    first = unit * -(-asked.load["batch"] // unit)
    batches = (first, first + unit * int(rng.integers(1, 5)), first * 5)
    return tuple(asked.of_load(batch=batch) for batch in batches)


def more(rng: np.random.Generator, asked: Asked) -> Iterator[tuple[str, Asked]]:
    """The same with more of one thing."""
    config, chips = asked.config, math.prod(asked.sizes.values())
    times = int(rng.integers(2, 5))
    for name in ("context", "length"):
        if name in asked.load:
            yield name, asked.of_load(**{name: asked.load[name] * times})
            yield name, asked.of_load(**{name: asked.load[name] + int(rng.integers(1, 130))})
    yield "layers", asked.of_model(layers=config.layers + 1)
    for name in ("d_model", "d_ff"):
        yield name, asked.of_model(**{name: getattr(config, name) * times})
        yield name, asked.of_model(**{name: getattr(config, name) + 128 * times * chips})
    yield "d_head", asked.of_model(d_head=config.d_head * 2)
    yield "vocab", asked.of_model(vocab=config.vocab * times)
    heads = {
        name: value * (times if value != 1 else 1)
        for name in ("heads", "kv_heads", "padded_heads")
        if (value := getattr(config, name))
    }
    yield "heads", asked.of_model(**heads)
    yield "cache", asked.of_load(cache="bf16")
    # Of many rows int8 weights take longer: they are widened, and their results are scaled.
    if asked.load["phase"] == "decode" and asked.load["batch"] <= 64:
        yield "weights", asked.of_load(weights="bf16")
    for name in RATES:
        yield name, asked.of_chip(**{name: getattr(asked.chip, name) / times})
    for name in WAITS:
        yield name, asked.of_chip(**{name: getattr(asked.chip, name) * times})


PAIRS = [
    pair
    for pair in itertools.product(FEEDFORWARDS, ATTENTIONS)
    if pair[0] != "WS 2D position" or pair[1] == "heads"
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_more_of_anything_takes_longer(pair: tuple[str, str]) -> None:
    plan = layouts.Partitioning(FEEDFORWARDS[pair[0]], ATTENTIONS[pair[1]])
    rng = np.random.default_rng(PAIRS.index(pair))
    for _ in range(5):
        asked = draw(rng, plan)
        seconds = [each.seconds for each in more_sequences(rng, asked)]
        assert seconds == sorted(seconds), asked
        before = asked.seconds
        for name, changed in more(rng, asked):
            if name in ("heads", "vocab") and changed.cut != asked.cut:
                continue
            after = changed.seconds
            assert after >= before * (1 - ROUNDING), f"{name}: {before} to {after}: {changed}"


@pytest.mark.parametrize("batch", [1, 64, 512])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_longer_context_takes_longer(batch: int, weights: str) -> None:
    """PaLM 8B on 256 chips, whose scatters and gathers all ran beside the same attention."""
    for sizes in meshes(256, ce.H100):
        for feedforward, attention in PAIRS:
            plan = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
            if misfit(PALM_8B, sizes, plan):
                continue
            seconds = [
                cost(PALM_8B, plan, sizes, load("decode", **asked), ce.H100).step_seconds
                for context in (1, 128, 2048, 8192)
                for asked in [{"batch": batch, "context": context, "weights": weights}]
            ]
            assert seconds == pytest.approx(sorted(seconds), rel=ROUNDING), (sizes, plan)
