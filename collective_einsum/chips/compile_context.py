"""The chip and the compiler options that a program is traced for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import jax

from .chip import Chip
from .compiler_habits import CompilerOption
from .names import as_chip, chip_for

# These contexts are in the keys of jax's caches: a trace made under one value is not reused under
# another.
_by_options = jax.make_user_context(default_value=False)
_named = jax.make_user_context(default_value=None)
_likely = jax.make_user_context(default_value=None)


def compiler_options(
    chip: Chip | str | None = None,
    *,
    sparse_cores: bool | Literal["queue"] = False,
    weights_ahead: bool = False,
) -> dict[str, CompilerOption]:
    """Options for `jax.jit(..., compiler_options=...)` under which the chip's compiler overlaps more of
    lax's collectives with compute, and makes no rings of plain einsums; {} for a chip whose compiler has
    none.

    Args:
      chip: a `Chip` or its name; by default the chip of `jax.devices()`.
      sparse_cores: also let SparseCores run all-gathers, on chips that have them and do not do so
        anyway (v5p, v6e). It helps where independent compute can overlap them, and costs time where a
        dot waits for them: `collective_einsum.advise` tries it. "queue" lets them run reduce-scatters
        too, and queue what comes while they are busy: for programs that gather weights and scatter
        their gradients.
      weights_ahead: also copy weights into on-chip memory earlier, while collectives are under way. It
        helps programs of few rows, bound by HBM, whose weights are arrays of their own, and not slices
        of a stack: `collective_einsum.advise` tries it.

    Raises:
      ValueError: no chip has that name, or `sparse_cores` is none of its values.
    """
    if sparse_cores not in (False, True, "queue"):
        raise ValueError(f"sparse_cores={sparse_cores!r}; give False, True or 'queue'")
    known = chip_for(attached_kind()) if chip is None else as_chip(chip)
    more = known.weights_ahead_options if weights_ahead else ()
    if sparse_cores:
        queue = sparse_cores == "queue"
        known = known.with_sparse_core_queue() if queue else known.with_sparse_cores()
    return dict((*known.compiler_options, *more))


@contextlib.contextmanager
def knowing_options() -> Iterator[None]:
    """Traces within this context are for a program compiled under `compiler_options`."""
    with _by_options(True):
        yield


def by_options() -> bool:
    """Whether the current trace is for a program compiled under `compiler_options`."""
    return bool(_by_options.value)


@contextlib.contextmanager
def for_chip(chip: Chip | str | None, *, likely: Chip | None = None) -> Iterator[None]:
    """Traces within this context are for `chip`, whatever the mesh.

    Without `chip`, the mesh decides, and `likely` where the mesh names no device kind.

    Raises:
      ValueError: no chip has that name.
    """
    named = _named.value if chip is None else as_chip(chip)
    with _named(named), _likely(likely or _likely.value):
        yield


def traced_chip() -> Chip:
    """The chip of the current trace: the one of `for_chip`, or else the mesh's, or else that of
    `jax.devices()`; with the collectives that its compiler makes asynchronous under the options of
    this trace."""
    return with_options(_named.value or _mesh_chip() or _likely.value or chip_for(attached_kind()))


def with_options(chip: Chip) -> Chip:
    """The chip, with what its compiler makes asynchronous under the options of the current trace."""
    return chip.under_options() if by_options() else chip


def attached_kind() -> str:
    """`device_kind` of the first of `jax.devices()`."""
    return jax.devices()[0].device_kind


def _mesh_chip() -> Chip | None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return None if device is None else chip_for(device.device_kind)
