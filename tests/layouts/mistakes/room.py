"""A model on a mesh, what is done with it, and the check of what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED

BATCH, ROOM, VOCAB = 8, 8, TINY_GROUPED.vocab
PLAN = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
WORDS = "WS 2D, batch xyz"
TOKENS = np.arange(BATCH * 2, dtype=np.int32).reshape(BATCH, 2)
SIZES = {"x": 2, "y": 2, "z": 2}


class Room(NamedTuple):
    """A mesh, the parameters of a model on it, and what is done with them."""

    mesh: Any
    params: Any

    def cache(self, batch: Any = BATCH, max_length: Any = ROOM, **options: Any) -> Any:
        options = {"plan": PLAN, "dtype": jnp.float32} | options
        return layouts.init_cache(TINY_GROUPED, self.mesh, batch, max_length, **options)

    def prefill(self, tokens: Any = TOKENS, **given: Any) -> Any:
        options = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN} | given
        cache = options.pop("cache") if "cache" in options else self.cache()
        return layouts.prefill(mesh=self.mesh, cache=cache, tokens=tokens, **options)

    def decode(self, tokens: Any = TOKENS[:, 0], **given: Any) -> Any:
        options = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN} | given
        cache = options.pop("cache") if "cache" in options else self.cache()
        return layouts.decode_step(mesh=self.mesh, cache=cache, tokens=tokens, **options)

    def generate(self, tokens: Any = TOKENS, **given: Any) -> Any:
        options = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN, "max_new_tokens": 2}
        return layouts.generate(mesh=self.mesh, tokens=tokens, **options | given)

    def without(self, name: str) -> Any:
        return {key: value for key, value in self.params.items() if key != name}


def refuses(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
