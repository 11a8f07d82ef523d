"""`python -m bench swapped`: both forms of a program are one function; which is faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from bench.swap_suite import measure, programs
from bench.swap_suite.measure import Row
from bench.swap_suite.programs import Program
from collective_einsum.chips import TPU_V4, TPU_V5E, TPU_V5P

MeshOf = Callable[..., Mesh]
SMALL = {
    "d": 2,
    "t": 4,
    "model": 32,
    "heads": 8,
    "kv_heads": 4,
    "head_size": 4,
    "hidden": 64,
    "batch": 4,
    "length": 4,
}


@pytest.mark.parametrize("gradients", [False, True], ids=["layers", "training"])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_both_forms_are_one_function(
    mesh_of: MeshOf, kind: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "BF16", jnp.float32)
    program = Program(
        name="small", target="cpu", kind=kind, fsdp=True, gradients=gradients, **SMALL
    )
    mesh = mesh_of((2, 4), "dt", kind == "global")
    assert set(mesh.axis_types) == set(program.axis_types)
    rng = np.random.default_rng(0)

    def operand(shape: Any) -> Any:
        assert isinstance(shape.sharding, NamedSharding)
        scale = 1.0 if len(shape.shape) == 3 and shape.shape[0] == 4 else 0.2
        values = scale * rng.normal(size=shape.shape).astype(np.float32)
        return jax.device_put(values, shape.sharding)

    results = []
    arguments: Any = None
    for ours in (False, True):
        lowered = program.lower(mesh, ours=ours)
        if arguments is None:
            arguments = jax.tree.map(operand, _shapes(lowered))
        with jax.set_mesh(mesh):
            results.append(lowered.compile()(*arguments))
    plain, swapped = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), swapped, plain
    )
    largest = [float(jnp.max(jnp.abs(y))) for y in jax.tree.leaves(plain)]
    assert min(largest) > 1e-3


def _shapes(lowered: jax.stages.Lowered) -> Any:
    args, _ = lowered.args_info
    shardings, _ = lowered.compile().input_shardings
    return jax.tree.map(
        lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
        args,
        shardings,
    )


def test_programs_fit_their_slices() -> None:
    for program in programs.programs():
        assert program.model % program.t == 0
        assert program.batch % program.d == 0
        assert len(measure.target(program.target).devices) == program.d * program.t
        local = (AxisType.Auto,) * 2
        assert (program.axis_types == local) == (program.kind == "local")


def test_forms_are_what_a_user_has_on_the_chip() -> None:
    names = {chip: [form.name for form in measure.forms(chip)] for chip in (TPU_V4, TPU_V5P)}
    assert names[TPU_V4] == [
        "default",
        "no windowed einsum",
        "ce.jit",
        "ours: default",
        "ours: ce.jit",
    ]
    on_sparse_cores = ["SparseCores", "and scatters", "queue"]
    assert names[TPU_V5P][3:6] == on_sparse_cores
    assert names[TPU_V5P][-3:] == [f"ours: {name}" for name in on_sparse_cores]
    # Ours never has an option that plain programs are not tried with.
    for chip in (TPU_V4, TPU_V5P, TPU_V5E):
        every = measure.forms(chip)
        plain = [dict(form.options) for form in every if not form.ours]
        assert all(dict(form.options) in plain for form in every if form.ours)


def test_the_fastest_of_both_are_compared() -> None:
    seconds = {"default": 9e-6, "ce.jit": 6e-6, "ours: default": 5e-6, "ours: ce.jit": 7e-6}
    rows = [Row("layer", "v4:4x4x4", form, total, 0.0, 1e-6) for form, total in seconds.items()]
    rows += [dataclasses.replace(row, program="slower", total_seconds=4e-6) for row in rows]
    text = measure.print_rows(rows)
    (line,) = (line for line in text.splitlines() if line.startswith("layer"))
    assert line.split() == [
        *("layer", "v4:4x4x4", "6.0", "ce.jit", "1.0", "5.0", "default", "1.0", "1.200")
    ]
    # 6/5 and 4/4; under the default options 9/5 and 4/4.
    assert "geometric mean of the ratios: 1.095" in text
    assert text.endswith("default options: 1.342")
