"""Tables of what was measured: each row's distance to its limit, and the figures over all rows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.einsum_suite.cases import BY_OPTIONS, FORMS, ON_SPARSE_CORES
from bench.einsum_suite.feedforward_forms import DESCRIPTION
from bench.einsum_suite.measure import Row
from collective_einsum.ruler.compile import versions
from collective_einsum.ruler.replay import legend, table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The mean speedup and hidden fraction are over rows where communication, done after the compute, takes
# 30% to 100% of it: hiding it is both worth while and possible there.
WORTHWHILE = (0.3, 1.0)
WORTHWHILE_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One case on one target under several schedules.

    Attributes:
      blocking: lax's collectives before and after the einsum.
      auto: the schedule that the cost model chooses.
      best: the fastest of all schedules that were tried.
      baseline: the fastest program that is not ours.
      chosen: name of the schedule that auto compiles to.
      in_jit: auto without the options of `ce.jit`, if that was tried.
    """

    blocking: Row
    auto: Row
    best: Row
    baseline: Row
    chosen: str
    in_jit: Row | None = None

    @property
    def limit_seconds(self) -> float:
        """The longer of blocking's compute and communication."""
        return max(self.blocking.compute_seconds, self.blocking.communication_seconds)

    @property
    def distance(self) -> float:
        """auto / limit - 1."""
        return self.auto.total_seconds / self.limit_seconds - 1

    @property
    def speedup(self) -> float:
        """blocking / auto."""
        return self.blocking.total_seconds / self.auto.total_seconds

    @property
    def regret(self) -> float:
        """auto / best - 1."""
        return self.auto.total_seconds / self.best.total_seconds - 1

    @property
    def against_baseline(self) -> float:
        """auto / baseline."""
        return self.auto.total_seconds / self.baseline.total_seconds

    @property
    def hidden_fraction(self) -> float:
        """The fraction of blocking's communication that auto does not wait for."""
        communication = self.blocking.communication_seconds
        return 1 - self.auto.exposed_seconds / communication if communication else 1.0

    @property
    def is_worthwhile(self) -> bool:
        """Whether it counts for the mean speedup and for what is hidden."""
        low, high = WORTHWHILE
        ratio = self.blocking.communication_seconds / self.blocking.compute_seconds
        return self.blocking.rows >= WORTHWHILE_ROWS and low <= ratio <= high


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """One for each case that has both a blocking row and one of ours, in the order of the rows."""
    cases: dict[tuple[str, str, str, int], dict[str, Row]] = {}
    for row in rows:
        if not row.refused:
            cases.setdefault((row.target, row.weights, row.case, row.rows), {})[row.schedule] = row
    compared = []
    for tried in cases.values():
        blocking, auto = tried.get("blocking"), tried.get("auto", tried.get("ours"))
        if blocking is None or auto is None:
            continue
        same = [r.schedule for r in tried.values() if r.program == auto.program and r is not auto]
        plain = (BY_OPTIONS, ON_SPARSE_CORES)
        others = [r for name, r in tried.items() if name in plain or name.startswith("compiler")]
        # A baseline is no choice; the feedforward has one form of ours only.
        choices = [row for row in tried.values() if row not in others]
        compared.append(
            Comparison(
                blocking,
                auto,
                # Auto compiles to the program of another schedule; the name of that one says more.
                min(choices, key=lambda row: (row.total_seconds, "auto" in row.schedule)),
                min((blocking, *others), key=lambda row: row.total_seconds),
                same[0] if same else auto.schedule,
                tried.get(f"{auto.schedule} in jit"),
            )
        )
    return compared


# The meaning of each column, printed below the tables.
_MEANINGS = {
    "rows": "size of label m",
    "compute": "time in which the chip computes",
    "comm": "time in which something is under way between chips, as in blocking",
    "blocking": "lax's collectives before and after the einsum, by jax.jit",
    "best jit": "the fastest of blocking by jax.jit with its defaults, with the options of ce.jit, and "
    "with collectives on SparseCores; of the feedforward, also of plain einsums",
    "exposed": "time of the column before in which the chip waits for communication",
    "in jit": "auto by jax.jit, without the compiler options of ce.jit",
    "auto": 'schedule="auto" by ce.jit; of the feedforward, its form "ours"',
    "hidden": "fraction of that communication which auto does not wait for",
    "speedup": "blocking / auto",
    "limit": "compute or communication of blocking, the longer: no overlap of the two can be faster",
    "above it": "auto / limit - 1; negative where another program has less to do than blocking",
}
_CHOICE_MEANINGS = {
    "rows": "size of label m",
    "chose": "the schedule whose program auto comes to; auto where no other has the same one, ce.jit's "
    "options included",
    "best": "the fastest of all that were tried, by its replay",
    "which": "the schedule of best",
    "regret": "auto / best - 1",
}


