"""A user's process: of the environment that the tests set, it only has that CPUs compile fast."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Tests compile far longer than they run.
COMPILE_FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)


def user_environment() -> dict[str, str]:
    """The environment of a user who has installed nothing but this tree, by an editable install."""
    ours = ("XLA_FLAGS", "TPU_", "JAX_", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return environment | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(COMPILE_FAST)}


def run_as_user(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder."""
    return subprocess.run(
        list(command),
        cwd=folder,
        env=user_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
