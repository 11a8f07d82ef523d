"""The README's code runs, and prints what it says. `python -m tests.test_readme` writes that."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
# A block of Python, and the output that is printed below it, if any.
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
# Printed between the blocks.
MARK = "-- the next block --\n"


@functools.cache
def outputs() -> list[tuple[str, str | None]]:
    """What each block prints, pasted one after the other into one interpreter that knows nothing of
    emulated devices, and what the README says that it does."""
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    ours = ("XLA_FLAGS", "TPU_", "JAX_", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    found = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=f"\nprint({MARK!r}, end='')\n".join(code for code, _ in blocks),
        cwd=README.parent,
        env=environment | {"JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    printed = found.stdout.split(MARK)
    return [(text, said or None) for text, (_, said) in zip(printed, blocks, strict=True)]


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
    _rewrite()
