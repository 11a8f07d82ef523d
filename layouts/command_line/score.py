"""`python -m layouts score`: the perplexity of a text, and log-likelihoods of continuations."""

from __future__ import annotations

import argparse
import math

import numpy as np

from ..decoding.score import score
from ..partitionings.partitioning import Partitioning, as_plan
from .models import Model, model_of
from .tokens import padded_rows


def run(options: argparse.Namespace) -> None:
    """Prints what is asked for to stdout, and what was chosen to stderr.

    Raises:
      ValueError: neither a text nor continuations, or both, or texts without tokens.
      ImportError: an extra is not installed.
    """
    if (options.text is None) == (not options.continuation):
        raise ValueError(
            "give a text, --text FILE, or a prompt with continuations, --prompt "
            '"The sky is" --continuation " blue" --continuation " green"'
        )
    if options.continuation and options.prompt is None:
        raise ValueError('continuations continue a prompt: --prompt "The sky is"')
    plan = None if options.plan is None else as_plan(options.plan)
    if options.text is not None:
        model = model_of(options, options.batch, options.context)
        print(_perplexity(model, options.text, options, plan))
    else:
        model = model_of(options, len(options.continuation), options.context)
        print(_continuations(model, options, plan))


def _perplexity(
    model: Model, text: str, options: argparse.Namespace, plan: Partitioning | None
) -> str:
    """Of a text in windows of `--context` tokens, each read on its own; the first token of a window is
    not counted."""
    ids = model.tokenizer.encode(text)
    windows = [ids[i : i + options.context] for i in range(0, len(ids), options.context)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise ValueError("the text has no two tokens, so that nothing can be scored")
    total = 0.0
    for first in range(0, len(windows), options.batch):
        total += float(_scores(model, windows[first : first + options.batch], options, plan).sum())
    count = sum(len(window) - 1 for window in windows)
    return (
        f"perplexity {math.exp(-total / count):.4f} of {count} tokens in {len(windows)} windows of up "
        f"to {options.context}; {-total / math.log(2) / len(text.encode()):.4f} bits a byte"
    )


def _continuations(model: Model, options: argparse.Namespace, plan: Partitioning | None) -> str:
    """A line for each: its log-likelihood, how many tokens it has, and itself."""
    prompt, rows, starts = model.tokenizer.encode(options.prompt), [], []
    for text in options.continuation:
        whole = model.tokenizer.encode(options.prompt + text)
        # A token that holds the end of the prompt and more is the prompt's.
        start = len(prompt)
        if start < 1 or len(whole) <= start:
            raise ValueError(
                f"{options.prompt!r} and {text!r}: a prompt and its continuation need a token each"
            )
        rows.append(whole)
        starts.append(start)
    scores = _scores(model, rows, options, plan)
    lines = ["log-likelihood  tokens  continuation"]
    for text, ids, start, row in zip(options.continuation, rows, starts, scores, strict=True):
        own = float(row[start : len(ids)].sum())
        lines.append(f"{own:14.4f}  {len(ids) - start:6}  {text!r}")
    return "\n".join(lines)


def _scores(
    model: Model, rows: list[list[int]], options: argparse.Namespace, plan: Partitioning | None
) -> np.ndarray:
    """The log-probability of each token, [rows, longest] float64."""
    tokens, lengths = padded_rows(rows)
    found = score(
        model.config,
        model.mesh,
        model.params,
        tokens,
        lengths=lengths,
        plan=plan,
        int8_cache=options.int8_cache,
    )
    return np.asarray(found).astype(np.float64)
