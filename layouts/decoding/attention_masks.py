"""Attention masks of prompts, as tokenizers give them: left-padded rows are shifted to the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from collective_einsum.text import shown

from ..arguments import Tokens, as_prompts, values_of

# [batch, T] of 0 and 1, or of booleans.
Mask = ArrayLike | Sequence[Sequence[int]]


class Prompts(NamedTuple):
    """Prompts that are padded at their end.

    Attributes:
      tokens: [batch, T] integers.
      lengths: [batch] integers, how many count; None for all.
      starts: [batch] integers, the place of each row's first token before it was shifted; None where
        no row was.
    """

    tokens: jax.Array | np.ndarray
    lengths: ArrayLike | Sequence[int] | None
    starts: np.ndarray | None = None


def right_padded(
    tokens: Tokens,
    lengths: ArrayLike | Sequence[int] | None,
    attention_mask: Mask | None,
) -> Prompts:
    """Prompts padded at their end, from tokens with their lengths or with an attention mask.

    Args:
      tokens: [batch, T] integers; without a mask, padded at the end.
      lengths: [batch], or None.
      attention_mask: [batch, T], 1 where a token counts; or None. The ones of a row are consecutive:
        padding stands before them, after them, or both.

    Raises:
      ValueError: both are given; or the mask has another shape, other numbers, or zeros among the ones
        of a row; or it is traced, so that this cannot be seen.
    """
    tokens = as_prompts(tokens)
    if attention_mask is None:
        return Prompts(tokens, lengths)
    if lengths is not None:
        raise ValueError("lengths and attention_mask both say which tokens count; give one of them")
    mask = _as_mask(attention_mask, tokens.shape)
    counts = mask.sum(axis=1, dtype=np.int32)
    starts = np.where(counts > 0, mask.argmax(axis=1), 0).astype(np.int32)
    places = np.arange(mask.shape[1])
    whole = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
    if (whole != mask).any():
        row = int((whole != mask).any(axis=1).argmax())
        raise ValueError(
            f"attention_mask has a hole in row {row}: {shown(mask[row].astype(int).tolist())}; its "
            "ones must be consecutive, with padding before or after them"
        )
    if not starts.any():
        return Prompts(tokens, counts)
    order = (places + starts[:, None]) % mask.shape[1]
    along = jnp.take_along_axis if isinstance(tokens, jax.Array) else np.take_along_axis
    return Prompts(along(tokens, order, axis=1), counts, starts)


def _as_mask(given: object, shape: tuple[int, ...]) -> np.ndarray:
    """The mask as booleans [batch, T]."""
    seen = values_of(given)
    if seen is None:
        raise ValueError(
            "attention_mask must be known before anything is compiled, so that holes in it can be "
            "refused; inside a jit, pad prompts at their end and give lengths="
        )
    if seen.shape != shape:
        raise ValueError(
            f"attention_mask of shape {seen.shape} must have that of the tokens, {shape}"
        )
    if seen.dtype.kind not in "biu" or not np.isin(seen, (0, 1)).all():
        raise ValueError(
            f"attention_mask={shown(seen.tolist())} must hold 1 where a token counts and 0 where it "
            "is padding"
        )
    return seen.astype(bool)
