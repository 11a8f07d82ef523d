"""The pictures of docs/ are those that its script draws, and every page is in the index."""

from __future__ import annotations

import fnmatch
import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_pictures_are_drawn_by_their_script() -> None:
    script = runpy.run_path(str(DOCS / "draw_schedules.py"))
    drawn = {f"{name}.svg": script["draw"](rows) for name, rows in script["FIGURES"].items()}
    files = {file.name: file.read_text(encoding="utf-8") for file in DOCS.glob("pictures/*.svg")}
    assert files == drawn, "`python docs/draw_schedules.py` draws them"
    page = (DOCS / "schedules.md").read_text(encoding="utf-8")
    assert all(f"(pictures/{name})" in page for name in files)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8").split()
    for page in DOCS.glob("*.md"):
        listed = any(fnmatch.fnmatchcase(page.stem, entry) for entry in index)
        assert listed or page.stem == "index", page.name
