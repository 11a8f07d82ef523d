"""Compiling for a TPU slice without a TPU: targets, the cache of programs, worker processes."""

from .program_cache import Cache as Cache
from .program_cache import Program as Program
from .program_cache import lack_of_memory as lack_of_memory
from .program_cache import program_key as program_key
from .program_cache import source_name as source_name
from .program_cache import versions as versions
from .targets import Target as Target
from .targets import slice_name as slice_name
from .targets import target as target
from .worker_pool import in_processes as in_processes

__all__ = [
    "Cache",
    "Program",
    "Target",
    "in_processes",
    "lack_of_memory",
    "program_key",
    "slice_name",
    "source_name",
    "target",
    "versions",
]
