"""Compiling under the options with which a chip's compiler runs its collectives beside other work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from .chip import Chip
from .chip_names import chip_for

# A part of the keys of jax's caches: what was traced without the options is not taken for them.
_by_options = jax.make_user_context(default_value=False)


def compiler_options(chip: Chip | None = None) -> dict[str, bool | int | str]:
    """What `jax.jit(..., compiler_options=...)` takes for the chip's compiler to run more of lax's
    collectives beside other work; nothing for a chip that has no such options.

    Args:
      chip: by default that of `jax.devices()`.
    """
    return dict(_chip(chip).compiler_options)


def jit(function: Callable[..., Any], *, chip: Chip | None = None, **options: Any) -> Any:
    """`jax.jit` with `compiler_options(chip)`, and with schedules chosen for what they allow.

    Inside of another jit, whose options count, it is `jax.jit` as it stands.

    Args:
      function: as for `jax.jit`.
      chip: that it is compiled for; by default that of `jax.devices()`.
      options: of `jax.jit`, such as `static_argnames`, `donate_argnames` and `out_shardings`; its
        `compiler_options` are added to the chip's.

    Returns:
      A function with the `lower` and `trace` of `jax.jit`'s.
    """
    return _Jitted(function, _chip(chip), options)


@contextlib.contextmanager
def knowing_options() -> Iterator[None]:
    """What is traced meanwhile will be compiled under `compiler_options`."""
    with _by_options(True):
        yield


def by_options() -> bool:
    """Whether what is being traced will be compiled under `compiler_options`."""
    return bool(_by_options.value)


def with_options(chip: Chip) -> Chip:
    """The chip, as its compiler serves what is being traced."""
    return chip.under_options() if by_options() else chip


class _Jitted:
    """See `jit`."""

    def __init__(self, function: Callable[..., Any], chip: Chip, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)

        @functools.wraps(function)
        def knowing(*args: Any, **kwargs: Any) -> Any:
            with knowing_options():
                return function(*args, **kwargs)

        given = {**dict(chip.compiler_options), **(options.pop("compiler_options", None) or {})}
        self._inside = jax.jit(function, **options)
        self._alone = self._inside
        if chip.compiler_options:
            self._alone = jax.jit(knowing, **options, compiler_options=given)
        elif given:
            self._alone = jax.jit(function, **options, compiler_options=given)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Where both are one, there is nothing to ask.
        nested = self._alone is not self._inside and _tracing()
        return (self._inside if nested else self._alone)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As of `jax.jit`."""
        return self._alone.lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._alone.trace(*args, **kwargs)


def _chip(chip: Chip | None) -> Chip:
    return chip_for(jax.devices()[0].device_kind) if chip is None else chip


def _tracing() -> bool:
    """Whether a jit is being traced around this: all of jax's arrays are then traced."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)
