"""Einsums of global arrays: any spec, mesh, sharding and schedule, against numpy's einsum."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MESHES = [(1,), (2,), (3,), (8,), (2, 2), (4, 2), (2, 4), (1, 6), (2, 2, 2), (2, 1, 4), (1, 2, 3)]
SIZES = [1, 2, 3, 4, 6, 8, 8, 12, 16]
NAMED = ["auto", "auto", "auto", "blocking", "latency", "unidirectional", "async"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a case is made of."""

    mesh: Mesh
    explicit: bool
    text: str
    terms: list[str]
    out: str
    arrays: list[np.ndarray]
    specs: list[P]
    out_spec: P
    dtype: Any
    preferred: Any
    schedule: str
    context: bool

    @property
    def plain(self) -> str:
        """The einsum without dots."""
        return f"{','.join(self.terms)}->{self.out}"


def _terms(rng: np.random.Generator) -> tuple[list[str], str]:
    """The labels of one to three operands and of a result."""
    count = int(rng.choice([1, 2, 2, 2, 2, 3]))
    pool = list("abcdef")[: int(rng.integers(2, 7))]
    terms = []
    for _ in range(count):
        rank = int(rng.integers(0 if count > 1 else 1, min(len(pool), 4) + 1))
        labels = [str(c) for c in rng.choice(pool, rank, replace=False)]
        if labels and rng.random() < 0.12:
            labels.insert(int(rng.integers(len(labels) + 1)), str(rng.choice(labels)))
        terms.append("".join(labels[:4]))
    present = sorted({*"".join(terms)})
    kept = [c for c in present if rng.random() < 0.55]
    rng.shuffle(kept)
    return terms, "".join(kept)


def _sharding(rng: np.random.Generator, mesh: Mesh, shape: tuple[int, ...]) -> P:
    """Some of the axes, on dimensions that they divide; tuples in any order."""
    left = list(shape)
    found: list[tuple[str, ...]] = [()] * len(shape)
    for axis in rng.permutation(list(mesh.axis_names)):
        n = mesh.shape[str(axis)]
        places = [d for d, size in enumerate(left) if size % n == 0]
        if places and rng.random() < 0.75:
            d = int(rng.choice(places))
            left[d] //= n
            found[d] += (str(axis),)
    entries = [axes[0] if len(axes) == 1 and rng.random() < 0.5 else axes or None for axes in found]
    return P(*entries)


def draw(rng: np.random.Generator) -> Drawn:
    """A case; results have at most some thousand elements."""
    shape = MESHES[int(rng.integers(len(MESHES)))]
    explicit = bool(rng.random() < 0.5)
    kind = AxisType.Explicit if explicit else AxisType.Auto
    names = tuple(str(c) for c in rng.permutation(list("xyz"))[: len(shape)])
    devices = jax.devices()[: math.prod(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)
    terms, out = _terms(rng)
    labels = sorted({*"".join(terms)})
    sizes = {c: int(rng.choice(SIZES)) for c in labels}
    while math.prod(sizes.values()) > 2**16:
        sizes[max(sizes, key=lambda c: sizes[c])] //= 2
    if labels and rng.random() < 0.03:
        sizes[str(rng.choice(labels))] = 0
    shapes = []
    for term in terms:
        dims = [1 if rng.random() < 0.06 and term.count(c) == 1 else sizes[c] for c in term]
        shapes.append(tuple(dims))
    found = {c: {s for t, dims in zip(terms, shapes, strict=True)
                 for k, s in zip(t, dims, strict=True) if k == c} for c in labels}  # fmt: skip
    whole = {c: next(iter(each - {1}), 1) for c, each in found.items()}
    dtype = [np.float32, np.float32, jnp.bfloat16, np.int32, np.complex64, np.int8][
        int(rng.choice(6, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05]))
    ]
    preferred = np.int32 if dtype == np.int8 else None
    if dtype == jnp.bfloat16 and rng.random() < 0.5:
        preferred = np.float32
    arrays = []
    for dims in shapes:
        values = rng.integers(-2, 3, dims)
        values = values + 1j * rng.integers(-2, 3, dims) if dtype == np.complex64 else values
        arrays.append(np.asarray(values).astype(dtype))
    text = f"{','.join(terms)}->{out}"
    lead = out[:1]
    leads = lead and all(lead not in t or (t[0] == lead and t.count(lead) == 1) for t in terms)
    if leads and rng.random() < 0.2:
        # The leading label as an ellipsis.
        text = ",".join("..." + t[1:] if lead in t else t for t in terms) + "->..." + out[1:]
    shape_out = tuple(whole[c] for c in out)
    return Drawn(
        mesh,
        explicit,
        text,
        terms,
        out,
        arrays,
        [_sharding(rng, mesh, a.shape) for a in arrays],
        _sharding(rng, mesh, shape_out),
        dtype,
        preferred,
        str(rng.choice(NAMED)),
        bool(rng.random() < 0.6) or explicit,
    )


