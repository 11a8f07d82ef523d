"""The folder of a tiny model of random weights, with a tokenizer and a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

# No axis of a mesh divides the heads or the vocabulary: 256 bytes, and 3 tokens that are no text.
FIELDS = {
    "model_type": "llama",
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "intermediate_size": 80,
    "vocab_size": 259,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
SPECIAL = ("<s>", "</s>", "<|end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'robot' %}"
    "{{ raise_exception('no robots') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(folder: Path, seed: int = 0) -> Path:
    """Writes config.json, model.safetensors, tokenizer.json and what stands beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS))
    save_file(_tensors(seed), folder / "model.safetensors")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _tensors(seed: int) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (259, 40),
        "model.norm.weight": (40,),
    }
    of_layer = {
        **{f"self_attn.{name}_proj": (40, 40) for name in "qkvo"},
        "mlp.up_proj": (80, 40),
        "mlp.gate_proj": (80, 40),
        "mlp.down_proj": (40, 80),
        "input_layernorm": (40,),
        "post_attention_layernorm": (40,),
    }
    for layer in range(2):
        for name, shape in of_layer.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) / 4).astype(np.float32) for name, shape in shapes.items()
    }
