"""`jit`: `jax.jit` under the options with which a chip's compiler overlaps collectives."""

from __future__ import annotations

import concurrent.futures
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, Sharding

from .chips.chip import Chip
from .chips.compile_context import attached_kind, for_chip, knowing_options
from .chips.names import as_chip, chip_for, options_on

_MISSING: Any = object()


def jit(function: Any = _MISSING, /, *, chip: Chip | str | None = None, **options: Any) -> Any:
    """`jax.jit` with `compiler_options(chip)`, and with schedules chosen for what they allow.

    Inside of another jit, whose options count, it is `jax.jit` as it stands; so it is under a
    transformation: differentiate or map inside of it, as in `ce.jit(jax.grad(loss))`.

    Args:
      function: as for `jax.jit`; without it, the result is a decorator.
      chip: that it is compiled for, itself or its name; schedules are chosen for it. By default that
        of the mesh in context (`jax.set_mesh`), or of the arguments' shardings, or of `in_shardings`
        and `out_shardings`, or, for `lower` and `trace`, of the meshes within; else that of
        `jax.devices()`.
      options: of `jax.jit`, such as `static_argnames`, `donate_argnames` and `out_shardings`; its
        `compiler_options` are added to the chip's, or replace them. Those of a TPU are left out where
        other devices stand in for it.

    Returns:
      What `jax.jit` returns: a function, or method of a class, with `lower`, `trace`, `eval_shape`
      and `clear_cache`.

    Raises:
      ValueError: no chip has that name.
    """
    if function is _MISSING:
        return functools.partial(jit, chip=chip, **options)
    return Jitted(function, None if chip is None else as_chip(chip), options)


class Jitted:
    """See `jit`."""

    __wrapped__: Callable[..., Any]

    def __init__(
        self, function: Callable[..., Any], chip: Chip | None, options: dict[str, Any]
    ) -> None:
        self._chip, self._options = chip, dict(options)
        self._given = self._options.pop("compiler_options", None) or {}
        # Without the chip's compiler options, as it is inside of another jit.
        traced = function if chip is None else self._traced_for(function, chip, knows=False)
        self._inside: Any = jax.jit(traced, **self._options)
        self._by_kind: dict[str, Any] = {}
        functools.update_wrapper(self, function)
        self.__name__ = self._inside.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        if not _at_top_level():
            return self._inside(*args, **kwargs)
        return self._for(self._known_kind(args, kwargs) or attached_kind())(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<collective_einsum.jit of {self.__wrapped__!r}>"

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As of `jax.jit`."""
        return self._ahead_of_time(args, kwargs).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """As of `jax.jit`."""
        return self._ahead_of_time(args, kwargs).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._inside.eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """As of `jax.jit`."""
        for jitted in self._all_jitted():
            jitted.clear_cache()

    def _cache_size(self) -> int:
        return sum(jitted._cache_size() for jitted in self._all_jitted())

    def _all_jitted(self) -> list[Any]:
        others = [jitted for jitted in self._by_kind.values() if jitted is not self._inside]
        return [self._inside, *others]

    def _ahead_of_time(self, args: Any, kwargs: Any) -> Any:
        kind = self._known_kind(args, kwargs)
        if kind is None:
            program = self._for(attached_kind()).trace(*args, **kwargs).jaxpr
            kind = _one_kind(_meshes_in(program)) or attached_kind()
        return self._for(kind)

    def _known_kind(self, args: Any, kwargs: Any) -> str | None:
        """The kind of the devices that it is compiled for, as far as the arguments show."""
        return (
            _one_kind([jax.sharding.get_abstract_mesh()])
            or _one_kind(_placed(jax.tree.leaves((args, kwargs))))
            or _one_kind(self._option_places())
        )

    def _option_places(self) -> Iterator[Any]:
        for name in ("in_shardings", "out_shardings"):
            for leaf in jax.tree.leaves(self._options.get(name)):
                yield getattr(leaf, "sharding", leaf)
        yield self._options.get("device")
        if backend := self._options.get("backend"):
            yield jax.devices(backend)[0]

    def _for(self, kind: str) -> Any:
        """The jitted function for devices of this kind: the plain one where there are no options."""
        if kind not in self._by_kind:
            self._by_kind[kind] = self._jitted_for(kind)
        return self._by_kind[kind]

    def _jitted_for(self, kind: str) -> Any:
        chip = self._chip or chip_for(kind)
        knows = bool(chip.compiler_options)
        if not knows and not self._given and (self._chip or kind == attached_kind()):
            return self._inside
        traced = self._traced_for(self.__wrapped__, chip, knows)
        given = {**options_on(kind, chip.compiler_options), **self._given}
        return jax.jit(traced, **self._options, compiler_options=given or None)

    def _traced_for(self, function: Callable[..., Any], chip: Chip, knows: bool) -> Any:
        """The function, traced in a context that names the chip and whether its options are set."""
        named = chip if self._chip is not None else None

        @functools.wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            with for_chip(named, likely=chip):
                if not knows:
                    return function(*args, **kwargs)
                with knowing_options():
                    return function(*args, **kwargs)

        # As jax names what has no name.
        plain: Any = jax.jit(function)
        traced.__name__ = plain.__name__
        return traced


def _placed(leaves: Iterable[Any]) -> Iterator[Any]:
    """Where arguments are, of those whose place is settled."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and getattr(leaf, "committed", True):
            yield sharding


def _one_kind(places: Iterable[Any]) -> str | None:
    """The kind of the devices of all these shardings and meshes; None for several kinds, or none."""
    kinds = {_kind(place) for place in places} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(place: Any) -> Any:
    if isinstance(place, Sharding):
        place = getattr(place, "mesh", None) or next(iter(place.device_set))
    if isinstance(place, Mesh):
        return None if place.empty else place.devices.flat[0].device_kind
    if isinstance(place, AbstractMesh):
        place = place.abstract_device
    return getattr(place, "device_kind", None)


def _meshes_in(value: Any) -> Iterator[Any]:
    """The meshes that a program names."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _meshes_in(item)
    elif isinstance(value, Mesh | AbstractMesh | Sharding):
        yield value
    else:
        for equation in getattr(value, "eqns", ()):
            yield from _meshes_in(list(equation.params.values()))


@functools.cache
def _trace_state() -> tuple[Callable[[], Any], Any]:
    """The function that gives the state of tracing, and the state of none; slow to import."""
    from jax.extend.core import get_opaque_trace_state

    # A new thread traces nothing, whatever this one is tracing.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return get_opaque_trace_state, pool.submit(get_opaque_trace_state).result()


def _at_top_level() -> bool:
    """Whether nothing is being traced or transformed around this."""
    state, nothing = _trace_state()
    return state() == nothing
