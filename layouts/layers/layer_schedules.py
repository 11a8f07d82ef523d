"""How the collectives of a layer run: data, decided before the layer is traced."""

from __future__ import annotations

import dataclasses

import collective_einsum as ce

from ..mesh.axis_collectives import ScheduleLike
from ..partitionings.expert_rooms import ExpertRooms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Seconds of independent compute that a parallel block's asynchronous collectives can overlap.

    Attributes:
      heads: for the last reduce-scatter of q, k and v where they are projected by themselves.
      inputs: for the last reduce-scatter of the feedforward's input matrices.
      w_o, w_out: for the all-gather before each of these matrices.
    """

    heads: float = 0.0
    inputs: float = 0.0
    w_o: float = 0.0
    w_out: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSchedules:
    """The schedules of one layer's collectives; `planning.schedule_layers` decides them from sizes.

    Attributes:
      given: what the caller asked for, such as "auto"; that of collectives which no field below names.
      projections: the schedule of `project_in` and `project_out`; `given`, or "blocking" where the
        compiler overlaps full all-gathers of weights with the matmuls before.
      outputs: the schedule of a parallel block's `project_out`; None if it is `projections`.
      weight_ring: the ring in which a weight-gathered feedforward's weights arrive while it
        multiplies; None where each weight is gathered in full before its matmul.
      splits_d_ff: whether the feedforward is computed in two fractions of d_ff, whose collectives
        over x overlap each other's matmuls.
      rooms: the rows of a round where each expert is multiplied with its own tokens only; None where
        experts are multiplied with all tokens.
      overlaps: independent compute that the collectives of the projections can overlap.
      feedforward_last: whether a barrier holds what follows the feedforward's nonlinearity back until
        attention is done.
      norms_in_hops: whether the sums of a norm before a projection are permutes, which overlap it,
        rather than one all-reduce.
    """

    given: ScheduleLike
    projections: ScheduleLike
    outputs: ScheduleLike | None = None
    weight_ring: ce.Schedule | None = None
    splits_d_ff: bool = False
    rooms: ExpertRooms | None = None
    overlaps: Overlaps = Overlaps()
    feedforward_last: bool = False
    norms_in_hops: bool = False
