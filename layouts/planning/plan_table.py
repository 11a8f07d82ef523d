"""A plan as a table, with what the others lost by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..mesh.slice_meshes import shape_name

if TYPE_CHECKING:
    from ..cost.step_cost import Cost
    from .search import Option, Plan

ROWS_SHOWN = 12
_HEAD = (
    *("layouts", "mesh", "batch", "ms", "matmul", "attend", "exposed", "rest"),
    *("flops", "HBM", "ICI", "MFU", "chip-ms/token", "GiB", ""),
)
_UNITS = "ms of a step's layers, and of its parts; flops, HBM and ICI are ms at the chip's peaks"
_PARTS = {
    "matmuls": "matmul_seconds",
    "attention": "attention_seconds",
    "exposed communication": "exposed_seconds",
    "what stands between": "rest_seconds",
}


def print_plan(plan: Plan) -> str:
    """See `Plan`."""
    feasible = plan.feasible
    lines = [
        f"{plan.config.name}, {plan.phase}, on {plan.chip.name}: ranked by {plan.objective}; "
        "predicted by the analytical model",
    ]
    if feasible:
        best = feasible[0]
        rows = (
            [*_cells(o), "" if o is best else slower(_cost(o), plan.cost)]
            for o in feasible[:ROWS_SHOWN]
        )
        lines += [_table([_HEAD, *rows]), _UNITS]
    else:
        lines.append(plan.nearest)
    hidden = len(feasible) - ROWS_SHOWN
    if hidden > 0:
        lines.append(f"and {hidden} more that are slower")
    for option in _told(plan.options[len(feasible) :]):
        lines.append(f"{option}: {option.excluded}")
    return "\n".join(lines)


def print_options(options: Sequence[Option]) -> str:
    """Options as a table, in their order; those that cannot be, in words below it."""
    possible = [option for option in options if not option.excluded]
    lines = [_table([_HEAD[:-1], *map(_cells, possible)]), _UNITS] if possible else ["no options"]
    return "\n".join([*lines, *(f"{o}: {o.excluded}" for o in options if o.excluded)])


def _told(excluded: Sequence[Option]) -> list[Option]:
    """One for each reason and layout."""
    found: dict[tuple[str, str], Option] = {}
    for option in excluded:
        found.setdefault((option.excluded, option.feedforward), option)
    return list(found.values())[:ROWS_SHOWN]


def _cost(option: Option) -> Cost:
    assert option.cost is not None
    return option.cost


def _cells(option: Option) -> list[str]:
    cost = _cost(option)
    parts = [getattr(cost, name) for name in _PARTS.values()]
    limits = (cost.flop_seconds, cost.hbm_seconds, cost.ici_seconds)
    return [
        f"{option.feedforward}, {option.attention}",
        shape_name(option.sizes),
        str(option.batch),
        *(f"{s * 1e3:.4g}" for s in (cost.seconds, *parts, *limits)),
        f"{cost.mfu:.1%}",
        f"{cost.chip_seconds_per_token * 1e3:.3g}",
        f"{cost.memory.total / 2**30:.1f}",
    ]


def slower(cost: Cost, best: Cost) -> str:
    """Where a step loses most against the best, by the seconds of a token."""
    lost = {
        name: getattr(cost, part) / cost.load.tokens * 1e3
        - getattr(best, part) / best.load.tokens * 1e3
        for name, part in _PARTS.items()
    }
    name, most = max(lost.items(), key=lambda item: item[1])
    ratio = cost.seconds / cost.load.tokens / (best.seconds / best.load.tokens)
    return f"{ratio:.2f}x: {name}" if most > 0 else f"{ratio:.2f}x"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(widths) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
