"""Random cases for as long as one likes: `python -m tests.hunts.run sampling --seconds 1800 --seed 7`.

A hunt is a module beside this one with `case(seed)`, which draws everything from its seed, and raises
where the library is wrong. Prints each fault with the seed that shows it again, then the counts;
the exit status is 1 if there was a fault. `--only SEED` runs one case, with its whole traceback.
The seed of the case that runs stands in one line of stderr, for what no exception reports (an abort
inside XLA, a case that hangs).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
import traceback
from pathlib import Path

from .. import conftest  # makes the emulated devices, so before anything else loads jax

import jax  # isort: skip

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("run", "test_hunts")
)
# Compiled programs are let go of after so many cases: of thousands, the CPU compiler crashes.
CASES_BETWEEN_CLEARS = 50


def hunt(name: str, seconds: float, seed: int) -> tuple[int, list[int]]:
    """Runs cases from `seed` on until the time is over: how many, and the seeds of the faults."""
    case = importlib.import_module(f"{__package__}.{name}").case
    end, faults, count = time.monotonic() + seconds, [], 0
    while time.monotonic() < end:
        print(f"\r{name}: seed {seed + count}", end="", file=sys.stderr, flush=True)
        try:
            case(seed + count)
        except Exception as error:
            faults.append(seed + count)
            text = "".join(traceback.format_exception_only(error)).strip()[:600]
            print(f"{name}: fault at seed {seed + count}: {text}", flush=True)
        count += 1
        if count % CASES_BETWEEN_CLEARS == 0:
            jax.clear_caches()
            gc.collect()
    return count, faults


def main(arguments: list[str]) -> int:
    """The command line; see above."""
    parser = argparse.ArgumentParser(prog="python -m tests.hunts.run", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="SEED")
    given = parser.parse_args(arguments)
    conftest.start()
    if given.only is not None:
        importlib.import_module(f"{__package__}.{given.name}").case(given.only)
        return 0
    count, faults = hunt(given.name, given.seconds, given.seed)
    print(f"{given.name}: {count} cases from seed {given.seed}, {len(faults)} faults {faults}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
