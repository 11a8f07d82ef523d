"""The programs compiled for the tables: cases under schedules, in the order of the tables."""

from __future__ import annotations

from bench.einsum_suite.cases import ROWS, WEIGHTS, Case, cases, parse_schedule
from bench.einsum_suite.feedforward_forms import FeedForward, feedforwards
from bench.einsum_suite.measure import AnyCase, Task, compile_task
from collective_einsum.chips import as_chip

SHORT_TARGET = "v4:4x4x4"
SHORT_ROWS = (64, 512, 2048)


def short_tasks() -> list[Task]:
    """The einsums and the feedforward, blocking and ours, with weights that stay where they are."""
    einsums = [case for case in cases(SHORT_ROWS, ("bf16",)) if not case.moves_weights]
    return [
        *(Task(c, s, SHORT_TARGET) for c in einsums for s in ("blocking", "auto")),
        *(Task(c, s, SHORT_TARGET) for c in feedforwards(SHORT_ROWS) for s in ("blocking", "ours")),
    ]


def tasks(
    target: str,
    full: bool,
    rows: tuple[int, ...] | None = None,
    weights: tuple[str, ...] | None = None,
    only: str = "",
) -> list[Task]:
    """Every case under every schedule; without `full`, only the cases of `short_tasks`.

    Args:
      target: name of a slice; one with two dimensions has no axis z to gather over.
      rows, weights: replace those of `full`, if given.
      only: a string that the names of the cases must contain.
    """
    counts = rows or (ROWS if full else SHORT_ROWS)
    dtypes = weights or (WEIGHTS if full else ("bf16",))
    chip = as_chip(target.partition(":")[0])
    einsums = cases(counts, dtypes, dims=_dims(target))
    chosen: list[AnyCase] = [case for case in einsums if full or not case.moves_weights]
    chosen += [*feedforwards(counts), *feedforwards(counts, unrolled=full)]
    return [
        Task(case, schedule, target)
        for case in chosen
        if only in case.name
        for schedule in case.variants(chip)
    ]


def find_task(case: str, rows: int, weights: str, schedule: str, target: str) -> Task:
    """The one case of this name, or else whose name contains `case`, under a schedule by name or in a
    form.

    Raises ValueError if there is no such case, or several.
    """
    unrolled = FeedForward(2048, unrolled=True)
    known: list[AnyCase] = [
        *cases((2048,), ("bf16",), _dims(target)),
        *feedforwards((2048,)),
        unrolled,
    ]
    exact = [one for one in known if case == one.name]
    matching = exact or [one for one in known if case in one.name]
    if len(matching) > 1:
        # A string that both feedforwards' names contain means the scanned one.
        matching = [one for one in matching if one != unrolled]
    if len(matching) != 1:
        names = ", ".join(repr(one.name) for one in (matching or known))
        raise ValueError(
            f"case {case!r} is {'one of' if matching else 'none of'} {names}; name one."
        )
    if isinstance(matching[0], FeedForward):
        if weights != "bf16":
            raise ValueError(f"the feedforward has bf16 weights only; {weights!r} is for einsums")
        form = "ours" if schedule == "auto" else schedule
        return Task(FeedForward(rows, weights, matching[0].unrolled), form, target)
    return Task(Case(matching[0].form, rows, weights), parse_schedule(schedule), target)


def compile_again(case: str, rows: int, weights: str, schedule: str, target: str) -> None:
    """Compiles a task whether it is in a cache or not, for the scheduler's log of it."""
    compile_task(find_task(case, rows, weights, schedule, target))


def _dims(target: str) -> int:
    """The dimensions of a slice, by its name."""
    return target.partition(":")[2].count("x") + 1
