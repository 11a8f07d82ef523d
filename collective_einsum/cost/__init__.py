"""Predicted seconds of every schedule, and the choice of the cheapest. Executes nothing."""

from .candidates import GATHERED_CHUNKS as GATHERED_CHUNKS
from .choice import WORTHWHILE as WORTHWHILE
from .choice import Choice as Choice
from .dots import dot_flops as dot_flops
from .dots import matmul_seconds as matmul_seconds
from .lowering_rules import scatters_a_plane as scatters_a_plane
from .ranking import rank_einsum as rank_einsum
from .roofline import Dot as Dot
from .torus import all_gather_seconds as all_gather_seconds
from .torus import all_reduce_seconds as all_reduce_seconds
from .torus import all_to_all_seconds as all_to_all_seconds
from .torus import hops as hops
from .torus import links as links
from .torus import offloads as offloads
from .torus import on_slice as on_slice
from .torus import reduce_scatter_seconds as reduce_scatter_seconds
from .torus import ring_gather_seconds as ring_gather_seconds
from .torus import sides as sides
from .torus import slice_sides as slice_sides
from .workload import Estimate as Estimate

__all__ = [
    "GATHERED_CHUNKS",
    "WORTHWHILE",
    "Choice",
    "Dot",
    "Estimate",
    "all_gather_seconds",
    "all_reduce_seconds",
    "all_to_all_seconds",
    "dot_flops",
    "hops",
    "links",
    "matmul_seconds",
    "offloads",
    "on_slice",
    "rank_einsum",
    "reduce_scatter_seconds",
    "ring_gather_seconds",
    "scatters_a_plane",
    "sides",
    "slice_sides",
]