def _function(drawn: Drawn, how: str) -> Callable[..., Any]:
    """The einsum as it is called: with all that is needed, or with less."""
    options: dict[str, Any] = {"preferred_element_type": drawn.preferred}
    if not drawn.explicit and how != "seen":
        options |= {"in_specs": tuple(drawn.specs)}
    if not drawn.context:
        options |= {"mesh": drawn.mesh} if how != "seen" else {}
    out = NamedSharding(drawn.mesh, drawn.out_spec)
    if how != "natural":
        options |= {"out_sharding": out if not drawn.context else drawn.out_spec}
    schedule = drawn.schedule

    def einsum(*operands: Any) -> Any:
        if how == "list":
            labels = [[ord(c) for c in t] for t in drawn.terms]
            pairs = [each for pair in zip(operands, labels, strict=True) for each in pair]
            return ce.einsum(*pairs, [ord(c) for c in drawn.out], schedule=schedule, **options)
        if how == "several":
            # The difference of two results is the result.
            x, w = operands
            once, twice = ce.einsum(drawn.text, x, [w, 2 * w], schedule=schedule, **options)
            return twice - once
        return ce.einsum(drawn.text, *operands, schedule=schedule, **options)

    return einsum


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    kind = np.complex128 if np.iscomplexobj(x) else np.float64
    return x.astype(np.float32).astype(kind) if x.dtype == jnp.bfloat16 else x.astype(kind)


def _close(got: Any, want: np.ndarray, what: str, tolerance: float) -> None:
    assert got.shape == want.shape, f"{what}: {got.shape} is not {want.shape}"
    if not want.size:
        return
    got = _wide(got)
    scale = tolerance * max(1.0, float(np.abs(want).max(initial=0)))
    off = float(np.abs(got - want).max(initial=0))
    assert off <= scale, f"{what}: off by {off}, {scale} allowed"


def _plain_gradients(drawn: Drawn, ct: np.ndarray) -> list[np.ndarray]:
    """Those of sum(einsum * ct), by numpy alone: each operand's labels kept from all others."""
    found = []
    for i, (term, x) in enumerate(zip(drawn.terms, drawn.arrays, strict=True)):
        others = [(t, a) for j, (t, a) in enumerate(zip(drawn.terms, drawn.arrays, strict=True))
                  if j != i]  # fmt: skip
        # Ones bring what only this operand has; a size of 1 is summed over what it met.
        once = "".join(dict.fromkeys(term))
        sizes = dict(zip(drawn.out, ct.shape, strict=True))
        for t, a in others:
            for c, n in zip(t, a.shape, strict=True):
                sizes[c] = max(sizes.get(c, 1), n) if n else 0
        own = dict(zip(term, x.shape, strict=True))
        full = [sizes[c] if sizes.get(c, 1) != 1 else own[c] for c in once]
        ones = np.ones(full)
        parts = ",".join([drawn.out, once, *(t for t, _ in others)])
        g = np.einsum(f"{parts}->{once}", _wide(ct), ones, *(_wide(a) for _, a in others))
        broadcast = tuple(d for d, c in enumerate(once) if own[c] == 1 and full[d] != 1)
        g = g.sum(axis=broadcast, keepdims=True)
        spread = np.zeros(x.shape, g.dtype)
        for index in np.ndindex(*g.shape):
            at = dict(zip(once, index, strict=True))
            spread[tuple(at[c] for c in term)] = g[index]
        found.append(spread)
    return found


def _may_overflow(drawn: Drawn) -> bool:
    """Whether int32 does not hold the sums of the largest products of int8."""
    sizes: dict[str, int] = {}
    for term, x in zip(drawn.terms, drawn.arrays, strict=True):
        for label, n in zip(term, x.shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), n)
    summed = math.prod(n for label, n in sizes.items() if label not in drawn.out)
    return drawn.dtype == np.int8 and summed * 2 ** (7 * len(drawn.terms)) > 2**31 - 1


