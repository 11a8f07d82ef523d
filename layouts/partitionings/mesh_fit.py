"""The meshes that hold a model, and the advice where the mesh does not divide its sizes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..mesh.slice_meshes import shape_name
from ..models.config import ModelConfig


def model_misfit(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """Why a mesh cannot hold a model under any layout, and what to do about it; "" if it can."""
    chips = size(AXES, sizes)
    experts = "" if config.experts is None else f" of {config.expert_count} experts"
    for name, value, stored in (
        ("d_model", config.d_model, config.d_model),
        ("d_ff", config.d_ff, config.hidden_columns),
    ):
        if stored % chips == 0:
            continue
        pad = ""
        # Zeros in d_model would change every norm.
        if name == "d_ff":
            unit = chips // math.gcd(chips, config.expert_count)
            pad = f", or pad d_ff{experts} with zeros to {round_up(value, unit)}"
        return (
            f"{config.name}: {name}={value}{experts if pad else ''} does not divide over the {chips} "
            f"chips of a mesh {shape_name(sizes)}; choose a mesh such as {_nearest(config, sizes)}{pad}"
        )
    return heads_misfit(config, sizes)


def heads_misfit(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """Why weights of attention cannot be stored on a mesh; "" if they can."""
    n = size(WEIGHT_AXES, sizes)
    if config.stored_heads % n == 0:
        return ""
    # Where query heads share key-value heads, each group of them is padded alike.
    unit = n if config.kv_heads == config.heads else math.lcm(n, config.kv_heads)
    return (
        f"{config.name}: {config.stored_heads} heads do not divide over y={sizes['y']} times "
        f"z={sizes['z']}; set padded_heads={round_up(config.stored_heads, unit)}, or choose a mesh such "
        f"as {_nearest(config, sizes)}"
    )


def _nearest(config: ModelConfig, sizes: Mapping[str, int]) -> str:
    """The largest mesh within the given one that holds the model, such as 4x4x2."""
    return _nearest_shape(config, tuple(sizes[axis] for axis in AXES))


@functools.lru_cache(maxsize=1024)
def _nearest_shape(config: ModelConfig, given: tuple[int, ...]) -> str:
    common = math.gcd(config.d_model, config.hidden_columns)

    def holds(shape: tuple[int, ...]) -> bool:
        heads_divide = config.stored_heads % math.prod(shape[1:]) == 0
        return heads_divide and common % math.prod(shape) == 0

    shapes = itertools.product(*(range(1, n + 1) for n in given))
    return "x".join(map(str, max(filter(holds, shapes), key=math.prod)))


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple
