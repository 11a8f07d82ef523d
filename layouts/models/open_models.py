"""Open models by name, at their real sizes, without padding: what `config_from_hf` makes of the
config.json that each was published with."""

from __future__ import annotations

import dataclasses
import math

from .config import AttentionKind, Experts, GateClamp, ModelConfig
from .rotary import LinearScaling, Llama3Scaling, Rotary, YarnScaling


def _llama3(factor: float) -> Rotary:
    return Rotary(base=500000.0, scaling=Llama3Scaling(factor, original_positions=8192))


LLAMA_7B = ModelConfig(
    name="llama-7b",
    layers=32,
    d_model=4096,
    d_ff=11008,
    heads=32,
    kv_heads=32,
    d_head=128,
    vocab=32000,
    tied_embedding=False,
)
LLAMA_31_8B = ModelConfig(
    name="llama-3.1-8b",
    layers=32,
    d_model=4096,
    d_ff=14336,
    heads=32,
    kv_heads=8,
    d_head=128,
    vocab=128256,
    norm_epsilon=1e-5,
    rotary=_llama3(8.0),
    tied_embedding=False,
)
LLAMA_31_70B = dataclasses.replace(
    LLAMA_31_8B, name="llama-3.1-70b", layers=80, d_model=8192, d_ff=28672, heads=64
)
LLAMA_31_405B = dataclasses.replace(
    LLAMA_31_8B, name="llama-3.1-405b", layers=126, d_model=16384, d_ff=53248, heads=128
)
LLAMA_32_1B = dataclasses.replace(
    LLAMA_31_8B,
    name="llama-3.2-1b",
    layers=16,
    d_model=2048,
    d_ff=8192,
    d_head=64,
    rotary=_llama3(32.0),
    tied_embedding=True,
)
LLAMA_32_3B = dataclasses.replace(
    LLAMA_32_1B, name="llama-3.2-3b", layers=28, d_model=3072, heads=24, d_head=128
)
SMOLLM2_135M = ModelConfig(
    name="smollm2-135m",
    layers=30,
    d_model=576,
    d_ff=1536,
    heads=9,
    kv_heads=3,
    d_head=64,
    vocab=49152,
    norm_epsilon=1e-5,
    rotary=Rotary(base=100000.0),
)
QWEN3_8B = ModelConfig(
    name="qwen3-8b",
    layers=36,
    d_model=4096,
    d_ff=12288,
    heads=32,
    kv_heads=8,
    d_head=128,
    vocab=151936,
    query_key_norm="rmsnorm",
    rotary=Rotary(base=1e6),
    tied_embedding=False,
)
QWEN3_32B = dataclasses.replace(
    QWEN3_8B, name="qwen3-32b", layers=64, d_model=5120, d_ff=25600, heads=64
)
_GEMMA_WINDOW = AttentionKind(window=1024, rotary=Rotary(base=10000.0))
GEMMA_3_27B = ModelConfig(
    name="gemma-3-27b",
    layers=62,
    d_model=5376,
    d_ff=21504,
    heads=32,
    kv_heads=16,
    d_head=128,
    vocab=262208,
    activation="gelu_tanh",
    norm_placement="both",
    norm_offset=1.0,
    query_key_norm="rmsnorm",
    rotary=Rotary(base=1e6, scaling=LinearScaling(8.0)),
    attention_kinds=(*[_GEMMA_WINDOW] * 5, AttentionKind()),
    embedding_scale=math.sqrt(5376),
    attention_scale=168**-0.5,
)

MIXTRAL_8X7B = ModelConfig(
    name="mixtral-8x7b",
    layers=32,
    d_model=4096,
    d_ff=14336,
    heads=32,
    kv_heads=8,
    d_head=128,
    vocab=32000,
    norm_epsilon=1e-5,
    rotary=Rotary(base=1e6),
    experts=Experts(8, 2),
    tied_embedding=False,
)
MIXTRAL_8X22B = dataclasses.replace(
    MIXTRAL_8X7B,
    name="mixtral-8x22b",
    layers=56,
    d_model=6144,
    d_ff=16384,
    heads=48,
    vocab=32768,
)
QWEN3_30B_A3B = dataclasses.replace(
    QWEN3_8B,
    name="qwen3-30b-a3b",
    layers=48,
    d_model=2048,
    d_ff=768,
    kv_heads=4,
    experts=Experts(128, 8),
)
QWEN3_235B_A22B = dataclasses.replace(
    QWEN3_30B_A3B, name="qwen3-235b-a22b", layers=94, d_model=4096, d_ff=1536, heads=64
)
QWEN_15_MOE_A27B = dataclasses.replace(
    QWEN3_8B,
    name="qwen1.5-moe-a2.7b",
    layers=24,
    d_model=2048,
    d_ff=1408,
    heads=16,
    kv_heads=16,
    query_key_norm=None,
    biases=("q", "kv"),
    experts=Experts(60, 4, "all", shared_width=5632, shared_router=True),
)
QWEN2_57B_A14B = dataclasses.replace(
    QWEN_15_MOE_A27B,
    name="qwen2-57b-a14b",
    layers=28,
    d_model=3584,
    d_ff=2560,
    heads=28,
    kv_heads=4,
    experts=Experts(64, 8, "all", shared_width=20480, shared_router=True),
)
GPT_OSS_20B = ModelConfig(
    name="gpt-oss-20b",
    layers=24,
    d_model=2880,
    d_ff=2880,
    heads=64,
    kv_heads=8,
    d_head=64,
    vocab=201088,
    norm_epsilon=1e-5,
    rotary=Rotary(
        base=150000.0,
        scaling=YarnScaling(
            32.0,
            original_positions=4096,
            attention_factor=0.1 * math.log(32.0) + 1,
            whole_dimensions=False,
        ),
    ),
    attention_kinds=(AttentionKind(window=128), AttentionKind()),
    sinks=True,
    biases=("q", "kv", "o", "in", "gate", "out"),
    experts=Experts(32, 4, router_bias=True),
    gate_clamp=GateClamp(),
    tied_embedding=False,
)
GPT_OSS_120B = dataclasses.replace(
    GPT_OSS_20B, name="gpt-oss-120b", layers=36, experts=Experts(128, 4, router_bias=True)
)

OPEN_MODELS = (
    *(LLAMA_7B, LLAMA_31_8B, LLAMA_31_70B, LLAMA_31_405B, LLAMA_32_1B, LLAMA_32_3B),
    *(SMOLLM2_135M, QWEN3_8B, QWEN3_32B, GEMMA_3_27B, MIXTRAL_8X7B, MIXTRAL_8X22B),
    *(QWEN_15_MOE_A27B, QWEN2_57B_A14B, QWEN3_30B_A3B, QWEN3_235B_A22B),
    *(GPT_OSS_20B, GPT_OSS_120B),
)
