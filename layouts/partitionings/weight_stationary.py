"""The weight-stationary layouts, 2D and 1D: sections 3.2.1 and 3.2.2 of "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from jax import lax

from ..arguments import as_flag
from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Activations, Axes, ScheduleLike, Weight
from .feedforward_layout import FeedForwardLayout, Outgoing, total

# The einsum of `project_out`.
_OUT = "mf,fe->me"


@dataclasses.dataclass(frozen=True)
class WeightStationary2D(FeedForwardLayout):
    """Weights stay where they are, E over x and F over yz (section 3.2.2).

    Activations BLE_xyz between layers are all-gathered over yz, multiplied, and reduce-scattered over
    x to BLF_yzx; after the nonlinearity they are all-gathered over x, multiplied, and reduce-scattered
    over yz. These collectives are feature-sharded; they may be token-sharded instead:

    Attributes:
      by_batch: collectives gather and scatter the batch, B_yz LE_x between layers and B_x LF_yz after
        the input matrices: the same bytes, and a TPU moves full rows without copies.
      all_reduce: only with `by_batch`. Sums over yz are all-reduced, BLE_x between layers: the bytes of
        a reduce-scatter and the next layer's all-gather in one collective, without the copies around
        two of them. Norms and residual sums are then computed for all tokens on every chip along yz.
        For steps of few tokens.
      by_position: collectives gather and scatter the positions of every sequence, BL_yz E_x between
        layers and BL_x F_yz after the input matrices. For prompts of few sequences. Attention is
        sharded by heads, and each chip attends with the queries of its own positions; where w_kv is
        replicated over yz, keys and values are projected before tokens are gathered.

    Raises:
      ValueError: `all_reduce` without `by_batch`, or `by_batch` and `by_position`.
    """

    by_batch: bool = False
    all_reduce: bool = False
    by_position: bool = False

    def __post_init__(self) -> None:
        for field in ("by_batch", "all_reduce", "by_position"):
            flag = as_flag(f"WeightStationary2D: {field}", getattr(self, field))
            object.__setattr__(self, field, flag)
        if self.all_reduce and not self.by_batch:
            raise ValueError(
                "WeightStationary2D(all_reduce=True): activations that are replicated between layers "
                "are sharded by batch inside of them; add by_batch=True"
            )
        if self.by_batch and self.by_position:
            raise ValueError(
                "WeightStationary2D(by_batch=True, by_position=True): tokens are sharded one way; "
                "choose by_batch for many sequences, by_position for few long ones"
            )

    @property
    def batch_axes(self) -> Axes:
        """y and z if `by_batch` and not `all_reduce`, else none."""
        return WEIGHT_AXES if self.by_batch and not self.all_reduce else ()

    @property
    def repeated_axes(self) -> Axes:
        """y and z if `all_reduce`, else none."""
        return WEIGHT_AXES if self.all_reduce else ()

    @property
    def inner_batch_axes(self) -> Axes:
        """x if `by_batch`, else none."""
        return ("x",) if self.by_batch else ()

    @property
    def position_axes(self) -> Axes:
        """y and z if `by_position`, else none."""
        return WEIGHT_AXES if self.by_position else ()

    @property
    def inner_position_axes(self) -> Axes:
        """x if `by_position`, else none."""
        return ("x",) if self.by_position else ()

    @property
    def moves_tokens(self) -> bool:
        """True if `by_batch` or `by_position`."""
        return self.by_batch or self.by_position

    def features(self, sharded: Axes) -> Axes:
        """The axes over which columns are stored; and x, over which features are scattered after the
        sum over E_x, unless tokens are."""
        return sharded if self.moves_tokens else (*sharded, "x")

    def project_in(
        self,
        c: Activations,
        weights: Sequence[Weight],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`."""
        del sharded
        if self.all_reduce:
            return ax.einsum_reduce_scatter(
                "me,ef->mf", c, list(weights), "x", "m", schedule, overlap_seconds
            )
        gather, scatter = ("m", "m") if self.moves_tokens else ("e", "f")
        return _gather_and_scatter(c, weights, gather, scatter, schedule, overlap_seconds)

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        gathers = ["m" if self.moves_tokens or term.token_sharded else "f" for term in terms]
        if self.all_reduce:
            return ax.all_reduce(_stationary_sum(terms, gathers, schedule), WEIGHT_AXES, schedule)
        return _stationary_out(terms, gathers, "m" if self.moves_tokens else "e", schedule)


