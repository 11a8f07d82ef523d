"""Chat templates: messages as the text that a model was trained on, by the template of its folder."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoints.json_files import read_json


def render(folder: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of some messages, up to where the model's answer begins.

    Templates are rendered as transformers renders them, in a sandbox of jinja2.

    Args:
      folder: with a chat_template.jinja, or a tokenizer_config.json with the field `chat_template`.
      messages: each with "role" and "content".

    Raises:
      ValueError: there is no template, or it refuses the messages.
      ImportError: jinja2 is not installed.
    """
    fields = read_json(folder / "tokenizer_config.json")
    template = _template(folder, fields)
    try:
        import jinja2  # pyright: ignore[reportMissingImports]
        from jinja2.sandbox import (  # pyright: ignore[reportMissingImports]
            ImmutableSandboxedEnvironment,
        )
    except ImportError as error:
        raise ImportError(
            "--chat renders the chat template by jinja2, which is not installed: pip install jinja2; "
            "or leave --chat out and write the whole prompt"
        ) from error

    def refuse(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda words: datetime.datetime.now().strftime(words)
    tokens = {name: _content(fields.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=True, **tokens
        )
    except jinja2.exceptions.TemplateError as error:
        raise ValueError(f"the chat template of {str(folder)!r} cannot be used: {error}") from error


def _template(folder: Path, fields: Mapping[str, Any]) -> str:
    path, given = folder / "chat_template.jinja", fields.get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(given, list):
        # Several, by name.
        given = {entry.get("name"): entry.get("template") for entry in given}.get("default")
    if not isinstance(given, str):
        raise ValueError(
            f"{str(folder)!r} has no chat template, neither chat_template.jinja nor the field "
            "chat_template of tokenizer_config.json; leave --chat out and write the whole prompt"
        )
    return given


def _content(token: object) -> str:
    """A special token as text: it is stored as text, or with its settings."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
