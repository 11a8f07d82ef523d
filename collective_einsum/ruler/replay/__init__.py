"""Replaying a compiled schedule on the slice's torus: its timeline and its waits."""

from .scheduler_log import scheduler_verdict as scheduler_verdict
from .simulation import replay as replay
from .simulation import replay_module as replay_module
from .tables import markdown_table as markdown_table
from .tables import table as table
from .timeline import Timeline as Timeline
from .timeline_files import figure_class as figure_class

__all__ = [
    "Timeline",
    "figure_class",
    "markdown_table",
    "replay",
    "replay_module",
    "scheduler_verdict",
    "table",
]
