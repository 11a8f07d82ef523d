"""What importing the packages costs: nothing that they do not need at once."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import jax
before = set(sys.modules)
import collective_einsum, layouts
print(*sorted(set(sys.modules) - before))
"""


def test_import_brings_little_beside_the_packages() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    ours = ("collective_einsum", "layouts", "opt_einsum")
    foreign = [name for name in found.stdout.split() if not name.startswith(ours)]
    slow = [name for name in foreign if name.startswith(("jax", "numpy", "libtpu", "matplotlib"))]
    assert not slow, f"importing the packages also imports {slow}"
