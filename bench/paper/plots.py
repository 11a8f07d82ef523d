"""Draws the paper's figures with our numbers, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import layouts
from bench.paper import formulas as paper_forms
from bench.paper.lines import Line
from layouts import pareto, sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODELS = (layouts.PALM_8B, layouts.PALM_62B, layouts.PALM_540B)
_CHIPS = (8, 16, 32, 64, 128, 256)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save_all(folder: Path, lines: Sequence[Line]) -> dict[str, str]:
    """Writes all pictures; returns titles and file names.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    from collective_einsum.ruler.replay import figure_class

    names: dict[str, str] = {}

    def save(name: str, title: str, draw: Callable[[Figure], None], width: float = 7) -> None:
        figure = figure_class()(figsize=(width, 4.5), layout="constrained")
        draw(figure)
        figure.suptitle(title, fontsize=10)
        figure.savefig(folder / name, dpi=120)
        names[title] = name

    save(
        "figure_1.png",
        "Figure 1, C.1: latency against cost, the best layouts; analytical (auto), TPU v4",
        _sweep,
        12,
    )
    save("figure_3.png", "Figure 3: bytes that a chip sends; formulas", _volumes)
    for name, start, title in (
        ("figure_6.png", "Figure 6:", "Figure 6: decoding by chips, batch 512"),
        ("figure_7.png", "Figure 7:", "Figure 7: prefill of 2048 tokens by batch"),
        ("figure_8.png", "Figure 8:", "Figure 8: decoding by context, 8 layers, batch 128"),
        ("figure_b1.png", "Figure B.1:", "Figure B.1: prefill of one sequence by length"),
    ):
        chosen = [line for line in lines if line.entry.section.startswith(start)]
        if chosen:
            save(name, f"{title}; ms of a step's layers", lambda f, c=chosen: _lines(f, c))
    return names


def _sweep(figure: Figure) -> None:
    columns = figure.subplots(1, 3)
    panels: tuple[tuple[str, str, dict[str, int], str], ...] = (
        ("decode", "int8", {"context": 2048}, "decode, int8, context 2048: ms a step"),
        ("decode", "bf16", {"context": 2048}, "decode, bf16, context 2048: ms a step"),
        ("prefill", "bf16", {"length": 2048}, "prefill, bf16, 2048 tokens: ms"),
    )
    for axes, (phase, weights, size, label) in zip(columns, panels, strict=True):
        for config, colour in zip(_MODELS, _COLOURS, strict=False):
            options = sweep(config, phase=phase, weights=weights, chips=_CHIPS, **size)
            front = pareto(options)
            for some, marker, style in ((options, ".", ""), (front, "o", "-")):
                points = [(o.cost.seconds, o.cost.chip_seconds_per_token) for o in some if o.cost]
                axes.plot(
                    [1e3 * seconds for seconds, _ in points],
                    [1e3 * spent for _, spent in points],
                    marker + style,
                    color=colour,
                    markersize=3 if marker == "." else 4,
                    label=config.name if marker == "o" else None,
                    alpha=0.4 if marker == "." else 1,
                )
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="chip-ms a token")
        axes.legend(fontsize=8)


def _volumes(figure: Figure) -> None:
    axes = figure.subplots()
    tokens = [2.0**power for power in range(9, 23)]
    for name, colour in zip(paper_forms.volumes(1), _COLOURS, strict=False):
        axes.plot(
            tokens, [paper_forms.volumes(t)[name] / 1e9 for t in tokens], color=colour, label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="GB a chip and layer")
    axes.legend(fontsize=8)


def _lines(figure: Figure, lines: Sequence[Line]) -> None:
    """Draws a line for each kind of row and column of the report, with a point for each size."""
    axes = figure.subplots()
    kinds: dict[str, list[Line]] = {}
    for line in lines:
        _, _, kind = line.entry.label.partition(", ")
        kinds.setdefault(kind, []).append(line)
    styles = (("best", "-", "o"), ("blocking", "--", "."), ("published", ":", "x"))
    for (kind, some), colour in zip(kinds.items(), _COLOURS, strict=False):
        for which, style, marker in styles:
            points = [
                (_number(line), 1e3 * seconds)
                for line in some
                if (seconds := line.published if which == "published" else line.seconds(which))
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    marker=marker,
                    color=colour,
                    label=f"{kind} {which}".strip(),
                )
    axes.set(xscale="log", yscale="log", xlabel=_words(lines[0]), ylabel="ms")
    _plain_numbers(axes, sorted({_number(line) for line in lines}))
    axes.legend(fontsize=7)


def _plain_numbers(axes: Axes, across: Sequence[float]) -> None:
    """Sets ticks at the sizes `across`, and numbers without powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xticks(across, [f"{number:g}" for number in across])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _number(line: Line) -> float:
    """The size in a label such as "batch 64, WS 2D" or "64 chips, WS 2D"."""
    first, _, _ = line.entry.label.partition(", ")
    return float(next(word for word in first.split() if word.isdigit()))


def _words(line: Line) -> str:
    first, _, _ = line.entry.label.partition(", ")
    return " ".join(word for word in first.split() if not word.isdigit())
