"""The README's code runs, and prints what it says. `python -m tests.test_readme` writes that."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
# A block of Python, and the output that is printed below it, if any.
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def outputs() -> list[tuple[str, str | None]]:
    """What each block prints, one after the other, and what the README says it does."""
    names: dict[str, object] = {"__name__": "readme"}
    found = []
    for match in BLOCK.finditer(README.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match[1], str(README), "exec"), names)
        found.append((printed.getvalue(), match[2]))
    return found


def test_code_runs_and_prints_what_it_says() -> None:
    found = outputs()
    assert len(found) >= 5
    said = [(printed, text) for printed, text in found if text is not None]
    assert said
    for printed, text in said:
        assert printed == text, "`python -m tests.test_readme` writes it"


def test_commands() -> None:
    text = README.read_text(encoding="utf-8")
    assert "python -m pip install -e '.[bench]' && python -m bench\n" in text
    assert "python -m pip install -e '.[test]' && python -m pytest\n" in text


def _rewrite() -> None:
    printed = iter([output for output, text in outputs() if text is not None])
    text = README.read_text(encoding="utf-8")
    text = re.sub(
        r"(```text\n).*?(```\n)", lambda m: m[1] + next(printed) + m[2], text, flags=re.DOTALL
    )
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from bench.target import target

    target("cpu:8")
    _rewrite()
