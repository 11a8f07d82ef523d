"""Words of error messages: lists, suggestions, sizes and shardings in print."""

from .messages import as_dtype as as_dtype
from .messages import as_seconds as as_seconds
from .messages import did_you_mean as did_you_mean
from .messages import nearest as nearest
from .messages import plain as plain
from .messages import shown as shown
from .showing import Shown as Shown
from .showing import brief as brief

__all__ = [
    "Shown",
    "as_dtype",
    "as_seconds",
    "brief",
    "did_you_mean",
    "nearest",
    "plain",
    "shown",
]
