"""The settings of rotary position embedding, which `functions` computes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..arguments import as_flag, as_size, is_number


def _check_numbers(setting: object, *fields: str) -> None:
    for field in fields:
        value = getattr(setting, field)
        if not is_number(value) or not float(value) > 0:
            name = type(setting).__name__
            raise ValueError(f"{name}: {field}={value!r} must be a positive number")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by a factor (arXiv 2306.15595).

    Attributes:
      factor: how many times longer contexts become.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_numbers(self, "factor")

    def scaled(self, frequencies: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        """The frequencies [n] of a rotary embedding with this scaling, and the factor of queries and
        keys."""
        del base
        return frequencies / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """That of Llama 3.1: long wavelengths become `factor` times longer, short ones stay.

    Attributes:
      factor: of wavelengths longer than `original_positions / low_frequency_factor`.
      original_positions: of the model before it was trained on longer contexts.
      low_frequency_factor, high_frequency_factor: wavelengths shorter than `original_positions` over
        the latter stay as they are; between both, the change is linear in the frequency.
    """

    factor: float
    original_positions: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        _check_numbers(self, "factor", "low_frequency_factor", "high_frequency_factor")
        as_size("Llama3Scaling: original_positions", self.original_positions)
        if not self.high_frequency_factor > self.low_frequency_factor:
            raise ValueError(
                f"Llama3Scaling: high_frequency_factor={self.high_frequency_factor} must be greater "
                f"than low_frequency_factor={self.low_frequency_factor}"
            )

    def scaled(self, frequencies: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        """As `LinearScaling.scaled`."""
        del base
        turns = self.original_positions * frequencies / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = np.clip((turns - self.low_frequency_factor) / span, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): as Llama 3.1's, linear in the dimension, and queries and keys grow.

    Attributes:
      factor: how many times longer contexts become.
      original_positions: of the model before.
      fast_turns, slow_turns: dimensions that turn as often as the former over the original positions
        stay as they are; those that turn as seldom as the latter are divided by `factor`.
      attention_factor: of queries and keys; None for 0.1 * ln(factor) + 1.
      whole_dimensions: the bounds between which the change is linear are rounded outwards.
    """

    factor: float
    original_positions: int
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    attention_factor: float | None = None
    whole_dimensions: bool = True

    def __post_init__(self) -> None:
        _check_numbers(self, "factor", "fast_turns", "slow_turns")
        if self.attention_factor is not None:
            _check_numbers(self, "attention_factor")
        as_size("YarnScaling: original_positions", self.original_positions)
        as_flag("YarnScaling: whole_dimensions", self.whole_dimensions)

    def scaled(self, frequencies: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        """As `LinearScaling.scaled`."""
        low, high = (self._place(turns, base, len(frequencies)) for turns in self._turns)
        if self.whole_dimensions:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(frequencies) - 1)
        # Equal bounds would divide by zero.
        width = max(high - low, 0.001)
        divided = np.clip((np.arange(len(frequencies)) - low) / width, 0, 1)
        factor = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        factor = factor if self.attention_factor is None else self.attention_factor
        return frequencies * (1 - divided + divided / self.factor), float(factor)

    @property
    def _turns(self) -> tuple[float, float]:
        return self.fast_turns, self.slow_turns

    def _place(self, turns: float, base: float, count: int) -> float:
        """The index of the frequency, of `count`, that turns so often over the original positions."""
        wavelength = self.original_positions / turns
        return count * math.log(wavelength / (2 * math.pi)) / math.log(base)


