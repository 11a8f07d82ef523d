"""Rotary position embedding as config.json describes it.

transformers 5 writes all of it into `rope_parameters`; older versions wrote `rope_theta` and
`partial_rotary_factor` beside a `rope_scaling`, whose kind was called `type` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..arguments import is_number
from ..models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    Scaling,
    YarnScaling,
)
from .config_fields import ConfigFields

_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope", "su")


def rotary_of(
    fields: ConfigFields,
    d_head: int,
    *,
    base: float = 10000.0,
    fraction: float = 1.0,
    interleaved: bool = False,
    layers: str | None = None,
) -> Rotary:
    """The rotary embedding of a model.

    Args:
      fields: of config.json.
      d_head: D.
      base, fraction: of the family, where config.json has none.
      interleaved: pairs are (0, 1), (2, 3), ... in this family.
      layers: of which kind the layers are, where config.json may have settings for each kind, such as
        "full_attention"; None where all layers must have the same.

    Raises:
      ValueError: layouts has no such scaling, or a field is missing.
    """
    field, settings = _settings(fields, layers)
    base = _number(fields, field, settings, "rope_theta", fields.number("rope_theta", base))
    fraction = fields.number("partial_rotary_factor", fraction)
    fraction = _number(fields, field, settings, "partial_rotary_factor", fraction)
    return Rotary(
        base=base,
        # transformers rounds the number of dimensions down.
        fraction=int(d_head * fraction) / d_head,
        interleaved=interleaved,
        scaling=_scaling(fields, field, settings),
    )


def _settings(fields: ConfigFields, layers: str | None) -> tuple[str, Mapping[str, Any]]:
    """The field that holds the settings, and the settings."""
    field = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    settings = fields.get(field, {})
    if not isinstance(settings, Mapping):
        raise fields.refusal(field, "must be an object")
    by_layer = [value for value in settings.values() if isinstance(value, Mapping)]
    if not by_layer:
        return field, settings
    if layers is not None:
        return field, settings.get(layers) or {}
    if any(value != by_layer[0] for value in by_layer):
        raise fields.refusal(
            field, "is not supported: checkpoints are read with one rotary embedding for all layers"
        )
    return field, by_layer[0]


def _scaling(fields: ConfigFields, field: str, settings: Mapping[str, Any]) -> Scaling | None:
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind not in _KINDS:
        raise fields.refusal(
            field,
            f"is not supported: layouts has no rotary scaling of type {kind!r}, only "
            f"{', '.join(_KINDS)}",
        )

    def number(name: str, default: float | None = None) -> float:
        return _number(fields, field, settings, name, default)

    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "dynamic":
        return DynamicScaling(number("factor"), fields.size("max_position_embeddings"))
    original = _original_positions(fields, settings)
    if kind in ("longrope", "su"):
        factor = number("factor", fields.size("max_position_embeddings", original) / original)
        grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return LongRopeScaling(
            original_positions=original,
            short=_numbers(fields, field, settings, "short_factor"),
            long=_numbers(fields, field, settings, "long_factor"),
            attention_factor=number("attention_factor", grown),
        )
    if kind == "llama3":
        return Llama3Scaling(
            factor=number("factor"),
            original_positions=original,
            low_frequency_factor=number("low_freq_factor"),
            high_frequency_factor=number("high_freq_factor"),
        )
    factor = number("factor", fields.size("max_position_embeddings", original) / original)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        fast_turns=number("beta_fast", 32.0),
        slow_turns=number("beta_slow", 1.0),
        attention_factor=number("attention_factor", _yarn_attention_factor(settings, factor)),
        whole_dimensions=bool(settings.get("truncate", True)),
    )


def _original_positions(fields: ConfigFields, settings: Mapping[str, Any]) -> int:
    """Positions of the model before its context was made longer; the top-level field goes first."""
    name = "original_max_position_embeddings"
    inner = settings.get(name)
    return fields.size(name, inner if inner is not None else fields.size("max_position_embeddings"))


def _yarn_attention_factor(settings: Mapping[str, Any], factor: float) -> float:
    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
    return grown(one) / grown(all_dims) if one and all_dims else grown(1.0)


def _numbers(
    fields: ConfigFields, field: str, settings: Mapping[str, Any], name: str
) -> list[float]:
    value = settings.get(name)
    if not isinstance(value, list) or not all(map(is_number, value)):
        raise fields.refusal(field, f"must have a list of numbers {name!r}")
    return [float(number) for number in value]


def _number(
    fields: ConfigFields,
    field: str,
    settings: Mapping[str, Any],
    name: str,
    default: float | None,
) -> float:
    value = settings.get(name)
    value = default if value is None else value
    if not is_number(value):
        raise fields.refusal(field, f"must have a number {name!r}")
    return float(value)
