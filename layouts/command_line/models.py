"""The model of a command: that of a checkpoint, or a small one of random weights."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from collective_einsum.chips import chip_for

from ..checkpoints import config_from_hf, load
from ..decoding.initialize import init
from ..decoding.step_checks import check_mesh_for
from ..mesh.slice_meshes import shape_name
from ..models.config import ModelConfig
from ..models.params import Params
from ..partitionings.mesh_fit import padded_for, round_up
from ..planning.padded_plan import padded_plan
from .choices import as_asked
from .devices import Shape, make_mesh
from .tokens import Bytes, FileTokenizer, Tokenizer, tokenizer_of


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that can run.

    Attributes:
      config, mesh, params: as `layouts.generate` takes them.
      tokenizer: of its texts.
    """

    config: ModelConfig
    mesh: Mesh
    params: Params
    tokenizer: Tokenizer


def model_of(
    options: argparse.Namespace, batch: int, context: int, *, unrolled: bool | None = None
) -> Model:
    """The model that `--checkpoint` names, on the devices that are asked for; says on stderr what was
    chosen. The mesh of several attached devices is the best for decoding `batch` sequences of
    `context` tokens. Parameters are made as `layouts.init` and `load` do, with `unrolled`.

    Raises:
      ValueError: as `layouts.config_from_hf` and `load`; or there are not so many devices.
      ImportError: an extra is not installed.
    """
    checkpoint: Path | None = options.checkpoint
    read = as_asked(small_model(1) if checkpoint is None else config_from_hf(checkpoint), options)
    tokenizer = Bytes() if checkpoint is None else tokenizer_of(options.tokenizer or checkpoint)

    def choose(count: int, kind: str) -> Shape:
        if count == 1:
            return 1, 1, 1
        best = padded_plan(
            as_asked(small_model(count), options) if checkpoint is None else read,
            chip=chip_for(kind),
            chips=count,
            phase="decode",
            batch=batch,
            context=context,
            weights=options.weights,
        ).options[0]
        return best.sizes["x"], best.sizes["y"], best.sizes["z"]

    mesh = make_mesh(options.emulate, options.mesh, choose)
    plain = as_asked(small_model(mesh.size), options) if checkpoint is None else read
    config = padded_for(plain, mesh)
    check_mesh_for(config, mesh)
    kind = mesh.devices.flat[0].device_kind
    say(f"{describe(config)} on {shape_name(mesh.shape)} {kind}")
    say_padding(plain, config)
    dtype, weights = jnp.dtype(options.dtype), "int8" if options.weights == "int8" else "plain"
    if checkpoint is None:
        say("no --checkpoint: random weights, and a token for each byte")
        params = init(config, mesh, jax.random.key(0), dtype, weights=weights, unrolled=unrolled)
    else:
        params = load(
            checkpoint, mesh, config=config, dtype=dtype, weights=weights, unrolled=unrolled
        )
    if isinstance(tokenizer, FileTokenizer) and tokenizer.size > config.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens, and {config.name} a vocabulary of "
            f"{config.vocab}; give that of the model: --tokenizer FOLDER"
        )
    return Model(config, mesh, params, tokenizer)


def small_model(chips: int) -> ModelConfig:
    """A model of random bytes that any number of chips can hold."""
    width = math.lcm(2, chips)
    return ModelConfig(
        name="random",
        layers=2,
        d_model=round_up(64, width),
        d_ff=round_up(256, width),
        heads=8,
        kv_heads=2,
        d_head=16,
        vocab=256,
    )


def describe(config: ModelConfig) -> str:
    """The model in a few words."""
    return f"{config.name}, {config.parameters / 1e6:,.1f} million parameters,"


def say_padding(plain: ModelConfig, padded: ModelConfig) -> None:
    """Says what the mesh made of a model."""
    if padded.stored_heads != plain.stored_heads:
        say(
            f"{plain.stored_heads} heads do not divide over the mesh: "
            f"{padded.stored_heads} are stored (padded_heads)"
        )
    if padded.stored_vocab != plain.stored_vocab:
        say(
            f"{plain.stored_vocab} tokens do not divide over the mesh: "
            f"{padded.stored_vocab} are stored (padded_vocab)"
        )


def say(line: str) -> None:
    """Writes a line beside the result, to stderr."""
    print(line, file=sys.stderr, flush=True)
