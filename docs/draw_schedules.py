"""Draws the pictures of schedules.md: `python docs/draw_schedules.py` writes docs/pictures/*.svg."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.sax.saxutils import escape

PICTURES = Path(__file__).parent / "pictures"
LEFT, UNIT, HEIGHT, GAP, WIDTH = 150, 88, 30, 8, 800
DOT, TRANSFER = "#4878a8", "#d9822b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """Work from `start` to `end`, in units of one shard's matmul."""

    start: float
    end: float
    text: str
    fill: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A resource of one chip, its matmul unit or its links, and what it does."""

    name: str
    bars: tuple[Bar, ...]


def row(name: str, fill: str, *spans: tuple[float, float, str]) -> Row:
    """A resource with a bar for every start, end and text."""
    bars = [Bar(start=start, end=end, text=text, fill=fill) for start, end, text in spans]
    return Row(name=name, bars=tuple(bars))


# An einsum of four shards takes 4 units, its collective 2.4.
FIGURES: dict[str, tuple[tuple[Row, ...], ...]] = {
    "ring": (
        (
            row("blocking: links", TRANSFER, (0, 2.4, "all-gather")),
            row("matmul unit", DOT, (2.4, 6.4, "einsum")),
        ),
        (
            row("ring: link +", TRANSFER, (0, 0.8, "shard 3"), (0.8, 1.6, "shard 2")),
            row("link \N{MINUS SIGN}", TRANSFER, (0, 0.8, "shard 1")),
            row(
                "matmul unit",
                DOT,
                *(
                    (i, i + 1, f"shard {shard}")
                    for i, shard in enumerate(("0 (own)", "3", "1", "2"))
                ),
            ),
        ),
    ),
    "chunked": (
        (
            row("blocking: links", TRANSFER, (4, 6.4, "reduce-scatter")),
            row("matmul unit", DOT, (0, 4, "einsum")),
        ),
        (
            row(
                "chunked: links",
                TRANSFER,
                *((i + 1, i + 1.6, f"scatter {i}") for i in range(4)),
            ),
            row("matmul unit", DOT, *((i, i + 1, f"chunk {i}") for i in range(4))),
        ),
    ),
    "async": (
        (
            row("blocking: links", TRANSFER, (2.6, 5, "all-gather")),
            row("matmul unit", DOT, (0, 2.6, "other einsum"), (5, 7, "einsum")),
        ),
        (
            row("async: links", TRANSFER, (0, 2.4, "all-gather-start ... -done")),
            row("matmul unit", DOT, (0, 2.6, "other einsum"), (2.6, 4.6, "einsum")),
        ),
    ),
}


def draw(groups: tuple[tuple[Row, ...], ...]) -> str:
    """An SVG of groups of rows below each other, all on one time axis."""
    parts, y = [], 12
    for group in groups:
        for line in group:
            middle = y + HEIGHT / 2 + 5
            parts.append(
                f'<text x="{LEFT - 10}" y="{middle:g}" text-anchor="end">{line.name}</text>'
            )
            parts += [_bar(bar, y) for bar in line.bars]
            y += HEIGHT + GAP
        y += 2 * GAP
    parts.append(f'<text x="{LEFT}" y="{y + 6}">time \N{RIGHTWARDS ARROW}</text>')
    height = y + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(bar: Bar, y: float) -> str:
    x, width = LEFT + bar.start * UNIT, (bar.end - bar.start) * UNIT
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width - 2:g}" height="{HEIGHT}" rx="3" '
        f'fill="{bar.fill}"/><text x="{x + width / 2 - 1:g}" y="{y + HEIGHT / 2 + 5:g}" '
        f'text-anchor="middle" fill="white" font-size="11">{escape(bar.text)}</text>'
    )


def main() -> None:
    """Writes all pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, groups in FIGURES.items():
        (PICTURES / f"{name}.svg").write_text(draw(groups), encoding="utf-8")


if __name__ == "__main__":
    main()
