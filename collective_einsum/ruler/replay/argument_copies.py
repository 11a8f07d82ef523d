"""Arguments that a program copies into another layout in each run, as jit with default layouts may."""

from __future__ import annotations

from collections.abc import Iterable

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from collective_einsum.ruler.replay.events import COMPUTE_ROW, Event

# A smaller fraction of the total gets no note.
_LEAST_SHARE = 0.01
# The number of arguments that a note names.
_NAMED = 3


def argument_copies(
    entry: hlo.Computation, events: Iterable[Event], total_seconds: float
) -> list[str]:
    """A note on the arguments that are copied into another layout in HBM; none where that takes less
    than a hundredth of the total.

    Args:
      entry: the computation whose parameters are the program's arguments.
      events: of the timeline.
      total_seconds: of the timeline.
    """
    copied = {
        instruction.name: argument
        for instruction in entry
        if (argument := _copied_argument(entry, instruction)) is not None
    }
    seconds: dict[str, float] = {}
    for event in events:
        if event.row == COMPUTE_ROW and event.name in copied:
            argument = copied[event.name]
            seconds[argument] = seconds.get(argument, 0.0) + event.seconds
    spent = sum(seconds.values())
    if spent < _LEAST_SHARE * total_seconds or not spent:
        return []
    longest = sorted(seconds, key=lambda argument: -seconds[argument])
    named = ", ".join(f"{a} {seconds[a] * 1e6:.1f} us" for a in longest[:_NAMED])
    left = len(longest) - _NAMED
    count = "1 argument" if len(longest) == 1 else f"{len(longest)} arguments"
    return [
        f"{count} copied into another layout in each run, {spent * 1e6:.1f} us "
        f"({spent / total_seconds:.1%}): {named}{f' and {left} more' if left > 0 else ''}; pass them in "
        "the layout that the compiler chooses: jax.jit(..., in_shardings=Format(Layout.AUTO, sharding)) "
        "of jax.experimental.layout, then compiled.input_formats"
    ]


def _copied_argument(entry: hlo.Computation, copy: hlo.Instruction) -> str | None:
    """The name of the argument that an op copies into another layout in HBM; None if it does not."""
    if copy.opcode != "copy":
        return None
    source = entry[copy.operands[0]]
    while source.opcode == "bitcast":
        source = entry[source.operands[0]]
    into = copy.shape
    if source.opcode != "parameter" or not isinstance(into, shapes.Shape):
        return None
    if into.memory_space != shapes.HBM or into == entry[copy.operands[0]].shape:
        return None
    return source.op_name.replace("\\'", "'") or source.name
