"""Words between brackets and quotes, as HLO text nests them."""

from __future__ import annotations

_OPENERS, _CLOSERS = "([{", ")]}"


def closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`; quoted text is skipped."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise ValueError(f"unbalanced brackets in the HLO line {text[:80]!r}.")


def split(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes."""
    words, depth, quoted, begin, at = [], 0, False, 0, 0
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        elif char == "," and depth == 0:
            words.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*words, text[begin:]] if text[begin:].strip() else words
