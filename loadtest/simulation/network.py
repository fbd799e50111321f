"""A simulated pod's way to the model store: fetches share it out, and those that somebody waits for go first.

Each fetch takes its own time where there is room for all. Where there is not, those that are awaited share what there is in
proportion to what each would take alone, and pre-loads get what is left: the store's reader lets them yield at part boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What is asked of pod.Clock."""

    now_s: float

    def at(self, moment_s: float, act: Callable[[float], None]) -> None:
        """Do it then."""


@dataclass(eq=False)
class Fetch:
    """One model on its way. ``rate``: bytes a second just now; ``own_rate``: if it were alone."""

    left_bytes: float
    own_rate: float
    is_background: Callable[[], bool]
    done: Callable[[float], None]
    rate: float = 0.0


class Network:
    """bytes_per_s: of all fetches together; infinity: each takes its own time."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        assert bytes_per_s > 0, f"a network of {bytes_per_s} bytes a second"
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._fetches: list[Fetch] = []
        self._looked_s = 0.0
        self._turn = 0

    def begin(
        self, size_bytes: int, own_s: float, *, is_background: Callable[[], bool], done: Callable[[float], None]
    ) -> Fetch:
        """Fetch so many bytes, which take ``own_s`` if nothing else is fetched."""
        self._advance()
        fetch = Fetch(float(max(size_bytes, 1)), max(size_bytes, 1) / max(own_s, 1e-9), is_background, done)
        self._fetches.append(fetch)
        self._share()
        return fetch

    def stop(self, fetch: Fetch) -> None:
        """Forget it; nobody is told."""
        self._advance()
        if fetch in self._fetches:
            self._fetches.remove(fetch)
        self._share()

    def changed(self) -> None:
        """Somebody waits now for what nobody waited for, or the other way round."""
        self._advance()
        self._share()

    def _advance(self) -> None:
        span_s = self._clock.now_s - self._looked_s
        self._looked_s = self._clock.now_s
        for fetch in self._fetches:
            fetch.left_bytes -= fetch.rate * span_s

    def _share(self) -> None:
        """Give everyone a rate, and look again when the first of them is through."""
        left = self._bytes_per_s
        for background in (False, True):
            group = [fetch for fetch in self._fetches if fetch.is_background() is background]
            wanted = sum(fetch.own_rate for fetch in group)
            share = min(1.0, left / wanted) if wanted else 1.0
            for fetch in group:
                fetch.rate = fetch.own_rate * share
            left -= wanted * share
        self._turn += 1
        turn = self._turn
        first_s = min((fetch.left_bytes / fetch.rate for fetch in self._fetches if fetch.rate > 0), default=math.inf)
        if first_s < math.inf:
            self._clock.at(self._clock.now_s + max(first_s, 0.0), lambda _: self._look(turn))

    def _look(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._advance()
        through = [fetch for fetch in self._fetches if fetch.left_bytes <= 0.5]  # noqa: PLR2004 (half a byte: rounding)
        self._fetches = [fetch for fetch in self._fetches if fetch not in through]
        self._share()
        for fetch in through:
            fetch.done(self._clock.now_s)
