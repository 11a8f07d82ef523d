"""The ruler: compile any program for a TPU slice, read its schedule, replay it on the torus."""

from .prediction import mesh as mesh
from .prediction import predict as predict
from .replay.comparison import Comparison as Comparison
from .replay.comparison import compare as compare

__all__ = ["Comparison", "compare", "mesh", "predict"]
