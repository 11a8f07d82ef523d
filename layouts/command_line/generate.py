"""`python -m layouts generate`: text from a prompt."""

from __future__ import annotations

import argparse
import sys
import time

from ..partitionings.partitioning import as_plan
from ..planning.defaults import default_decode, default_reader
from ..sampling.sampling import Sampling
from .choices import name_of
from .drawn_tokens import drawn_tokens
from .models import Model, model_of, say


def run(options: argparse.Namespace) -> None:
    """Writes the text to stdout as it comes, and what was chosen to stderr.

    Raises:
      ValueError: no prompt, or settings that do not fit.
      ImportError: an extra is not installed.
    """
    if not options.prompt:
        raise ValueError('give a prompt: --prompt "Once upon a time"')
    if options.system is not None and not options.chat:
        raise ValueError("--system has no effect without --chat; add --chat")
    if options.chat and options.checkpoint is None:
        raise ValueError("--chat needs the chat template of a checkpoint; give --checkpoint FOLDER")
    plan = None if options.plan is None else as_plan(options.plan)
    sampling = _sampling(options)
    model = model_of(options, len(options.prompt), 1024, unrolled=options.unrolled)
    prompts = [_encoded(model, text, options) for text in options.prompt]
    length, room = max(map(len, prompts)), max(map(len, prompts)) + options.tokens
    decoder = plan or default_decode(model.config, model.mesh, len(prompts), room)
    reader = plan or default_reader(model.config, model.mesh, len(prompts), length, room)
    say(f"plan: prefill {name_of(reader)}; decode {name_of(decoder)}")
    drawn = drawn_tokens(
        model.config,
        model.mesh,
        model.params,
        prompts,
        max_new_tokens=options.tokens,
        sampling=sampling,
        seeds=[options.seed + i for i in range(len(prompts))],
        plan=plan,
        int8_cache=options.int8_cache,
    )
    decoders = [model.tokenizer.decoder() for _ in prompts]
    texts, ended, count, started = [""] * len(prompts), [False] * len(prompts), 0, 0.0
    for tokens in drawn:
        # The first step compiles.
        started, count = (started, count + 1) if started else (time.perf_counter(), 0)
        for i, token in enumerate(tokens.tolist()):
            ended[i] = ended[i] or token in model.tokenizer.ends
            if not ended[i]:
                piece = decoders[i](token)
                texts[i] += piece
                if len(prompts) == 1:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        if all(ended):
            break
    if len(prompts) == 1:
        print()
    else:
        for prompt, text in zip(options.prompt, texts, strict=True):
            print(f"{prompt!r}:\n{text}\n")
    seconds = time.perf_counter() - started
    say(f"{count} steps after the first in {seconds:.1f} s, compiling included (measured)")


def _sampling(options: argparse.Namespace) -> Sampling:
    """Those of `--temperature`, `--top_p` and `--top_k`; of 1.0 where only the others are given."""
    temperature = options.temperature
    if temperature is None and (options.top_p is not None or options.top_k is not None):
        temperature = 1.0
    return Sampling(temperature=temperature, top_k=options.top_k, top_p=options.top_p)


def _encoded(model: Model, text: str, options: argparse.Namespace) -> list[int]:
    tokens = model.tokenizer
    ids = tokens.encode_chat(text, options.system) if options.chat else tokens.encode(text)
    if not ids:
        raise ValueError(f"the prompt {text!r} has no tokens; write some text")
    return ids
