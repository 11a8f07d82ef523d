"""`advise`: the compiler options and the einsums of this library that would make a program faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .advice import Advice, EinsumAdvice, OptionAdvice
from .chips.chip import Chip
from .chips.names import as_chip
from .matching_einsum import MatchingEinsum, matching_einsum
from .ruler.hlo import parse as hlo
from .ruler.hlo.neighbours import Neighbours, neighbours
from .ruler.prediction import lower, mesh_of_compiled
from .ruler.replay.simulation import replay
from .ruler.replay.timeline import Timeline

__all__ = ["Advice", "EinsumAdvice", "OptionAdvice", "advise", "option_sets"]

# No program's operands reach this size, so no einsum becomes a loop of permutes.
_NO_WINDOWED_EINSUM = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# Collectives that are looked at: those with most exposed seconds, and no less than this of the total.
_LOOKED_AT, _LEAST_SHARE = 8, 0.01


def advise(
    program: Callable[..., Any] | jax.stages.Lowered,
    *args: Any,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    chip: Chip | str | None = None,
) -> Advice:
    """What would make a program faster on a TPU slice: compiler options, and einsums of this library.

    The program is compiled under every set of options that is worth trying for the chip, and each is
    replayed. For every collective next to a dot that the chip waits for, the einsum that matches the two
    is compiled by itself, blocking and with the schedule that "auto" takes; the difference of the two
    replays is what it is predicted to save, less what the program hides already. Nothing is measured.

    Args:
      program: a function, jitted or not, that is lowered with `args`; or what lowering it gave.
      args: as of `collective_einsum.ruler.predict`.
      target: the slice, such as "v5e:4x4"; inferred from the mesh, and only checked.
      options: the compiler's options that the program has; None for the compiler's defaults.
      chip: whose rates and schedules count, itself or its name; by default that of the slice.

    Returns:
      The advice; `print` shows it.

    Raises:
      ValueError: the arguments do not say on which slice, or the program is compiled already.
    """
    lowered = lower(program, args)
    given = dict(options or {})
    baseline = lowered.compile(compiler_options=given or None)
    mesh = mesh_of_compiled(args, baseline, target)
    figures = as_chip(chip or mesh.devices.flat[0].device_kind)

    def replayed(of: jax.stages.Lowered, more: Mapping[str, Any]) -> Timeline:
        compiled = of.compile(compiler_options={**given, **more} or None)
        return replay(compiled, mesh, figures)

    text = baseline.as_text() or ""
    timeline = replay(text, mesh, figures)
    tried = [
        OptionAdvice(name=name, options=more, timeline=replayed(lowered, more))
        for name, more in option_sets(figures).items()
        if any(given.get(option) != value for option, value in more.items())
    ]
    gaining = [o for o in tried if o.timeline.total_seconds < timeline.total_seconds]
    if len(gaining) > 1:
        every = {name: value for option in gaining for name, value in option.options.items()}
        together = replayed(lowered, every)
        tried.append(OptionAdvice(name="those that gain", options=every, timeline=together))
    pairs: dict[MatchingEinsum, tuple[Timeline, Timeline]] = {}
    advice: list[EinsumAdvice] = []
    for near in _exposed(text, timeline):
        match = matching_einsum(near, mesh, figures)
        if match is not None and match not in pairs and match.choice.schedule.kind != "blocking":
            alone = dict(figures.no_prefetch_options)
            pairs[match] = (
                replayed(match.program(mesh, "blocking"), alone),
                replayed(match.program(mesh, match.choice.schedule), alone),
            )
        advice.append(_advice(near, match, pairs, timeline))
    return Advice(timeline=timeline, options=tuple(tried), einsums=tuple(advice))


def option_sets(chip: Chip) -> dict[str, dict[str, Any]]:
    """The sets of compiler options that are worth trying for a program on a chip, by name."""
    sets = {
        "no windowed einsum": _NO_WINDOWED_EINSUM,
        "those of ce.jit": dict(chip.compiler_options),
        "SparseCores": dict(chip.sparse_core_options),
    }
    return {name: options for name, options in sets.items() if options}


def _exposed(text: str, timeline: Timeline) -> list[Neighbours]:
    """The collectives next to dots that the chip waits for, the longest first."""
    exposed = timeline.exposed_by_op
    least = _LEAST_SHARE * timeline.total_seconds
    near = [n for n in neighbours(hlo.parse(text)) if exposed.get(n.name, 0.0) >= least]
    return sorted(near, key=lambda n: -exposed[n.name])[:_LOOKED_AT]


def _advice(
    near: Neighbours,
    match: MatchingEinsum | None,
    pairs: Mapping[MatchingEinsum, tuple[Timeline, Timeline]],
    timeline: Timeline,
) -> EinsumAdvice:
    stalls = timeline.stalls(near.name)
    exposed = sum(event.seconds for event in stalls)
    saving = 0.0
    if match is not None and match in pairs:
        blocking, best = pairs[match]
        # Waits for what the compiler adds, such as permutes of uneven shards, are in both programs.
        alone = max(blocking.exposed_by_op.values(), default=0.0)
        hidden = alone - exposed / len(stalls)
        gained = blocking.total_seconds - best.total_seconds - hidden
        saving = max(0.0, gained * len(stalls))
    return EinsumAdvice(
        collective=near.kind,
        name=near.name,
        line=near.line,
        count=len(stalls),
        exposed=exposed,
        call="" if match is None else str(match),
        schedule="" if match is None else str(match.choice.schedule),
        saving=saving,
    )
