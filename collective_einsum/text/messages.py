"""What somebody may have meant by a word that is not known, for the messages that refuse it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64")


def did_you_mean(given: Any, words: Iterable[str]) -> str:
    """The end of a message: the nearest of `words`, if one is near; "" if none is."""
    found = nearest(given, words)
    return f"; did you mean {found!r}?" if found is not None else ""


def nearest(given: Any, words: Iterable[str]) -> str | None:
    """The one of `words` that is spelt most like what is given; None if that is no string, or like
    none of them."""
    if not isinstance(given, str):
        return None
    by_letters = {plain(word): word for word in reversed(list(words))}
    close = difflib.get_close_matches(plain(given), by_letters, n=1)
    return by_letters[close[0]] if close else None


def as_dtype(name: str, value: Any) -> np.dtype[Any]:
    """A dtype, of which the name will do.

    Args:
      name: of the argument, for the message.
      value: what was given.

    Raises:
      ValueError: it is none.
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


def shown(value: Any) -> str:
    """What was given, for a message: its repr, or only what it is where that is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"<{type(value).__name__} {text[:60]}...>"


def plain(word: str) -> str:
    """Letters and digits alone, of no case: "Pre-fill" and "prefill" are one word."""
    return re.sub("[^a-z0-9]", "", word.lower())


def as_seconds(name: str, value: Any) -> float:
    """A number that is not negative.

    Raises:
      ValueError: it is none.
    """
    number = isinstance(value, float | int | np.floating | np.integer)
    if number and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ValueError(f"{name}={value!r} must be a number of seconds, not negative")