def case(seed: int) -> None:
    """One einsum, called in some way, and its gradients."""
    rng = np.random.default_rng(seed)
    drawn = draw(rng)
    want = np.asarray(np.einsum(drawn.plain, *map(_wide, drawn.arrays)))
    how = str(rng.choice(["asked", "asked", "list", "seen", "eager", "vmap", "spmd", "unsaid"]))
    if how == "asked" and len(drawn.terms) == 2 and seed % 2:
        how = "several"
    what = (
        f"{drawn.text} {[a.shape for a in drawn.arrays]} {drawn.dtype} on "
        f"{dict(drawn.mesh.shape)} explicit={drawn.explicit} {drawn.specs} -> {drawn.out_spec}, "
        f"{drawn.schedule}, {how}, context={drawn.context}"
    )
    context = jax.set_mesh(drawn.mesh) if drawn.context else contextlib.nullcontext()
    with context:
        try:
            _check(drawn, how, want, what, rng)
        except ValueError as error:
            # A schedule by name serves, or is refused in words; and so are sums that may overflow.
            named = drawn.schedule != "auto" and str(error).startswith(("einsum", "schedule"))
            if not named and not ("integer overflow" in str(error) and _may_overflow(drawn)):
                raise AssertionError(f"{what}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def plain(seed: int) -> None:
    """The einsum of a case by `jnp.einsum`, with the same shardings."""
    drawn = draw(np.random.default_rng(seed))
    out = NamedSharding(drawn.mesh, drawn.out_spec)

    def einsum(*operands: Any) -> Any:
        y = jnp.einsum(drawn.plain, *operands, preferred_element_type=drawn.preferred)
        return jax.lax.with_sharding_constraint(y, out)

    jax.block_until_ready(jax.jit(einsum)(*_operands(drawn)))


def _operands(drawn: Drawn) -> list[jax.Array]:
    return [
        jax.device_put(a, NamedSharding(drawn.mesh, s))
        for a, s in zip(drawn.arrays, drawn.specs, strict=True)
    ]


def _check(drawn: Drawn, how: str, want: np.ndarray, what: str, rng: np.random.Generator) -> None:
    tolerance = 0.02 if drawn.dtype == jnp.bfloat16 else 1e-5
    operands = _operands(drawn)
    if how == "unsaid":
        # As jnp takes it: nothing is named, nothing can be seen.
        arrays = operands if not drawn.explicit else drawn.arrays
        y = jax.jit(lambda *xs: ce.einsum(drawn.text, *xs, preferred_element_type=drawn.preferred))(
            *arrays
        )
        return _close(y, want, what, tolerance)
    if how in ("vmap", "spmd"):
        return _check_vmap(drawn, how, operands, want, what, tolerance, rng)
    einsum = _function(drawn, how)
    y = (einsum if how in ("seen", "eager") else jax.jit(einsum))(*operands)
    _close(y, want, what, tolerance)
    if y.size:
        laid = NamedSharding(drawn.mesh, drawn.out_spec)
        assert y.sharding.is_equivalent_to(laid, y.ndim), f"{what}: lies as {y.sharding}"
    if np.issubdtype(drawn.dtype, np.integer) or how == "seen":
        return None
    ct = rng.integers(-2, 3, want.shape).astype(np.float32)

    def loss(*operands: Any) -> Any:
        y = einsum(*operands)
        total = (y * jnp.asarray(ct, y.dtype)).astype(jnp.complex64).sum()
        return total.real

    grad = jax.grad(loss, tuple(range(len(operands))))
    grad = jax.jit(grad) if how != "eager" else grad
    for got, wanted, x in zip(grad(*operands), _plain_gradients(drawn, ct), operands, strict=True):
        assert got.dtype == x.dtype, f"{what}: a gradient of {got.dtype}"
        # jax's gradient of a complex operand is that of the real part.
        _close(got, wanted, f"gradient of {what}", 4 * tolerance)
    return None


def _check_vmap(
    drawn: Drawn,
    how: str,
    operands: list[Any],
    want: np.ndarray,
    what: str,
    tolerance: float,
    rng: np.random.Generator,
) -> None:
    """Under a vmap of some operands; "spmd" shards it over an axis that nothing else uses."""
    used = {
        axis
        for spec in (*drawn.specs, drawn.out_spec)
        for entry in spec
        for axis in ((entry,) if isinstance(entry, str) else entry or ())
    }
    free = [axis for axis in drawn.mesh.axis_names if axis not in used]
    options: dict[str, Any] = {}
    size = 3
    if how == "spmd" and free and not drawn.explicit:
        options = {"spmd_axis_name": free[0]}
        size = 2 * drawn.mesh.shape[free[0]]
    mapped = [bool(rng.random() < 0.6) for _ in operands]
    mapped[int(rng.integers(len(mapped)))] = True
    batched = [jnp.stack([x] * size, axis=x.ndim) if m else x
               for x, m in zip(operands, mapped, strict=True)]  # fmt: skip
    axes = tuple(-1 if m else None for m in mapped)
    y = jax.jit(jax.vmap(_function(drawn, "asked"), in_axes=axes, **options))(*batched)
    try:
        jax.block_until_ready(y)
    except jax.errors.JaxRuntimeError:
        if _runs_unsharded(drawn, axes, batched):
            raise
        return
    _close(y, np.stack([want] * size), what, tolerance)


def _runs_unsharded(drawn: Drawn, axes: tuple[int | None, ...], batched: list[Any]) -> bool:
    """Whether `jnp.einsum` can, on one device: XLA's CPU backend has not all dots of bfloat16 that
    give float32."""

    def plain(*operands: Any) -> Any:
        return jnp.einsum(drawn.text, *operands, preferred_element_type=drawn.preferred)

    alone = [jax.device_put(np.asarray(x), jax.devices()[0]) for x in batched]
    auto = jax.make_mesh((1,), ("one",), (AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(auto):
        try:
            jax.block_until_ready(jax.jit(jax.vmap(plain, in_axes=axes))(*alone))
        except jax.errors.JaxRuntimeError:
            return False
    return True
