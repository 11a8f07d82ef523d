"""The open models that have names, against the config.json and the sizes of each as published."""

import json
from pathlib import Path
from typing import Any

import pytest

import layouts
from layouts.models.open_models import OPEN_MODELS

# What decides of config.json; what all members of a family share is left out of the later ones.
_LLAMA3 = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
_LLAMA32 = _LLAMA3 | {
    "rope_scaling": {**_LLAMA3["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}
_QWEN3 = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_window_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_QWEN3_MOE = _QWEN3 | {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
}
_QWEN2_MOE = _QWEN3_MOE | {
    "model_type": "qwen2_moe",
    "head_dim": None,
    "norm_topk_prob": False,
    "sliding_window": 32768,
}
_MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "quantization_config": {"quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "max_position_embeddings": 131072,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _LLAMA3,
    "llama-3.1-70b": _LLAMA3,
    "llama-3.1-405b": _LLAMA3,
    "llama-3.2-1b": _LLAMA32 | {"head_dim": 64},
    "llama-3.2-3b": _LLAMA32 | {"head_dim": 128},
    "llama-7b": {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_act": "silu",
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "qwen3-8b": _QWEN3,
    "qwen3-32b": _QWEN3,
    "qwen1.5-moe-a2.7b": _QWEN2_MOE
    | {
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen2-57b-a14b": _QWEN2_MOE
    | {
        "moe_intermediate_size": 2560,
        "num_experts": 64,
        "shared_expert_intermediate_size": 20480,
    },
    "qwen3-30b-a3b": _QWEN3_MOE | {"moe_intermediate_size": 768},
    "qwen3-235b-a22b": _QWEN3_MOE | {"moe_intermediate_size": 1536},
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "head_dim": 128,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            "vocab_size": 262208,
        },
    },
    "mixtral-8x7b": _MIXTRAL | {"vocab_size": 32000},
    "mixtral-8x22b": _MIXTRAL | {"vocab_size": 32768},
    "gpt-oss-20b": _GPT_OSS | {"num_local_experts": 32},
    "gpt-oss-120b": _GPT_OSS | {"num_local_experts": 128},
}
# Layers, d_model, d_ff, heads, and billions of parameters as published.
SIZES = {
    "llama-7b": (32, 4096, 11008, 32, 6.74),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8.03),
    "llama-3.1-70b": (80, 8192, 28672, 64, 70.6),
    "llama-3.1-405b": (126, 16384, 53248, 128, 405.9),
    "llama-3.2-1b": (16, 2048, 8192, 32, 1.236),
    "llama-3.2-3b": (28, 3072, 8192, 24, 3.213),
    "smollm2-135m": (30, 576, 1536, 9, 0.1345),
    "qwen3-8b": (36, 4096, 12288, 32, 8.19),
    "qwen3-32b": (64, 5120, 25600, 64, 32.76),
    "gemma-3-27b": (62, 5376, 21504, 32, 27.0),
    "mixtral-8x7b": (32, 4096, 14336, 32, 46.7),
    "mixtral-8x22b": (56, 6144, 16384, 48, 140.6),
    "qwen1.5-moe-a2.7b": (24, 2048, 5632, 16, 14.3),
    "qwen2-57b-a14b": (28, 3584, 18944, 28, 57.4),
    "qwen3-30b-a3b": (48, 2048, 6144, 32, 30.5),
    "qwen3-235b-a22b": (94, 4096, 12288, 64, 235.1),
    "gpt-oss-20b": (24, 2880, 2880, 64, 20.9),
    "gpt-oss-120b": (36, 2880, 2880, 64, 116.8),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_named_model_is_that_of_its_config_json(name: str, tmp_path: Path) -> None:
    layers, d_model, d_ff, heads, _ = SIZES[name]
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_attention_heads": heads,
    }
    fields = CONFIGS[name]
    if "text_config" in fields:
        fields = fields | {"text_config": fields["text_config"] | sizes}
    else:
        fields = fields | sizes
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    read = layouts.config_from_hf(tmp_path)
    own = layouts.model(name)
    assert read.name != own.name
    assert _without_name(read) == _without_name(own)


def _without_name(config: layouts.ModelConfig) -> dict[str, Any]:
    return {field: value for field, value in vars(config).items() if field != "name"}


@pytest.mark.parametrize("config", OPEN_MODELS, ids=lambda config: config.name)
def test_parameters_are_as_many_as_were_published(config: layouts.ModelConfig) -> None:
    assert config.parameters == pytest.approx(SIZES[config.name][-1] * 1e9, rel=0.003)
