"""The meshes that hold a model, and the advice where the mesh does not divide its sizes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..mesh.slice_meshes import ShapeLike, as_shape, shape_name
from ..models.config import ModelConfig
from ..models.named_models import as_config


def model_misfit(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """Why a mesh cannot hold a model under any layout, and what to do about it; "" if it can."""
    chips = size(AXES, sizes)
    for name, value, stored in (
        ("d_model", config.d_model, config.d_model),
        ("d_ff", config.d_ff, config.hidden_columns),
        ("shared_width", config.shared_width, config.shared_width),
    ):
        if stored % chips == 0:
            continue
        pad = ""
        of = f" of {config.expert_count} experts" if config.experts and name == "d_ff" else ""
        # Zeros in d_model would change every norm.
        if name != "d_model":
            unit = chips // math.gcd(chips, stored // value)
            pad = f", or pad {name}{of} with zeros to {round_up(value, unit)}"
        return (
            f"{config.name}: {name}={value}{of} does not divide over the {chips} "
            f"chips of a mesh {shape_name(sizes)}; choose a mesh such as {_nearest(config, sizes)}{pad}"
        )
    return heads_misfit(config, sizes)


def heads_misfit(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """Why weights of attention cannot be stored on a mesh; "" if they can."""
    heads = _padded_heads(config, sizes)
    if heads == config.stored_heads:
        return ""
    return (
        f"{config.name}: {config.stored_heads} heads do not divide over y={sizes['y']} times "
        f"z={sizes['z']}; set padded_heads={heads}, or choose a mesh such as {_nearest(config, sizes)}"
    )


def padded_for(config: ModelConfig | str, mesh: ShapeLike) -> ModelConfig:
    """The model with as many heads and tokens stored as divide over a mesh; see `padded_heads` and
    `padded_vocab` of `ModelConfig`.

    Args:
      config: the model, or its name.
      mesh: with axes x, y and z; or their sizes, such as (2, 2, 2) or "2x2x2".

    Returns:
      The config itself where it divides. d_model and d_ff are never padded.

    Raises:
      ValueError: the mesh has other axes, or `config` is no model.
    """
    config, sizes = as_config(config), as_shape("mesh", mesh)
    heads, vocab = _padded_heads(config, sizes), round_up(config.stored_vocab, size(AXES, sizes))
    if heads != config.stored_heads:
        config = dataclasses.replace(config, padded_heads=heads)
    if vocab != config.stored_vocab:
        config = dataclasses.replace(config, padded_vocab=vocab)
    return config


def _padded_heads(config: ModelConfig, sizes: Mapping[str, int]) -> int:
    """The fewest query heads from those that are stored on that divide over y and z."""
    n = size(WEIGHT_AXES, sizes)
    if config.stored_heads % n == 0:
        return config.stored_heads
    # Where query heads share key-value heads, each group of them is padded alike.
    unit = n if config.kv_heads == config.heads else math.lcm(n, config.kv_heads)
    return round_up(config.stored_heads, unit)


def _nearest(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """The largest mesh within the given one that holds the model, such as 4x4x2."""
    return _nearest_shape(config, tuple(sizes[axis] for axis in AXES))


@functools.lru_cache(maxsize=1024)
def _nearest_shape(config: ModelConfig, given: tuple[int, ...]) -> str:
    common = math.gcd(config.d_model, config.hidden_columns, config.shared_width)

    def holds(shape: tuple[int, ...]) -> bool:
        heads_divide = config.stored_heads % math.prod(shape[1:]) == 0
        return heads_divide and common % math.prod(shape) == 0

    shapes = itertools.product(*(range(1, n + 1) for n in given))
    return "x".join(map(str, max(filter(holds, shapes), key=math.prod)))


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple
