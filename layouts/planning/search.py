"""The planner: every combination of layouts, ranked by the analytical model, with reasons."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import get_args

from collective_einsum.chips import TPU_V4, Chip, as_chip
from collective_einsum.text import as_seconds

from ..arguments import as_sizes, check_word
from ..cost.layer_items import Load
from ..cost.step_cost import Overlap, cost
from ..cost.workload import load
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..mesh.slice_meshes import ShapeLike, as_shape, meshes
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..partitionings.named_layouts import ATTENTIONS as ATTENTIONS
from ..partitionings.named_layouts import FEEDFORWARDS as FEEDFORWARDS
from ..partitionings.partitioning import misfit
from .plan import Objective, Option, Plan, as_gibibytes, as_milliseconds, rated

# The search where nothing is said.
CHIPS = tuple(2**i for i in range(9))
BATCHES = tuple(2**i for i in range(11))


def plan(
    config: ModelConfig | str,
    *,
    chip: Chip | str = TPU_V4,
    mesh_shape: ShapeLike | None = None,
    chips: int | Sequence[int] | None = None,
    phase: str,
    batch: int | Sequence[int] | None = None,
    context: int | None = None,
    length: int | None = None,
    weights: str = "bf16",
    cache: str = "bf16",
    objective: Objective = "latency",
    max_seconds: float | None = None,
    overlap: Overlap = "auto",
) -> Plan:
    """Every combination of layouts, ranked by what the analytical model says of it.

    The seconds are predicted, of the library's own programs; see `layouts.cost.Cost`.

    Args:
      config: the model, or its name, such as "palm-62b".
      chip: of the slice, such as `collective_einsum.TPU_V4` or "v4".
      mesh_shape: sizes of the mesh axes x, y and z; or a mesh, of which those are taken.
      chips: instead, a number of chips, or several, whose meshes are searched; 1 to 256 unless
        either is given.
      phase: "decode" or "prefill".
      batch: sequences, or several numbers to choose from; 1 to 1024 unless given.
      context: positions in the cache, for decode.
      length: of the prompts, for prefill.
      weights, cache: "bf16" or "int8".
      objective: "latency", the fewest seconds a step; "throughput", the most tokens a second;
        "cost", the fewest chip-seconds a token (section 2).
      max_seconds: what a step may take at most, embedding and unembedding included.
      overlap: "auto" or "none"; see `Cost`.

    Returns:
      A `Plan`: `.partitioning`, `.cost`, `.best`, `.options`; prints as a table. Empty if nothing
      will do; `.nearest` then says what comes nearest.

    Raises:
      ValueError: a word or a size that cannot be, or bf16 weights for `int8_activations`.
    """
    check_word("objective", objective, get_args(Objective))
    check_word("overlap", overlap, get_args(Overlap))
    config, chip = as_config(config), as_chip(chip)
    if config.int8_activations and weights == "bf16":
        raise ValueError(
            f'{config.name}: int8_activations need int8 matrices; ask for weights="int8"'
        )
    max_seconds = None if max_seconds is None else as_seconds("max_seconds", max_seconds)
    batches = BATCHES if batch is None else as_sizes("batch", batch, f"phase={phase!r}")
    sizes = planned_meshes(chip, mesh_shape, chips)
    loads = [
        load(phase, batch=b, context=context, length=length, weights=weights, cache=cache)
        for b in batches
    ]
    if not loads or not sizes:
        raise ValueError(f"batch={batch!r} and chips={chips!r} must each name at least one number")
    searched = sizes if mesh_shape is None else []
    folded = [mesh for mesh in searched if mesh not in meshes(size(AXES, mesh), chip)]
    options: list[Option] = []
    seen: set[object] = set()
    for asked, mesh, feedforward, attention in itertools.product(
        loads, sizes, FEEDFORWARDS, ATTENTIONS
    ):
        if mesh in folded and (
            _repeats_keys(config, mesh, attention, asked) or _rings_hop_twice(config, asked, chip)
        ):
            continue
        option = _option(config, feedforward, attention, mesh, asked, chip, overlap, max_seconds)
        # Some pairs are the same program, as all attention layouts are where weights are gathered
        # over all chips; the first of them stands for them all.
        same = option.cost and (asked.batch, *mesh.values(), option.cost.items)
        if same is None or same not in seen:
            options.append(option)
            seen.add(same)
    # The first in the lists above stands for options that cost the same.
    options.sort(key=lambda option: rank_of(option, objective))
    return Plan(config, chip, phase, objective, max_seconds, tuple(options))


def planned_meshes(
    chip: Chip, mesh_shape: ShapeLike | None, chips: int | Sequence[int] | None
) -> list[dict[str, int]]:
    """The meshes that `plan` searches; its arguments.

    Those with y or z along two sides of a torus, and x of one device, are among them: there are no sums
    over x, and lax's collectives over y and z use the links of all sides. Replayed with libtpu 0.0.50.1,
    and with x of one device, ms a token of 32 sequences: Llama 3.1 70B on v5p:4x4x4 11.08 and 9.26, on
    v5p:2x2x2 20.07 and 16.36; us a layer of gpt-oss 120B, 512 sequences on v4:4x4x4, 1362 and 621.
    """
    if mesh_shape is None:
        counts = CHIPS if chips is None else as_sizes("chips", chips)
        return [mesh for count in counts for mesh in meshes(count, chip, folded=True)]
    shape = as_shape("mesh_shape", mesh_shape)
    if chips is not None and as_sizes("chips", chips) != (math.prod(shape.values()),):
        raise ValueError(f"chips={chips!r} contradicts mesh_shape={mesh_shape!r}; give one of them")
    return [shape]


def _repeats_keys(
    config: ModelConfig, mesh: Mapping[str, int], attention: str, asked: Load
) -> bool:
    """Whether a step decodes by heads on more devices of y and z than heads of keys.

    That is not searched on folded meshes: gpt-oss 120B on v5p:4x4x4 would take 10.7 ms a token, where
    5.8 are predicted, and takes 7.0 with attention by batch over z (libtpu 0.0.50.1).
    """
    repeats = config.stored_kv_heads < size(WEIGHT_AXES, mesh)
    return attention == "heads" and asked.new == 1 and repeats


def _rings_hop_twice(config: ModelConfig, asked: Load, chip: Chip) -> bool:
    """Whether prompts of a dense model are read by rings whose neighbours on a folded mesh are not side
    by side.

    The cost model takes them for neighbours, so that is not searched: 8 prompts of 2048 tokens of Llama
    3.1 70B on v5p:2x2x2 would take 1747 ms in "WG XYZ" and 1457 in "WS 2D batch", where 1102 and 1168
    are predicted, and take 1291 in "WG X" on 2x2x2 (libtpu 0.0.50.1). Where a chip is two devices, such
    meshes are faster: 830 for 911 on tpu7x:2x2x1; and mixtures of experts spare more than they lose.
    """
    return asked.new > 1 and config.experts is None and chip.devices_per_chip == 1


def _option(
    config: ModelConfig,
    feedforward: str,
    attention: str,
    sizes: Mapping[str, int],
    asked: Load,
    chip: Chip,
    overlap: Overlap,
    max_seconds: float | None,
) -> Option:
    option = Option(feedforward, attention, sizes, asked.batch, None)
    why = misfit(config, sizes, option.partitioning)
    if why:
        return dataclasses.replace(option, excluded=why)
    predicted = cost(config, option.partitioning, sizes, asked, chip, overlap)
    if not predicted.fits:
        why = (
            f"needs {as_gibibytes(predicted.memory.total)} of {as_gibibytes(chip.hbm_bytes)} a chip"
        )
    elif max_seconds is not None and predicted.step_seconds > max_seconds:
        takes = as_milliseconds(predicted.step_seconds)
        why = f"takes {takes}, more than {as_milliseconds(max_seconds)}"
    return dataclasses.replace(option, cost=predicted, excluded=why)


def rank_of(option: Option, objective: Objective) -> tuple[int, float]:
    """The order of options: those that can be come first, the best of them by the objective first, and
    those whose sizes do not divide come last."""
    predicted = option.cost
    if predicted is None:
        return 2, 0.0
    return int(bool(option.excluded)), rated(objective, predicted, predicted.step_seconds)
