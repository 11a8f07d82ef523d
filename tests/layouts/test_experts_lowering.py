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
from layouts.layers.shared_feedforward import SCOPE as SHARED

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
    lowered = layouts.lower_prefill(config, mesh, batch=1, length=4096, plan=plan)
    assert SCOPE in lowered.as_text(debug_info=True)
    return lowered.compile(ce.compiler_options(ce.TPU_V5E)).as_text() or ""


def test_tokens_travel_while_the_feedforward_beside_the_experts_is_computed() -> None:
    """The dots of its input matrices stand between start and end of the all-to-all that sends tokens to
    their experts, and the dot of its output matrix between those of the one that brings results back."""
    config = dataclasses.replace(
        CONFIG, experts=Experts(4, 2, shared_width=6144, shared_router=True)
    )
    mesh = ruler.mesh("v5e:2x2", {"x": 1, "y": 2, "z": 2})
    plan = "WS 2D position, heads"
    lowered = layouts.lower_prefill(config, mesh, batch=1, length=4096, plan=plan)
    text = lowered.compile(ce.compiler_options(ce.TPU_V5E)).as_text() or ""
    # In the order of the schedule: the ends of all-to-alls, and what of the dots' einsums each line has.
    what = (
        rf" (all-to-all-(?:start|done))\(| fusion\(.*{SHARED}/.*/(m[ef],[ef]+->m[ef])/dot_general"
    )
    order = [
        found[1] or found[2] for found in map(re.compile(what).search, text.splitlines()) if found
    ]
    ends = ["all-to-all-start", "all-to-all-done"]
    inputs, output = ["me,ef->mf"] * 2, ["mf,fe->me"]
    assert order == [ends[0], *inputs, ends[1], ends[0], *output, ends[1]]


@pytest.mark.parametrize("compiled", [1, 2], indirect=True)
def test_no_expert_is_copied(compiled: str) -> None:
    """Dots slice their expert from the stack of all layers; all tokens are sent, and none gathered."""
    e, f = CONFIG.d_model, CONFIG.d_ff
    # Computations that are a fusion's own hold the slice that its dot reads.
    apart = re.sub(r"(?m)^%fused[^{]*\{.*?^\}", "", compiled, flags=re.DOTALL)
    made = re.findall(r"= bf16\[([\d,]+)\]\S* (\w[\w-]*)\(", apart)
    sizes = {tuple(sorted(int(n) for n in shape.split(",") if n != "1")) for shape, _ in made}
    assert (e, f) not in sizes
    assert compiled.count("all-to-all(") + compiled.count("all-to-all-start(") == 2
