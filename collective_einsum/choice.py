from __future__ import annotations
from .schedule import Schedule, as_schedule
import dataclasses
def resolve(op, values, schedule, chip):
    s = as_schedule(schedule) or Schedule("blocking")
    if s.kind=="chunked" and s.label is None and s.chunks>1:
        lab=[c for c in op.lhs if c in op.out and not (op.gather and c==op.gather.label) and not (op.scatter and c==op.scatter.label)]
        s=dataclasses.replace(s,label=lab[0])
    return s
def resolve_collective(kind,x,dim,axes,schedule,chip):
    return as_schedule(schedule) or Schedule("ring","latency")
