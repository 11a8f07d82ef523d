"""Each hunt for a few cases; `run` goes on for longer."""

from __future__ import annotations

import importlib

import pytest

from .run import NAMES

CASES = 5


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("name", NAMES)
def test_holds(name: str, seed: int) -> None:
    importlib.import_module(f"{__package__}.{name}").case(seed)
