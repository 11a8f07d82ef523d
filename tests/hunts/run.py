"""Random cases for as long as one likes: `python -m tests.hunts.run sampling --seconds 1800 --seed 7`.

A hunt is a module beside this one with `case(seed)`, which draws everything from its seed, and raises
where the library is wrong. Prints each fault with the seed that shows it again, then the counts;
the exit status is 1 if there was a fault. `--only SEED` runs one case, with its whole traceback.

Cases run in a process of their own, so that a hunt outlives an abort inside XLA. An abort is a
fault, unless the hunt's module has `plain(seed)`, the same program without this library, and that
aborts too: then XLA is to blame, and the hunt counts the seed apart.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import subprocess
import sys
import tempfile
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


def run_cases(name: str, seconds: float, seed: int, progress: Path) -> None:
    """Runs cases from `seed` on until the time is over; `progress` gets a line for each of them.

    A line is the seed when its case starts, and is continued by "ok" or "fault" when it ends.
    """
    case = importlib.import_module(f"{__package__}.{name}").case
    end, count = time.monotonic() + seconds, 0
    with progress.open("a", encoding="utf-8") as lines:
        while time.monotonic() < end:
            lines.write(f"{seed + count} ")
            lines.flush()
            try:
                case(seed + count)
                lines.write("ok\n")
            except Exception as error:
                lines.write("fault\n")
                text = "".join(traceback.format_exception_only(error)).strip()[:600]
                print(f"{name}: fault at seed {seed + count}: {text}", flush=True)
            count += 1
            if count % CASES_BETWEEN_CLEARS == 0:
                jax.clear_caches()
                gc.collect()


def aborts_without_us(name: str, seed: int) -> bool:
    """Whether the case's program in plain jax kills a process too."""
    if not hasattr(importlib.import_module(f"{__package__}.{name}"), "plain"):
        return False
    return _process(name, "--plain", str(seed)) < 0


def hunt(name: str, seconds: float, seed: int) -> tuple[int, list[int], list[int]]:
    """Runs cases from `seed` on until the time is over.

    Returns how many, the seeds of the faults, and the seeds that XLA aborts without us.
    """
    end, first = time.monotonic() + seconds, seed
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder, "progress")
        progress.touch()
        while (left := end - time.monotonic()) > 0:
            options = ["--seconds", str(left), "--seed", str(seed), "--progress", str(progress)]
            code = _process(name, *options)
            if code > 0:
                raise RuntimeError(f"the process of hunt {name} ended with exit status {code}")
            if code < 0:
                last = int(progress.read_text(encoding="utf-8").split("\n")[-1])
                blame = "xla" if aborts_without_us(name, last) else "fault"
                print(f"{name}: abort by signal {-code} at seed {last}: {blame}", flush=True)
                with progress.open("a", encoding="utf-8") as lines:
                    lines.write(f"{blame}\n")
                seed = last + 1
        results = [line.split() for line in progress.read_text(encoding="utf-8").splitlines()]
    faults = [int(at) for at, result in results if result == "fault"]
    xla = [int(at) for at, result in results if result == "xla"]
    assert [int(at) for at, _ in results] == list(range(first, first + len(results)))
    return len(results), faults, xla


def _process(name: str, *options: str) -> int:
    """The exit status of this command with `options`; negative if a signal ended it."""
    command = [sys.executable, "-m", f"{__package__}.run", name, *options]
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str]) -> int:
    """The command line; see above."""
    parser = argparse.ArgumentParser(prog="python -m tests.hunts.run", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="SEED")
    parser.add_argument("--plain", type=int, metavar="SEED", help="one case without this library")
    parser.add_argument(
        "--progress", type=Path, help="run in this process, with a line a case here"
    )
    given = parser.parse_args(arguments)
    for one, function in ((given.only, "case"), (given.plain, "plain")):
        if one is not None:
            conftest.start()
            getattr(importlib.import_module(f"{__package__}.{given.name}"), function)(one)
            return 0
    if given.progress is not None:
        conftest.start()
        run_cases(given.name, given.seconds, given.seed, given.progress)
        return 0
    count, faults, xla = hunt(given.name, given.seconds, given.seed)
    print(
        f"{given.name}: {count} cases from seed {given.seed}, {len(faults)} faults {faults}, "
        f"{len(xla)} that XLA aborts without us {xla}"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
