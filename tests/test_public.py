"""What the packages show of themselves: names, version, and results in a notebook."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
import layouts
from layouts.cost.step_cost import cost
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED

PACKAGES = (ce, layouts)
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", PACKAGES, ids=lambda each: each.__name__)
def test_public_names_are_those_that_are_imported(package: Any) -> None:
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert sorted(package.__all__) == sorted(imported | {"__version__"})
    assert dir(package) == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_submodules_are_there_nevertheless() -> None:
    assert layouts.cost.cost is cost
    assert importlib.import_module("layouts.models.named_models").TINY_GROUPED is TINY_GROUPED
    assert layouts.paper_closed_forms.__name__ == "layouts.cost.paper_closed_forms"


def test_there_is_one_version() -> None:
    assert ce.__version__ == layouts.__version__ == importlib.metadata.version("collective-einsum")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    text = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'\n__version__ = "{ce.__version__}"\n' in text


class Printer:
    """As much of IPython's as is needed."""

    def __init__(self) -> None:
        self.found = ""

    def text(self, text: str) -> None:
        self.found += text


PLAN = layouts.plan(layouts.PALM_62B, phase="decode", batch=64, context=2048, chips=(16, 64))
NOTHING = layouts.plan(layouts.PALM_540B, phase="decode", batch=64, context=2048, chips=1)
CHOICE = ce.choose_schedule(
    "me,ef->mf",
    jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16),
    jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16),
    axis_size=4,
    axis_name="x",
    gather="e",
    chip=ce.TPU_V4,
)
TABLES = (
    PLAN,
    NOTHING,
    CHOICE,
    PLAN.cost,
    layouts.sweep(layouts.PALM_62B, phase="decode", batches=(8, 64), chips=64, context=2048),
    layouts.pareto(PLAN),
    layouts.pareto(NOTHING),
)


@pytest.mark.parametrize("result", TABLES, ids=lambda each: type(each).__name__)
def test_a_notebook_shows_a_result_as_it_prints(result: Any) -> None:
    printer = Printer()
    result._repr_pretty_(printer, False)
    assert printer.found == str(result)
    assert result._repr_html_().startswith("<pre>")
    assert result._repr_html_().count("\n") == str(result).count("\n")
    assert len(str(result)) < 6000
    assert len(repr(result)) < 400
    assert "\n" not in repr(result)


def test_tables_hold_their_numbers() -> None:
    assert "PALM" in repr(PLAN).upper()
    assert repr(PLAN.best) in repr(PLAN)
    assert f"{PLAN.cost.seconds * 1e3:.3g} ms" in repr(PLAN.best)
    assert all(each.feedforward in str(layouts.pareto(PLAN)) for each in layouts.pareto(PLAN))
    assert "ms" in str(PLAN.cost)
    excluded = NOTHING.options[0]
    assert excluded.excluded in repr(excluded)


def test_html_is_escaped() -> None:
    found = layouts.plan(
        layouts.PALM_8B.__class__(
            layers=2, d_model=64, d_ff=64, heads=8, kv_heads=8, d_head=8, vocab=64, name="<b>&"
        ),
        phase="decode",
        batch=8,
        context=64,
        chips=8,
    )
    assert "&lt;b&gt;&amp;" in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_reprs_are_short_and_bring_no_array_from_the_devices(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    cache = layouts.init_cache(TINY_GROUPED, mesh, 8, 200, int8=True)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), cache)
    specs = layouts.cache_specs(
        TINY_GROUPED, mesh, layouts.default_decode(TINY_GROUPED, mesh, 8, 200), cache
    )
    weights = ce.quantize(jnp.ones((64, 32)), axis=0)
    for value in (cache, cache.k, shapes, specs, weights, TINY_GROUPED, TINY_PADDED):
        assert len(repr(value)) < 420, repr(value)
        assert "\n" not in repr(value)
    assert "lengths=int32[8]" in repr(cache) == repr(shapes)
    assert f"lengths={P()!r}, positions=200)" in repr(specs)
    assert repr(weights) == ("Quantized(values=int8[64,32], scale=float32[1,32], dtype=float32)")
    jax.make_jaxpr(lambda x: repr(x) and x)(cache)


def test_reprs_of_settings() -> None:
    assert repr(layouts.Sampling()) == "Sampling()"
    assert repr(layouts.Sampling(1.0, top_p=0.9)) == "Sampling(temperature=1.0, top_p=0.9)"
    assert repr(layouts.Sampling([1.0] * 80)) == "Sampling(temperature=float64[80])"
    assert repr(layouts.Sampling(jnp.ones(80))) == "Sampling(temperature=float32[80])"
    assert repr(layouts.Sampling(cast(Any, P("x")))) == f"Sampling(temperature={P('x')!r})"
    model = layouts.ModelConfig(2, 64, 64, 8, 8, 8, 64)
    assert eval(repr(model), {"ModelConfig": layouts.ModelConfig}) == model
    shown = eval(repr(TINY_PADDED), {"ModelConfig": layouts.ModelConfig, "Rotary": layouts.Rotary})
    assert shown == TINY_PADDED
