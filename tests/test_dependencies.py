"""What the wheel's packages import is Python's own or a declared dependency."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def required() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {line.split(">")[0].split("[")[0] for line in project["dependencies"]}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports before any of its functions is called."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ["collective_einsum", "layouts"])
def test_imports_are_declared(package: str) -> None:
    names = {name for path in (ROOT / package).rglob("*.py") for name in imported(path)}
    own = {"collective_einsum", "layouts", *sys.stdlib_module_names}
    assert names - own <= required()
