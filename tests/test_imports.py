"""Imports run one way: between the packages, between the rooms of a package, and within a room.

An import counts wherever it stands: at the top of a file, inside of a function, or for types only.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("collective_einsum", "layouts", "bench")

# The rooms (folders) and top-level files of each package, from below. Those of one level do not
# import each other; a file in no level stands above all that are named. Above the files are the rooms
# in ABOVE, and above all a command.
LEVELS = {
    "collective_einsum": (
        ("text",),
        ("spec",),
        ("chips",),
        ("ops",),
        ("rings",),
        ("execution", "cost", "ruler"),
        ("autodiff",),
        ("global_arrays",),
    ),
    "layouts": (
        ("arguments", "tuning"),
        ("models",),
        ("mesh",),
        ("partitionings",),
        ("layers", "cost"),
        ("planning",),
        ("sampling",),
        ("decoding",),
        ("checkpoints",),
    ),
    "bench": (
        ("sources",),
        ("calibration", "einsum_suite", "decoder_suite", "swap_suite"),
        ("paper",),
        ("truth",),
    ),
}
ABOVE = {"collective_einsum": ("advise",), "layouts": ("command_line",)}


class Import(NamedTuple):
    """A name that a module imports.

    Attributes:
      importer: the module that imports.
      module: the module that it imports from, or itself.
      name: of what is imported from it; "" for the module itself.
    """

    importer: str
    module: str
    name: str


@functools.cache
def modules() -> dict[str, Path]:
    files: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = path
    return files


def _imports_of(importer: str, path: Path) -> Iterator[Import]:
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - (node.level - 1)] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                if inner in modules():
                    yield Import(importer, inner, "")
                else:
                    yield Import(importer, module, alias.name)


@functools.cache
def imports() -> tuple[Import, ...]:
    """Every import of a module of ours by a module of ours."""
    every = (one for name, path in modules().items() for one in _imports_of(name, path))
    return tuple(one for one in every if one.module.split(".")[0] in PACKAGES)


def _package(module: str) -> str:
    return module.split(".")[0]


def _room(module: str) -> str:
    """The folder or top-level file that a module is, or lies in; "" for the package itself.

    A command (`python -m`) is a room of its own, also in a folder: nothing imports it.
    """
    if module.endswith(".__main__"):
        return "__main__"
    return module.split(".")[1] if "." in module else ""


def _level(module: str) -> int:
    levels = (
        *LEVELS[_package(module)],
        ("the files in no level",),
        ABOVE.get(_package(module), ()),
        ("__main__",),
    )
    files = len(LEVELS[_package(module)])
    return next((place for place, rooms in enumerate(levels) if _room(module) in rooms), files)


def _is_downwards(one: Import) -> bool:
    """Whether an import between rooms runs to a lower level, or from file to file at the top."""
    importer, module = _level(one.importer), _level(one.module)
    files = len(LEVELS[_package(one.importer)])
    return module < importer or (module == importer == files and bool(_room(one.module)))


def _shown(wrong: list[Import]) -> str:
    return "\n".join(f"{one.importer} imports {one.name or ''} {one.module}" for one in wrong)


def test_every_folder_is_a_room_with_a_level() -> None:
    for package, levels in LEVELS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        named = {room for rooms in levels for room in rooms} | set(ABOVE.get(package, ()))
        assert folders <= named


def test_packages_import_downwards() -> None:
    order = {package: place for place, package in enumerate(PACKAGES)}
    wrong = [
        one for one in imports() if order[_package(one.module)] > order[_package(one.importer)]
    ]
    assert not wrong, _shown(wrong)


def test_rooms_import_downwards() -> None:
    wrong = [
        one
        for one in imports()
        if _package(one.importer) == _package(one.module)
        and "." in one.importer
        and _room(one.importer) != _room(one.module)
        and not _is_downwards(one)
    ]
    assert not wrong, _shown(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle(package: str) -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules() if _package(name) == package}
    for one in imports():
        if one.importer in graph and one.module in graph and one.module != one.importer:
            graph[one.importer].add(one.module)
    while free := [name for name, below in graph.items() if not below]:
        for name in free:
            del graph[name]
        for below in graph.values():
            below.difference_update(free)
    assert not graph, f"these import each other, or something that does: {sorted(graph)}"


def test_nothing_private_crosses_a_package() -> None:
    """From outside, a name must be in the `__all__` of a package, of a room or of a subroom."""
    crossing = [one for one in imports() if _package(one.importer) != _package(one.module)]
    assert crossing

    def public(one: Import) -> bool:
        if not one.name:
            return modules()[one.module].name == "__init__.py"
        return one.name in getattr(importlib.import_module(one.module), "__all__", ())

    wrong = [one for one in crossing if not public(one)]
    assert not wrong, _shown(wrong)


def test_only_rings_permute() -> None:
    callers = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name | ast.alias)
        and {getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "name", "")}
        & {"ppermute", "ppermute_p"}
    }
    assert {_room(name) for name in callers} == {"rings"}, callers
