"""Plan, then lower: what the planner calls possible lowers, and what it excludes is refused alike.

Models whose heads, widths and vocabularies divide nothing, on meshes of 1 to 64 chips, for batches and
lengths of any size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import layouts
from collective_einsum.ruler.compile.targets import target
from layouts import ModelConfig, Option, Plan
from layouts.models.config import Rotary
from layouts.planning.defaults import chip_of

SIDES = (1, 1, 1, 2, 2, 2, 3, 4, 4, 5, 6, 7, 8)
# Options of each kind that a case lowers, or tries to.
LOWERED, REFUSED = 3, 2


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is planned, and on which mesh."""

    config: ModelConfig
    mesh: Mesh
    phase: str
    batch: int
    length: int
    weights: str
    int8_cache: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of x, y and z."""
        return tuple(self.mesh.shape.values())

    def plan(self) -> Plan:
        """All options."""
        length: dict[str, Any] = {"context" if self.phase == "decode" else "length": self.length}
        return layouts.plan(
            self.config,
            chip=chip_of(self.mesh),
            mesh_shape=self.shape,
            phase=self.phase,
            batch=self.batch,
            weights=self.weights,
            cache="int8" if self.int8_cache else "bf16",
            **length,
        )

    def lower(self, plan: Any = None) -> Any:
        """The program of a step under a partitioning, the default one unless given."""
        given = {
            "batch": self.batch,
            "weights": self.weights,
            "int8_cache": self.int8_cache,
            "plan": plan,
        }
        if self.phase == "decode":
            return layouts.lower_decode_step(self.config, self.mesh, context=self.length, **given)
        return layouts.lower_prefill(self.config, self.mesh, length=self.length, **given)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        what = f"{self.phase} of {self.batch} x {self.length} on {shape}"
        return f"{what}, {self.weights} weights, int8_cache={self.int8_cache}, {self.config}"


def case(seed: int) -> None:
    """A random model, mesh and step."""
    rng = np.random.default_rng(seed)
    asked = draw(rng)
    found = asked.plan()
    for option in some(rng, found.feasible, LOWERED):
        lowers(asked, option)
    for option in some(rng, [o for o in found.options if o.cost is None], REFUSED):
        refuses(asked, option)
    if any(option.cost is not None for option in found.options):
        asked.lower()


def some(rng: np.random.Generator, options: Any, count: int) -> list[Option]:
    """A few of them at random."""
    return [options[i] for i in rng.permutation(len(options))[:count]]


def lowers(asked: Asked, option: Option) -> None:
    """An option that is possible."""
    try:
        asked.lower(option.partitioning)
    except Exception as error:
        raise AssertionError(f"{error}\nbut possible: {option} of {asked}") from error


def refuses(asked: Asked, option: Option) -> None:
    """An option that is excluded, in the same words."""
    try:
        asked.lower(option.partitioning)
    except ValueError as error:
        words = str(error)
    else:
        words = "not at all"
    if words != option.excluded:
        raise AssertionError(f"refused: {words}\nexcluded: {option.excluded}\n{option} of {asked}")


def draw(rng: np.random.Generator) -> Asked:
    """A model that may divide, a mesh and a step."""
    shape = draw_shape(rng)
    int8, int8_cache = rng.random(2) < 0.3
    phase = str(rng.choice(["decode", "prefill"]))
    batch = int(rng.choice([rng.integers(1, 9), rng.integers(1, 65), rng.integers(1, 601)]))
    length = int(rng.choice([rng.integers(1, 9), rng.integers(1, 65), rng.integers(1, 601)]))
    return Asked(
        draw_config(rng, shape),
        draw_mesh(rng, shape),
        phase,
        batch,
        length,
        "int8" if int8 else "bf16",
        bool(int8_cache),
    )


def draw_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Of up to 64 chips."""
    while True:
        shape = tuple(int(n) for n in rng.choice(SIDES, 3))
        if math.prod(shape) <= 64:
            return shape


def draw_mesh(rng: np.random.Generator, shape: tuple[int, ...]) -> Mesh:
    """Of emulated devices, or of TPUs that are not there."""
    count = math.prod(shape)
    emulated = count <= len(jax.devices()) and rng.random() < 0.3
    devices = jax.devices() if emulated else target("v4:4x4x4").devices
    return Mesh(np.array(devices[:count]).reshape(shape), ("x", "y", "z"))


def draw_config(rng: np.random.Generator, shape: tuple[int, ...]) -> ModelConfig:
    """One layer; sizes divide over the mesh more often than not."""
    chips, yz = math.prod(shape), shape[1] * shape[2]

    def width(most: int) -> int:
        if rng.random() < 0.9:
            return chips * int(rng.integers(1, 1 + max(2, most // chips)))
        return int(rng.integers(1, most))

    kind = rng.choice(["multiquery", "grouped", "multihead"])
    heads = yz * int(rng.integers(1, 4)) if rng.random() < 0.7 else int(rng.integers(1, 25))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    kv_heads = {"multiquery": 1, "multihead": heads}.get(str(kind), int(rng.choice(divisors)))
    padded = None
    if rng.random() < 0.5:
        unit = math.lcm(yz, kv_heads) if kv_heads < heads else yz
        padded = unit * -(-heads // unit)
    d_head = int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16]))
    return ModelConfig(
        layers=1,
        d_model=width(96),
        d_ff=width(160),
        heads=heads,
        kv_heads=kv_heads,
        d_head=d_head,
        vocab=int(rng.integers(2, 200)),
        block=rng.choice(["serial", "parallel"]).item(),
        activation=rng.choice(["silu", "gelu", "gelu_tanh", "relu"]).item(),
        gated=bool(rng.random() < 0.5),
        norm=rng.choice(["rmsnorm", "layernorm"]).item(),
        rotary=Rotary() if d_head % 2 == 0 and rng.random() < 0.7 else None,
        biases=bool(rng.random() < 0.4),
        tied_embedding=bool(rng.random() < 0.5),
        padded_heads=padded,
        name="drawn",
    )
