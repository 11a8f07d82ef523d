"""MXFP4 against transformers' own reading of it."""

from __future__ import annotations

import importlib

import numpy as np

from layouts.checkpoints.expert_arrays import unpacked

from .models import torch


def test_as_transformers_unpacks() -> None:
    mxfp4 = importlib.import_module("transformers.integrations.mxfp4")
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 10, 4, 16), dtype=np.uint8)
    scales = random.integers(100, 140, (3, 10, 4), dtype=np.uint8)
    # [experts, inputs, outputs].
    wanted = mxfp4.convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
    ).numpy()
    found = np.stack([unpacked(b, s).T for b, s in zip(blocks, scales, strict=True)])
    np.testing.assert_array_equal(found, wanted)
