"""Known chips by jax's device kinds and by the names that people give them."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable
from dataclasses import replace

from .chip import Chip
from .compiler_habits import CompilerOption
from .known_chips import H100, H200, TPU_7X, TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E

# Compile-only topologies and attached chips report the same kinds; both spellings of v5e, v5p and
# v6e occur (jax/_src/pallas/mosaic/tpu_info.py). Emulated CPU devices stand in for TPU v4, the chip
# the schedules were made for.
_CHIP_OF_KIND: dict[str, Chip] = {
    "TPU v4": TPU_V4,
    "TPU v5": TPU_V5P,
    "TPU v5p": TPU_V5P,
    "TPU v5 lite": TPU_V5E,
    "TPU v5e": TPU_V5E,
    "TPU v6 lite": TPU_V6E,
    "TPU v6e": TPU_V6E,
    "TPU7x": TPU_7X,
    "TPU v7x": TPU_7X,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "cpu": replace(TPU_V4, compiler_options=(), no_prefetch_options=(), weights_ahead_options=()),
}

# Compiler options that XLA:TPU knows and other backends refuse.
_TPU_OPTIONS = {
    name
    for chip in _CHIP_OF_KIND.values()
    for name, _ in (
        *chip.compiler_options,
        *chip.no_prefetch_options,
        *chip.weights_ahead_options,
        *chip.sparse_core_options,
        *chip.sparse_core_queue_options,
    )
}

_SHORT_NAMES: dict[str, Chip] = {
    "v4": TPU_V4,
    "v5p": TPU_V5P,
    "v5e": TPU_V5E,
    "v6e": TPU_V6E,
    "v7x": TPU_7X,
    "h100": H100,
    "h200": H200,
}

# An unknown maker's chips: joined by a switch, so "auto" takes lax's own collectives.
_GENERIC = replace(H100, name="generic accelerator")


class UnlistedChipWarning(UserWarning):
    """A device kind is not listed, so the numbers of another chip stand for its own."""


def as_chip(chip: Chip | str) -> Chip:
    """The chip of this name, such as "v4", "TPU v5p" or "h100"; a `Chip` is returned as it is.

    The device kinds of jax that are listed are names too. Only letters and digits of a name count, in
    either case, and the maker may be left out.

    Raises:
      ValueError: no chip has this name, with the names that there are; or `chip` is neither a name
        nor a `Chip`.
    """
    if isinstance(chip, Chip):
        return chip
    known = _named(chip) if isinstance(chip, str) else None
    if known is not None:
        return known
    names = ", ".join(repr(name) for name in _SHORT_NAMES)
    if not isinstance(chip, str):
        raise ValueError(
            f"chip={chip!r} is no collective_einsum.Chip; give one, or a name: one of {names}"
        )
    raise ValueError(
        f"chip={chip!r}: no chip is known by that name; give one of {names}, "
        f"collective_einsum.chip_for({chip!r}) for the known one that is nearest to a device "
        "of that kind, or a collective_einsum.Chip of your own"
    )


@functools.cache
def _named(name: str) -> Chip | None:
    return _by_name().get(_plain(name))


def chip_for(device_kind: str) -> Chip:
    """The chip of jax devices of this kind, or the nearest one that is known.

    A kind that is not listed gets the numbers of the nearest chip of the same maker, or of a generic
    accelerator; an `UnlistedChipWarning` names it once in a process. "cpu" gives TPU_V4 without its
    compiler options: on emulated devices "auto" chooses the schedules of a TPU v4.

    Args:
      device_kind: `jax.Device.device_kind`, or that of
        `jax.sharding.get_abstract_mesh().abstract_device` while tracing.
    """
    chip = _CHIP_OF_KIND.get(device_kind)
    return _nearest(device_kind) if chip is None else chip


def options_on(
    device_kind: str, options: Iterable[tuple[str, CompilerOption]]
) -> dict[str, CompilerOption]:
    """The options that the compiler for devices of this kind accepts: emulated CPU devices, which stand
    in for TPUs, get none of XLA:TPU's."""
    tpu = device_kind.startswith("TPU")
    return {name: value for name, value in options if tpu or name not in _TPU_OPTIONS}


# Cached, so that the warning comes once; where warnings are errors, each call raises it.
@functools.cache
def _nearest(device_kind: str) -> Chip:
    chip = _of_maker(device_kind.lower())
    warnings.warn(
        f"device kind {device_kind!r} is not listed, so the numbers of {chip.name!r} stand for its "
        "own where schedules and layouts are chosen; pass chip= with another chip, by name or as "
        "a collective_einsum.Chip",
        UnlistedChipWarning,
        stacklevel=3,
    )
    return chip


def _of_maker(kind: str) -> Chip:
    """The nearest chip of the same maker: the H200 for NVIDIA's chips after it and the H100 for others;
    for a TPU, that of its generation with as many torus dimensions."""
    if re.search("nvidia|tesla|geforce|quadro", kind):
        return H200 if re.search(r"\bg?(h2|b\d)00", kind) else H100
    generation = re.search(r"tpu *v?(\d+)", kind)
    if generation is None:
        return _GENERIC
    if int(generation[1]) < 5:
        return TPU_V4
    if not re.search(r"lite|\de", kind):
        return TPU_V5P if int(generation[1]) < 7 else TPU_7X
    return TPU_V5E if generation[1] == "5" else TPU_V6E


@functools.cache
def _by_name() -> dict[str, Chip]:
    full = {chip.name: chip for chip in _SHORT_NAMES.values()}
    return {_plain(name): c for name, c in {**_CHIP_OF_KIND, **full, **_SHORT_NAMES}.items()}


def _plain(name: str) -> str:
    return re.sub("^(tpu|nvidia)", "", re.sub("[^a-z0-9]", "", name.lower()))
