"""The mesh of a model: axis names, slices, collectives over its axes, entry to shard_map."""

from .axes import AXES as AXES
from .axes import Axes as Axes
from .axes import MeshAxes as MeshAxes
from .axes import renamed as renamed
from .slice_meshes import as_shape as as_shape
from .slice_meshes import meshes as meshes
from .slice_meshes import shape_name as shape_name

__all__ = ["AXES", "Axes", "MeshAxes", "as_shape", "meshes", "renamed", "shape_name"]
