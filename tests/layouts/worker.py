"""One of several processes that generate together: run as a script by `test_processes`.

Arguments: this process's number, how many there are, the port of the first, and the word "wait" for
one that never ends by itself. Prints what it generated, as JSON.
"""

from __future__ import annotations

import json
import sys

import jax

number, count, port = (int(word) for word in sys.argv[1:4])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        count,
        number,
        initialization_timeout=120,
        heartbeat_timeout_seconds=10,
        shutdown_timeout_seconds=20,
    )

import numpy as np  # noqa: E402

import layouts  # noqa: E402
from layouts.models.named_models import TINY_MULTIQUERY as CONFIG  # noqa: E402

mesh = jax.make_mesh((2, 2, 2), ("x", "y", "z"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
params = layouts.init(CONFIG, mesh, jax.random.key(3), jax.numpy.float32)
prompts = np.random.default_rng(5).integers(0, CONFIG.vocab, (8, 5)).astype(np.int32)


def generate(seed: int) -> list[list[int]]:
    tokens, _ = layouts.generate(
        CONFIG,
        mesh,
        params,
        prompts,
        max_new_tokens=4,
        sampling=layouts.Sampling(temperature=1.0),
        seeds=np.arange(8, dtype=np.uint32) + np.uint32(seed),
    )
    return np.asarray(tokens.addressable_data(0)).tolist()


print(json.dumps(generate(0)), flush=True)
while sys.argv[4:] == ["wait"]:
    generate(1)
