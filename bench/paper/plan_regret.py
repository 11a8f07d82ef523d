"""The regret of `plan`: the layouts it chooses against the best of those replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bench.decoder_suite.phases import PAPER_540B, Phase, model_of
from bench.decoder_suite.steps import StepRow, Task
from bench.paper.rows import CONTEXT, SLICES, shape_of
from collective_einsum.ruler.replay import legend, table
from layouts import Option, Plan, plan

# The largest regret allowed at most points (MOST), and at any point (ANY).
MOST, ANY = 0.05, 0.15
# The number of candidates: the options that the model ranks first, if their seconds are at most WITHIN
# times those of its best.
CANDIDATES, WITHIN = 5, 1.5

# Model, chips, phase, and batches with their weights.
_POINTS = (
    ("palm-540b", 32, "decode", "32 int8, 256 int8"),
    ("palm-540b", 64, "decode", "1 int8, 8 bf16, 64 int8, 128 bf16, 256 int8, 512 bf16, 1024 int8"),
    ("palm-540b", 128, "decode", "4 bf16, 64 int8, 512 bf16"),
    (PAPER_540B, 256, "decode", "64 bf16, 256 int8, 1024 bf16"),
    ("palm-540b", 64, "prefill", "1 int8, 4 bf16, 16 int8, 64 bf16"),
    ("palm-540b", 128, "prefill", "8 bf16, 32 int8"),
    (PAPER_540B, 256, "prefill", "1 bf16, 64 int8"),
    ("palm-62b", 8, "decode", "16 int8, 128 int8"),
    ("palm-62b", 16, "decode", "1 bf16, 64 bf16, 512 int8"),
    ("palm-62b", 32, "decode", "32 int8, 512 bf16"),
    ("palm-62b", 64, "decode", "256 bf16"),
    ("palm-62b", 8, "prefill", "1 int8"),
    ("palm-62b", 16, "prefill", "8 bf16, 64 bf16"),
    ("palm-62b", 32, "prefill", "1 bf16, 128 bf16"),
    ("palm-8b", 8, "decode", "1 int8, 64 bf16, 1024 bf16"),
    ("palm-8b", 16, "decode", "256 int8"),
    ("palm-8b", 32, "decode", "512 bf16"),
    ("palm-8b", 8, "prefill", "1 bf16, 32 int8"),
    ("palm-8b", 16, "prefill", "128 bf16"),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """The arguments of a call of `plan`."""

    model: str
    chips: int
    kind: str
    batch: int
    weights: str

    @property
    def target(self) -> str:
        """The slice."""
        return SLICES[self.chips]

    def plan(self) -> Plan:
        """The ranking."""
        return plan(
            model_of(self.model),
            mesh_shape=shape_of(self.target),
            phase=self.kind,
            batch=self.batch,
            weights=self.weights,
            context=CONTEXT,
            length=CONTEXT,
        )

    def task(self, option: Option) -> Task:
        """The program compiled for one of its options."""
        sizes = (self.model, self.kind, self.batch, CONTEXT, self.weights)
        return Phase(*sizes, option.feedforward, option.attention), self.target

    def candidates(self) -> list[Option]:
        """The options that are replayed, the chosen one first."""
        feasible = self.plan().feasible
        seconds = [option.cost.seconds for option in feasible if option.cost is not None]
        near = [o for o, s in zip(feasible, seconds, strict=True) if s <= WITHIN * seconds[0]]
        return near[:CANDIDATES]

    def __str__(self) -> str:
        return f"{self.model}, {self.chips} chips, {self.kind} {self.batch}, {self.weights}"


@dataclasses.dataclass(frozen=True)
class Regret:
    """The regret of the chosen layouts at a point; seconds are those predicted for a step's layers."""

    point: Point
    chosen: str
    chosen_seconds: float
    best: str
    best_seconds: float
    candidates: int

    @property
    def regret(self) -> float:
        """Seconds of the chosen layouts / those of the best - 1."""
        return self.chosen_seconds / self.best_seconds - 1


def points() -> list[Point]:
    """All points."""
    asked = []
    for model, chips, kind, batches in _POINTS:
        for words in batches.split(", "):
            batch, weights = words.split()
            asked.append(Point(model, chips, kind, int(batch), weights))
    return asked


def tasks() -> list[Task]:
    """The programs compiled for all points."""
    return [point.task(option) for point in points() for option in point.candidates()]


def regrets(rows: Mapping[Task, StepRow]) -> list[Regret]:
    """The regret at each point whose candidates have rows."""
    lost = []
    for point in points():
        options = point.candidates()
        replayed = [(option, rows.get(point.task(option))) for option in options]
        seconds = {
            f"{option.feedforward}, {option.attention}": row.layers_seconds
            for option, row in replayed
            if row is not None and not row.refused
        }
        chosen = f"{options[0].feedforward}, {options[0].attention}"
        if chosen in seconds:
            best = min(seconds, key=lambda name: seconds[name])
            lost.append(Regret(point, chosen, seconds[chosen], best, seconds[best], len(seconds)))
    return lost


_MEANINGS = {
    "not the best at": "model, chips, phase, batch and weights",
    "chosen": "the planner's first layouts",
    "ms": "of the layers of a step, predicted: replayed",
    "best replayed": "the fastest of all layouts that fit",
    "regret": "chosen / best - 1",
}


def print_regrets(lost: Sequence[Regret]) -> str:
    """Formats the number of points within bounds, and all misses."""
    within = sum(one.regret <= MOST for one in lost)
    worst = max((one.regret for one in lost), default=0.0)
    lines = [
        f"{within} of {len(lost)} points within {MOST:.0%} of the best replayed layouts "
        f"({within / max(1, len(lost)):.1%}); the worst loses {worst:.1%}",
    ]
    rows = [
        (
            str(one.point),
            one.chosen,
            f"{one.chosen_seconds * 1e3:.2f}",
            one.best,
            f"{one.best_seconds * 1e3:.2f}",
            f"{one.regret:.1%}",
        )
        for one in sorted(lost, key=lambda one: -one.regret)
        if one.regret > 0
    ]
    if rows:
        head = ("not the best at", "chosen", "ms", "best replayed", "ms", "regret")
        lines += [table(head, rows), legend(_MEANINGS)]
    return "\n".join(lines)
