"""The config of a decoder and its parameter count.

Letters, as in "Efficiently Scaling Transformer Inference" (arXiv 2211.05102): E d_model, F d_ff,
H query heads, K key and value heads, D d_head.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Literal, get_args

from collective_einsum.text import brief

from ..arguments import as_flag, as_size, check_word, is_number
from .attention_kind import AttentionKind as AttentionKind
from .experts import Experts as Experts
from .gate_clamp import GateClamp as GateClamp
from .rotary import Rotary as Rotary

Block = Literal["parallel", "serial"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["before", "after", "both"]
Span = Literal["head", "heads"]
Biased = Literal["q", "kv", "o", "in", "gate", "out", "norm", "unembedding"]

_ROTARY = Rotary()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer.

    Attributes:
      layers: number of blocks.
      d_model: E, the width of the residual stream.
      d_ff: F, the width of each feedforward input matrix; with experts, of each of theirs.
      heads: query heads that the model has.
      kv_heads: key and value heads: `heads` for multihead, 1 for multiquery, between for
        grouped-query attention, where consecutive query heads share one.
      d_head: D.
      vocab: number of tokens.
      block: "parallel" (attention and feedforward of one norm, side by side) or "serial".
      activation: "silu" (swish), "gelu" (exact), "gelu_tanh" (its approximation), "relu" or
        "relu_squared".
      gated: the activation multiplies a second input matrix: SwiGLU, GeGLU (arXiv 2002.05202).
      gate_clamp: bounds of a gated feedforward with "silu", a `GateClamp`; None for none.
      norm: "rmsnorm" or "layernorm", of attention's and the feedforward's, and before unembedding.
      norm_epsilon: added to the mean square (or variance).
      norm_placement: a norm stands "before" attention and before the feedforward; or "after" each of
        them, before the sum with what they were given; or "both". A parallel block has one before.
      norm_offset: added to the scales of these norms: 1.0 if they are stored less 1, as Gemma's are.
      clip_qkv: the largest magnitude of queries, keys and values behind their projections, those beyond
        it are clipped; None for any.
      query_key_norm: "rmsnorm" or "layernorm" of queries and of keys before they are rotated, with
        scales of their own; or None.
      query_key_norm_span: "head" if each head is normalized by itself, or "heads" if all heads of a
        token are together.
      rotary: rotary position embedding of queries and keys, or None.
      alibi: each query head subtracts a slope times the distance of a key from its score (arXiv
        2108.12409), with the slopes of that paper times this factor; None for none.
      sinks: each query head has a logit of its own in the denominator of its softmax.
      learned_positions: rows of a table of which one is added to the embedding of each token, that of
        its position, and so the most positions of a sequence; None for no table.
      attention_kinds: an `AttentionKind` for each of the first layers, which repeat: two of them for
        layers of two kinds in turn. None of them if attention is the same in all layers, and full.
      experts: a mixture of experts in place of every layer's feedforward; None for none.
      biases: True if every matrix has a bias, and so has a layernorm, but unembedding has none; or the
        names of what has one, of "q", "kv", "o", "in", "gate", "out", "norm" and "unembedding".
      tied_embedding: one table embeds tokens and unembeds the last layer.
      embedding_scale: factor of the embedding of a token.
      embedding_norm: a norm stands behind the embedding.
      residual_scale: factor of what attention and the feedforward add.
      attention_scale: factor of the products of queries and keys; None for 1/sqrt(d_head).
      attention_cap: c of c * tanh(s / c), which replaces the products s after `attention_scale`; None
        for none.
      logit_scale: factor of the logits.
      logit_cap: as `attention_cap`, of the logits after `logit_scale`.
      padded_heads: query heads stored, so that they divide over a mesh; the added ones are zero and
        contribute exactly nothing. None stores `heads`.
      padded_vocab: rows stored in the tables, so that they divide over a mesh; logits of the added
        tokens are -inf, so that they are never drawn. None stores `vocab`.
      int8_activations: each token's activations are rounded to int8, with a scale of their own, before
        every int8 matrix of a layer that they multiply; chips with int8 matrix units then multiply
        twice as fast.
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
    gate_clamp: GateClamp | None = None
    norm: Norm = "rmsnorm"
    norm_epsilon: float = 1e-6
    norm_placement: NormPlacement = "before"
    norm_offset: float = 0.0
    clip_qkv: float | None = None
    query_key_norm: Norm | None = None
    query_key_norm_span: Span = "head"
    rotary: Rotary | None = _ROTARY
    alibi: float | None = None
    sinks: bool = False
    learned_positions: int | None = None
    attention_kinds: Sequence[AttentionKind] = ()
    experts: Experts | None = None
    biases: bool | Sequence[Biased] = False
    tied_embedding: bool = True
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    residual_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    padded_heads: int | None = None
    padded_vocab: int | None = None
    int8_activations: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        for field in ("layers", "d_model", "d_ff", "heads", "kv_heads", "d_head", "vocab"):
            self._check_size(field)
        for field, words in _WORDS.items():
            check_word(f"{self.name}: {field}", getattr(self, field), get_args(words))
        if self.query_key_norm is not None:
            check_word(f"{self.name}: query_key_norm", self.query_key_norm, get_args(Norm))
        for field in ("gated", "tied_embedding", "sinks", "embedding_norm", "int8_activations"):
            object.__setattr__(self, field, as_flag(f"{self.name}: {field}", getattr(self, field)))
        if self.learned_positions is not None:
            self._check_size("learned_positions")
        self._check_biases()
        self._check_factors()
        if self.block == "parallel" and self.norm_placement != "before":
            raise ValueError(
                f"{self.name}: a parallel block has one norm, before attention and feedforward, but "
                f'norm_placement={self.norm_placement!r}; use block="serial" or '
                'norm_placement="before"'
            )
        if not isinstance(self.norm_epsilon, numbers.Real) or not self.norm_epsilon > 0:
            raise ValueError(f"{self.name}: norm_epsilon={self.norm_epsilon!r} must be positive")
        self._check_gate_clamp()
        self._check_heads()
        self._check_vocab()
        self._check_kinds()
        if self.experts is not None and not isinstance(self.experts, Experts):
            raise ValueError(
                f"{self.name}: experts={self.experts!r} must be layouts.Experts(count=..., "
                "per_token=...) or None"
            )
        if self.int8_activations and self.experts is not None:
            raise ValueError(
                f"{self.name}: int8_activations of a mixture of experts are not supported; leave it out"
            )
        biased = [name for name in ("in", "gate", "out") if self.has_bias(name)]
        if self.shared_width and biased:
            raise ValueError(
                f"{self.name}: the matrices of experts with shared_width={self.shared_width} have no "
                f"biases, but biases={self.biases!r}; leave {' and '.join(map(repr, biased))} out"
            )

    def __repr__(self) -> str:
        return brief(self)

    def _check_size(self, field: str) -> None:
        # A numpy integer would make two equal configs print differently.
        object.__setattr__(self, field, as_size(f"{self.name}: {field}", getattr(self, field)))

    def _check_gate_clamp(self) -> None:
        if self.gate_clamp is None:
            return
        if not isinstance(self.gate_clamp, GateClamp):
            raise ValueError(
                f"{self.name}: gate_clamp={self.gate_clamp!r} must be a GateClamp() or None"
            )
        if not self.gated or self.activation != "silu":
            raise ValueError(
                f'{self.name}: gate_clamp needs gated=True and activation="silu", got '
                f"gated={self.gated} and activation={self.activation!r}"
            )

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

    def _check_kinds(self) -> None:
        self._check_rotary(self.rotary)
        kinds = self.attention_kinds
        if not isinstance(kinds, (list, tuple)) or not all(
            isinstance(kind, AttentionKind) for kind in kinds
        ):
            raise ValueError(
                f"{self.name}: attention_kinds={kinds!r} must be a tuple of AttentionKind(...), one "
                "for each of the layers that repeat, or () for none"
            )
        for kind in kinds:
            if kind.rotary != "model":
                self._check_rotary(kind.rotary)
        # As few as repeat, so that equal models are equal.
        kinds = tuple(kinds[: self.layers])
        for period in range(1, len(kinds)):
            if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
                kinds = kinds[:period]
                break
        object.__setattr__(self, "attention_kinds", () if kinds == (AttentionKind(),) else kinds)

    def _check_rotary(self, rotary: Rotary | None) -> None:
        if rotary is None:
            return
        if not isinstance(rotary, Rotary):
            raise ValueError(f"{self.name}: rotary={rotary!r} must be a Rotary() or None")
        dims = rotary.dims(self.d_head)
        if dims % 2 or not dims:
            raise ValueError(
                f"{self.name}: rotary embedding rotates pairs, but fraction={rotary.fraction} "
                f"of d_head={self.d_head} is {dims} dimensions; "
                "make that an even number, or set rotary=None"
            )
        try:
            rotary.at(self.d_head, 1).frequencies(self.d_head)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _check_biases(self) -> None:
        given, names = self.biases, get_args(Biased)
        if isinstance(given, (list, tuple, set, frozenset)):
            for name in given:
                check_word(f"{self.name}: biases", name, names)
            if "gate" in given and not self.gated:
                raise ValueError(f'{self.name}: biases has "gate", but gated=False')
            if "norm" in given and self.norm != "layernorm":
                raise ValueError(f'{self.name}: biases has "norm", but norm={self.norm!r} has none')
            biases = tuple(name for name in names if name in given)
            object.__setattr__(self, "biases", biases or False)
        else:
            object.__setattr__(self, "biases", as_flag(f"{self.name}: biases", given))

    def _check_factors(self) -> None:
        for field in _FACTORS:
            value = getattr(self, field)
            optional = field in _OPTIONAL_FACTORS
            if value is None and optional:
                continue
            low = -math.inf if field == "norm_offset" else 0.0
            if not is_number(value) or not low < float(value) < math.inf:
                kind = "a number" if field == "norm_offset" else "a positive number"
                raise ValueError(
                    f"{self.name}: {field}={value!r} must be {kind}{' or None' if optional else ''}"
                )
            object.__setattr__(self, field, float(value))

    def _check_vocab(self) -> None:
        if self.padded_vocab is None:
            return
        self._check_size("padded_vocab")
        if self.padded_vocab < self.vocab:
            raise ValueError(
                f"{self.name}: padded_vocab={self.padded_vocab} is less than vocab={self.vocab}; "
                "padding only adds tokens"
            )

    @property
    def stored_vocab(self) -> int:
        """Rows of the tables, and logits of a token: tokens with their padding."""
        return self.vocab if self.padded_vocab is None else self.padded_vocab

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
    def real_kv_heads(self) -> tuple[bool, ...]:
        """For each stored key-value head, whether the model has it; False is padding."""
        return tuple(head < self.kv_heads for head in range(self.stored_kv_heads))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The input matrices of the feedforward, as `params` names them."""
        return ("w_in", "w_gate") if self.gated else ("w_in",)

    @property
    def expert_count(self) -> int:
        """Feedforwards of a layer: its experts, or 1."""
        return 1 if self.experts is None else self.experts.count

    @property
    def hidden_columns(self) -> int:
        """Columns of each stored input matrix of the feedforward: d_ff of each expert."""
        return self.expert_count * self.d_ff

    @property
    def shared_width(self) -> int:
        """Columns of the feedforward that all tokens have beside their experts; 0 for none."""
        return 0 if self.experts is None else self.experts.shared_width or 0

    @property
    def shared_input_names(self) -> tuple[str, ...]:
        """The input matrices of that feedforward, as `params` names them."""
        names = ("w_shared_in", "w_shared_gate") if self.gated else ("w_shared_in",)
        return names if self.shared_width else ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """The output matrices of the feedforward and of the shared one."""
        return ("w_out", "w_shared_out") if self.shared_width else ("w_out",)

    def has_bias(self, name: Biased) -> bool:
        """Whether the matrix w_`name`, the norms or the unembedding have a bias."""
        if name == "norm" and self.norm != "layernorm":
            return False
        if name == "gate" and not self.gated:
            return False
        if isinstance(self.biases, bool):
            return self.biases and name != "unembedding"
        return name in self.biases

    @property
    def norm_bias(self) -> bool:
        """Whether norms have a bias."""
        return self.has_bias("norm")

    @property
    def norm_names(self) -> tuple[str, ...]:
        """The norms of a layer over the residual stream, as `params` names them."""
        if self.block == "parallel":
            return ("norm",)
        before, after = ("norm", "norm_ffn"), ("norm_after", "norm_after_ffn")
        names = {"before": before, "after": after, "both": (*before, *after)}
        return names[self.norm_placement]

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The attention of the layers that repeat."""
        return tuple(self.attention_kinds) or (AttentionKind(),)

    def rotary_of(self, kind: AttentionKind) -> Rotary | None:
        """The rotary embedding of layers with this kind of attention."""
        return self.rotary if kind.rotary == "model" else kind.rotary

    def for_room(self, positions: int) -> ModelConfig:
        """The config for a cache that has room for so many positions, shared prefix included: itself,
        unless the scaling of a rotary embedding depends on them.

        Raises:
          ValueError: the table of learned positions has fewer.
        """
        if self.learned_positions is not None and positions > self.learned_positions:
            raise ValueError(
                f"{self.name}: a cache with room for {positions} positions, those of a prefix included, "
                f"but learned_positions={self.learned_positions} is the size of the table; use a "
                f"max_length that makes it {self.learned_positions} or fewer"
            )

        def at(rotary: Rotary | None) -> Rotary | None:
            return None if rotary is None else rotary.at(self.d_head, positions)

        kinds = tuple(
            kind if kind.rotary == "model" else dataclasses.replace(kind, rotary=at(kind.rotary))
            for kind in self.attention_kinds
        )
        if at(self.rotary) == self.rotary and kinds == tuple(self.attention_kinds):
            return self
        return dataclasses.replace(self, rotary=at(self.rotary), attention_kinds=kinds)

    @property
    def rotary_dims(self) -> int:
        """Number of dimensions of each head that are rotated."""
        return 0 if self.rotary is None else self.rotary.dims(self.d_head)

    @property
    def parameters(self) -> int:
        """Number of parameters, without padded heads."""
        return self._count(self.heads, self.kv_heads, self.vocab, self.expert_count)

    @property
    def active_parameters(self) -> int:
        """Number of parameters that a token uses: of the experts, only those that it has."""
        used = 1 if self.experts is None else self.experts.per_token
        return self._count(self.heads, self.kv_heads, self.vocab, used)

    @property
    def stored_parameters(self) -> int:
        """Number of stored parameters, with padded heads and tokens."""
        heads, kv_heads = self.stored_heads, self.stored_kv_heads
        return self._count(heads, kv_heads, self.stored_vocab, self.expert_count)

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of all layers, without padded heads, embedding and last norm."""
        return self.parameters - self._count_ends(self.vocab)

    @property
    def active_layer_parameters(self) -> int:
        """The same of those that a token uses."""
        return self.active_parameters - self._count_ends(self.vocab)

    def _count(self, heads: int, kv_heads: int, vocab: int, experts: int) -> int:
        norm = self._norm_parameters
        layer = 2 * self.d_model * self.d_head * (heads + kv_heads)
        columns = self.d_ff * experts + self.shared_width
        layer += (3 if self.gated else 2) * self.d_model * columns
        if self.experts is not None:
            layer += self.experts.count * (self.d_model + self.experts.router_bias)
            layer += self.d_model * self.experts.shared_router
        layer += norm * len(self.norm_names)
        if self.sinks:
            layer += heads
        if self.query_key_norm is not None:
            layer += self.d_head * (heads + kv_heads)
        sizes: dict[Biased, int] = {
            "q": self.d_head * heads,
            "kv": self.d_head * 2 * kv_heads,
            "o": self.d_model,
            "in": self.d_ff * experts,
            "gate": self.d_ff * experts,
            "out": self.d_model * experts,
        }
        layer += sum(size for name, size in sizes.items() if self.has_bias(name))
        return self.layers * layer + self._count_ends(vocab)

    def _count_ends(self, vocab: int) -> int:
        tables = (1 if self.tied_embedding else 2) * vocab * self.d_model
        bias = vocab if self.has_bias("unembedding") else 0
        positions = (self.learned_positions or 0) * self.d_model
        norms = self._norm_parameters * (2 if self.embedding_norm else 1)
        return tables + positions + bias + norms

    @property
    def _norm_parameters(self) -> int:
        return self.d_model * (2 if self.norm_bias else 1)


_WORDS = {
    "block": Block,
    "activation": Activation,
    "norm": Norm,
    "norm_placement": NormPlacement,
    "query_key_norm_span": Span,
}
_OPTIONAL_FACTORS = ("attention_scale", "attention_cap", "logit_cap", "clip_qkv", "alibi")
_FACTORS = (
    "norm_offset",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    *_OPTIONAL_FACTORS,
)
