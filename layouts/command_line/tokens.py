"""Texts as tokens, and tokens as text: by the tokenizer.json of a checkpoint, or a token a byte."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checkpoints.json_files import read_json
from .chat_template import render

# A token to the text that it completes.
Decoder = Callable[[int], str]


def padded_rows(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of texts as an array [texts, longest] int32, padded at the end, and their numbers [texts]
    int32."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens, lengths


class Tokenizer(Protocol):
    """What a command asks of a tokenizer."""

    ends: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that a text begins with."""
        ...

    def encode_chat(self, text: str, system: str | None) -> list[int]:
        """The tokens of a message of the user's, as the model's chat template asks for an answer."""
        ...

    def decoder(self) -> Decoder:
        """A function of tokens in their order, to the text that each of them completes."""
        ...


class Bytes:
    """A token for each byte of UTF-8.

    Attributes:
      ends: tokens that end a text: none.
    """

    ends: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(text.encode())

    def encode_chat(self, text: str, system: str | None) -> list[int]:
        """Refused: bytes have no chat template."""
        raise ValueError(f"there is no chat template for {text!r} and {system!r}")

    def decoder(self) -> Decoder:
        """See `Tokenizer`; what is no UTF-8 is shown as U+FFFD."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        return lambda token: decode(bytes([token]))


class FileTokenizer:
    """That of a tokenizer.json.

    Attributes:
      ends: tokens that end a text, of generation_config.json, config.json or tokenizer_config.json.
      size: how many tokens it has.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tokenizers  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "reading tokenizer.json needs tokenizers: pip install collective-einsum[checkpoints]"
            ) from error
        self._folder, self._library = folder, tokenizers
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} has no tokenizer.json; give a folder that has one: "
                "--tokenizer FOLDER"
            )
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ValueError(f"{path} is no tokenizer that `tokenizers` reads: {error}") from error
        self.size: int = self._tokenizer.get_vocab_size()
        self.ends = _end_tokens(folder, self._tokenizer.token_to_id)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self._tokenizer.encode(text).ids)

    def encode_chat(self, text: str, system: str | None) -> list[int]:
        """See `Tokenizer`."""
        messages = [{"role": "system", "content": system}] if system is not None else []
        rendered = render(self._folder, [*messages, {"role": "user", "content": text}])
        # The template writes the tokens that a text begins with.
        return list(self._tokenizer.encode(rendered, add_special_tokens=False).ids)

    def decoder(self) -> Decoder:
        """See `Tokenizer`; tokens that are no text, such as that of the end, are left out."""
        stream = self._library.decoders.DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""


def tokenizer_of(path: Path) -> FileTokenizer:
    """The tokenizer of a folder, or of the folder of a file.

    Raises:
      ValueError: it has no tokenizer.json, or one that is damaged.
      ImportError: tokenizers is not installed.
    """
    return FileTokenizer(path if path.is_dir() else path.parent)


def _end_tokens(folder: Path, token_of: Callable[[str], int | None]) -> tuple[int, ...]:
    """The field `eos_token_id` of the first file that has one; else the `eos_token` of the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name).get("eos_token_id")
        if given is not None:
            several: Sequence[int] = given if isinstance(given, list) else [given]
            return tuple(int(token) for token in several)
    given = read_json(folder / "tokenizer_config.json").get("eos_token")
    text = given.get("content") if isinstance(given, dict) else given
    token = token_of(text) if isinstance(text, str) else None
    return () if token is None else (token,)