@dataclasses.dataclass(frozen=True)
class WeightStationary1D(FeedForwardLayout):
    """Weights stay where they are, F over as many chips as yz has (section 3.2.1).

    On a mesh whose x is 1 this is the paper's: all-gather of BLE, both matmuls, reduce-scatter. Where
    x is longer, E of the weights stays sharded over it: sums over E_x are all-reduced before the
    nonlinearity, which every chip along x computes for the same features.
    """

    def features(self, sharded: Axes) -> Axes:
        """The axes over which columns are stored."""
        return sharded

    def project_in(
        self,
        c: Activations,
        weights: Sequence[Weight],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del sharded, overlap_seconds
        partial = ax.all_gather_einsum("me,ef->mf", c, list(weights), WEIGHT_AXES, "e", schedule)
        return [ax.all_reduce(y, ("x",), schedule) for y in partial]

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        gathers = ["m" if term.token_sharded else None for term in terms]
        return _stationary_out(terms, gathers, "e", schedule)


def project_in_token_sharded(
    c: Activations, weights: Sequence[Weight], schedule: ScheduleLike, overlap_seconds: float = 0.0
) -> list[jax.Array]:
    """`project_in` of a weight-stationary layout, with rows scattered over x instead of features: for
    attention whose batch is sharded over x anyway.

    Returns [rows over x, F as stored] for each weight.
    """
    return _gather_and_scatter(c, weights, "e", "m", schedule, overlap_seconds)


def _gather_and_scatter(
    c: Activations,
    weights: Sequence[Weight],
    gather: str,
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> list[jax.Array]:
    """`project_in` of weight-stationary layouts: label `gather` is gathered over yz before the einsum,
    label `scatter` is scattered over x after it."""
    return ax.all_gather_einsum_reduce_scatter(
        "me,ef->mf",
        c,
        list(weights),
        (WEIGHT_AXES, gather),
        ("x", scatter),
        schedule,
        overlap_seconds,
    )


def _stationary_out(
    terms: Sequence[Outgoing],
    gathers: Sequence[str | None],
    scatter: str,
    schedule: ScheduleLike,
) -> jax.Array:
    """`project_out` of weight-stationary layouts: each term gathers its label of `gathers` over x, if it
    has one, and the sum is scattered over yz along label `scatter`."""
    if len(terms) == 1:
        (h, w, *_), (gather,) = terms[0], gathers
        if gather is None:
            return ax.einsum_reduce_scatter(_OUT, h, w, WEIGHT_AXES, scatter, schedule)
        return ax.all_gather_einsum_reduce_scatter(
            _OUT, h, w, ("x", gather), (WEIGHT_AXES, scatter), schedule
        )
    y = _stationary_sum(terms, gathers, schedule)
    return ax.reduce_scatter_alone(y, WEIGHT_AXES, "me".index(scatter), schedule)


def _stationary_sum(
    terms: Sequence[Outgoing], gathers: Sequence[str | None], schedule: ScheduleLike
) -> jax.Array:
    """The sum of all terms that `_stationary_out` has yet to sum over yz: [rows, E over x]."""
    products: list[jax.Array] = []
    for term, gather in zip(terms, gathers, strict=True):
        h, w = term.h, term.w
        if gather is not None and term.gather_overlapped and products:
            h = ax.all_gather(h, ("x",), "mf".index(gather), schedule)
            # The barrier puts the matmuls of the terms before ahead of the next one, so that the gather
            # overlaps them.
            h, before = lax.optimization_barrier((h, total(products)))
            products, gather = [before], None
        if gather is None:
            products.append(ax.local_einsum(_OUT, h, w).astype(h.dtype))
            continue
        products.append(
            ax.all_gather_einsum(_OUT, h, w, "x", gather, schedule, term.overlap_seconds)
        )
    return total(products)
