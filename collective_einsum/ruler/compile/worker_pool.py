"""Work in processes of their own, each with its own compiler."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Of a process, before another takes its place.
TASKS_EACH = 12


def in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Calls `function` with each of `arguments`; yields places and results as they finish."""
    context = multiprocessing.get_context("spawn")
    count = max(1, min(workers, len(arguments)))
    # Compilers keep memory, so that each round has new processes; the pool's own
    # max_tasks_per_child can hang in Python 3.11 when it replaces one.
    for start in range(0, len(arguments), count * TASKS_EACH):
        block = arguments[start : start + count * TASKS_EACH]
        with concurrent.futures.ProcessPoolExecutor(count, mp_context=context) as pool:
            places = {
                pool.submit(function, *each): start + place for place, each in enumerate(block)
            }
            try:
                for future in concurrent.futures.as_completed(places):
                    yield places[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
