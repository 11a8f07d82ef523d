"""The planner's first options, compiled for the slice and replayed by the ruler, and so ranked anew.

Functions import the ruler: `import layouts` should bring little beside jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from collective_einsum.text import Shown

from .arguments import as_flag, as_size
from .decoding.lowering import lower_decode_step, lower_prefill
from .mesh.axis_collectives import AXES
from .mesh.slice_meshes import shape_name
from .models.config import ModelConfig
from .partitionings.partitioning import Partitioning
from .planning.plan import Option, Plan, as_milliseconds, cost_of, rated


@dataclasses.dataclass(frozen=True)
class ReplayedOption:
    """An option of a plan, replayed.

    Attributes:
      option: the layouts, the mesh and the batch.
      step_seconds: of the step, embedding and unembedding included, predicted by the replay.
      exposed_seconds: those in which it waits for collectives.
      excluded: why it cannot be after all, in words; "" if it can.
    """

    option: Option
    step_seconds: float = 0.0
    exposed_seconds: float = 0.0
    excluded: str = ""

    def __repr__(self) -> str:
        return (
            f"ReplayedOption({self.option}: {self.excluded or as_milliseconds(self.step_seconds)})"
        )


@dataclasses.dataclass(frozen=True)
class ReplayedPlan(Shown):
    """Options of a plan, replayed, the best first; prints as a table.

    Attributes:
      plan: the analytical model's.
      unrolled: whether each layer's weights are arrays of their own.
      replayed: those that can be, ranked by the plan's objective; then the others.
    """

    plan: Plan
    unrolled: bool
    replayed: tuple[ReplayedOption, ...]

    @property
    def best(self) -> Option:
        """The fastest by the plan's objective.

        Raises:
          ValueError: none of those that were replayed will do.
        """
        if self.replayed[0].excluded:
            raise ValueError(
                f"none of the {len(self.replayed)} options that were replayed will do; the first, "
                f"{self.replayed[0].option}, {self.replayed[0].excluded}; replay more of the "
                f"{len(self.plan.feasible)}"
            )
        return self.replayed[0].option

    @property
    def partitioning(self) -> Partitioning:
        """The layouts of the best option, for the `plan=` of a decoder's functions."""
        return self.best.partitioning

    def __repr__(self) -> str:
        return f"ReplayedPlan({self.plan!r}: {list(self.replayed)!r})"

    def __str__(self) -> str:
        from collective_einsum.ruler.replay import legend, table, wrapped

        plan = self.plan
        layers = "unrolled" if self.unrolled else "scanned"
        head = (
            f"{plan.words}, {layers} layers: ranked by {plan.objective}; predicted by replays of the "
            "compiled programs"
        )
        possible = [each for each in self.replayed if not each.excluded]
        rows = [_cells(each, possible[0]) for each in possible]
        notes = [
            line
            for each in self.replayed
            if each.excluded
            for line in wrapped(f"{each.option}: {each.excluded}")
        ]
        left = len(plan.feasible) - len(self.replayed)
        if left:
            notes.append(f"and {left} more that were not replayed")
        return "\n".join([head, table(tuple(_MEANINGS), rows), *notes, "", legend(_MEANINGS)])


def replay_plan(
    plan: Plan,
    *,
    first: int = 8,
    unrolled: bool = False,
    sides: Sequence[int] | None = None,
    workers: int = 2,
) -> ReplayedPlan:
    """Compiles a plan's first options for the slice, and ranks them anew by replays of their programs.

    The analytical model ranks all options in seconds; here each takes 5 to 20 seconds of one core, and 1
    or 2 of each unrolled layer. The best option of each mesh and batch is among the first. Steps with
    int8 weights or an int8 cache are replayed by the bundles that they issue. Worker processes compile:
    in a script, call it under `if __name__ == "__main__":`.

    Args:
      plan: what `layouts.plan` found.
      first: how many options to replay.
      unrolled: whether each layer's weights are arrays of their own; see `layouts.unroll`.
      sides: of the slice, in chips, such as (2, 8); those of the most compact slice unless given.
      workers: processes that compile side by side.

    Returns:
      A `ReplayedPlan`: `.partitioning`, `.best`, `.replayed`; prints as a table.

    Raises:
      ValueError: no option of the plan will do, or there is no such slice, or an option has another
        number of devices.
      ModuleNotFoundError: libtpu is not installed.
    """
    from collective_einsum.ruler.compile import in_processes, slice_name

    first, workers = as_size("first", first), as_size("workers", workers)
    unrolled = as_flag("unrolled", unrolled)
    if not plan.feasible:
        raise ValueError(plan.nearest)
    options = _first(plan.feasible, first)
    names = [slice_name(plan.chip, option.chips, sides) for option in options]
    tasks = [(plan.config, *each, unrolled) for each in zip(options, names, strict=True)]
    found = [ReplayedOption(option) for option in options]
    for place, (step, exposed, excluded) in in_processes(_replayed, tasks, workers):
        if plan.max_seconds is not None and step > plan.max_seconds:
            excluded = (
                f"takes {as_milliseconds(step)}, more than {as_milliseconds(plan.max_seconds)}"
            )
        found[place] = ReplayedOption(options[place], step, exposed, excluded)

    def rank(each: ReplayedOption) -> tuple[bool, float]:
        return bool(each.excluded), rated(plan.objective, cost_of(each.option), each.step_seconds)

    return ReplayedPlan(plan, unrolled, tuple(sorted(found, key=rank)))