def print_comparisons(compared: Sequence[Comparison]) -> str:
    """Formats a line for each case, in microseconds a layer."""
    rows = [
        (
            f"{c.auto.case}, {c.auto.weights}",
            str(c.auto.rows),
            _us(c.blocking.compute_seconds),
            _us(c.blocking.communication_seconds),
            _us(c.blocking.total_seconds),
            _us(c.baseline.total_seconds),
            _us(c.in_jit.total_seconds) if c.in_jit else "",
            _us(c.auto.total_seconds),
            _percent(c.hidden_fraction),
            f"{c.speedup:.3f}",
            _us(c.limit_seconds),
            f"{c.distance:+.1%}",
        )
        for c in compared
    ]
    head = (
        *(
            "us a layer, predicted",
            "rows",
            "compute",
            "comm",
            "blocking",
            "best jit",
            "in jit",
            "auto",
        ),
        *("hidden", "speedup", "limit", "above it"),
    )
    return table(head, rows)


def print_choices(compared: Sequence[Comparison]) -> str:
    """Formats a line for each case: the schedule that auto chose, and the best; microseconds a layer."""
    rows = [
        (
            f"{c.auto.case}, {c.auto.weights}",
            str(c.auto.rows),
            c.chosen,
            _us(c.best.total_seconds),
            c.best.schedule,
            f"{c.regret:.1%}",
        )
        for c in compared
    ]
    return table(("us a layer, predicted", "rows", "chose", "best", "which", "regret"), rows)


def comparisons_legend(compared: Sequence[Comparison]) -> str:
    """The columns and cases of `print_comparisons`, to stand below it."""
    meanings = {name: text for name, text in _MEANINGS.items() if name != "exposed"}
    return f"{legend(meanings)}\n{_cases_legend(compared)}"


def short_legend(compared: Sequence[Comparison]) -> str:
    """The columns and cases of `print_short`, to stand below it."""
    meanings = {
        n: t for n, t in _MEANINGS.items() if n not in ("compute", "comm", "best jit", "in jit")
    }
    return f"{legend(meanings)}\n{_cases_legend(compared)}"


def choices_legend() -> str:
    """The columns of `print_choices`, to stand below it."""
    return legend(_CHOICE_MEANINGS)


def _cases_legend(compared: Sequence[Comparison]) -> str:
    """The einsum and the collective of every case, one a line."""
    names = dict.fromkeys(c.auto.case for c in compared)
    lines = [f"  {name}: {FORMS[name].description}" for name in names if name in FORMS]
    lines += [f"  {n}: PaLM's feedforward, {DESCRIPTION}" for n in names if n not in FORMS]
    return "\n".join(["Cases:", *lines])


def print_conclusion(compared: Sequence[Comparison]) -> str:
    """Sums the table up in one sentence."""
    if not compared:
        return "Nothing could be compared: no case has both a blocking row and one of ours."
    mean = math.exp(sum(math.log(c.speedup) for c in compared) / len(compared))
    faster = sum(c.speedup > 1.001 for c in compared)
    return (
        f"So auto is predicted faster than blocking in {faster} of {len(compared)} rows, "
        f"{mean:.2f} times in the geometric mean and {max(c.speedup for c in compared):.2f} times "
        "at best."
    )


def print_short(compared: Sequence[Comparison]) -> str:
    """Formats lines as `print_comparisons`, for one schedule of ours and blocking."""
    rows = [
        (
            c.auto.case,
            str(c.auto.rows),
            _us(c.blocking.total_seconds),
            _us(c.blocking.exposed_seconds),
            _us(c.auto.total_seconds),
            _us(c.auto.exposed_seconds),
            _percent(c.hidden_fraction),
            f"{c.speedup:.3f}",
            _us(c.limit_seconds),
            f"{c.distance:+.1%}",
        )
        for c in compared
    ]
    head = (
        *("us a layer, predicted", "rows", "blocking", "exposed", "auto", "exposed"),
        *("hidden", "speedup", "limit", "above it"),
    )
    return table(head, rows)


