"""Whether a schedule can serve an einsum of given sizes, and if not, why, in words.

A schedule that is asked for either runs as it says or is refused; it never becomes another one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec.spec import Gather, Scatter, Spec
from .einsum_op import Operation
from .schedule import Schedule


def check_schedule(
    schedule: Schedule,
    spec: Spec,
    sizes: Mapping[str, int],
    gather: Gather | None = None,
    scatter: Scatter | None = None,
    *,
    reduced: bool = False,
) -> None:
    """Refuses a schedule to which there is an `objection`.

    Raises:
      ValueError: the schedule cannot serve the einsum.
    """
    reason = objection(schedule, spec, sizes, gather, scatter, reduced=reduced)
    if reason is not None:
        raise ValueError(f"schedule {str(schedule)!r} cannot serve einsum {spec}: {reason}")


def objection(
    schedule: Schedule,
    spec: Spec,
    sizes: Mapping[str, int],
    gather: Gather | None = None,
    scatter: Scatter | None = None,
    *,
    reduced: bool = False,
) -> str | None:
    """Why `schedule` cannot serve the einsum and what would; None if it can.

    Args:
      schedule: with every choice made; a `label` of None stands for "not split".
      spec: the einsum in normal form: no size-1 broadcasting, no label repeated in an operand.
      sizes: of each label on one device, after the gather and before the scatter.
      gather, scatter: the collectives before and after the einsum.
      reduced: whether the result is all-reduced.
    """
    if schedule.kind == "blocking":
        return None
    if schedule.direction == "bidirectional":
        for word, collective in (("gather", gather), ("scatter", scatter)):
            if collective is not None and collective.n > 1 and collective.shard < 2:
                return (
                    f"{word}={collective.label!r} leaves {collective.shard} of "
                    f"{collective.label!r} to each of {collective.n} devices, which cannot be halved "
                    "to go both ways; use 'latency' or 'unidirectional'"
                )
    if schedule.kind == "chunked":
        return _unsplittable(schedule, spec, sizes, gather, scatter, reduced)
    return None


def _unsplittable(
    schedule: Schedule,
    spec: Spec,
    sizes: Mapping[str, int],
    gather: Gather | None,
    scatter: Scatter | None,
    reduced: bool,
) -> str | None:
    """The objection to splitting a label into chunks, or None."""
    moved = (spec.lhs if gather.operand == "lhs" else spec.rhs) if gather else spec.labels
    summed = scatter is not None or reduced
    moved_labels = {x.label for x in (gather, scatter) if x is not None}
    fitting = [
        label
        for label in dict.fromkeys(moved)
        if label not in moved_labels and (label in spec.out or not summed)
    ]
    label, proportions = schedule.label, schedule.proportions
    instead = _instead({label: sizes[label] for label in fitting}, sum(proportions))
    if label is None:
        if len(proportions) == 1:
            return None
        return f"no label is given to split into {len(proportions)} chunks; {instead}"
    if label not in spec.labels:
        return f"it has no label {label!r} to split; {instead}"
    if gather is not None and label == gather.label and _is_free(gather):
        if schedule.direction == "async":
            return _too_many_chunks(f"the shards of {label!r} have", gather.shard, proportions)
        instead += ", or direction='async'"
    if label in moved_labels:
        word = "gathered" if gather is not None and label == gather.label else "scattered"
        return f"{label!r} is {word}, and its shards are not split; {instead}"
    if label not in moved:
        return (
            f"{label!r} is not in the gathered operand {moved!r}, so each chunk would gather all "
            f"of it; {instead}"
        )
    if summed and label not in spec.out:
        return f"{label!r} is summed over, so each chunk would send the whole result; {instead}"
    return _too_many_chunks(f"{label!r} has", sizes[label], proportions)


def _instead(sizes: Mapping[str, int], chunks: int) -> str:
    """Advice for a number of chunks, from the sizes of the labels that can be split."""
    enough = [label for label, size in sizes.items() if size >= chunks]
    if enough:
        return "choose label=" + " or ".join(map(repr, enough))
    longest = max(sizes, key=lambda label: sizes[label], default=None)
    if longest is None or sizes[longest] < 2:
        return "use a ring, such as 'latency'"
    return f"choose chunks={sizes[longest]} and label={longest!r}, or a ring, such as 'latency'"


def _is_free(gather: Gather) -> bool:
    """Whether the gathered label is of one operand and the result."""
    return gather.out_dim is not None and None in (gather.lhs_dim, gather.rhs_dim)


def _too_many_chunks(whose: str, size: int, proportions: tuple[int, ...]) -> str | None:
    """The objection to splitting a dimension of `size` in these proportions."""
    parts = sum(proportions)
    if parts <= max(size, 1):
        return None
    if parts == len(proportions):
        return f"{whose} size {size}, which makes {max(size, 1)} chunks at most"
    return f"{whose} size {size}, of which no {parts} parts can be made for {proportions}"


def gathers_into_result(op: Operation, label: str | None) -> bool:
    """Whether `label` is gathered and stands in the result, but not in rhs: every chunk of it then makes
    its own part of the result."""
    gathered = None if op.gather is None else op.gather.label
    return gathered is not None and label == gathered and gathered not in op.rhs