def _token_seconds(each: ReplayedOption) -> float:
    return rated("throughput", cost_of(each.option), each.step_seconds)


def _first(options: Sequence[Option], count: int) -> list[Option]:
    """The best option of each mesh and batch, then the others, in their order; `count` of all.

    Of those that cost exactly the same the first stands for all: they are one program under other names
    of the axes.
    """
    different: dict[object, Option] = {}
    best: dict[object, Option] = {}
    for option in options:
        seconds = cost_of(option).step_seconds
        if different.setdefault((option.chips, option.batch, seconds), option) is option:
            best.setdefault(_mesh_and_batch(option), option)

    def follows(option: Option) -> bool:
        return best[_mesh_and_batch(option)] is not option

    return sorted(different.values(), key=follows)[:count]


def _mesh_and_batch(option: Option) -> tuple[int, ...]:
    return *option.sizes.values(), option.batch


def _replayed(
    config: ModelConfig, option: Option, slice_: str, unrolled: bool
) -> tuple[float, float, str]:
    """Seconds of an option's step, those in which it waits for collectives, and why it cannot be."""
    from collective_einsum.ruler import bundles, predict
    from collective_einsum.ruler.compile import lack_of_memory, target

    load = cost_of(option).load
    if min(load.weight_bytes, load.cache_bytes) == 1:
        bundles.start()
    mesh = target(slice_).mesh(tuple(option.sizes.values()), AXES)
    how: dict[str, Any] = {
        "batch": option.batch,
        "weights": "int8" if load.weight_bytes == 1 else "bf16",
        "plan": option.partitioning,
        "int8_cache": load.cache_bytes == 1,
        "unrolled": unrolled,
    }
    if load.past:
        lowered = lower_decode_step(config, mesh, context=load.past, **how)
    else:
        lowered = lower_prefill(config, mesh, length=load.new, **how)
    try:
        timeline = predict(lowered)
    except jax.errors.JaxRuntimeError as error:
        reason = lack_of_memory(error)
        if not reason:
            raise
        return 0.0, 0.0, f"does not fit: {reason}"
    return timeline.total_seconds, timeline.exposed_seconds, ""


_MEANINGS = {
    "layouts": "of the feedforward and of attention",
    "mesh": "sizes of x, y and z",
    "batch": "sequences",
    "limit ms": "weights and cache of the layers once from HBM, or their flops if these take longer, at "
    "the chip's peaks; no step is faster",
    "model ms": "a step, by the analytical model",
    "replay ms": "the same, by a replay of the compiled program",
    "waits ms": "of the replay: for collectives, with no compute beside them",
    "GiB": "memory of a chip, by the analytical model",
    "slower": "replayed time of a token, over the first row's",
}


def _cells(each: ReplayedOption, best: ReplayedOption) -> tuple[str, ...]:
    option, cost = each.option, cost_of(each.option)
    ratio = _token_seconds(each) / _token_seconds(best)
    seconds = (
        cost.limit_seconds,
        *(cost.step_seconds, each.step_seconds, each.exposed_seconds),
    )
    return (
        f"{option.feedforward}, {option.attention}",
        shape_name(option.sizes),
        str(option.batch),
        *(f"{s * 1e3:.4g}" for s in seconds),
        f"{cost.memory.total / 2**30:.1f}",
        f"{ratio:.2f}x",
    )
