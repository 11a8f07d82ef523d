"""The config of a decoder, its parameter count, and the models that have names.

Letters, as in "Efficiently Scaling Transformer Inference" (arXiv 2211.05102): E d_model, F d_ff,
H query heads, K key and value heads, D d_head.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Literal, get_args

from collective_einsum.text import brief, did_you_mean, plain, shown

from ..arguments import as_flag, as_size
from .rotary import Rotary as Rotary

Block = Literal["parallel", "serial"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Norm = Literal["rmsnorm", "layernorm"]

_ROTARY = Rotary()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer.

    Attributes:
      layers: number of blocks.
      d_model: E, the width of the residual stream.
      d_ff: F, the width of each feedforward input matrix.
      heads: query heads that the model has.
      kv_heads: key and value heads: `heads` for multihead, 1 for multiquery, between for
        grouped-query attention, where consecutive query heads share one.
      d_head: D.
      vocab: number of tokens.
      block: "parallel" (attention and feedforward of one norm, side by side) or "serial".
      activation: "silu" (swish), "gelu" (exact), "gelu_tanh" (its approximation) or "relu".
      gated: the activation multiplies a second input matrix: SwiGLU, GeGLU (arXiv 2002.05202).
      norm: "rmsnorm" or "layernorm"; both before attention and feedforward, and before unembedding.
      norm_epsilon: added to the mean square (or variance).
      rotary: rotary position embedding of queries and keys, or None.
      biases: every matrix has a bias, and so has a layernorm.
      tied_embedding: one table embeds tokens and unembeds the last layer.
      padded_heads: query heads stored, so that they divide over a mesh; the added ones are zero and
        contribute exactly nothing. None stores `heads`.
      name: for tables and messages.

    Raises:
      ValueError: a size is not a positive integer, a word is not one of those above, or sizes do
        not fit each other.
    """

    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    d_head: int
    vocab: int
    block: Block = "serial"
    activation: Activation = "silu"
    gated: bool = True
    norm: Norm = "rmsnorm"
    norm_epsilon: float = 1e-6
    rotary: Rotary | None = _ROTARY
    biases: bool = False
    tied_embedding: bool = True
    padded_heads: int | None = None
    name: str = "model"

    def __post_init__(self) -> None:
        for field in ("layers", "d_model", "d_ff", "heads", "kv_heads", "d_head", "vocab"):
            self._check_size(field)
        for field, words in (("block", Block), ("activation", Activation), ("norm", Norm)):
            if getattr(self, field) not in get_args(words):
                raise ValueError(
                    f"{self.name}: {field}={getattr(self, field)!r} must be one of "
                    f"{', '.join(get_args(words))}"
                    f"{did_you_mean(getattr(self, field), get_args(words))}"
                )
        for field in ("gated", "biases", "tied_embedding"):
            object.__setattr__(self, field, as_flag(f"{self.name}: {field}", getattr(self, field)))
        if self.rotary is not None and not isinstance(self.rotary, Rotary):
            raise ValueError(f"{self.name}: rotary={self.rotary!r} must be a Rotary() or None")
        if not isinstance(self.norm_epsilon, numbers.Real) or not self.norm_epsilon > 0:
            raise ValueError(f"{self.name}: norm_epsilon={self.norm_epsilon!r} must be positive")
        self._check_heads()
        if self.rotary is not None and (self.rotary.dims(self.d_head) % 2 or not self.rotary_dims):
            raise ValueError(
                f"{self.name}: rotary embedding rotates pairs, but fraction={self.rotary.fraction} "
                f"of d_head={self.d_head} is {self.rotary.dims(self.d_head)} dimensions; "
                "make that an even number, or set rotary=None"
            )

    def __repr__(self) -> str:
        return brief(self)

    def _check_size(self, field: str) -> None:
        # A numpy integer would make two equal configs print differently.
        object.__setattr__(self, field, as_size(f"{self.name}: {field}", getattr(self, field)))

    def _check_heads(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}, "
                "so that each key-value head serves as many query heads"
            )
        if self.padded_heads is None:
            return
        self._check_size("padded_heads")
        if self.padded_heads < self.heads:
            raise ValueError(
                f"{self.name}: padded_heads={self.padded_heads} is less than heads={self.heads}; "
                "padding only adds heads"
            )
        if self.kv_heads < self.heads and self.padded_heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: padded_heads={self.padded_heads} must be a multiple of "
                f"kv_heads={self.kv_heads}, since each key-value head's group is padded alike"
            )

    @property
    def stored_heads(self) -> int:
        """H of the parameters: query heads with their padding."""
        return self.heads if self.padded_heads is None else self.padded_heads

    @property
    def stored_kv_heads(self) -> int:
        """K of the parameters and of the cache.

        Multihead attention pads its key-value heads together with the query heads; with shared
        key-value heads, padding stays inside each group and adds none.
        """
        return self.stored_heads if self.kv_heads == self.heads else self.kv_heads

    @property
    def queries_per_kv(self) -> int:
        """Stored query heads that read one stored key-value head: query h reads h // this."""
        return self.stored_heads // self.stored_kv_heads

    @property
    def real_heads(self) -> tuple[bool, ...]:
        """For each stored query head, whether the model has it; False is padding."""
        group = self.heads // self.kv_heads
        return tuple(
            h // self.queries_per_kv < self.kv_heads and h % self.queries_per_kv < group
            for h in range(self.stored_heads)
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """The input matrices of the feedforward, as `params` names them."""
        return ("w_in", "w_gate") if self.gated else ("w_in",)

    @property
    def norm_bias(self) -> bool:
        """Whether norms have a bias."""
        return self.biases and self.norm == "layernorm"

    @property
    def rotary_dims(self) -> int:
        """Number of dimensions of each head that are rotated."""
        return 0 if self.rotary is None else self.rotary.dims(self.d_head)

    @property
    def parameters(self) -> int:
        """Number of parameters, without padded heads."""
        return self._count(self.heads, self.kv_heads)

    @property
    def stored_parameters(self) -> int:
        """Number of stored parameters, with padded heads."""
        return self._count(self.stored_heads, self.stored_kv_heads)

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of all layers, without padded heads, embedding and last norm."""
        tables = 1 if self.tied_embedding else 2
        norm = self.d_model * (2 if self.norm_bias else 1)
        return self.parameters - norm - tables * self.vocab * self.d_model

    def _count(self, heads: int, kv_heads: int) -> int:
        norm = self.d_model * (2 if self.norm_bias else 1)
        layer = 2 * self.d_model * self.d_head * (heads + kv_heads)
        layer += (3 if self.gated else 2) * self.d_model * self.d_ff
        layer += norm * (1 if self.block == "parallel" else 2)
        if self.biases:
            layer += self.d_head * (heads + 2 * kv_heads) + 2 * self.d_model
            layer += self.d_ff * (2 if self.gated else 1)
        tables = 1 if self.tied_embedding else 2
        return self.layers * layer + norm + tables * self.vocab * self.d_model


# Sizes: table 1 of arXiv 2204.02311 and table D.1 of arXiv 2211.05102. SwiGLU, no biases, rotary
# embedding, tied embedding, parallel blocks: section 2 of arXiv 2204.02311.
PALM_8B = ModelConfig(
    name="palm-8b",
    layers=32,
    d_model=4096,
    d_ff=16384,
    heads=16,
    kv_heads=1,
    d_head=256,
    vocab=256128,
    block="parallel",
    rotary=Rotary(interleaved=True),
)
PALM_62B = dataclasses.replace(
    PALM_8B, name="palm-62b", layers=64, d_model=8192, d_ff=32768, heads=32
)
# 64 heads divide over 64 chips: section 4 of arXiv 2211.05102.
PALM_540B = dataclasses.replace(
    PALM_8B,
    name="palm-540b",
    layers=118,
    d_model=18432,
    d_ff=73728,
    heads=48,
    padded_heads=64,
)
# Sizes: table D.1 of arXiv 2211.05102. The model of arXiv 2201.11990 has learned positions (a table
# of 0.04e9 parameters, no matmul); here it has rotary ones.
MT_NLG_530B = ModelConfig(
    name="mt-nlg-530b",
    layers=105,
    d_model=20480,
    d_ff=81920,
    heads=128,
    kv_heads=128,
    d_head=160,
    vocab=51200,
    block="serial",
    activation="gelu_tanh",
    gated=False,
    norm="layernorm",
    norm_epsilon=1e-5,
    biases=True,
)

# Small enough to run anywhere, and every size divides over 8 devices in any arrangement. Between
# them they take every branch that a config can take.
TINY_MULTIQUERY = ModelConfig(
    name="tiny-multiquery",
    layers=2,
    d_model=32,
    d_ff=64,
    heads=8,
    kv_heads=1,
    d_head=8,
    vocab=64,
    block="parallel",
    rotary=Rotary(interleaved=True),
)
TINY_PADDED = dataclasses.replace(TINY_MULTIQUERY, name="tiny-padded", heads=6, padded_heads=8)
TINY_GROUPED = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-grouped",
    kv_heads=2,
    block="serial",
    rotary=Rotary(base=500000.0),
    tied_embedding=False,
)
TINY_MULTIHEAD = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-multihead",
    kv_heads=8,
    block="serial",
    activation="gelu",
    gated=False,
    norm="layernorm",
    rotary=Rotary(fraction=0.5),
    biases=True,
)
TINY_GEGLU = dataclasses.replace(
    TINY_MULTIQUERY, name="tiny-geglu", kv_heads=4, activation="gelu_tanh", biases=True
)
TINY_RELU = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-relu",
    heads=4,
    kv_heads=4,
    padded_heads=8,
    activation="relu",
    gated=False,
    norm="layernorm",
    rotary=None,
    tied_embedding=False,
)

_NAMED = (
    *(PALM_8B, PALM_62B, PALM_540B, MT_NLG_530B),
    *(TINY_MULTIQUERY, TINY_PADDED, TINY_GROUPED, TINY_MULTIHEAD, TINY_GEGLU, TINY_RELU),
)


def model(name: str) -> ModelConfig:
    """The config of a named model: "palm-540b" gives PALM_540B. Case and punctuation are ignored.

    Raises:
      ValueError: no model has this name.
    """
    for config in _NAMED:
        if isinstance(name, str) and plain(config.name) == plain(name):
            return config
    names = [config.name for config in _NAMED]
    raise ValueError(
        f"no model named {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
    )


def as_config(config: object) -> ModelConfig:
    """The config itself, or that of a named model.

    Raises:
      ValueError: `config` is something else, or no model has this name.
    """
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, str):
        return model(config)
    raise ValueError(
        f"config={shown(config)} is no ModelConfig; give one, such as layouts.PALM_540B, or "
        'the name of a model, such as "palm-540b"'
    )
