"""Einsums that are left to `jnp.einsum`, and the test of whether somebody replaced it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax


def _made_of(function: Any) -> Any:
    """The function and its code, one of which an interceptor replaces."""
    return function, getattr(function, "__code__", None)


_OWN = _made_of(jnp.einsum), _made_of(lax.dot_general)
_OWN_DOT_GENERAL = lax.dot_general


def is_replaced() -> bool:
    """Whether somebody intercepts `jnp.einsum` or `lax.dot_general`, as quantization libraries do."""
    return (_made_of(jnp.einsum), _made_of(lax.dot_general)) != _OWN


def say_if_replaced(name: str) -> None:
    """Warns whoever intercepts jax's dots that those of a function for shards are out of sight."""
    if is_replaced():
        warnings.warn(
            f"{name}: jnp.einsum or lax.dot_general is replaced while this is called, but its dots "
            "are made when jax lowers the program, out of the sight of what replaces them, and so "
            "are not quantized, or whatever that does; ce.einsum hands its einsum over",
            stacklevel=4,
        )


def is_own(dot_general: object) -> bool:
    """Whether this is jax's own `lax.dot_general`."""
    return dot_general is None or dot_general is _OWN_DOT_GENERAL


def einsum(text: str, operands: Sequence[Any], *, dot_general: Any = None, **options: Any) -> Any:
    """`jnp.einsum`, by whoever it is now, with those of `options` that say something."""
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("optimize") == "auto":
        # A replacement need not know the default.
        del given["optimize"]
    if not is_own(dot_general):
        given["_dot_general"] = dot_general
    elif lax.dot_general is not _OWN_DOT_GENERAL:
        # The default of jnp.einsum was read when it was made.
        given["_dot_general"] = lax.dot_general
    return jnp.einsum(text, *operands, **given)
