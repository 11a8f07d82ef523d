"""Which rows of which tensors make each parameter of a config, padding included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..models.config import ModelConfig
from ..models.params import Params, key_of, params_shapes
from .expert_arrays import StackedBiases, StackedMatrices
from .family import (
    ExpertStack,
    Fused,
    HeadNorm,
    Modules,
    Ones,
    Part,
    PositionTable,
    Source,
    TwoNorms,
    Untransposed,
)
from .stored_arrays import AddedRows, Rows, Run, ScaledRows, StoredArray, joined

# Matrices behind the norm of attention, and behind that of the feedforward.
_BEHIND_ATTENTION = ("q", "kv")
_BEHIND_FEEDFORWARD = ("in", "gate")
# Of the feedforward that all tokens have beside their experts.
_SHARED_INPUTS = ("shared_in", "shared_gate")


def array_plan(config: ModelConfig, modules: Modules) -> Params:
    """The tree of parameters with a `StoredArray` for each array.

    Args:
      config: the model, with padding.
      modules: of its checkpoint.

    Returns:
      "blocks" is the tree of one layer, whose tensors have "{layer}" in their names.

    Raises:
      ValueError: the modules lack one that the config needs.
    """
    shapes = params_shapes(config, unrolled=True)
    shapes["blocks"] = shapes["blocks"][0]
    planner = _Planner(config, modules)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: planner.array(tuple(map(key_of, path))), shapes
    )


class _Planner:
    def __init__(self, config: ModelConfig, modules: Modules) -> None:
        self._config, self._modules = config, modules

    def array(self, path: tuple[str, ...]) -> StoredArray:
        """The array at a path of the tree, such as ("blocks", "w_q")."""
        path = path[1:] if path[0] == "blocks" else path
        name = path[0]
        if name in ("embedding", "unembedding"):
            return self._table(name)
        if name == "positions":
            return self._positions()
        if name == "b_unembedding":
            return self._vocab_bias()
        if name in ("norm_q", "norm_k"):
            return self._head_norm(name)
        if name == "sinks":
            return self._sinks()
        if name.endswith("_router"):
            return self._router(name)
        if path[-1] in ("scale", "bias"):
            return self._norm(name, path[-1])
        matrix = name[2:]
        return self._matrix(matrix) if name.startswith("w_") else self._bias(matrix)

    def _source(self, name: str) -> Source:
        if name not in self._modules:
            raise ValueError(
                f"{self._config.name}: the config needs a module for {name!r}, but the family names "
                f"only {', '.join(self._modules)}"
            )
        source = self._modules[name]
        return source.source if isinstance(source, Untransposed) else source

    def _is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored [outputs, inputs]."""
        return not isinstance(self._modules.get(name), Untransposed)

    def _table(self, name: str) -> Rows:
        config, tensor = self._config, f"{self._source(name)}.weight"
        runs = (Run(tensor, 0, config.vocab), *self._padded_tokens())
        return Rows(runs, 0, False, {tensor: (config.vocab, config.d_model)})

    def _positions(self) -> Rows:
        config, source = self._config, self._source("positions")
        source = source if isinstance(source, PositionTable) else PositionTable(str(source), 0)
        rows, tensor = config.learned_positions or 0, f"{source.module}.weight"
        shape = (source.offset + rows, config.d_model)
        return Rows((Run(tensor, source.offset, rows),), 0, False, {tensor: shape})

    def _vocab_bias(self) -> Rows:
        config = self._config
        own = "embedding" if config.tied_embedding else "unembedding"
        tensor = f"{self._source('unembedding' if 'unembedding' in self._modules else own)}.bias"
        runs = (Run(tensor, 0, config.vocab), *self._padded_tokens())
        return Rows(runs, 0, False, {tensor: (config.vocab,)})

    def _padded_tokens(self) -> tuple[Run, ...]:
        added = self._config.stored_vocab - self._config.vocab
        return (Run(None, 0, added),) if added else ()

    def _norm(self, name: str, part: str) -> Rows:
        config, source = self._config, self._source(name)
        if isinstance(source, Ones | TwoNorms):
            value = 1 - config.norm_offset if part == "scale" else 0.0
            return Rows((Run(None, 0, config.d_model, value),), 0, False, {})
        return self._vector(f"{source}.{'weight' if part == 'scale' else 'bias'}")

    def _router(self, name: str) -> Rows:
        config, source = self._config, self._source(name[2:])
        count = 1 if name == "w_shared_router" else config.expert_count
        if name == "b_router":
            tensor = f"{source}.bias"
            return Rows((Run(tensor, 0, count),), 0, False, {tensor: (count,)})
        tensor = f"{source}.weight"
        return Rows((Run(tensor, 0, count),), 1, True, {tensor: (count, config.d_model)})

    def _modules_of_experts(self, name: str) -> list[str]:
        """The module of "in", "gate" or "out" of each expert; one module of a config without experts."""
        config, source = self._config, self._source(name)
        if config.experts is None:
            return [str(source)]
        if not isinstance(source, str) or "{expert}" not in source:
            raise ValueError(
                f"{config.name}: {source!r} is no source of the experts' {name!r}; give the name of a "
                'module with "{expert}" in it'
            )
        return [source.replace("{expert}", str(i)) for i in range(config.experts.count)]

    def _vector(self, tensor: str) -> Rows:
        width = self._config.d_model
        return Rows((Run(tensor, 0, width),), 0, False, {tensor: (width,)})

    def _head_norm(self, name: str) -> Rows:
        source, d = self._source(name), self._config.d_head
        heads, present = self._heads("q" if name == "norm_q" else "k")
        shapes: dict[str, tuple[int, ...]] = {}

        def run(head: int) -> Run:
            if not isinstance(source, HeadNorm):
                shapes[f"{source}.weight"] = (heads * d,)
                return Run(f"{source}.weight", head * d, d)
            tensor = f"{source.module.replace('{head}', str(head))}.weight"
            shapes[tensor] = (heads, d) if source.stored == "rows" else (d,)
            return Run(tensor, head * d if source.stored == "rows" else 0, d)

        return Rows(joined(_spread(present, run, d)), 0, False, shapes)

    def _sinks(self) -> Rows:
        config, tensor = self._config, str(self._source("sinks"))
        runs = _spread(list(config.real_heads), lambda head: Run(tensor, head, 1), 1)
        return Rows(joined(runs), 0, False, {tensor: (config.heads,)})

    def _heads(self, name: str) -> tuple[int, list[bool]]:
        """How many heads the checkpoint has, and for each stored one whether it is one of them."""
        config = self._config
        if name == "q":
            return config.heads, list(config.real_heads)
        return config.kv_heads, list(config.real_kv_heads)

    def _matrix(self, name: str) -> StoredArray:
        stack, config = self._stacked(name), self._config
        if stack is not None:
            sizes, dim = (config.d_model, config.d_ff), 1
            if name == "out":
                sizes, dim = (config.d_ff, config.d_model), 0
            return StackedMatrices(stack, config.expert_count, *sizes, dim)
        matrix, norms = self._plain_matrix(name), self._modules.get("norm")
        folded = self._folded_norm(name) if isinstance(norms, TwoNorms) else None
        return matrix if folded is None else ScaledRows(matrix, self._vector(f"{folded}.weight"))

    def _bias(self, name: str) -> StoredArray:
        stack = self._stacked(name)
        if stack is not None:
            return self._stacked_bias(name, stack)
        norms = self._modules.get("norm")
        folded = self._folded_norm(name) if isinstance(norms, TwoNorms) else None
        if folded is None or not isinstance(norms, TwoNorms):
            return self._plain_bias(name)
        stored = self._plain_bias(name) if name in norms.biases else None
        return AddedRows(stored, self._plain_matrix(name), self._vector(f"{folded}.bias"))

    def _folded_norm(self, name: str) -> str | None:
        """The module of the norm that is folded into a matrix."""
        norms = self._modules["norm"]
        assert isinstance(norms, TwoNorms)
        if name in _BEHIND_ATTENTION:
            return norms.attention
        return norms.feedforward if name in _BEHIND_FEEDFORWARD else None

    def _stacked(self, name: str) -> ExpertStack | None:
        """The source of the experts' `name` where all of them are one tensor."""
        source = self._modules.get(name)
        return source if isinstance(source, ExpertStack) else None

    def _stacked_bias(self, name: str, source: ExpertStack) -> StoredArray:
        config, count = self._config, self._config.expert_count
        if name != "out":
            return StackedBiases(source, count, config.d_ff)
        shape = (count, config.d_model)
        return Rows((Run(source.bias, 0, count),), 0, False, {source.bias: shape})

    def _plain_matrix(self, name: str) -> Rows:
        config, transposed = self._config, self._is_transposed("k" if name == "kv" else name)

        def shape(outputs: int, inputs: int) -> tuple[int, int]:
            return (outputs, inputs) if transposed else (inputs, outputs)

        if name in ("o", "out", "shared_out"):
            heads = config.heads * config.d_head
            inputs = {"o": heads, "out": config.d_ff, "shared_out": config.shared_width}[name]
            of_experts = name == "out"
            modules = self._modules_of_experts(name) if of_experts else [str(self._source(name))]
            tensors = [f"{module}.weight" for module in modules]
            runs = [Run(tensor, 0, inputs) for tensor in tensors]
            if name == "o":
                d, tensor = config.d_head, tensors[0]
                runs = _spread(list(config.real_heads), lambda i: Run(tensor, i * d, d), d)
            shapes = dict.fromkeys(tensors, shape(config.d_model, inputs))
            return Rows(joined(runs), 0, transposed, shapes)
        runs, sizes = self._outputs(name, "weight")
        shapes = {tensor: shape(size, config.d_model) for tensor, size in sizes.items()}
        return Rows(runs, 1, transposed, shapes)

    def _plain_bias(self, name: str) -> Rows:
        if name in ("o", "out"):
            return self._vector(f"{self._source(name)}.bias")
        runs, sizes = self._outputs(name, "bias")
        return Rows(runs, 0, False, {tensor: (size,) for tensor, size in sizes.items()})

    def _outputs(self, name: str, kind: str) -> tuple[tuple[Run, ...], dict[str, int]]:
        """The rows of the outputs of a matrix, or of its bias, and the tensors with their outputs."""
        config, d = self._config, self._config.d_head
        if name in ("in", "gate") and config.experts is not None:
            tensors = [f"{module}.{kind}" for module in self._modules_of_experts(name)]
            runs = tuple(Run(tensor, 0, config.d_ff) for tensor in tensors)
            return runs, dict.fromkeys(tensors, config.d_ff)
        if name in ("in", "gate", *_SHARED_INPUTS):
            width = config.shared_width if name in _SHARED_INPUTS else config.d_ff
            rows, sizes = self._module_rows(name, kind, width, 1)
            return (rows(0),), sizes
        if name == "q":
            rows, sizes = self._module_rows("q", kind, d, config.heads)
            return joined(_spread(list(config.real_heads), rows, d)), sizes
        keys, sizes = self._module_rows("k", kind, d, config.kv_heads)
        values, more = self._module_rows("v", kind, d, config.kv_heads)
        _, present = self._heads("k")
        every = zip(_spread(present, keys, d), _spread(present, values, d), strict=True)
        return joined(run for both in every for run in both), {**sizes, **more}

    def _module_rows(
        self, name: str, kind: str, unit: int, units: int
    ) -> tuple[Callable[[int], Run], dict[str, int]]:
        """The rows of unit i, of `units` of `unit` outputs each; and the tensor with its outputs."""
        config, source = self._config, self._source(name)
        size = unit * units
        if isinstance(source, Part):
            tensor = f"{source.module}.{kind}"
            first = source.index * size
            return lambda i: Run(tensor, first + i * unit, unit), {tensor: source.of * size}
        if isinstance(source, Fused):
            tensor = f"{source.module}.{kind}"
            every = (config.heads + 2 * config.kv_heads) * unit
            place = _fused_place(source, name, config)
            return lambda i: Run(tensor, place(i) * unit, unit), {tensor: every}
        if not isinstance(source, str):
            raise ValueError(f"{config.name}: {source!r} is no source of the matrix {name!r}")
        tensor = f"{source}.{kind}"
        return lambda i: Run(tensor, i * unit, unit), {tensor: size}


