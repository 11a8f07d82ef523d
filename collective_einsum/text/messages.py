"""Arguments in error messages: the nearest known word, and values in print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

_DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64")


def did_you_mean(given: object, words: Iterable[str]) -> str:
    """The end of a message that names the nearest of `words`; "" if none is near."""
    word = nearest(given, words)
    return f"; did you mean {word!r}?" if word is not None else ""


def nearest(given: object, words: Iterable[str]) -> str | None:
    """The word that is spelt most like `given`; None if `given` is no string, or like none of them."""
    if not isinstance(given, str):
        return None
    by_letters = {plain(word): word for word in reversed(list(words))}
    close = difflib.get_close_matches(plain(given), by_letters, n=1)
    return by_letters[close[0]] if close else None


def as_dtype(name: str, value: DTypeLike | None) -> np.dtype:
    """An argument as a dtype.

    Args:
      name: the argument's name, for the message.
      value: a dtype, its name or its class.

    Raises:
      ValueError: `value` is no dtype, with one that is near.
    """
    try:
        # numpy reads None as float64.
        if value is not None:
            return jnp.dtype(value)
    except TypeError:
        pass
    bits = re.sub("[^0-9]", "", value) if isinstance(value, str) else ""
    kind = "bfloat" if str(value).startswith("b") else "int" if "i" in str(value) else "float"
    meant = f"{kind}{bits}" if f"{kind}{bits}" in _DTYPES else "bfloat16"
    raise ValueError(f"{name}={value!r} is no dtype; write {meant!r} or jnp.{meant}")


def shown(value: object) -> str:
    """A value in a message: its repr, or its type and the beginning of a repr of more than 120
    characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"<{type(value).__name__} {text[:60]}...>"


def plain(word: str) -> str:
    """The letters and digits of a word, in lower case: "Pre-fill" and "prefill" are one word."""
    return re.sub("[^a-z0-9]", "", word.lower())


def as_seconds(name: str, value: object) -> float:
    """An argument as a number of seconds.

    Raises:
      ValueError: `value` is no number, or is negative.
    """
    number = isinstance(value, float | int | np.floating | np.integer)
    if number and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ValueError(f"{name}={value!r} must be a number of seconds, not negative")
