"""What loading a large checkpoint takes of the host's memory.

`python -m tests.layouts.large_checkpoint FOLDER` writes a Llama of 8 GB in bfloat16 there, loads it onto
8 emulated devices, and prints the most memory that was in use besides the arrays on the devices, which
emulated devices hold in the same memory. Files are sparse: the tensors are zeros, and take no disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of about 4.1e9 parameters: as a Llama 3.1 8B with half of its layers.
LARGE = {
    "hidden_size": 4096,
    "num_hidden_layers": 14,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


def write(folder: Path, sizes: Mapping[str, int], files: int) -> int:
    """Writes config.json, safetensors of zeros in bfloat16 and their index.

    Args:
      folder: that exists.
      sizes: fields of config.json.
      files: how many of them the tensors lie in.

    Returns:
      The bytes of all tensors.
    """
    d, f, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    kv = d // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "mlp.up_proj": (f, d),
        "mlp.gate_proj": (f, d),
        "mlp.down_proj": (d, f),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    ends = {"model.embed_tokens": (vocab, d), "lm_head": (vocab, d), "model.norm": (d,)}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": x for name, x in ends.items()}
    for i in range(sizes["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": x for name, x in layer.items()}
    index, total = {}, 0
    for number in range(files):
        own = dict(list(shapes.items())[number::files])
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        total += _write_zeros(folder / file, own)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    fields = {"model_type": "llama", "tie_word_embeddings": False, **sizes}
    (folder / "config.json").write_text(json.dumps(fields))
    return total


def _write_zeros(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A sparse safetensors file of zeros; the bytes of its tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return at


class Watch:
    """The most memory of this process besides arrays on devices, while it is entered.

    Attributes:
      peak: bytes, beyond those at the start. Pages of mapped files, which the system takes back when it
        needs them, do not count.
    """

    def __enter__(self) -> Watch:
        self.peak, self._start, self._stop = 0, _beyond_arrays(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, _beyond_arrays() - self._start)


def _beyond_arrays() -> int:
    import jax

    arrays = sum(
        shard.data.nbytes
        for x in jax.live_arrays()
        for shard in ([] if x.is_deleted() else x.addressable_shards)
    )
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(line for line in lines if line.startswith("RssAnon"))
    return 1024 * int(used.split()[1]) - arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="plain", choices=["plain", "int8"])
    parser.add_argument("--unrolled", action="store_true")
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

    import jax

    from layouts.checkpoints import load

    given.folder.mkdir(parents=True, exist_ok=True)
    total = write(given.folder, LARGE, 4)
    mesh: Any = jax.make_mesh(
        (2, 2, 2), ("x", "y", "z"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    with Watch() as watch:
        params = load(given.folder, mesh, weights=given.weights, unrolled=given.unrolled)
        jax.block_until_ready(params)
    shards = [
        shard.data.nbytes
        for key, table in params.items()
        if "embedding" in key
        for x in jax.tree.leaves(table)
        for shard in x.addressable_shards
    ]
    print(f"{total / 1e9:.2f} GB of tensors, the largest shard {max(shards) / 2**20:.0f} MiB")
    print(f"memory besides arrays on devices: at most {watch.peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
