"""Conversions of arguments: sizes, flags, dtypes, keys and tokens. Wrong ones are refused in words.

Every public function converts its arguments once, by these, by `models.config.as_config`,
`partitionings.partitioning.as_plan` and `mesh.axes.check_mesh`, and by `as_chip` and `as_schedule` of
`collective_einsum`.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from collective_einsum.text import as_dtype as any_dtype
from collective_einsum.text import did_you_mean

if TYPE_CHECKING:
    import numpy.typing as npt

# Token ids, [batch, length] or [batch]: an array, or lists of numbers.
Tokens = ArrayLike | Sequence[ArrayLike] | Sequence[Sequence[ArrayLike]]


def as_size(name: str, value: object, whose: str = "") -> int:
    """A positive integer, numpy's included, as an int.

    Args:
      name: of the argument, for the message.
      value: of the argument.
      whose: the function that needs it, for the message.

    Raises:
      ValueError: `value` is no positive integer (a float or a bool, say), or traced.
    """
    size = _integer(value)
    if size is not None and size > 0:
        return size
    hint = ""
    if isinstance(value, Tracer):
        hint = "; sizes must be known while tracing: make it a static argument of jit"
    elif isinstance(value, float | np.floating) and value > 0 and float(value).is_integer():
        hint = f"; write {int(value)}"
    elif isinstance(value, str) and value.isdigit():
        hint = f"; write {value} without quotes"
    given = f"{name}={value!r} must be a positive integer"
    if whose:
        given = f"{whose} needs {name}=, a positive integer; got {value!r}"
    raise ValueError(given + hint)


def as_sizes(name: str, value: npt.ArrayLike, whose: str = "") -> tuple[int, ...]:
    """One size, or several, as a tuple; `name` and `whose` as in `as_size`."""
    sizes = value if np.ndim(value) > 0 and isinstance(value, Iterable) else (value,)
    return tuple(as_size(name, size, whose) for size in sizes)


def check_word(name: str, word: object, words: Sequence[str]) -> None:
    """Refuses an argument `name` that is none of `words`.

    Raises:
      ValueError: `word` is none of them.
    """
    if not isinstance(word, str) or word not in words:
        raise ValueError(f"{name}={word!r} is none of {tuple(words)}{did_you_mean(word, words)}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, and no flag."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_flag(name: str, value: object) -> bool:
    """A bool, numpy's included, as a bool.

    Raises:
      ValueError: `value` is something else.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"{name}={value!r} must be True or False")


def as_dtype(value: DTypeLike, int8: str) -> np.dtype:
    """A floating dtype, from a dtype or its name.

    Args:
      value: of the argument dtype=.
      int8: the argument that makes 8-bit integers, for the message.

    Raises:
      ValueError: `value` is no floating dtype.
    """
    dtype = any_dtype("dtype", value)
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype
    hint = f"; for int8 write {int8}" if dtype == jnp.int8 else ""
    raise ValueError(f"dtype={dtype} must be a floating dtype, such as jnp.bfloat16{hint}")


def as_key(key: object) -> jax.Array | np.ndarray:
    """One key of jax.random: of `jax.random.key`, or of `jax.random.PRNGKey` ([2] uint32).

    Raises:
      ValueError: `key` is something else, or several keys.
    """
    if isinstance(key, jax.Array | np.ndarray) and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0)
        or (key.dtype == np.uint32 and key.ndim == 1)
    ):
        return key
    seed = _integer(key)
    given = f"{key.dtype} of shape {key.shape}" if isinstance(key, jax.Array) else repr(key)
    raise ValueError(
        f"key must be one jax.random.key, got {given}; write jax.random.key"
        f"({0 if seed is None else seed})"
    )


def as_prompts(tokens: Tokens) -> jax.Array | np.ndarray:
    """Tokens [batch, length], an array or lists, as an array of integers.

    Raises:
      ValueError: tokens have another rank, or a dimension of size 0; are no integers; or are lists of
        different lengths.
    """
    x = as_integers(tokens, "tokens")
    if x.ndim != 2 or 0 in x.shape:
        hint = "; write tokens[None] for one sequence" if x.ndim == 1 and x.size else ""
        raise ValueError(
            f"tokens of shape {x.shape} must be [batch, length], neither of them 0{hint}"
        )
    return x


def as_next_tokens(tokens: Tokens) -> jax.Array | np.ndarray:
    """One token for each sequence, [batch] or [batch, 1], as an array [batch].

    Raises:
      ValueError: as `as_prompts`.
    """
    x = as_integers(tokens, "tokens")
    if x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim == 1 and x.size:
        return x
    hint = ""
    if x.ndim == 0:
        hint = "; write [token] for one sequence"
    elif x.ndim == 2 and x.size:
        hint = "; call layouts.prefill, which reads several tokens of each"
    raise ValueError(
        f"tokens of shape {x.shape} must be [batch], one token for each sequence{hint}"
    )


def as_integers(x: object, name: str) -> jax.Array | np.ndarray:
    """An array of integers, numpy's or jax's. Lists become an array, of jax if an item is traced.

    Raises:
      ValueError: `x` is something else, or an array that has been deleted.
    """
    if x is None:
        raise ValueError(f"{name} must be integers, got None")
    if isinstance(x, list | tuple):
        x = _joined(x, name)
    if isinstance(x, jax.Array):
        if not isinstance(x, Tracer) and x.is_deleted():
            raise ValueError(f"{name} have been deleted, or donated to a jit; make them anew")
    else:
        x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        kind = "strings; encode them first" if x.dtype.kind in "US" else x.dtype
        raise ValueError(f"{name} must be integers, got {kind}")
    return x


def values_of(x: object) -> np.ndarray | None:
    """The numbers of an array; None if it is traced, a shape, or of other processes.

    The transfer from a device is explicit, so that a transfer guard allows it.
    """
    if any(isinstance(leaf, Tracer | jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x)):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return None
    return np.asarray(jax.device_get(x))


def _joined(x: Sequence[Any], name: str) -> jax.Array | np.ndarray:
    """Lists as an array."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        return jnp.asarray(x)
    sizes = [len(row) for row in x if isinstance(row, list | tuple) or np.ndim(row)]
    if len(set(sizes)) > 1:
        longest = max(sizes)
        shown = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
        raise ValueError(
            f"{name} have lengths {shown}; pad each to {longest} at its end, with any token, and "
            "pass their lengths as lengths="
        )
    try:
        return np.asarray(x) if x else np.zeros((0,), np.int32)
    except ValueError as error:
        raise ValueError(f"{name} are no array of integers: {error}") from error


def _integer(value: object) -> int | None:
    """An integer, numpy's included, as an int; None for a bool or anything else."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
