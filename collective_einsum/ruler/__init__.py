"""The ruler: compile any program for a TPU slice, read its schedule, replay it on the torus."""

from .prediction import mesh as mesh
from .prediction import predict as predict

__all__ = ["mesh", "predict"]
