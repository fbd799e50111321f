"""What Hearth's own value is compared with: recency, and knowledge of the future. All else is the production policy.

What stays out: when pods start and stop (fleet.py), which row of the table takes which (policies.py).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger
from predictor.policy.residency import Copy
from predictor.policy.room import Room

LEAST_S: Final = 0.001


class Recency(Demand):
    """Remembers when each model was asked last, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s: dict[Hashable, float] = {}

    def note(self, key: Hashable, now_s: float, times: int = 1) -> None:
        """Count nothing."""
        assert times > 0, f"{key}: {times} requests"
        self.asked_s[key] = now_s


class Foresight(Demand):
    """Knows the next request of each model.

    ``next_s`` is set by who replays, before the request is told. Ranked by seconds of loading saved per byte and second until
    the next use, a copy goes that is used last for its size and cost: the cost-aware form of Belady's rule ("A Study of
    Replacement Algorithms", 1966) that Cao and Irani's value becomes where the future is known. With sizes and costs the
    true optimum is NP-hard (Chrobak, Woeginger, Makino, Xu, "Caching Is Hard",
    ESA 2010): this is a bound in practice, without proof, of loads into one place; with RAM and devices it is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next_s: dict[Hashable, float] = {}

    def note(self, key: Hashable, now_s: float, times: int = 1) -> None:
        """Count nothing."""

    def prospect(self, key: Hashable, now_s: float) -> float:
        """Of one request, at the moment that is known."""
        return 1.0 / max(self.next_s.get(key, math.inf) - now_s, LEAST_S)


class RecencyRoom(Room):
    """Least recently used goes first, whatever it costs to bring back."""

    def value(self, copy: Copy, now_s: float) -> float:
        """The moment of its model's last request."""
        assert isinstance(self.demand, Recency), f"recency of {type(self.demand).__name__} at {now_s}"
        return self.demand.asked_s.get(copy.ref, 0.0)


class RecencyLedger(Ledger):
    """The production ledger with least recently used in place of value."""

    rooms = RecencyRoom
