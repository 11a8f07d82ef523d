"""What is known, while a program is traced, of the chip and the options it will be compiled for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from .chip import Chip
from .names import as_chip, chip_for

# Parts of the keys of jax's caches: what was traced under others is not taken for these.
_by_options = jax.make_user_context(default_value=False)
_named = jax.make_user_context(default_value=None)
_likely = jax.make_user_context(default_value=None)


def compiler_options(chip: Chip | str | None = None) -> dict[str, bool | int | str]:
    """What `jax.jit(..., compiler_options=...)` takes for the chip's compiler to run more of lax's
    collectives beside other work; nothing for a chip that has no such options.

    Args:
      chip: itself or its name; by default that of `jax.devices()`.

    Raises:
      ValueError: no chip has that name.
    """
    return dict((chip_for(attached_kind()) if chip is None else as_chip(chip)).compiler_options)


@contextlib.contextmanager
def knowing_options() -> Iterator[None]:
    """What is traced meanwhile will be compiled under `compiler_options`."""
    with _by_options(True):
        yield


def by_options() -> bool:
    """Whether what is being traced will be compiled under `compiler_options`."""
    return bool(_by_options.value)


@contextlib.contextmanager
def for_chip(chip: Chip | str | None, *, likely: Chip | None = None) -> Iterator[None]:
    """What is traced meanwhile is for `chip`, whatever its mesh; or, where neither that nor the mesh
    tells, for the `likely` one.

    Raises:
      ValueError: no chip has that name.
    """
    named = _named.value if chip is None else as_chip(chip)
    with _named(named), _likely(likely or _likely.value):
        yield


def traced_chip() -> Chip:
    """The chip that what is being traced is for: the one that was named, or else the mesh's, known
    even where there is no hardware; as its compiler serves it."""
    return with_options(_named.value or _mesh_chip() or _likely.value or chip_for(attached_kind()))


def with_options(chip: Chip) -> Chip:
    """The chip, as its compiler serves what is being traced."""
    return chip.under_options() if by_options() else chip


def attached_kind() -> str:
    """The kind of `jax.devices()`."""
    return jax.devices()[0].device_kind


def _mesh_chip() -> Chip | None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return None if device is None else chip_for(device.device_kind)
