"""What somebody may have meant by a word that is not known, for the messages that refuse it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


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


def plain(word: str) -> str:
    """Letters and digits alone, of no case: "Pre-fill" and "prefill" are one word."""
    return re.sub("[^a-z0-9]", "", word.lower())
