"""A user's process: nothing of the environment that the tests set is in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def user_environment() -> dict[str, str]:
    """The environment of a user who has installed nothing but this tree, by an editable install."""
    ours = ("XLA_FLAGS", "TPU_", "JAX_", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return environment | {"PYTHONPATH": str(ROOT)}


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
