"""How results are displayed: a `repr` of one line, and in a notebook the table that `print` shows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Shown:
    """A value that a notebook and IPython's prompt display as `print` does."""

    def _repr_html_(self) -> str:
        # Not at the top: `import collective_einsum` should bring little.
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("..." if cycle else str(self))


def brief(value: DataclassInstance) -> str:
    """The `repr` of a dataclass of arrays: their dtypes and shapes.

    It has no numbers of arrays, which would be copied from the devices, and no field that has its
    default.
    """
    shown = [
        f"{field.name}={_of(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if not _is(getattr(value, field.name), field.default)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def _of(x: object) -> str:
    if isinstance(x, np.dtype):
        return x.name
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if dataclasses.is_dataclass(x) or not isinstance(shape, tuple) or dtype is None:
        return repr(x)
    return f"{dtype}[{','.join(map(str, shape))}]"


def _is(x: object, default: object) -> bool:
    # Arrays are not compared.
    return x is default or (
        isinstance(x, type(default)) and not hasattr(x, "shape") and x == default
    )
