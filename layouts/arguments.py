"""What people write where a function takes a size, a flag or tokens, as what is meant by it.

One conversion for each kind, at the door of every public function; the others are `config.as_config`,
`plans.as_plan`, `axes.check_mesh` and `collective_einsum`'s `as_chip` and `as_schedule`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from collective_einsum.text import as_dtype as any_dtype
from collective_einsum.text import did_you_mean


def as_size(name: str, value: Any, whose: str = "") -> int:
    """A positive integer, numpy's included, as an int.

    Args:
      name: of the argument, for the message.
      value: what was given.
      whose: who needs it, for the message.

    Raises:
      ValueError: it is none: a float or a bool, say, or traced.
    """
    found = _integer(value)
    if found is not None and found > 0:
        return found
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


def as_sizes(name: str, value: Any, whose: str = "") -> tuple[int, ...]:
    """One size, or several, as a tuple of them; `name` and `whose` as in `as_size`."""
    several = np.ndim(value) > 0 and isinstance(value, Iterable)
    return tuple(as_size(name, each, whose) for each in (value if several else (value,)))


def check_word(name: str, word: Any, words: Sequence[str]) -> None:
    """Refuses what is none of the words.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(word, str) or word not in words:
        raise ValueError(f"{name}={word!r} is none of {tuple(words)}{did_you_mean(word, words)}")


def as_flag(name: str, value: Any) -> bool:
    """True or False, numpy's included.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"{name}={value!r} must be True or False")


def as_dtype(value: Any, int8: str) -> np.dtype[Any]:
    """A floating dtype, of which the name will do.

    Args:
      value: what was given as dtype=.
      int8: what to write for integers of 8 bits.

    Raises:
      ValueError: it is none.
    """
    found = any_dtype("dtype", value)
    if jnp.issubdtype(found, jnp.floating):
        return found
    hint = f"; for int8 write {int8}" if found == jnp.int8 else ""
    raise ValueError(f"dtype={found} must be a floating dtype, such as jnp.bfloat16{hint}")


def as_key(key: Any) -> Any:
    """A key of jax.random, of either kind.

    Raises:
      ValueError: it is none, or several.
    """
    if isinstance(key, jax.Array | np.ndarray) and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0)
        or (key.dtype == np.uint32 and key.ndim == 1)
    ):
        return key
    seed = _integer(key)
    what = f"{key.dtype} of shape {key.shape}" if isinstance(key, jax.Array) else repr(key)
    raise ValueError(
        f"key must be one jax.random.key, got {what}; write jax.random.key"
        f"({0 if seed is None else seed})"
    )


def as_prompts(tokens: Any) -> Any:
    """Tokens [batch, length] as a numpy or jax array of integers; lists are taken too.

    Raises:
      ValueError: they have other dimensions, none or nothing in them, or are no integers; or are
        lists of several lengths.
    """
    x = as_integers(tokens, "tokens")
    if x.ndim != 2 or 0 in x.shape:
        hint = "; write tokens[None] for one sequence" if x.ndim == 1 and x.size else ""
        raise ValueError(
            f"tokens of shape {x.shape} must be [batch, length], neither of them 0{hint}"
        )
    return x


def as_next_tokens(tokens: Any) -> Any:
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


def as_integers(x: Any, name: str) -> Any:
    """An array of integers, numpy's or jax's; lists are made one, of numpy unless they are traced.

    Raises:
      ValueError: it is none, or has been deleted.
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


def values_of(x: Any) -> np.ndarray | None:
    """The numbers of an array, if they can be seen here: not while tracing. Read back explicitly,
    as a transfer guard asks for."""
    if any(isinstance(each, Tracer | jax.ShapeDtypeStruct) for each in jax.tree.leaves(x)):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return None
    return np.asarray(jax.device_get(x))


def _joined(x: Sequence[Any], name: str) -> Any:
    """Lists as an array."""
    if any(isinstance(each, Tracer) for each in jax.tree.leaves(x)):
        return jnp.asarray(x)
    sizes = [len(each) for each in x if isinstance(each, list | tuple) or np.ndim(each)]
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


def _integer(value: Any) -> int | None:
    """The int that a value is; None for a bool, or what is no integer."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