def print_summary(rows: Sequence[Row]) -> str:
    """The figures over all rows of one target."""
    compared = comparisons(rows)
    einsums = [c for c in compared if c.auto.schedule == "auto"]
    layers = [c for c in compared if c.auto.schedule == "ours"]
    lines = []
    if einsums:
        worst = max(einsums, key=lambda c: c.against_baseline)
        regret = max(einsums, key=lambda c: c.regret)
        far = max(einsums, key=lambda c: c.distance)
        lines += [
            f"slowest against the best plain jit: {worst.against_baseline:.3f} of it ({_name(worst)}, "
            f"{worst.baseline.schedule})",
            f"worst regret: {regret.regret:.1%} ({_name(regret)}, best {regret.best.schedule})",
            f"furthest from its limit: {far.distance:+.1%} ({_name(far)})",
        ]
    plain = [
        (c.in_jit.total_seconds / c.blocking.total_seconds, _name(c)) for c in einsums if c.in_jit
    ]
    if plain:
        lines.insert(1, "slowest in a plain jit: {:.3f} of it ({})".format(*max(plain)))
    worthwhile = [c for c in einsums if c.is_worthwhile]
    if worthwhile:
        low, high = WORTHWHILE
        mean = math.exp(sum(math.log(c.speedup) for c in worthwhile) / len(worthwhile))
        limit = math.exp(
            sum(math.log(c.blocking.total_seconds / c.limit_seconds) for c in worthwhile)
            / len(worthwhile)
        )
        exposed = sum(c.auto.exposed_seconds for c in worthwhile)
        communication = sum(c.blocking.communication_seconds for c in worthwhile)
        lines.append(
            f"where communication is {low:.0%} to {high:.0%} of compute and rows are "
            f"{WORTHWHILE_ROWS} or more ({len(worthwhile)} rows): speedup {mean:.3f} in the "
            f"geometric mean (limit {limit:.3f}), {1 - exposed / communication:.1%} of "
            "communication hidden, "
            f"least {min(c.hidden_fraction for c in worthwhile):.1%}"
        )
    errors = sorted(
        (abs(row.modelled_seconds / row.total_seconds - 1), str(row))
        for row in rows
        if row.modelled_seconds and row.total_seconds
    )
    if errors:
        lines.append(
            f"cost model against the replay, {len(errors)} programs: off by "
            f"{errors[len(errors) // 2][0]:.1%} in the median, "
            f"{errors[len(errors) * 9 // 10][0]:.1%} in the ninth decile, "
            f"{errors[-1][0]:.0%} at worst ({errors[-1][1]})"
        )
    lines += [
        f"{c.auto.case}, {c.auto.rows} rows: {c.speedup:.3f} times faster than blocking, "
        f"{1 / c.against_baseline:.3f} than the best that is not ours ({c.baseline.schedule}, "
        f"{_us(c.baseline.total_seconds)} us); limit {_us(c.limit_seconds)} us"
        for c in layers
    ]
    for whose, some in (("any", rows), ("auto's", [c.auto for c in compared])):
        slow = max(some, key=lambda row: row.compile_seconds, default=None)
        if slow is not None:
            lines.append(
                f"longest compile of {whose} (measured): {slow.compile_seconds:.1f} s ({slow})"
            )
    return "\n".join(lines)


def save_json(path: str, **lists: Sequence[DataclassInstance]) -> None:
    """Writes lists of dataclasses by name, with the versions of jax and libtpu."""
    document: dict[str, object] = {"versions": versions()}
    for name, values in lists.items():
        document[name] = [_as_dict(value) for value in values]
    Path(path).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _as_dict(value: DataclassInstance) -> Mapping[str, object]:
    fields = dataclasses.asdict(value)
    if isinstance(value, Row):
        fields |= {"kind": "predicted", "hidden_fraction": value.hidden_fraction}
    return fields


def _name(c: Comparison) -> str:
    return f"{c.auto.case}, {c.auto.rows} rows, {c.auto.weights}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _percent(fraction: float) -> str:
    # Adding zero turns a rounded -0 into 0.
    return f"{round(fraction, 2) + 0:.0%}"
