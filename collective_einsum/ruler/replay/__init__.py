"""Replaying a compiled schedule on the slice's torus: its timeline and its waits."""

from .collective_overlaps import CollectiveOverlap as CollectiveOverlap
from .compiled_dots import dot_cycles as dot_cycles
from .scheduler_log import scheduler_verdict as scheduler_verdict
from .simulation import replay as replay
from .simulation import replay_module as replay_module
from .source_lines import LineSeconds as LineSeconds
from .tables import WIDTH as WIDTH
from .tables import Table as Table
from .tables import legend as legend
from .tables import markdown_table as markdown_table
from .tables import table as table
from .tables import wrapped as wrapped
from .timeline import Timeline as Timeline
from .timeline_files import figure_class as figure_class

__all__ = [
    "WIDTH",
    "CollectiveOverlap",
    "LineSeconds",
    "Table",
    "Timeline",
    "dot_cycles",
    "figure_class",
    "legend",
    "markdown_table",
    "replay",
    "replay_module",
    "scheduler_verdict",
    "table",
    "wrapped",
]
