"""The tables of a timeline's times and bytes."""

from __future__ import annotations

from collections.abc import Mapping

from collective_einsum.ruler.replay.tables import Table

_TIMES = {
    "time": "in which the chip does this; an indented row is within the row above it",
    "us": "microseconds",
    "share": "of the total",
    "total": "from start to end",
    "compute": "the chip computes; dots: in ops that contain a dot",
    "communication": "at least one transfer between chips is under way",
    "exposed": "the chip waits for such a transfer",
}
_TRAFFIC = {
    "memory or link": "HBM, or the links of an axis of the slice's torus in one direction",
    "MB": "read from and written to HBM by a chip; sent over its link, of others too that it forwards",
    "busy us": "a link has a transfer (not counted for HBM)",
    "busy": "the same of the total",
    "occupied": "the bytes over what it could carry in the total",
}


def times_table(seconds: Mapping[str, float], total_seconds: float) -> Table:
    """Seconds of the rows, by their names."""
    rows = ((name, *_us_and_share(s, total_seconds)) for name, s in seconds.items())
    return Table(rows=tuple(rows), meanings=_TIMES, columns=3)


def traffic_table(
    hbm: tuple[float, float], links: Mapping[str, tuple[float, float, float]], total_seconds: float
) -> Table:
    """Bytes and occupancy of HBM; and by link its bytes, the seconds that it is busy, its occupancy."""
    rows = [("HBM", f"{hbm[0] / 1e6:.3f}", "", "", f"{hbm[1]:.1%}")]
    for link, (moved, busy, occupied) in links.items():
        cells = _us_and_share(busy, total_seconds)
        rows.append((link, f"{moved / 1e6:.3f}", *cells, f"{occupied:.1%}"))
    return Table(rows=tuple(rows), meanings=_TRAFFIC)


def _us_and_share(seconds: float, total_seconds: float) -> tuple[str, str]:
    return f"{seconds * 1e6:.2f}", f"{seconds / (total_seconds or 1.0):.1%}"
