"""The code of README and of docs/ runs, and prints what stands below it.

`python -m tests.test_readme` writes what it prints.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.users import user_environment

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
# A block of Python, and the output that is printed below it, if any.
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
LINK = re.compile(r"\]\(([^)#: ]+)(?:#[\w-]+)?\)")
# Printed between the blocks.
MARK = "-- the next block --\n"
PAGES = (README, *sorted(DOCS.glob("*.md")))
PAGES_WITH_CODE = tuple(page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8")))


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def outputs(page: Path) -> list[tuple[str, str | None]]:
    """What each block of a page prints, and what the page says that it prints.

    The blocks are pasted one after the other into one interpreter that knows nothing of emulated
    devices.
    """
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    process = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=f"\nprint({MARK!r}, end='')\n".join(code for code, _ in blocks),
        cwd=ROOT,
        env=user_environment() | {"JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    printed = process.stdout.split(MARK)
    return [(text, said or None) for text, (_, said) in zip(printed, blocks, strict=True)]


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.tpu] * (p.name == "ruler.md")) for p in PAGES_WITH_CODE],
    ids=page_name,
)
def test_code_runs_and_prints_what_it_says(page: Path) -> None:
    for printed, said in outputs(page):
        assert printed == (said or ""), "`python -m tests.test_readme` writes it"


def test_there_is_code_on_the_pages_that_promise_it() -> None:
    for page in (README, DOCS / "models.md", DOCS / "layouts.md", DOCS / "planner.md"):
        assert page in PAGES_WITH_CODE
    assert len(outputs(README)) >= 3
    assert any(said for _, said in outputs(README))


def test_commands() -> None:
    text = README.read_text(encoding="utf-8")
    assert "python -m pip install -e '.[bench]' && python -m bench\n" in text
    assert "python -m pip install -e '.[test]' && python -m pytest\n" in text


def test_readme_is_short_and_says_where_it_stands() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    first_screen = text[: text.index("## Quick start")]
    for words in ("collective matmul", "tensor parallel", "latency hiding", "predicted", "no TPU"):
        assert words in first_screen.lower().replace("no tpu", "no TPU"), words


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page_name(page)}: {link}"


def _rewrite() -> None:
    for page in PAGES_WITH_CODE:
        printed = iter([output for output, said in outputs(page) if said is not None])
        text = page.read_text(encoding="utf-8")
        text = re.sub(
            r"(```\n\n```text\n).*?(```\n)",
            lambda m, printed=printed: m[1] + next(printed) + m[2],
            text,
            flags=re.DOTALL,
        )
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