@dataclasses.dataclass(frozen=True)
class DividedScaling:
    """Each frequency is divided by a number of its own, as those of LongRoPE are (arXiv 2402.13753).

    Attributes:
      divisors: one for each pair of dimensions that is rotated.
      attention_factor: of queries and keys.
    """

    divisors: Sequence[float]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, "attention_factor")
        divisors = tuple(float(divisor) for divisor in self.divisors)
        if not divisors or not all(divisor > 0 for divisor in divisors):
            raise ValueError(f"DividedScaling: divisors={self.divisors!r} must be positive numbers")
        object.__setattr__(self, "divisors", divisors)

    def scaled(self, frequencies: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        """As `LinearScaling.scaled`."""
        del base
        return frequencies / np.asarray(self.divisors), self.attention_factor


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with the positions that a cache has room for, beyond those of the model.

    Attributes:
      factor: how much faster than in proportion it grows.
      original_positions: of the model; with room for no more, the base stays.
    """

    factor: float
    original_positions: int

    def __post_init__(self) -> None:
        _check_numbers(self, "factor")
        if self.factor < 1:
            raise ValueError(f"DynamicScaling: factor={self.factor} must be 1 or more")
        as_size("DynamicScaling: original_positions", self.original_positions)

    def at(self, rotary: Rotary, d_head: int, positions: int) -> Rotary:
        """The rotary embedding without a scaling, for so many positions."""
        dims, longer = rotary.dims(d_head), max(1.0, positions / self.original_positions)
        if dims < 4:
            raise ValueError(f"DynamicScaling needs 4 dimensions that are rotated, got {dims}")
        grown = self.factor * longer - (self.factor - 1)
        base = rotary.base * grown ** (dims / (dims - 2))
        return dataclasses.replace(rotary, base=base, scaling=None)


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """Divisors for caches with room for long contexts, and others for short ones (arXiv 2402.13753).

    Attributes:
      original_positions: with room for more than these, a cache is long.
      short, long: divisors, as those of `DividedScaling`.
      attention_factor: of queries and keys.
    """

    original_positions: int
    short: Sequence[float]
    long: Sequence[float]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        as_size("LongRopeScaling: original_positions", self.original_positions)
        for field in ("short", "long"):
            own = DividedScaling(getattr(self, field), self.attention_factor)
            object.__setattr__(self, field, own.divisors)
        if len(self.short) != len(self.long):
            raise ValueError(
                f"LongRopeScaling: short has {len(self.short)} divisors and long {len(self.long)}; "
                "both need one for each pair of dimensions that is rotated"
            )

    def at(self, rotary: Rotary, d_head: int, positions: int) -> Rotary:
        """The rotary embedding with the divisors for so many positions."""
        del d_head
        divisors = self.long if positions > self.original_positions else self.short
        return dataclasses.replace(rotary, scaling=DividedScaling(divisors, self.attention_factor))


FixedScaling = LinearScaling | Llama3Scaling | YarnScaling | DividedScaling
# Those that depend on how many positions a cache has room for.
ScalingByRoom = DynamicScaling | LongRopeScaling
Scaling = FixedScaling | ScalingByRoom


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864).

    Attributes:
      base: the wavelengths grow from 2 pi to 2 pi * base positions.
      fraction: of each head's d_head, the leading part that is rotated; in (0, 1].
      interleaved: pairs are (0, 1), (2, 3), ..., as in PaLM and GPT-J; otherwise i is paired with
        i + half, as in Llama.
      scaling: for contexts longer than those that a model was trained on first: a `LinearScaling`,
        `Llama3Scaling`, `YarnScaling`, `DividedScaling`, `DynamicScaling` or `LongRopeScaling`; or
        None.
    """

    base: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        for field in ("base", "fraction"):
            value = getattr(self, field)
            if not is_number(value):
                raise ValueError(f"rotary {field}={value!r} must be a number")
        object.__setattr__(self, "interleaved", as_flag("interleaved", self.interleaved))
        if not self.base > 1:
            raise ValueError(f"rotary base={self.base} must be greater than 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"rotary fraction={self.fraction} must be in (0, 1]; use rotary=None for none"
            )
        if self.scaling is not None and not isinstance(self.scaling, Scaling):
            raise ValueError(
                f"rotary scaling={self.scaling!r} must be a LinearScaling, Llama3Scaling, "
                "YarnScaling, DividedScaling, DynamicScaling or LongRopeScaling, or None"
            )

    def dims(self, d_head: int) -> int:
        """Number of a head's `d_head` dimensions that are rotated; always even in a ModelConfig."""
        return round(self.fraction * d_head)

    def at(self, d_head: int, positions: int) -> Rotary:
        """That of a cache with room for so many positions: another if the scaling depends on them.

        Raises:
          ValueError: the scaling needs more dimensions than are rotated.
        """
        if not isinstance(self.scaling, ScalingByRoom):
            return self
        return self.scaling.at(self, d_head, positions)

    def frequencies(self, d_head: int) -> tuple[np.ndarray, float]:
        """The angle by which a position turns each pair of dimensions, in radians, [dims / 2] float64,
        and the factor of what is rotated.

        Raises:
          ValueError: the scaling has another number of divisors, or depends on a cache's room.
        """
        if isinstance(self.scaling, ScalingByRoom):
            raise ValueError(
                f"{type(self.scaling).__name__} depends on how many positions a cache has room for; "
                "give config.for_room(positions), such as config.for_room(4096)"
            )
        dims = self.dims(d_head)
        frequencies = self.base ** -(np.arange(0, dims, 2) / dims)
        if self.scaling is None:
            return frequencies, 1.0
        if isinstance(self.scaling, DividedScaling) and len(self.scaling.divisors) != dims // 2:
            raise ValueError(
                f"rotary scaling has {len(self.scaling.divisors)} divisors, but {dims} dimensions of "
                f"d_head={d_head} are rotated, {dims // 2} pairs"
            )
        return self.scaling.scaled(frequencies, self.base)
