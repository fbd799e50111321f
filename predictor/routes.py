"""The places of a declared model, and what is known of each. Which one answers is rollout.py's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from predictor.declared import Location
from predictor.errors import HearthError

AGAIN_S: Final = 10.0
AGAIN_LIMIT_S: Final = 300.0
"""A target that failed is tried again after so long, twice as long each time, up to the limit."""


@dataclass(slots=True, eq=False)
class Side:
    """One place of a declared model.

    key      under which the catalogue knows it
    placed   whether the catalogue does by now
    proven   it was loaded in this pod, whatever became of it since
    failure  why it did not come up the last time; None: it did, or was never tried
    failed_s moment of that failure on the clock; at_s: for people
    tries    failures in a row
    loading  brings it up; None: nobody does
    """

    key: str
    location: Location
    placed: bool = False
    proven: bool = False
    failure: HearthError | None = None
    failed_s: float = 0.0
    at_s: float = 0.0
    tries: int = 0
    loading: asyncio.Task[HearthError | None] | None = None

    def pause_s(self, now_s: float) -> float:
        """How long it is left alone yet, after it failed."""
        if self.failure is None:
            return 0.0
        pause_s = min(AGAIN_LIMIT_S, AGAIN_S * float(1 << min(max(self.tries - 1, 0), 10)))
        return max(0.0, self.failed_s + pause_s - now_s)


@dataclass(slots=True, eq=False)
class Route:
    """Where a declared model's requests may go. ``stable`` is None where there is no choice."""

    name: str
    target: Side
    stable: Side | None
    percent: int
    again: asyncio.TimerHandle | None = None

    @property
    def sides(self) -> tuple[Side, ...]:
        """All there are."""
        return (self.target,) if self.stable is None else (self.target, self.stable)
