"""Einsums that are left to `jnp.einsum`, and how it can be told that somebody replaced it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax


def _made_of(function: Any) -> Any:
    """What an interceptor changes: the function, or its code in place."""
    return function, getattr(function, "__code__", None)


_OWN = _made_of(jnp.einsum), _made_of(lax.dot_general)
_OWN_DOT_GENERAL = lax.dot_general


def is_replaced() -> bool:
    """Whether somebody intercepts `jnp.einsum` or `lax.dot_general`, as quantization libraries do."""
    return (_made_of(jnp.einsum), _made_of(lax.dot_general)) != _OWN


def is_own(dot_general: Any) -> bool:
    """Whether this is jax's own `lax.dot_general`."""
    return dot_general is None or dot_general is _OWN_DOT_GENERAL


def einsum(text: str, operands: Sequence[Any], *, dot_general: Any = None, **options: Any) -> Any:
    """`jnp.einsum`, by whoever it is now, with those of `options` that say something."""
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("optimize") == "auto":
        # What replaces it need not know the default.
        del given["optimize"]
    if not is_own(dot_general):
        given["_dot_general"] = dot_general
    elif lax.dot_general is not _OWN_DOT_GENERAL:
        # The default of jnp.einsum was read when it was made.
        given["_dot_general"] = lax.dot_general
    return jnp.einsum(text, *operands, **given)
