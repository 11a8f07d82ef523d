"""Einsums of global arrays: which collectives their shardings ask for, and the shard_map."""

from .explicit_shardings import explicit_axes as explicit_axes
from .explicit_shardings import on_auto_axes as on_auto_axes
from .explicit_shardings import spec_of as explicit_spec

__all__ = ["explicit_axes", "explicit_spec", "on_auto_axes"]
