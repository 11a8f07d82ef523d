"""`python -m bench paper`: the paper's results against the analytical model's and our programs'."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.decoder_suite.phases import Phase, mfu
from bench.decoder_suite.steps import StepRow, Task, step_all
from bench.paper import formulas as paper_forms
from bench.paper import plots as paper_plots
from bench.paper.lines import Line
from bench.paper.mt_nlg_end_to_end import Workload, workloads
from bench.paper.plan_regret import Regret, print_regrets, regrets
from bench.paper.plan_regret import tasks as regret_tasks
from bench.paper.rows import NOTES, entries, shape_of
from collective_einsum.ruler.compile import target, versions
from collective_einsum.ruler.replay import markdown_table, wrapped
from layouts.cost import Cost, cost

MEDIAN_ALLOWED, WORST_ALLOWED, MODEL_ALLOWED = 0.10, 0.25, 0.20


def analytical(phase: Phase, target_name: str) -> Cost:
    """The analytical model's cost of a phase without overlap."""
    chip = target(target_name).chip
    assert chip is not None
    return cost(phase.config, phase.plan, shape_of(target_name), phase.load, chip, "none")


def report(
    directory: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    *,
    full: bool,
    workers: int,
    progress: Callable[[str], None],
) -> str:
    """Compiles and replays what is not in the cache, and writes report.md, report.json and pictures.

    Returns the summary, to be printed.
    """
    start = time.perf_counter()
    wanted = [entry for entry in entries() if full or entry.quick]
    loads = workloads() if full else []
    tasks: dict[Task, None] = {}
    for entry in wanted:
        tasks |= dict.fromkeys((phase, entry.target) for phase in entry.phases)
    for workload in loads:
        tasks |= dict.fromkeys(workload.tasks)
    if full:
        tasks |= dict.fromkeys(regret_tasks())
    ordered = list(tasks)
    rows: dict[Task, StepRow] = {}
    for place, row in step_all(ordered, cache, workers):
        rows[ordered[place]] = row
        progress(f"replayed {len(rows)} of {len(ordered)}: {row.phase} on {row.target}")
    lines = [
        Line(
            entry,
            analytical(entry.blocking, entry.target),
            rows.get((entry.blocking, entry.target)),
            rows.get((entry.best, entry.target)),
        )
        for entry in wanted
    ]
    lost = regrets(rows) if full else []
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = paper_plots.save_all(folder, lines)
    summary = [*_errors(lines), *([print_regrets(lost)] if lost else [])]
    text = _markdown(lines, loads, rows, summary, pictures, full)
    (folder / "report.md").write_text(text, encoding="utf-8")
    _save_json(folder / "report.json", lines, lost, loads, rows)
    took = time.perf_counter() - start
    ratios = [error + 1 for line in lines if (error := line.error("best")) is not None]
    if ratios:
        median = statistics.median(ratios)
        summary.append(
            f"So our programs at their best are predicted to take {median:.2f} of the published time in "
            f"the median of {len(ratios)} figures."
        )
    names = ", ".join(["report.md", "report.json", *pictures.values()])
    return "\n".join(
        [*summary, *wrapped(f"written to {folder} in {took:.0f} s (measured): {names}")]
    )


def _errors(lines: Sequence[Line]) -> list[str]:
    """The errors of two columns against the published figures, a sentence a column."""
    sentences = []
    for which, allowed in (("blocking", MEDIAN_ALLOWED), ("analytical", MODEL_ALLOWED)):
        errors = {line.entry.label: e for line in lines if (e := line.error(which)) is not None}
        if errors:
            worst = max(errors, key=lambda label: abs(errors[label]))
            median = statistics.median(map(abs, errors.values()))
            bounds = f"at most {allowed:.0%} is aimed at"
            far = f"; at most {WORST_ALLOWED:.0%} is aimed at" if which == "blocking" else ""
            sentences.append(
                f"{which} against {len(errors)} published figures: median error {median:.1%} "
                f"({bounds}), worst {errors[worst]:+.1%} ({worst}{far})"
            )
    return sentences


_INTRODUCTION = """\
# "Efficiently Scaling Transformer Inference", side by side

*Published*: measured by the authors on TPU v4 (arXiv 2211.05102); empty where this project has no
figure. *Analytical*: `layouts.cost` of the paper's layouts without overlap. *Blocking* and *best*:
predicted, our programs compiled by the TPU v4 compiler and replayed; blocking has the paper's
layouts and every schedule `blocking`, best has the schedules chosen by cost, and where a line is not
about a layout, the layouts that `layouts.plan` chooses. Milliseconds are of a step's layers, without
embedding and sampling. Each ratio is to the published figure. One ruler for all rows: no factor is
fitted to any of them, here or in the replay. The analytical model has one figure for fixed overhead,
`layouts.tuning.LAYER_SECONDS`, the same for all rows, read off the replay."""


