"""The fields of a Hugging Face config.json, with refusals that name them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from collective_einsum.text import shown

from ..arguments import is_number
from ..models.config import Activation, AttentionKind, Rotary
from .json_files import read_json

LayerRotary = Rotary | Literal["model"] | None

# Names of transformers' activations. Its tanh approximations of gelu are the same function.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Values of `layer_types`.
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class ConfigFields:
    """The fields of one config.json.

    Attributes:
      values: the fields, as JSON has them.
      name: of the model, for tables and messages: that of its folder.
      source: where the fields are from, for messages.
    """

    values: Mapping[str, Any]
    name: str = "model"
    source: str = "config.json"

    @property
    def model_type(self) -> str:
        """The field that says which family the model is of."""
        return str(self.values.get("model_type"))

    def get(self, field: str, default: Any = None) -> Any:
        """The value of a field; `default` if it is absent or null."""
        value = self.values.get(field)
        return default if value is None else value

    def size(self, field: str, default: int | None = None) -> int:
        """A positive integer.

        Raises:
          ValueError: it is something else, or absent without a default.
        """
        value = self.get(field, default)
        if value is None:
            raise ValueError(f"{self._place} lacks {field!r}, a positive integer")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(field, "must be a positive integer")
        return value

    def number(self, field: str, default: float) -> float:
        """A real number.

        Raises:
          ValueError: it is something else.
        """
        value = self.get(field, default)
        if not is_number(value):
            raise self.refusal(field, "must be a number")
        return float(value)

    def optional_number(self, field: str, default: float | None) -> float | None:
        """A real number, or None if the field is null; `default` if it is absent."""
        return None if self.values.get(field, default) is None else self.number(field, 0.0)

    def flag(self, field: str, default: bool) -> bool:
        """A bool.

        Raises:
          ValueError: it is something else.
        """
        value = self.get(field, default)
        if not isinstance(value, bool):
            raise self.refusal(field, "must be true or false")
        return value

    def activation(self, field: str = "hidden_act", default: str = "silu") -> Activation:
        """The activation that a field names.

        Raises:
          ValueError: layouts has no such activation.
        """
        value = self.get(field, default)
        if value not in ACTIVATIONS:
            raise self.refusal(
                field, f"is not supported; activations are {', '.join(sorted(ACTIVATIONS))}"
            )
        return ACTIVATIONS[value]

    def refuse(self, field: str, missing: str, *, unless: tuple[Any, ...] = (None, False)) -> None:
        """Refuses a field that has a value other than those in `unless`.

        Args:
          field: its name.
          missing: what layouts lacks, such as "clipped queries, keys and values".
          unless: values that ask for nothing special. None also stands for an absent field.

        Raises:
          ValueError: it has another value.
        """
        if self.values.get(field) not in unless:
            raise self.refusal(field, f"is not supported: layouts has no {missing}")

    def with_defaults(self, **values: Any) -> ConfigFields:
        """The same fields, and `values` where config.json lacks one."""
        return dataclasses.replace(self, values={**values, **self.values})

    def window_pattern(self, default: int) -> tuple[str, ...]:
        """The kinds of the first layers, which repeat: of `sliding_window_pattern` layers, or `default`,
        the last is full and the others have a window."""
        return (_SLIDING,) * (self.size("sliding_window_pattern", default) - 1) + (_FULL,)

    def attention_kinds(
        self,
        default: Sequence[str] = (_SLIDING,),
        *,
        sliding: LayerRotary = "model",
        full: LayerRotary = "model",
    ) -> tuple[AttentionKind, ...]:
        """The attention of each layer: full, or over a window of `sliding_window` positions.

        Args:
          default: the kinds of the first layers, which repeat, where config.json has no `layer_types`.
          sliding, full: the rotary embedding of layers of each kind, as `AttentionKind` has it.

        Raises:
          ValueError: `layer_types` names another kind.
        """
        types = self.get("layer_types", list(default))
        other = [kind for kind in types if kind not in (_SLIDING, _FULL)]
        if other:
            raise self.refusal("layer_types", f"is not supported: layouts has no {other[0]!r}")
        window = None
        if _SLIDING in types and self.get("sliding_window") is not None:
            window = self.size("sliding_window")
            # A window of all positions is none.
            window = None if window >= self.size("max_position_embeddings", 2048) else window
        kinds = {_SLIDING: AttentionKind(window, sliding), _FULL: AttentionKind(None, full)}
        return tuple(kinds[kind] for kind in types)

    def refusal(self, field: str, reason: str) -> ValueError:
        """The error that a field's value gives for a reason."""
        return ValueError(f"{self._place}: {field}={shown(self.values.get(field))} {reason}")

    @property
    def _place(self) -> str:
        return f"{self.source} of model_type {self.model_type!r}"


def read_fields(folder: str | os.PathLike[str]) -> ConfigFields:
    """The fields of the config.json in a folder.

    Raises:
      ValueError: there is no such file, or it holds no JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} has no config.json; give the folder of a model that was saved with "
            "transformers' save_pretrained, or downloaded whole from the Hugging Face hub"
        )
    return ConfigFields(read_json(path), Path(folder).resolve().name or "model")
