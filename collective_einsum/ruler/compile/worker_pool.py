"""Worker processes, each with a compiler of its own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

# The number of tasks that a process runs before another replaces it.
TASKS_EACH = 12
_Result = TypeVar("_Result")


def in_processes(
    function: Callable[..., _Result],
    arguments: Sequence[tuple[object, ...]],
    workers: int,
    *,
    apart: Sequence[bool] | None = None,
) -> Iterator[tuple[int, _Result]]:
    """Calls `function` with the arguments at every place; yields places and results as they finish.

    A process has places that are marked in `apart`, or others, never both: such as those that dump
    bundles, which compile more slowly. An error, Ctrl-C among them, ends the processes at once, also
    while they compile.
    """
    marks = apart or [False] * len(arguments)
    for kind in (False, True):
        places = [place for place, mark in enumerate(marks) if mark == kind]
        for at, result in _alike(function, [arguments[place] for place in places], workers):
            yield places[at], result


def _alike(
    function: Callable[..., _Result], arguments: Sequence[tuple[object, ...]], workers: int
) -> Iterator[tuple[int, _Result]]:
    """`in_processes`, without places apart."""
    context = multiprocessing.get_context("spawn")
    count = max(1, min(workers, len(arguments)))
    # Compilers do not free all memory, so each round starts new processes; the pool's own
    # max_tasks_per_child can hang in Python 3.11 when it replaces a process.
    for start in range(0, len(arguments), count * TASKS_EACH):
        group = arguments[start : start + count * TASKS_EACH]
        others = set(multiprocessing.active_children())
        with concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=_leave_interrupts_to_the_parent
        ) as pool:
            places = {pool.submit(function, *args): start + i for i, args in enumerate(group)}
            try:
                for future in concurrent.futures.as_completed(places):
                    yield places[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()
                raise


def _leave_interrupts_to_the_parent() -> None:
    # A terminal sends Ctrl-C to all processes; a compiling worker would print a traceback much later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
