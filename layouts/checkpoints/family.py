"""What a family of checkpoints is: a config from config.json, and where each matrix is stored.

A family names the modules of a checkpoint by what they are in layouts:

  "embedding", "positions", "final_norm", "unembedding", and in each layer
  "q", "k", "v", "o", "in", "gate", "out", "router" of experts, "norm", "norm_ffn", "norm_after",
  "norm_after_ffn", "norm_q", "norm_k", "sinks", and "shared_in", "shared_gate", "shared_out" and
  "shared_router" of the feedforward that all tokens have beside their experts

and behind the embedding "embedding_norm". The name for "sinks" is that of the tensor itself.

A module m has the tensors `m.weight`, [outputs, inputs] of a matrix, and, where the config has this
bias, `m.bias`. "{layer}" in its name stands for the number of a layer, and "{expert}" in those of "in",
"gate" and "out" for that of an expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from ..models.config import Biased, ModelConfig
from .config_fields import ConfigFields


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several equal parts, one after another, of a module's outputs.

    Attributes:
      module: its name.
      index: which part.
      of: how many there are.
    """

    module: str
    index: int
    of: int


@dataclasses.dataclass(frozen=True)
class Fused:
    """Queries, keys and values of one module; the source of "q", of "k" and of "v".

    Attributes:
      module: its name.
      order: "kinds" if all queries come first, then all keys, then all values; "groups" if each
        key-value head has its queries, then its key, then its value. Multihead attention with a query,
        a key and a value for each head has "groups", as multiquery attention has.
    """

    module: str
    order: Literal["kinds", "groups"]


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """A norm of queries or keys that is not stored as [heads * D].

    Attributes:
      module: its name; "{head}" stands for the number of a head.
      stored: "shared" if all heads have one scale [D], "rows" for a scale [heads, D], "modules" for a
        module of scale [D] for each head.
    """

    module: str
    stored: Literal["shared", "rows", "modules"]


@dataclasses.dataclass(frozen=True)
class Ones:
    """A norm without weights: its scale is 1, and its bias 0."""


@dataclasses.dataclass(frozen=True)
class TwoNorms:
    """The source of "norm" in a parallel block with a norm for attention and one for the feedforward.

    Both are folded into the matrices behind them: scales into rows, biases into the biases "q", "kv",
    "in" and "gate", which the config must have. They are computed in float32 and rounded once.

    Attributes:
      attention, feedforward: the modules.
      biases: the biases that the matrices have in the checkpoint.
    """

    attention: str
    feedforward: str
    biases: tuple[Biased, ...] = ()


@dataclasses.dataclass(frozen=True)
class Untransposed:
    """A matrix that is stored [inputs, outputs], as GPT-2's are.

    Attributes:
      source: its module, or the part of one.
    """

    source: str | Part | Fused


@dataclasses.dataclass(frozen=True)
class PositionTable:
    """The source of "positions" where the first rows are not those of positions.

    Attributes:
      module: its name.
      offset: the row of position 0.
    """

    module: str
    offset: int


@dataclasses.dataclass(frozen=True)
class ExpertStack:
    """The source of "in", "gate" or "out" of experts whose matrices are one tensor, [experts, inputs,
    outputs].

    Attributes:
      tensor: its name.
      bias: the name of that of their biases, [experts, outputs].
      index, of: every `of`th output is the matrix's, from `index` on; the others are those of other
        matrices.
      packed: the numbers are stored as MXFP4, in two tensors whose names end in _blocks and _scales.
    """

    tensor: str
    bias: str
    index: int = 0
    of: int = 1
    packed: bool = False


Source = (
    str | Part | Fused | HeadNorm | Ones | TwoNorms | Untransposed | PositionTable | ExpertStack
)
Modules = Mapping[str, Source]


@dataclasses.dataclass(frozen=True)
class Family:
    """How checkpoints of some model types are read.

    Attributes:
      model_types: values of `model_type` in config.json.
      config: the fields of config.json to a ModelConfig without padding. It refuses what layouts lacks.
      modules: the names of modules, or a function that gives them for the fields of config.json.
      ignored: regular expressions of tensors that are not weights, matched against whole names.
      base_prefix: what names of modules begin with, but not in checkpoints that were saved without the
        unembedding's class; "" if all have the names of `modules`.
      quantized: the values of quant_method in `quantization_config` that `modules` reads.
    """

    model_types: tuple[str, ...]
    config: Callable[[ConfigFields], ModelConfig]
    modules: Modules | Callable[[ConfigFields], Modules]
    ignored: tuple[str, ...] = ()
    base_prefix: str = ""
    quantized: tuple[str, ...] = ()

    def modules_of(self, fields: ConfigFields) -> Modules:
        """The modules of the checkpoint with these fields."""
        return self.modules(fields) if callable(self.modules) else self.modules


def common_fields(
    fields: ConfigFields,
    *,
    d_head: int | None = None,
    tied: bool = False,
    epsilon: tuple[str, float] = ("rms_norm_eps", 1e-6),
) -> dict[str, Any]:
    """The arguments of a ModelConfig that most families call by the same names.

    Args:
      fields: of config.json.
      d_head: of the family, where config.json has none; by default hidden_size / num_attention_heads.
      tied: tie_word_embeddings of the family, where config.json has none.
      epsilon: the field of norm_epsilon, and its value where config.json has none.
    """
    heads, d_model = fields.size("num_attention_heads"), fields.size("hidden_size")
    return {
        "name": fields.name,
        "layers": fields.size("num_hidden_layers"),
        "d_model": d_model,
        "d_ff": fields.size("intermediate_size"),
        "heads": heads,
        "kv_heads": fields.size("num_key_value_heads", heads),
        "d_head": fields.size("head_dim", d_head or max(1, d_model // heads)),
        "vocab": fields.size("vocab_size"),
        "activation": fields.activation(),
        "norm_epsilon": fields.number(*epsilon),
        "tied_embedding": fields.flag("tie_word_embeddings", tied),
    }


def renamed_modules(modules: Modules, rename: Callable[[str], str]) -> Modules:
    """The same modules with other names."""

    def named(source: Source) -> Source:
        if isinstance(source, str):
            return rename(source)
        if isinstance(source, Untransposed):
            return dataclasses.replace(source, source=named(source.source))
        names = {
            field.name: rename(getattr(source, field.name))
            for field in dataclasses.fields(source)
            if field.name in ("module", "attention", "feedforward", "tensor", "bias")
        }
        return dataclasses.replace(source, **names)

    return {name: named(source) for name, source in modules.items()}


def biases_of(**present: bool) -> tuple[Biased, ...]:
    """The names of the biases that are present; "attention" stands for q, kv and o, "feedforward" for
    in, gate and out, "ungated" for in and out."""
    groups: dict[str, tuple[str, ...]] = {
        "attention": ("q", "kv", "o"),
        "feedforward": ("in", "gate", "out"),
        "ungated": ("in", "out"),
    }
    names = [name for key, given in present.items() if given for name in groups.get(key, (key,))]
    return cast(tuple[Biased, ...], tuple(names))
