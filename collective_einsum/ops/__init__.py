"""Frozen data that says what runs: schedules, einsums and collectives with their checks."""

from .schedule import DIRECTIONS as DIRECTIONS
from .schedule import NAMED as NAMED
from .schedule import Direction as Direction
from .schedule import Schedule as Schedule
from .schedule import as_schedule as as_schedule

__all__ = ["DIRECTIONS", "NAMED", "Direction", "Schedule", "as_schedule"]
