"""The page of a timeline, opened in a browser: what it draws, zooms and says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from collective_einsum.ruler.replay.timeline import Timeline

from .browser import Look, look
from .schedules import FORWARD, ON_CHIP, done, dot, permute, run

# The third line holds what would end a script, if it were not escaped.
SOURCE = 'def mlp(x):\n    y = x @ w\n    z = -y  # </script><b id="no">&amp;</b>\n'
DOT, COMPUTE, PERMUTE, WAIT = "#0072b2", "#56b4e9", "#009e73", "#cc79a7"
# Microseconds of a pixel of the page's 1000 or so; pointers stand on whole pixels.
PIXEL = 0.11
BARS = """
function pixels(colour) {
  const canvas = document.getElementById("canvas"), hex = parseInt(colour.slice(1), 16);
  const rgba = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < rgba.length; i += 4)
    count += rgba[i] === hex >> 16 && rgba[i + 1] === (hex >> 8 & 255) && rgba[i + 2] === (hex & 255);
  return count;
}
function send(name, type, us, row, more) {
  const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
  const x = box.left + canvas.clientLeft + 130 + (canvas.clientWidth - 130) * us / 101;
  const where = { clientX: x, clientY: box.top + 24 * row + 12, bubbles: true, cancelable: true };
  canvas.dispatchEvent(new (window[type])(name, { ...where, ...more }));
}
function state() {
  const colours = ["#0072b2", "#56b4e9", "#009e73", "#cc79a7"];
  const counts = Object.fromEntries(colours.map(colour => [colour, pixels(colour)]));
  return JSON.stringify({ shown: document.getElementById("shown").textContent, counts });
}
state()
"""
TABLES = """
JSON.stringify([...document.querySelectorAll("#tables h2")].map(title => [
  title.textContent,
  [...title.nextElementSibling.querySelectorAll("tr")].map(
    row => [...row.children].map(cell => cell.textContent)),
  title.nextElementSibling.nextElementSibling.textContent,
]))
"""
STEPS = {
    "all": BARS,
    "zoomed": 'send("wheel", "WheelEvent", 20, 0, { deltaY: -500 }); state()',
    "moved": """send("pointerdown", "PointerEvent", 50, 0); send("pointermove", "PointerEvent", 20, 0);
      send("pointerup", "PointerEvent", 20, 0); state()""",
    "back": 'document.getElementById("all").click(); state()',
    "nearer": 'document.getElementById("in").click(); state()',
    "double click": 'send("dblclick", "MouseEvent", 20, 0); state()',
    "tip": """send("pointermove", "PointerEvent", 20, 0);
      document.getElementById("tip").textContent + "|" + document.getElementById("tip").style.display""",
    "no tip": """send("pointermove", "PointerEvent", 90, 0);
      document.getElementById("tip").style.display""",
    "chosen": """[...document.querySelectorAll("tr.chooses")].find(
      row => row.textContent.includes("y = x @ w")).click(); state()""",
    "not chosen": 'document.querySelector("tr.chosen").click(); state()',
    "tables": TABLES,
    "title": "document.title",
    "heading": 'document.querySelector("h1").textContent',
    "notes": '[...document.querySelectorAll(".note")].map(note => note.textContent).join()',
    "injected": 'document.querySelectorAll("#no").length',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    timeline: Timeline
    page: Path
    picture: Path
    look: Look

    def value(self, step: str) -> str:
        return self.look.values[list(STEPS).index(step)]

    def shown(self, step: str) -> str:
        return json.loads(self.value(step))["shown"]

    def times(self, step: str) -> tuple[float, float]:
        """The first and the last microsecond in view."""
        words = self.shown(step).split()
        return float(words[5]), float(words[7])

    def pixels(self, step: str) -> dict[str, int]:
        return json.loads(self.value(step))["counts"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A permute of 100 us and a hop behind a dot of 40 and a negation of 30, on lines of a file."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "model.py").write_text(SOURCE)

    def at(line: int) -> str:
        return f'metadata={{op_name="f" source_file="{folder}/model.py" source_line={line}}}'

    other = f'%n = {ON_CHIP} negate(%p), backend_config={{"estimated_cycles":"30"}}, {at(3)}'
    unpriced = f"%u = {ON_CHIP} frobnicate(%p)"
    lines = [
        f"{permute('a', FORWARD)}, {at(2)}",
        f"{dot('d', 40)}, {at(2)}",
        other,
        done("a"),
        unpriced,
    ]
    timeline = run("\n".join(lines))
    page, picture = folder / "page.html", folder / "page.png"
    timeline.save_html(page, title="A <b>program</b>")
    return Seen(
        timeline=timeline,
        page=page,
        picture=picture,
        look=look(page, list(STEPS.values()), picture),
    )


def test_nothing_is_logged_and_nothing_else_is_asked_for(seen: Seen) -> None:
    # The browser remarks that these tests read the canvas often.
    assert [line for line in seen.look.console if "getImageData" not in line] == []
    assert seen.look.requests == [seen.page.as_uri()]


def test_every_event_is_drawn_as_long_as_it_is(seen: Seen) -> None:
    assert seen.shown("all") == "shows 4 of 4 events, 0.00 to 101.00 us of 101.00 us"
    pixels = seen.pixels("all")
    assert pixels[WAIT] / pixels[COMPUTE] == pytest.approx(31 / 30, rel=0.05)
    assert pixels[PERMUTE] / pixels[DOT] == pytest.approx(100 / 40, rel=0.05)
    assert pixels[COMPUTE] > 1000


def test_the_picture_of_the_window_has_the_bars(seen: Seen) -> None:
    image = np.rint(imread(seen.picture)[..., :3] * 255).astype(int)
    for colour in (DOT, COMPUTE, PERMUTE, WAIT):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (image == rgb).all(axis=-1).sum() > 1000


def test_the_wheel_zooms_where_it_points(seen: Seen) -> None:
    """By e, at 20 of 101 us: that time stays in its place. The wait is out of view, the dot longer."""
    start = 20 - 20 / math.e
    assert seen.shown("zoomed").startswith("shows 3 of 4 events")
    assert seen.times("zoomed") == pytest.approx((start, start + 101 / math.e), abs=PIXEL)
    before, after = seen.pixels("all"), seen.pixels("zoomed")
    assert after[WAIT] == 0
    assert after[DOT] / before[DOT] == pytest.approx((40 - start) * math.e / 40, rel=0.05)


def test_dragging_moves(seen: Seen) -> None:
    """By 30 of 101 of the width, which is 101 / e us now."""
    start = 20 - 20 / math.e + 30 / math.e
    assert seen.times("moved") == pytest.approx((start, start + 101 / math.e), abs=PIXEL)


def test_the_buttons_zoom(seen: Seen) -> None:
    assert seen.value("back") == seen.value("all") == seen.value("double click")
    assert seen.shown("nearer") == "shows 4 of 4 events, 25.25 to 75.75 us of 101.00 us"


def test_pointing_at_a_bar_says_what_it_is(seen: Seen) -> None:
    tip, display = seen.value("tip").split("|")
    first, second, *others = tip.split("\n")
    assert (first, second) == ("d (fusion)", "dot, 0.000 us, for 40.000 us")
    assert others == ["2000 flops", f"{seen.page.parent.name}/model.py:2", "y = x @ w"]
    assert display == "block"
    assert seen.value("no tip") == "none"


def test_a_click_on_a_line_marks_its_bars(seen: Seen) -> None:
    """The bars of others fade."""
    pixels = seen.pixels("chosen")
    assert pixels[COMPUTE] == 0
    assert pixels[DOT] == seen.pixels("all")[DOT]
    assert seen.value("not chosen") == seen.value("all")


def test_tables_are_those_of_print_and_every_line_with_its_text(seen: Seen) -> None:
    tables = {title: (rows, meaning) for title, rows, meaning in json.loads(seen.value("tables"))}
    printed = seen.timeline.tables()
    assert list(tables) == list(printed)
    for title, table in printed.items():
        if title != "Source lines":
            assert tables[title] == ([list(table.head), *map(list, table.rows)], table.meaning)
    (head, first, second), meaning = tables["Source lines"]
    assert first[1:] == ["y = x @ w", "71.00", "40.00", "31.00", "0.00", "70.3%"]
    assert second[1:3] == [SOURCE.splitlines()[2].strip(), "30.00"]
    assert all(f"{column}: " in meaning for column in head)


def test_names_of_the_program_are_text(seen: Seen) -> None:
    title = "A <b>program</b> on TPU v4, replayed (predicted)"
    assert seen.value("title") == seen.value("heading") == title
    assert seen.value("injected") == 0
    assert seen.value("notes") == f"note: {seen.timeline.notes[0]}"


def test_many_bars_are_drawn(tmp_path: Path) -> None:
    timeline = run("\n".join(dot(f"d{i}", 1 + i % 3) for i in range(6000)))
    timeline.save_html(tmp_path / "page.html")
    zoomed = 'for (let i = 0; i < 10; i++) document.getElementById("in").click(); state()'
    values = look(tmp_path / "page.html", [BARS, zoomed], tmp_path / "page.png").values
    total = sum(1 + i % 3 for i in range(6000))
    near, far = (json.loads(value) for value in reversed(values))
    assert far["shown"].startswith("shows 6000 of 6000 events")
    count = int(near["shown"].split()[1])
    assert count == pytest.approx(6000 / 2**10, abs=1.5)
    assert f"of {total:.2f} us" in near["shown"]
