"""Chance with a seed, the same on every machine and in every Python: schedules are rebuilt in several processes.

The standard library's ``random`` promises that only for ``random()`` itself, and its import is barred from what must run
without the world. SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) is
small, passes BigCrush, and takes 0.5 µs here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import MutableSequence, Sequence
from itertools import accumulate
from typing import Final, TypeVar

Item = TypeVar("Item")

_MASK: Final = (1 << 64) - 1
_GAMMA: Final = 0x9E3779B97F4A7C15
_UNIT: Final = 2.0**-53


class Draw:
    """A stream of draws. Streams of different ``names`` under one seed are independent."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, *names: str | int) -> None:
        self._state = seed & _MASK
        for name in names:
            for byte in str(name).encode():
                self._state = (self.bits() ^ byte) & _MASK
            self._state = self.bits()

    def bits(self) -> int:
        """64 of them."""
        self._state = state = (self._state + _GAMMA) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def uniform(self) -> float:
        """From 0 up to, not with, 1."""
        return (self.bits() >> 11) * _UNIT

    def below(self, bound: int) -> int:
        """A whole number from 0 up to, not with, ``bound``; the bias is below bound/2^64."""
        assert bound > 0, f"nothing to choose from: bound={bound}"
        return (self.bits() * bound) >> 64

    def exponential(self) -> float:
        """With mean 1: the gap between arrivals that know nothing of each other."""
        return -math.log(1.0 - self.uniform())

    def normal(self) -> float:
        """With mean 0 and variance 1 (Box and Muller)."""
        return math.sqrt(2.0 * self.exponential()) * math.cos(2.0 * math.pi * self.uniform())

    def gamma(self, shape: float) -> float:
        """With mean ``shape`` > 0 (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000)."""
        assert shape > 0, f"no gamma distribution: shape={shape}"
        if shape < 1.0:
            return self.gamma(shape + 1.0) * float((1.0 - self.uniform()) ** (1.0 / shape))
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def shuffle(self, items: MutableSequence[Item]) -> None:
        """In place (Fisher and Yates)."""
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]


class Choice:
    """Indices of ``weights``, each as often as its weight says."""

    __slots__ = ("_limits",)

    def __init__(self, weights: Sequence[float]) -> None:
        assert weights, "nothing to choose from"
        assert min(weights) >= 0, f"a weight below zero: {min(weights)}"
        total = sum(weights)
        assert total > 0, "all weights are zero"
        self._limits = [limit / total for limit in accumulate(weights)]
        self._limits[-1] = 1.0

    def __call__(self, draw: Draw) -> int:
        """One of them."""
        return min(bisect_right(self._limits, draw.uniform()), len(self._limits) - 1)
