"""The chip that plans and schedules are for: one that is named, or else the mesh's, listed or not."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

import collective_einsum as ce
import layouts
from collective_einsum.chips import names as chip_names
from layouts.cost.layer_work import AXES
from layouts.models.named_models import TINY_GROUPED

from .models import prompts

PUBLIC = (
    layouts.default_decode,
    layouts.default_prefill,
    layouts.init_cache,
    layouts.prefill,
    layouts.decode_step,
    layouts.generate,
    layouts.lower_decode_step,
    layouts.lower_prefill,
    layouts.attention,
    layouts.parallel_block,
    layouts.serial_block,
    layouts.feedforward,
)
LOWER: tuple[tuple[Any, str], ...] = (
    (layouts.lower_decode_step, "context"),
    (layouts.lower_prefill, "length"),
)
KINDS = (
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA B200",
    "NVIDIA H100 PCIe",
    "TPU v3",
    "AMD Instinct MI300X",
)


@pytest.fixture
def unsaid() -> Iterator[None]:
    """As in a process that has warned of no kind."""
    chip_names._nearest.cache_clear()
    yield
    chip_names._nearest.cache_clear()


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch, unsaid: None) -> None:
    """The emulated devices are of a kind that no list has."""
    monkeypatch.delitem(chip_names._CHIP_OF_KIND, "cpu")


def mesh_of_kind(kind: str) -> AbstractMesh:
    device = AbstractDevice(kind, None, "tpu" if "TPU" in kind else "gpu")
    return AbstractMesh((2, 2, 2), AXES, (AxisType.Auto,) * 3, abstract_device=device)


@pytest.mark.usefixtures("unlisted")
def test_every_default_works_on_an_unlisted_kind(mesh_of: Any) -> None:
    mesh, tokens = mesh_of((2, 2, 2), AXES), prompts(TINY_GROUPED, 8, 4)
    params = layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32)

    def drawn(**options: Any) -> Any:
        return layouts.generate(TINY_GROUPED, mesh, params, tokens, max_new_tokens=2, **options)[0]

    # Where a chip is named, nothing needs to be said.
    named = drawn(chip="v5e")
    with pytest.warns(ce.UnlistedChipWarning, match=r"'cpu' is not listed.*'generic accelerator'"):
        cache = layouts.init_cache(TINY_GROUPED, mesh, 8, 8, dtype=jnp.float32)
    # It is said once.
    logits, cache = layouts.prefill(TINY_GROUPED, mesh, params, cache, tokens)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), named[:, 0])
    logits, _ = layouts.decode_step(TINY_GROUPED, mesh, params, cache, named[:, 0])
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), named[:, 1])
    np.testing.assert_array_equal(drawn(), named)
    for lower, size in LOWER:
        assert lower(TINY_GROUPED, mesh, batch=8, **{size: 16}).as_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unsaid")
def test_defaults_of_an_unlisted_kind(kind: str) -> None:
    mesh = mesh_of_kind(kind)
    with pytest.warns(ce.UnlistedChipWarning, match=kind):
        nearest = ce.chip_for(kind)
    # Chosen for the nearest chip.
    for batch in (1, 64):
        chosen = layouts.default_decode(layouts.PALM_8B, mesh, batch, 2048)
        assert chosen == layouts.default_decode(
            layouts.PALM_8B, AbstractMesh((2, 2, 2), AXES), batch, 2048, chip=nearest
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
        mapped = jax.shard_map(
            lambda x: ce.all_reduce(ce.all_gather(x, "x"), ("y", "z")),
            mesh=mesh,
            in_specs=jax.P("x"),
            out_specs=jax.P(),
            check_vma=False,
        )
        assert jax.eval_shape(ce.jit(mapped), x).shape == x.shape
    assert not said


@pytest.mark.tpu
@pytest.mark.usefixtures("unsaid")
def test_an_unlisted_tpu_lowers_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(chip_names._CHIP_OF_KIND, "TPU7x")
    devices = topologies.get_topology_desc("tpu7x:2x2x1", platform="tpu").devices
    mesh = Mesh(np.asarray(devices).reshape(2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    with pytest.warns(ce.UnlistedChipWarning, match="'TPU7x' is not listed"):
        lowered = layouts.lower_decode_step(TINY_GROUPED, mesh, batch=8, context=16)
    assert lowered.compile().as_text()
    assert layouts.lower_prefill(TINY_GROUPED, mesh, batch=8, length=16, chip="v6e")


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_a_chip_can_be_named_wherever_one_counts(function: Any) -> None:
    assert inspect.signature(function).parameters["chip"].default is None


def test_a_named_chip_is_whose_schedules_are_chosen(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), AXES)
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())

    def permutes(chip: Any) -> int:
        lowered = layouts.lower_decode_step(
            TINY_GROUPED, mesh, batch=8, context=16, plan=plan, chip=chip
        )
        return lowered.as_text().count("collective_permute")

    assert permutes(None) > permutes("v4") > 0
    assert permutes("h100") == permutes(ce.H100) == 0


def test_a_layer_s_named_chip(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), AXES)
    params = layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32)
    weights = jax.tree.map(lambda x: x[0], params["blocks"])
    x, layout = jnp.ones((8, 2, TINY_GROUPED.d_model)), layouts.WeightGathered(("x",))

    def text(layer: Any, chip: Any) -> str:
        def one(x: Any) -> Any:
            rest = () if layer is layouts.feedforward else (layouts.HeadSharded(),)
            return layer(x, weights, TINY_GROUPED, layout, *rest, mesh=mesh, chip=chip)

        return jax.jit(one).lower(x).as_text()

    for layer in (layouts.attention, layouts.parallel_block, layouts.feedforward):
        assert "collective_permute" in text(layer, "v4")
        assert "collective_permute" not in text(layer, "h100")
        with pytest.raises(ValueError, match=r"chip='a100'.*'v4'"):
            text(layer, "a100")


@pytest.mark.parametrize("name", ["a100", 4])
def test_what_is_no_chip_is_refused_in_words(name: Any, mesh_of: Any) -> None:
    mesh, plan = (
        mesh_of((2, 2, 2), AXES),
        layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded()),
    )
    for lower, size in LOWER:
        for chosen in (None, plan):
            with pytest.raises(ValueError, match=r"chip=.*'v4'"):
                lower(TINY_GROUPED, mesh, batch=8, plan=chosen, chip=name, **{size: 16})