def _fused_place(source: Fused, name: str, config: ModelConfig) -> Callable[[int], int]:
    """The place of head i among all heads of a fused matrix."""
    heads, kv_heads = config.heads, config.kv_heads
    group = heads // kv_heads
    if source.order == "kinds":
        first = {"q": 0, "k": heads, "v": heads + kv_heads}[name]
        return lambda i: first + i
    if name == "q":
        return lambda i: i // group * (group + 2) + i % group
    return lambda i: i * (group + 2) + group + (name == "v")


def _spread(present: list[bool], run: Callable[[int], Run], width: int) -> list[Run]:
    """A run for each stored head: the next of the checkpoint, or zeros."""
    numbers = np.cumsum(present) - 1
    return [
        run(int(number)) if real else Run(None, 0, width)
        for real, number in zip(present, numbers, strict=True)
    ]


def needed_tensors(plan: Params, layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that a plan reads, with the shape that it must have."""
    needed: dict[str, tuple[int, ...]] = {}
    ends: dict[str, Any] = {key: value for key, value in plan.items() if key != "blocks"}
    for array in jax.tree.leaves(ends):
        needed |= array.shapes
    for array in jax.tree.leaves(plan["blocks"]):
        for tensor, shape in array.shapes.items():
            for layer in range(layers):
                needed[tensor.replace("{layer}", str(layer))] = tuple(shape)
    return needed
