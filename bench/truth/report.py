"""The table of measured and predicted figures, and what it shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.truth.measure import Outcome
from bench.truth.models import PUBLIC_VERSIONS
from bench.truth.records import GROUPS, Source
from collective_einsum.ruler.replay import legend, table, wrapped

_MEANINGS = {
    "slice": "chip and size of the slice that it was measured on, or of one replica",
    "measured": "by the source, on the hardware; < is wall-clock time, an upper bound",
    "predicted": "our program, compiled for the slice and replayed",
    "residual": "predicted / measured - 1",
    "public": f"predicted for the public program itself, by {PUBLIC_VERSIONS}",
    "source": "see below",
}


def print_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Formats a table for each group, the legend, the sources, and the sentences of what was found."""
    sources = list(dict.fromkeys(outcome.record.source for outcome in outcomes))
    blocks = []
    for group in GROUPS:
        members = [outcome for outcome in outcomes if outcome.record.group == group]
        if members:
            head = (group, *_MEANINGS)
            blocks.append(table(head, [_cells(member, sources) for member in members]))
    blocks.append(legend(_MEANINGS))
    named = (f"{number}: {source}" for number, source in enumerate(sources, 1))
    blocks.append("\n".join(line for text in named for line in wrapped(f"Source {text}.")))
    refused: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.refused:
            refused.setdefault(outcome.refused, []).append(outcome)
    if refused:
        reasons = (
            f"Not modelled, {len(rows)} of the rows, the first {_name(rows[0])}: {reason}"
            for reason, rows in refused.items()
        )
        blocks.append("\n".join(line for text in reasons for line in wrapped(text)))
    blocks.append("\n".join(line for text in found(outcomes) for line in wrapped(text)))
    return "\n\n".join(blocks)


def found(outcomes: Sequence[Outcome]) -> list[str]:
    """Sentences: the median and the worst residual of every group, and the bounds that were broken."""
    sentences = []
    for group in GROUPS:
        errors = {
            _name(outcome): outcome.residual
            for outcome in outcomes
            if outcome.record.group == group and outcome.compared and outcome.residual is not None
        }
        if errors:
            worst = max(errors, key=lambda name: abs(errors[name]))
            median = statistics.median(map(abs, errors.values()))
            sentences.append(
                f"{group}: {len(errors)} predictions, median error {median:.1%}, worst "
                f"{errors[worst]:+.1%} ({worst})."
            )
    missing = sum(outcome.predicted_seconds is None for outcome in outcomes)
    bounds = [outcome for outcome in outcomes if outcome.record.upper_bound and outcome.residual]
    if bounds:
        broken = [_name(outcome) for outcome in bounds if (outcome.residual or 0) > 0]
        says = f", and {len(broken)} above: {'; '.join(broken)}" if broken else ""
        below = len(bounds) - len(broken)
        sentences.append(f"{below} of {len(bounds)} predictions are below their upper bound{says}.")
    every = [abs(o.residual) for o in outcomes if o.compared and o.residual is not None]
    if every:
        near = sum(error <= 0.1 for error in every)
        rest = f"; {missing} figures are not modelled" if missing else ""
        sentences.append(
            f"So {near} of {len(every)} measured figures are predicted within 10%, with a median error "
            f"of {statistics.median(every):.1%}{rest}."
        )
    return sentences or ["So no figure is modelled."]


def _cells(outcome: Outcome, sources: Sequence[Source]) -> tuple[str, ...]:
    record, seconds = outcome.record, outcome.predicted_seconds
    bound = "<" if record.upper_bound else ""
    return (
        record.label,
        record.target,
        f"{bound}{_time(outcome.measured_seconds)}",
        "not modelled" if seconds is None else _time(seconds),
        "" if outcome.residual is None else f"{outcome.residual:+.1%}",
        "" if record.public_ms is None else _time(record.public_ms * 1e-3),
        str(sources.index(record.source) + 1),
    )


def _name(outcome: Outcome) -> str:
    return f"{outcome.record.label} on {outcome.record.target}"


def _time(seconds: float) -> str:
    """Formats seconds in a unit that gives at least one digit before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1e3 * size else f"{seconds:.0f} s"
    return f"{seconds * 1e6:.3g} us"
