"""Work in processes of their own, each with its own compiler."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any


# Of a process, before another takes its place.
TASKS_EACH = 8


def in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Calls `function` with each of `arguments`; yields places and results as they finish."""
    context = multiprocessing.get_context("spawn")
    count = max(1, min(workers, len(arguments)))
    # Compilers keep memory: a process is replaced by a new one after some tasks.
    with concurrent.futures.ProcessPoolExecutor(
        count, mp_context=context, max_tasks_per_child=TASKS_EACH
    ) as pool:
        places = {pool.submit(function, *each): place for place, each in enumerate(arguments)}
        try:
            for future in concurrent.futures.as_completed(places):
                yield places[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
