"""Experts with their own tokens, compiled for a TPU."""

from __future__ import annotations

import dataclasses
import re

import pytest

import collective_einsum as ce
import layouts
from collective_einsum import ruler
from layouts import Experts
from layouts.layers.dispatched_experts import SCOPE

from .test_experts import MIXTRAL

pytestmark = pytest.mark.tpu

CONFIG = dataclasses.replace(
    MIXTRAL, layers=4, d_model=1024, heads=8, kv_heads=8, d_ff=1536, vocab=512, name="small mixture"
)


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> str:
    """A prompt's program: a chip has as many experts as the parameter says."""
    config = dataclasses.replace(CONFIG, experts=Experts(4 * request.param, 2))
    mesh = ruler.mesh("v5e:2x2", {"x": 1, "y": 2, "z": 2})
    plan = "WS 2D position, heads"
    lowered = layouts.lower_prefill(config, mesh, batch=1, length=4096, plan=plan, unrolled=False)
    assert SCOPE in lowered.as_text(debug_info=True)
    return lowered.compile(ce.compiler_options(ce.TPU_V5E)).as_text() or ""


def test_tokens_travel_while_the_feedforward_beside_the_experts_is_computed() -> None:
    """Replayed: without it, the chip waits for every all-to-all of experts' tokens."""
    sizes = {"x": 1, "y": 4, "z": 4}
    beside = layouts.padded_for("qwen2-57b-a14b", tuple(sizes.values()))
    beside = dataclasses.replace(beside, layers=2)
    assert beside.experts is not None
    alone = dataclasses.replace(beside.experts, shared_width=None, shared_router=False)

    def waited(config: layouts.ModelConfig) -> float:
        mesh, plan = ruler.mesh("v5e:4x4", sizes), "WS 2D position, heads"
        lowered = layouts.lower_prefill(config, mesh, batch=1, length=8192, plan=plan)
        line = ruler.predict(lowered, options=ce.compiler_options(ce.TPU_V5E))
        exposed = line.exposed_by_op.items()
        return sum(seconds for op, seconds in exposed if op.startswith("all-to-all"))

    # Two layers, each of which sends and gets back.
    least = 4 * 0.5e-3
    assert waited(dataclasses.replace(beside, experts=alone)) > least
    assert waited(beside) < 0.1 * least


@pytest.mark.parametrize("compiled", [1, 2], indirect=True)
def test_no_expert_is_copied(compiled: str) -> None:
    """Dots slice their expert from the stack of all layers; all tokens are sent, and none gathered."""
    e, f = CONFIG.d_model, CONFIG.d_ff
    # Computations that are a fusion's own hold the slice that its dot reads.
    apart = re.sub(r"(?m)^%fused[^{]*\{.*?^\}", "", compiled, flags=re.DOTALL)
    made = re.findall(r"= bf16\[([\d,]+)\]\S* (\w[\w-]*)\(", apart)
    sizes = {tuple(sorted(int(n) for n in shape.split(",") if n != "1")) for shape, _ in made}
    assert (e, f) not in sizes
    assert len(re.findall(rf" all-to-all(?:-start)?\(.*{SCOPE}", compiled)) == 2