def _markdown(
    lines: Sequence[Line],
    loads: Sequence[Workload],
    rows: Mapping[Task, StepRow],
    summary: Sequence[str],
    pictures: Mapping[str, str],
    full: bool,
) -> str:
    kind = "full" if full else "quick: some of the rows; `--full` has all"
    versions_ = ", ".join(f"{name} {number}" for name, number in versions().items())
    blocks = [_INTRODUCTION, f"This report is {kind}. Compiled with {versions_}."]
    blocks.append("## How far from the paper\n\n```\n" + "\n".join(summary) + "\n```")
    blocks += paper_forms.sections()
    for section in dict.fromkeys(line.entry.section for line in lines):
        chosen = [line for line in lines if line.entry.section == section]
        blocks.append(f"## {section}\n\n{_table(chosen)}")
        blocks += [NOTES[section]] if section in NOTES else []
    if loads:
        blocks.append(_end_to_end(loads, rows))
    blocks += [f"![{title}]({name})" for title, name in pictures.items()]
    return "\n\n".join(blocks) + "\n"


def _table(lines: Sequence[Line]) -> str:
    head = (
        *("", "published ms", "analytical ms", "blocking ms", "best ms"),
        *("blocking / best", "best MFU", "best layouts", "best GiB"),
    )
    return markdown_table(head, map(_cells, lines))


def _cells(line: Line) -> list[str]:
    best, blocking = line.best, line.blocking
    cells = [line.entry.label, "" if line.published is None else _ms(line.published)]
    for which in ("analytical", "blocking", "best"):
        seconds, error = line.seconds(which), line.error(which)
        text = "does not fit" if seconds is None else _ms(seconds)
        cells.append(text if error is None else f"{text} ({error + 1:.2f})")
    if best is None or best.refused:
        return [*cells, "", "", "", ""]
    phase = best.phase
    slice_ = target(best.target)
    assert slice_.chip is not None
    used = mfu(phase, len(slice_.devices), slice_.chip.bf16_flops, best.layers_seconds)
    faster = ""
    if blocking is not None and not blocking.refused:
        faster = f"{blocking.layers_seconds / best.layers_seconds:.2f}"
    named = f"{phase.feedforward}, {phase.attention}"
    return [*cells, faster, f"{used:.1%}", named, f"{best.chip_bytes / 2**30:.1f}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 1 else f"{seconds * 1e3:.4g}"


def _end_to_end(loads: Sequence[Workload], rows: Mapping[Task, StepRow]) -> str:
    def text(seconds: float | None) -> str:
        return "does not fit" if seconds is None else _ms(seconds)

    cells = [
        (
            f"{workload.tokens_in} in, {workload.tokens_out} out, batch {workload.batch}",
            text(workload.seconds(rows, "blocking")),
            text(workload.seconds(rows, "best")),
        )
        for workload in loads
    ]
    return (
        "## Section 5: MT-NLG 530B on 64 chips, bf16, from tokens to tokens\n\n"
        "Predicted, of the whole: prefill, steps of decoding, embedding, unembedding and greedy "
        "draws.\n\n" + markdown_table(("", "blocking ms", "best ms"), cells)
    )


def _save_json(
    path: Path,
    lines: Sequence[Line],
    lost: Sequence[Regret],
    loads: Sequence[Workload],
    rows: Mapping[Task, StepRow],
) -> None:
    def as_dict(line: Line) -> dict[str, object]:
        columns = ("analytical", "blocking", "best")
        return {
            "section": line.entry.section,
            "label": line.entry.label,
            "target": line.entry.target,
            "published_seconds": line.published,
            **{f"{which}_seconds": line.seconds(which) for which in columns},
            **{f"{which}_error": line.error(which) for which in columns},
            "programs": [dataclasses.asdict(r) for r in (line.blocking, line.best) if r],
        }

    document = {
        "versions": versions(),
        "lines": [as_dict(line) for line in lines],
        "regrets": [dataclasses.asdict(one) | {"regret": one.regret} for one in lost],
        "end_to_end": [
            {
                "batch": workload.batch,
                "tokens_in": workload.tokens_in,
                "tokens_out": workload.tokens_out,
                "blocking_seconds": workload.seconds(rows, "blocking"),
                "best_seconds": workload.seconds(rows, "best"),
            }
            for workload in loads
        ],
        **paper_forms.document(),
    }
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
