"""Compiled programs, kept on disk as their scheduled HLO."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import importlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from collective_einsum.chips.compiler_habits import CompilerOption
from collective_einsum.ruler import bundles

DEFAULT_DIRECTORY = ".bench_cache"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its scheduled HLO, its compile time in seconds, and bytes of a chip's memory.

    `temporary_bytes` are the bytes beyond arguments and results; `chip_bytes` are all bytes, donated
    arguments counted once.
    """

    text: str
    compile_seconds: float
    temporary_bytes: int
    chip_bytes: int = 0

    @classmethod
    def of(
        cls, binary: jax.stages.Compiled, compile_seconds: float, text: str | None = None
    ) -> Program:
        """The text (its own unless given), the compile time and the memory of a compiled program."""
        memory = binary.memory_analysis()
        temporary = chip = 0
        if memory is not None:
            temporary = int(memory.temp_size_in_bytes)
            held = memory.argument_size_in_bytes + memory.output_size_in_bytes
            chip = int(held - memory.alias_size_in_bytes) + temporary
        own = binary.as_text() or "" if text is None else text
        return cls(own, compile_seconds, temporary, chip)


def lack_of_memory(error: Exception) -> str:
    """How much memory a program needs and the chip has, in the compiler's words; "" if it failed for
    another reason."""
    text = str(error)
    return text.splitlines()[0].partition(": ")[2] if "RESOURCE_EXHAUSTED" in text else ""


class Cache:
    """A folder of programs, keyed by hashes of all that determines them.

    A program has a second name, for its sources and arguments, by which `recall` finds it without
    tracing. Processes may use one folder at the same time: a file is complete once it has its name.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def recall(self, name: str) -> tuple[str, Program] | None:
        """The key and program that a name was last given to, with bundles where this process dumps
        them."""
        try:
            key = self._path(name + bundles.mark(), "name").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        program = self.load(key)
        return None if program is None else (key, program)

    def load(self, key: str) -> Program | None:
        """The program of a key, if it is there."""
        try:
            document = gzip.decompress(self._path(key, "json.gz").read_bytes())
        except FileNotFoundError:
            return None
        return Program(**json.loads(document))

    def compiled(
        self,
        key: str,
        compile_program: Callable[[], jax.stages.Compiled],
        name: str | None = None,
    ) -> Program:
        """The program of a key, which is compiled and kept if it is not there; `recall` finds it by its
        name, if one is given.

        Where this process dumps bundles (`ruler.bundles`), the program has their counts, and is kept
        apart from one without.
        """
        key += bundles.mark()
        program = self.load(key)
        if program is None:
            start = time.perf_counter()
            binary, text = bundles.text_of(compile_program)
            program = Program.of(binary, time.perf_counter() - start, text)
            document = json.dumps(dataclasses.asdict(program)).encode()
            self._write(self._path(key, "json.gz"), gzip.compress(document, 3))
        if name is not None:
            self._write(self._path(name + bundles.mark(), "name"), key.encode())
        return program

    def load_row(self, name: str) -> dict[str, Any] | None:
        """The row stored under a name, if it is there."""
        try:
            return json.loads(self._path(name, "row.json").read_bytes())
        except FileNotFoundError:
            return None

    def store_row(self, name: str, row: Mapping[str, object]) -> None:
        """Keeps a finished row under a name."""
        self._write(self._path(name, "row.json"), json.dumps(row).encode())

    def _path(self, key: str, suffix: str) -> Path:
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{suffix}"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)


def program_key(
    lowered: jax.stages.Lowered, target: str, options: Mapping[str, CompilerOption]
) -> str:
    """A hash of all that determines the compiled code: program, options, target and versions."""
    parts = [lowered.as_text(), target, *map(str, sorted(options.items())), str(versions())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def source_name(packages: Sequence[str], target: str, *determinants: object) -> str:
    """A name for the sources and arguments of a program, known before the program is traced.

    Args:
      packages: names of the packages whose source files determine the program's text or its replay.
      target: name of the target that the program is compiled for.
      determinants: all else that determines the program, by its `repr`.
    """
    return "\n".join([target, *map(repr, determinants), str(versions()), _sources(tuple(packages))])


def versions() -> dict[str, str | None]:
    """The versions of jax, jaxlib and libtpu; None for a package that is not installed."""
    numbers: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = None
    return numbers


@functools.cache
def _sources(packages: tuple[str, ...]) -> str:
    """A hash of every Python file of the packages, in their subfolders too."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(importlib.import_module(package).__file__ or "").parent
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()
