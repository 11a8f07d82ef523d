"""Words between brackets and quotes, as HLO text nests them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPENERS, _CLOSERS = "([{", ")]}"
# Quoted text, to its end or to that of a text cut short; or a bracket or comma outside of it.
_MARK = re.compile(r'"(?:\\.|[^"\\])*"?|[()\[\]{},]')


def closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`; quoted text is skipped."""
    for at, char, depth in _marks(text, start):
        if depth == 0 and char in _CLOSERS:
            return at
    raise ValueError(f"unbalanced brackets in the HLO line {text[:80]!r}.")


def split(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes."""
    words, begin = [], 0
    for at, char, depth in _marks(text):
        if depth == 0 and char == ",":
            words.append(text[begin:at])
            begin = at + 1
    return [*words, text[begin:]] if text[begin:].strip() else words


def _marks(text: str, start: int = 0) -> Iterator[tuple[int, str, int]]:
    """Brackets and commas outside quotes: the index, the character, and how many brackets are open after
    it."""
    depth = 0
    for match in _MARK.finditer(text, start):
        char = match[0]
        if char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        elif char != ",":
            continue
        yield match.start(), char, depth
