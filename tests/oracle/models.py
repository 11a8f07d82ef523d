"""Tiny random models of transformers' own classes, saved as their users save them."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

# No axis of a mesh divides this.
VOCAB = 67
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MULTIHEAD = {"num_key_value_heads": 4}
_FALCON = {"n_embed": None, "num_kv_heads": None, **MULTIHEAD}
_QWEN2_MOE = {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 40}
_QWEN3_MOE = {"head_dim": 16, "moe_intermediate_size": 12}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
_GEMMA3 = {
    "head_dim": 16,
    "sliding_window": 3,
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 24,
    "rope_parameters": {
        "full_attention": LINEAR,
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
}
_VISION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 28,
    "patch_size": 14,
}

# Of each case: the model type, and what its config has besides SIZES.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, multihead, 5 heads": (
        "llama",
        {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
    ),
    "llama, biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, long window": ("mistral", {"sliding_window": 64}),
    "mistral, window": ("mistral", {"sliding_window": 3}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
            "attention_bias": True,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 64,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2, windows": ("gemma2", {"head_dim": 16, "sliding_window": 3, "num_hidden_layers": 3}),
    "qwen3, windows": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "phi3, window": ("phi3", {"sliding_window": 4}),
    "gemma3": ("gemma3_text", _GEMMA3),
    "gemma3, images": ("gemma3", {"text_config": SIZES | _GEMMA3, "vision_config": _VISION}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3, windows": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 3, "no_rope_layers": [1, 0, 0]}
        | {"num_hidden_layers": 3},
    ),
    "cohere2": ("cohere2", {"sliding_window": 3, "num_hidden_layers": 5, "logit_scale": 0.3}),
    "olmo": ("olmo", {"attention_bias": True}),
    "olmo, clipped": ("olmo", {"attention_bias": True, "clip_qkv": 0.4}),
    "olmo2": ("olmo2", {}),
    "phi": ("phi", MULTIHEAD),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", GPT),
    "gpt2, no scale": ("gpt2", {**GPT, "n_inner": 40, "scale_attn_weights": False}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_bigcode, multihead": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt, no biases": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 32, "enable_bias": False},
    ),
    "gptj": (
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    ),
    "gpt_neox": ("gpt_neox", MULTIHEAD),
    "gpt_neox, serial, no biases": (
        "gpt_neox",
        {"use_parallel_residual": False, "attention_bias": False, **MULTIHEAD},
    ),
    "gpt_neox, no biases": ("gpt_neox", {"attention_bias": False, "rotary_pct": 0.5, **MULTIHEAD}),
    "falcon": ("falcon", {}),
    "falcon, biases, multihead": ("falcon", {"bias": True, "multi_query": False}),
    "falcon, serial": ("falcon", {"parallel_attn": False, "bias": True}),
    "falcon, new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, new, biases": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    "falcon, new, one norm": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, alibi": (
        "falcon",
        {"alibi": True, "parallel_attn": False, "bias": True, "multi_query": False},
    ),
    "bloom": ("bloom", {}),
    "bloom, 6 heads": ("bloom", {"hidden_size": 48, "num_attention_heads": 6}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, 12b": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "cohere": ("cohere", {}),
    "cohere, norms": ("cohere", {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.3}),
    "starcoder2": ("starcoder2", {}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 16}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 3,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "swiglu_limit": 0.5,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "nemotron": ("nemotron", {}),
    "nemotron, biases": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, window": ("mixtral", {"num_local_experts": 6, "sliding_window": 3}),
    "qwen2_moe": ("qwen2_moe", {**_QWEN2_MOE, "num_experts": 6, "num_experts_per_tok": 3}),
    "qwen2_moe, normalized, window": (
        "qwen2_moe",
        {
            **_QWEN2_MOE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 3,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {**_QWEN3_MOE, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
    ),
    "qwen3_moe, not normalized": (
        "qwen3_moe",
        {**_QWEN3_MOE, "num_experts": 8, "num_experts_per_tok": 2, "attention_bias": True},
    ),
}


def make(kind: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with random parameters: norms' scales and biases too."""
    sizes: dict[str, Any] = dict(SIZES)
    if kind in ("gptj", "gpt2", "gpt_bigcode"):
        sizes = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gemma3":
        sizes = {"mm_tokens_per_image": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.CONFIG_MAPPING[kind](**{**sizes, **copy.deepcopy(fields)})
        # The eager attention of Falcon adds ALiBi twice.
        attention = "sdpa" if getattr(config, "alibi", False) else "eager"
        config._attn_implementation = attention
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            drawn = torch.randn(x.shape, generator=generator)
            if x.ndim == 1 or "norm" in name:
                # Scales near 1, or near 0 where they are stored less 1; biases that are seen.
                x.add_(0.3 * drawn)
            else:
                x.copy_(drawn / x.shape[-1] ** 0.5 * (4.0 if "lm_head" in name else 1.5))
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> None:
    """As `save_pretrained`, without its progress bar."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The logits [batch, length, vocab] of sequences of tokens [batch, length]."""
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64)), use_cache=False).logits.float().numpy()
