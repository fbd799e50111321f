"""Looking for the next request a moment longer before the process goes to sleep.

A core that sleeps wakes up late and with cold caches: 60 µs of a small model's 450, measured with one client that asks
again as soon as it is answered (docs/decisions/0011-the-request-path.md). So after the last answer the event loop keeps
looking at its sockets for as long as such a client usually takes. Where nobody comes in time, looking is given up: tried
after every second answer, then every fourth, down to one in 64, until it pays again. A pod that nobody asks sleeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from predictor.api.reader import Load

RAREST: Final = 64
"""Looking is tried at least after so many answers: it costs 0.3 % of a core at 1,000 requests per second."""


class Polling:
    """One server's. ``span_s``: how long to look; 0: never."""

    __slots__ = ("_clock", "_every", "_load", "_looking", "_since", "_span_s", "_until_s")

    def __init__(self, load: Load, span_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._load = load
        self._span_s = span_s
        self._looking = False
        self._until_s = 0.0
        self._every = 1
        self._since = 0

    def answered(self, loop: asyncio.AbstractEventLoop) -> None:
        """An answer has left."""
        if self._load.requests or not self._span_s:
            return
        self._since += 1
        if self._since < self._every:
            return
        self._since = 0
        self._until_s = self._clock() + self._span_s
        if not self._looking:
            self._looking = True
            loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._load.requests:
            self._looking = False
            self._every = 1
        elif self._clock() < self._until_s:
            loop.call_soon(self._look, loop)
        else:
            self._looking = False
            self._every = min(2 * self._every, RAREST)
