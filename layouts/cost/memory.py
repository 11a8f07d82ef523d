"""Bytes that a step needs on a chip: what stays there, and what the step makes on the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from .. import tuning
from ..mesh.axis_collectives import WEIGHT_AXES, size
from ..models.config import Biased, ModelConfig
from ..models.named_models import as_config
from ..partitionings.attention_placement import place, stored_kv_axes
from ..partitionings.cache_stores import cache_stores
from ..partitionings.feedforward_layout import boundary_axes
from ..partitionings.param_specs import table_axes, vocab_axes
from ..partitionings.partitioning import Partitioning, PlanLike, as_plan
from .layer_items import ACTIVATION_BYTES, Einsum, Item, Load, Transfer

# Bytes of a scale, of which int8 weights have one for each column and an int8 cache for each vector.
SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on a chip.

    Attributes:
      weights: of all layers, padded heads and norms included.
      embedding: and unembedding.
      cache: of all positions that there will be after the step.
      temporaries: an estimate of the activations and gathered weights that are there at once.
    """

    weights: float
    embedding: float
    cache: float
    temporaries: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.embedding + self.cache + self.temporaries


def memory(
    config: ModelConfig,
    plan: Partitioning,
    sizes: Mapping[str, int],
    load: Load,
    items: tuple[Item, ...],
) -> Memory:
    """Bytes on a chip, from sizes; `items` are those of `layer_work`."""
    tables = 1 if config.tied_embedding else 2
    rows = config.stored_vocab // size(vocab_axes(config, sizes), sizes)
    row_bytes = config.d_model * load.weight_bytes
    row_bytes += SCALE_BYTES if load.weight_bytes == 1 else 0
    return Memory(
        config.layers * _layer_bytes(config, sizes, load),
        tables * rows * row_bytes + _position_bytes(config, sizes),
        cache_bytes(config, plan, sizes, load),
        _temporary_bytes(config, plan, sizes, load, items),
    )


def _position_bytes(config: ModelConfig, sizes: Mapping[str, int]) -> float:
    """The table of learned positions, which is never quantized."""
    rows = config.learned_positions or 0
    return rows / size(table_axes(rows, sizes), sizes) * config.d_model * ACTIVATION_BYTES


def _layer_bytes(config: ModelConfig, sizes: Mapping[str, int], load: Load) -> float:
    """Weights of a layer, stored E_x F_yz under every layout (section 3.2.3)."""
    x, yz = sizes["x"], size(WEIGHT_AXES, sizes)
    heads = config.stored_heads * config.d_head
    keys = 2 * config.stored_kv_heads * config.d_head / size(stored_kv_axes(config, sizes), sizes)
    columns = (config.hidden_columns + config.shared_width) / yz
    into = heads / yz + keys + (2 if config.gated else 1) * columns
    out = heads / yz + columns
    outputs = 1 + len(config.output_names)
    matrices = config.d_model / x * (into + out) * load.weight_bytes
    if load.weight_bytes == 1:
        matrices += SCALE_BYTES * (into + outputs * config.d_model / x)
    vectors = (2 if config.norm_bias else 1) * len(config.norm_names) * config.d_model
    if config.query_key_norm is not None:
        vectors += config.d_head * (config.stored_heads + config.stored_kv_heads)
    if config.experts is not None:
        experts = config.experts
        vectors += experts.count * (config.d_model + experts.router_bias)
        vectors += config.d_model * experts.shared_router
    lengths: dict[Biased, float] = {"q": heads / yz, "kv": keys, "o": config.d_model}
    # A shared feedforward has none.
    lengths |= {"in": columns, "gate": columns, "out": config.expert_count * config.d_model}
    vectors += sum(length for name, length in lengths.items() if config.has_bias(name))
    return matrices + vectors * ACTIVATION_BYTES


def cache_bytes(
    config: ModelConfig | str, plan: PlanLike, sizes: Mapping[str, int], load: Load
) -> float:
    """Bytes on a chip of the keys and values of all layers (section 3.3).

    `load.past` positions, or the new ones of a prefill, of which as many are stored as a cache pads
    them to; by layers with a window, those of the window.

    Args:
      config: the model, or its name.
      plan: the layouts, as `decode_step` takes them.
      sizes: of the mesh axes x, y and z.
      load: what the step has to do.

    Raises:
      ValueError: the layouts cannot shard the model over a mesh of these sizes.
    """
    config, plan = as_config(config), as_plan(plan)
    where = place(config, plan.feedforward, plan.attention, sizes)
    sequences = load.batch / size(where.batch_axes, sizes)
    heads = config.stored_kv_heads / size(where.kv_axes, sizes)
    vector = config.d_head * load.cache_bytes + (SCALE_BYTES if load.cache_bytes == 1 else 0)
    stores = cache_stores(config, load.past or load.new)
    positions = sum(store.layers * store.positions for store in stores)
    return 2 * positions * sequences * heads * vector


def _temporary_bytes(
    config: ModelConfig,
    plan: Partitioning,
    sizes: Mapping[str, int],
    load: Load,
    items: tuple[Item, ...],
) -> float:
    """Bytes of the results of the projections, kept until the output matrices have read them, of the
    residual stream twice, the scores of a block of queries, and the two largest gathered weights."""
    einsums = [item for item in items if isinstance(item, Einsum)]
    made = sum(item.rows * sum(item.f) for item in einsums if "w_o" not in item.names[0])
    outputs = ("w_o", *config.output_names)
    outer = max(item.rows * item.f[0] for item in einsums if item.names[-1] in outputs)
    parts = size(plan.feedforward.batch_axes or plan.feedforward.position_axes, sizes)
    boundary = size(boundary_axes(plan.feedforward), sizes)
    residual = load.tokens / parts * config.d_model / boundary
    gathered = [i.streamed_bytes for i in einsums if i.gathers_weight]
    gathered += [i.bytes for i in items if isinstance(i, Transfer) and i.name == "experts"]
    gathered = sorted(gathered, reverse=True)[:2]
    scores = 0.0 if load.new == 1 else tuning.SCORES_BYTES
    activations = (made + outer + 2 * residual) * ACTIVATION_BYTES
    return math.fsum([activations, *gathered, scores])
