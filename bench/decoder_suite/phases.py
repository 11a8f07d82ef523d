"""The decoder's programs that are timed: a model, a phase, its sizes, and how it is partitioned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import collective_einsum as ce
import layouts
from collective_einsum.ops import as_schedule
from collective_einsum.ruler.replay import Timeline
from layouts import ModelConfig, Partitioning
from layouts.cost import Load, load
from layouts.decoding import Program
from layouts.models import params_shapes
from layouts.partitionings import ATTENTIONS, FEEDFORWARDS, vocab_axes
from layouts.sampling import sample

# The options that a step can be compiled under.
OPTIONS = {
    "step": "under the options of layouts.decode_step",
    "chip": "all under the options of ce.jit",
    "sparse_cores": "all under the options of ce.jit and with all-gathers on SparseCores",
}

# PaLM 540B as the paper stores it, with the heads that its section 4 pads with zeros.
PAPER_540B = "palm-540b padded"
_PADDED = dataclasses.replace(layouts.PALM_540B, padded_heads=64)
# Models without a name in `layouts`: that, and variants of it that the paper compares with (section 4.3,
# and figure 8 with table 1).
VARIANTS = {
    PAPER_540B: _PADDED,
    "palm-540b serial": dataclasses.replace(_PADDED, block="serial"),
    "palm-540b multihead": dataclasses.replace(_PADDED, layers=8, kv_heads=48, d_head=128),
    "palm-540b 8 layers": dataclasses.replace(_PADDED, layers=8),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One step of a decoder.

    Attributes:
      model: name of a `ModelConfig`, such as "palm-540b", or a key of `VARIANTS`.
      kind: "decode", a token for each sequence, "prefill", whole prompts, or "sample", a greedy draw
        from logits.
      batch: sequences.
      length: positions of the cache (all read), or of the prompts.
      weights: "bf16" or "int8".
      feedforward, attention: keys of `FEEDFORWARDS` and `ATTENTIONS`.
      schedule: name of the schedule of the collective einsums, "auto" or "blocking".
      layers: number of layers; 0 for the model's own.
      unrolled: whether each layer's weights are arrays of their own; see `layouts.unroll`.
      int8_cache: whether keys and values are int8, in decoding.
      sides: sizes of the mesh axes x, y and z; those of the slice unless given.
      options: a key of `OPTIONS`, those that it is compiled under.
    """

    model: str
    kind: str
    batch: int
    length: int
    weights: str = "bf16"
    feedforward: str = "WS 2D"
    attention: str = "batch xyz"
    schedule: str = "auto"
    layers: int = 0
    unrolled: bool = False
    int8_cache: bool = False
    sides: tuple[int, ...] = ()
    options: str = "step"

    @property
    def config(self) -> ModelConfig:
        """The model, with as many layers as asked for, and the heads and tokens that the mesh needs if
        its sizes are given."""
        config = model_of(self.model)
        if self.sides:
            config = layouts.padded_for(config, self.sides)
        return dataclasses.replace(config, layers=self.layers or config.layers)

    @property
    def narrow(self) -> bool:
        """Whether its weights or its cache have less than 16 bits, whose dots take other times than the
        compiler estimates."""
        return self.int8_cache or self.weights == "int8"

    @property
    def plan(self) -> Partitioning:
        """The layouts."""
        return Partitioning(FEEDFORWARDS[self.feedforward], ATTENTIONS[self.attention])

    @property
    def load(self) -> Load:
        """What the phase asks of each layer; not of one that samples."""
        return load(
            self.kind,
            batch=self.batch,
            context=self.length,
            length=self.length,
            weights=self.weights,
            cache="int8" if self.int8_cache else "bf16",
        )

    @property
    def tokens(self) -> int:
        """Tokens that one step takes in."""
        return self.batch * (self.length if self.kind == "prefill" else 1)

    @property
    def name(self) -> str:
        """The phase and its sizes."""
        return f"{self.kind} {self.batch} x {self.length}"

    def __str__(self) -> str:
        parts = (self.model, self.name, self.weights, self.feedforward, self.attention)
        return ", ".join((*parts, self.schedule_name))

    @property
    def schedule_name(self) -> str:
        """The schedule, and whether the layers are unrolled."""
        return f"{self.schedule}, unrolled" if self.unrolled else self.schedule

    def check(self, mesh: Mesh) -> None:
        """Traces a step of one layer, which takes seconds at most, and compiles nothing.

        Raises:
          ValueError: the layouts do not fit the mesh, or do not divide the batch or the prompts.
        """
        dataclasses.replace(self, layers=1, schedule="blocking", unrolled=False).lower(mesh)

    def compiler_options(self, mesh: Mesh) -> dict[str, bool | int | str]:
        """The compiler options of its program."""
        if self.options != "step":
            on_sparse_cores = self.options == "sparse_cores"
            chip = ce.chip_for(mesh.devices.flat[0].device_kind)
            # They are added to those that the lowered step has: what it chose itself is said to be off.
            off = dict.fromkeys(dict(chip.sparse_core_options), False)
            return off | ce.compiler_options(chip, sparse_cores=on_sparse_cores)
        if self.kind == "sample":
            return {}
        params = params_shapes(
            self.config, jnp.bfloat16, int8=self.weights == "int8", unrolled=self.unrolled
        )
        program = Program.of(self.config, mesh, self.plan, self.schedule, params, load=self.load)
        return program.compiler_options

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program that `layouts.decode_step` or `layouts.prefill` runs.

        Raises ValueError if the layouts do not fit the mesh or the batch.
        """
        if self.kind == "sample":
            return _lower_sample(self.config, mesh, self.batch)
        options: dict[str, Any] = {
            "batch": self.batch,
            "weights": self.weights,
            "plan": self.plan,
            "schedule": self.schedule,
            "unrolled": self.unrolled,
        }
        if self.kind == "decode":
            options |= {"context": self.length, "int8_cache": self.int8_cache}
            return layouts.lower_decode_step(self.config, mesh, **options)
        return layouts.lower_prefill(self.config, mesh, length=self.length, **options)


def model_of(name: str) -> ModelConfig:
    """The config of a model that `layouts` or `VARIANTS` name.

    Raises ValueError if neither does.
    """
    return VARIANTS.get(name) or layouts.model(name)


def _lower_sample(config: ModelConfig, mesh: Mesh, batch: int) -> jax.stages.Lowered:
    """A greedy draw from logits [batch, vocab], sharded as a step leaves them."""
    axes = vocab_axes(config, dict(mesh.shape))
    replicated, sharded = PartitionSpec(), PartitionSpec(None, axes or None)

    def draw(logits: jax.Array, seeds: jax.Array) -> jax.Array:
        return sample(logits, layouts.Sampling(), seeds=seeds, positions=seeds, axes=axes)

    mapped = jax.jit(
        jax.shard_map(draw, mesh=mesh, in_specs=(sharded, replicated), out_specs=replicated)
    )
    return mapped.lower(
        jax.ShapeDtypeStruct(
            (batch, config.vocab), "float32", sharding=NamedSharding(mesh, sharded)
        ),
        jax.ShapeDtypeStruct((batch,), "int32", sharding=NamedSharding(mesh, replicated)),
    )


def published(model: str) -> tuple[Phase, ...]:
    """The configurations of "Efficiently Scaling Transformer Inference", tables 2 and 3, for a model:
    low latency and high throughput, decode and prefill."""
    decode, prefill = (model, "decode"), (model, "prefill")
    return (
        Phase(*decode, 64, 2048, "int8", "WS 2D batch"),
        Phase(*decode, 64, 2048, "bf16", "WS 2D batch"),
        Phase(*decode, 512, 2048, "bf16", "WS 2D batch"),
        Phase(*prefill, 1, 2048, "int8", "WS 2D position", "heads"),
        Phase(*prefill, 512, 2048, "bf16", "WG XYZ"),
    )


def chosen(
    model: str,
    kind: str | None,
    batch: int,
    length: int,
    weights: str,
    feedforwards: Sequence[str],
    attentions: Sequence[str],
    schedules: Sequence[str],
    *,
    unrolled: bool = False,
    options: str = "step",
) -> list[Phase]:
    """The phase of one kind and size under each pair of layouts; without a kind, the phases of
    `published`. Each is under each schedule, `unrolled` or not, compiled under these options.

    Raises ValueError if there is no such layout, schedule or model.
    """
    model_of(model)
    for schedule in schedules:
        as_schedule(schedule)
    for word, names, known in (
        ("feedforward", feedforwards, FEEDFORWARDS),
        ("attention", attentions, ATTENTIONS),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"there is no {word} layout {name!r}; choose among {tuple(known)}")
    phases = [
        Phase(model, kind, batch, length, weights, feedforward, attention)
        for feedforward in feedforwards
        for attention in attentions
        if kind
    ]
    return [
        dataclasses.replace(phase, schedule=schedule, unrolled=unrolled, options=options)
        for phase in phases or published(model)
        for schedule in schedules
    ]


def mfu(phase: Phase, chips: int, peak_flops: float, seconds: float) -> float:
    """Model FLOPS utilization: 2 * parameters * tokens / (chips * peak * seconds), the parameters being
    those of the layers that a token uses, without padding and embedding.

    Args:
      phase: the phase, whose tokens count.
      chips: number of chips.
      peak_flops: bf16 flop/s of one chip.
      seconds: time of all layers.
    """
    flops = 2 * phase.config.active_layer_parameters * phase.tokens
    return flops / (chips * peak_flops * seconds)


def split(timeline: Timeline) -> Mapping[str, float]:
    """Seconds of a timeline: matmul, attention (all of its named scope), exposed, and the rest."""
    seconds = {"matmul": 0.0, "attention": 0.0, "exposed": 0.0, "rest": 0.0}
    for event in timeline.events:
        if event.row == "stall":
            seconds["exposed" if event.kind == "collective" else "rest"] += event.seconds
        elif event.row == "compute":
            scored = "attend" in event.op_name.split("/")
            dot = "matmul" if event.kind == "dot" else "rest"
            seconds["attention" if scored else dot] += event.seconds
    return seconds
