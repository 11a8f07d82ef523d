"""`python -m layouts plan`: which layouts are fastest on a slice, and whether the model fits."""

from __future__ import annotations

import argparse
import math
from typing import Any

from collective_einsum.chips import Chip, as_chip

from ..checkpoints import config_from_hf
from ..mesh.slice_meshes import meshes
from ..models.config import ModelConfig
from ..models.named_models import model
from ..planning.padded_plan import padded_plan
from ..replayed_plan import replay_plan
from .choices import as_asked, changes


def run(options: argparse.Namespace) -> None:
    """Prints the planner's table, or that of the options that are replayed.

    Raises:
      ValueError: no model, or a workload that does not fit its phase.
    """
    if options.unrolled and not options.replay:
        raise ValueError("--unrolled is about the programs that --replay compiles; give both")
    if (options.checkpoint is None) == (options.model is None):
        raise ValueError("give a model: --checkpoint FOLDER, or --model NAME, such as palm-540b")
    read = model(options.model) if options.model else config_from_hf(options.checkpoint)
    plain = as_asked(read, options)
    chip, chips, sides = _target(options.target, options.mesh)
    where: dict[str, Any] = {"mesh_shape": options.mesh} if options.mesh else {"chips": chips}
    found = padded_plan(
        plain,
        chip=chip,
        **where,
        phase=options.phase,
        batch=options.batch,
        context=options.context,
        length=options.length,
        weights=options.weights,
        cache="int8" if options.int8_cache else "bf16",
        objective=options.objective,
    )
    padded = _padding(plain, found.config)
    shown = found
    if options.replay:
        shown = replay_plan(found, first=options.replay, unrolled=options.unrolled, sides=sides)
    print("\n".join([*padded, str(shown)]))


def _padding(plain: ModelConfig, padded: ModelConfig) -> list[str]:
    fields = ", ".join(changes(plain, padded))
    return [f"padded so that it divides over the mesh: {fields}"] if fields else []


def _target(text: str | None, mesh: tuple[int, ...] | None) -> tuple[Chip, int, list[int] | None]:
    """The chip of a target such as v5e:4x4, how many devices there are, and the sides, if it says them.

    Raises:
      ValueError: it is none, or has not the chips of `mesh`, or is no compact slice, whose meshes the
        planner does not know, without `mesh`.
    """
    if text is None:
        raise ValueError("give the slice to plan for, such as --target v5e:4x4")
    name, _, sides = text.partition(":")
    chip = as_chip(name)
    words = sides.split("x")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(
            f"--target {text}: give the chip and its number, such as v5e:4x4 or v5e:16"
        )
    shape = [int(word) for word in words]
    count = math.prod(shape) * chip.devices_per_chip
    if mesh is not None and math.prod(mesh) != count:
        raise ValueError(
            f"--mesh {','.join(map(str, mesh))} has {math.prod(mesh)} devices, and --target {text} "
            f"{count}"
        )
    along = sorted(n for n in shape if n > 1)
    compact = [sorted(n for n in sizes.values() if n > 1) for sizes in meshes(count, chip)]
    if mesh is None and len(words) > 1 and chip.devices_per_chip == 1 and along not in compact:
        raise ValueError(
            f"--target {text} is not the most compact slice of {count} chips; give the mesh that you "
            f"want on it, such as --mesh {','.join(map(str, [*shape, 1, 1][:3]))}"
        )
    return chip, count, shape if len(shape) > 1 else None
