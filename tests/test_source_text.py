"""The arguments of advised calls are Python that gives the same arguments back."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from collective_einsum.advise.source_text import source_text


@pytest.mark.parametrize(
    "value",
    [
        "x",
        ("x",),
        ("x", "y"),
        3,
        None,
        P(),
        P("x", None, ("y", "z")),
        (P("x"), P(None, ("y",))),
        lax.Precision.HIGHEST,
        (lax.Precision.HIGHEST, lax.Precision.DEFAULT),
        lax.DotAlgorithmPreset.BF16_BF16_F32,
    ],
)
def test_it_evaluates_to_the_value(value: object) -> None:
    assert eval(source_text(value), {"jax": jax, "P": P}) == value


def test_a_precision_for_both_operands_is_named_once() -> None:
    both = (lax.Precision.HIGH, lax.Precision.HIGH)
    assert source_text(both) == "jax.lax.Precision.HIGH"


def test_a_dtype_goes_by_its_name() -> None:
    assert source_text(np.dtype("float32")) == "'float32'"
