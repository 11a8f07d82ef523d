"""The results of the planner: options with their predicted cost, and a plan that prints as a table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from collective_einsum.chips import Chip
from collective_einsum.text import Shown

from ..cost.step_cost import Cost
from ..mesh.axis_collectives import AXES
from ..mesh.slice_meshes import shape_name
from ..models.config import ModelConfig
from ..partitionings.named_layouts import ATTENTIONS, FEEDFORWARDS
from ..partitionings.partitioning import Partitioning

Objective = Literal["latency", "throughput", "cost"]

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


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to run the phase.

    Attributes:
      feedforward, attention: names of the layouts, keys of `FEEDFORWARDS` and `ATTENTIONS`.
      sizes: of the mesh axes.
      batch: sequences.
      cost: what it costs; None if the sizes do not divide.
      excluded: why it cannot be, in words; "" if it can.
    """

    feedforward: str
    attention: str
    sizes: Mapping[str, int]
    batch: int
    cost: Cost | None
    excluded: str = ""

    @property
    def partitioning(self) -> Partitioning:
        """The layouts."""
        return Partitioning(FEEDFORWARDS[self.feedforward], ATTENTIONS[self.attention])

    @property
    def chips(self) -> int:
        """How many."""
        return functools.reduce(lambda n, axis: n * self.sizes[axis], AXES, 1)

    def __repr__(self) -> str:
        said = self.excluded or ("" if self.cost is None else as_milliseconds(self.cost.seconds))
        return f"Option({self}: {said})"

    def __str__(self) -> str:
        layouts = f"{self.feedforward}, {self.attention}, {shape_name(self.sizes)}"
        return f"{layouts}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Plan(Shown):
    """All options of a phase, the best first; prints as a table with reasons.

    Attributes:
      config, chip, phase, objective: what was asked.
      max_seconds: that a step may take; None for any.
      options: those that can be, ranked; then the others.
    """

    config: ModelConfig
    chip: Chip
    phase: str
    objective: Objective
    max_seconds: float | None
    options: tuple[Option, ...]

    @property
    def words(self) -> str:
        """The model, the phase and the chip."""
        rounded = ", int8 activations" if self.config.int8_activations else ""
        return f"{self.config.name}{rounded}, {self.phase}, on {self.chip.name}"

    @property
    def feasible(self) -> tuple[Option, ...]:
        """The options that can be, the best first."""
        return tuple(option for option in self.options if not option.excluded)

    @property
    def best(self) -> Option:
        """The first of them.

        Raises:
          ValueError: there is none; says what is nearest.
        """
        if not self.feasible:
            raise ValueError(self.nearest)
        return self.feasible[0]

    @property
    def partitioning(self) -> Partitioning:
        """The layouts of the best option, for the `plan=` of a decoder's functions."""
        return self.best.partitioning

    @property
    def cost(self) -> Cost:
        """The cost of the best option."""
        return cost_of(self.best)

    @property
    def fewest_chips(self) -> Option:
        """The best of the options with the fewest chips that will do."""
        fewest = min((option.chips for option in self.feasible), default=self.best.chips)
        return next(option for option in self.feasible if option.chips == fewest)

    @property
    def nearest(self) -> str:
        """The option that comes nearest to being feasible, in words."""
        costs = [(option, option.cost) for option in self.options if option.cost is not None]
        head = f"no layout of {self.config.name} will do for this {self.phase}"
        if not costs:
            return f"{head}: {self.options[0]}: {self.options[0].excluded}"
        fitting = [(option, predicted) for option, predicted in costs if predicted.fits]
        if fitting:
            option, predicted = min(fitting, key=lambda pair: pair[1].step_seconds)
            return (
                f"{head} within {as_milliseconds(self.max_seconds or 0)}: the nearest is {option}, "
                f"which takes {as_milliseconds(predicted.step_seconds)}; allow more, ask for a smaller "
                "batch, or use more chips"
            )
        option, predicted = min(costs, key=lambda pair: pair[1].memory.total)
        return (
            f"{head}: the nearest is {option}, which needs {as_gibibytes(predicted.memory.total)} of "
            f"the {as_gibibytes(self.chip.hbm_bytes)} of a {self.chip.name}; use more chips, a smaller "
            "batch, a shorter context, int8 weights or an int8 cache"
        )

    def __repr__(self) -> str:
        feasible = self.feasible
        best = f", best {feasible[0]!r}" if feasible else ""
        return (
            f"Plan({self.config.name}, {self.phase}, on {self.chip.name}: {len(feasible)} of "
            f"{len(self.options)} options will do{best})"
        )

    def __str__(self) -> str:
        return print_plan(self)


def rated(objective: Objective, cost: Cost, step_seconds: float) -> float:
    """What an objective asks to be least, of a step that takes so long; see `layouts.plan`."""
    if objective == "latency":
        return step_seconds
    chips = cost.chips if objective == "cost" else 1
    return chips * step_seconds / cost.load.tokens


def print_plan(plan: Plan) -> str:
    """See `Plan`."""
    feasible = plan.feasible
    lines = [
        f"{plan.words}: ranked by {plan.objective}; predicted by the analytical model",
    ]
    if feasible:
        best = feasible[0]
        rows = (
            [*_cells(o), "" if o is best else slower(cost_of(o), plan.cost)]
            for o in feasible[:ROWS_SHOWN]
        )
        lines += [_table([_HEAD, *rows]), _UNITS]
    else:
        lines.append(plan.nearest)
    hidden = len(feasible) - ROWS_SHOWN
    if hidden > 0:
        lines.append(f"and {hidden} more that are slower")
    for option in _one_a_reason(plan.options[len(feasible) :]):
        lines.append(f"{option}: {option.excluded}")
    return "\n".join(lines)


def print_options(options: Sequence[Option]) -> str:
    """Options as a table, in their order; those that cannot be, in words below it."""
    possible = [option for option in options if not option.excluded]
    lines = [_table([_HEAD[:-1], *map(_cells, possible)]), _UNITS] if possible else ["no options"]
    return "\n".join([*lines, *(f"{o}: {o.excluded}" for o in options if o.excluded)])


def _one_a_reason(excluded: Sequence[Option]) -> list[Option]:
    """One for each reason and layout."""
    by_reason: dict[tuple[str, str], Option] = {}
    for option in excluded:
        by_reason.setdefault((option.excluded, option.feedforward), option)
    return list(by_reason.values())[:ROWS_SHOWN]


def cost_of(option: Option) -> Cost:
    """The cost of an option whose sizes divide."""
    assert option.cost is not None
    return option.cost


def _cells(option: Option) -> list[str]:
    cost = cost_of(option)
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


def as_milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def as_gibibytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
