"""How much each model is asked for: exponentially decayed request rates, kept also while a model is not resident.

Pure: time is an argument. What is done with the numbers is decided in eviction.py and ledger.py.

Source: exponentially weighted event rates as in Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay: A Practical
Time Decay Model for Streaming Systems" (ICDE 2009); two time scales, because a model that is asked every morning
must outlive one that was asked once a minute ago.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

HALF_LIVES_S: Final = (30 * 60.0, 24 * 3600.0)
_DECAYS: Final = tuple(math.log(2) / half_life_s for half_life_s in HALF_LIVES_S)
_FAST, _SLOW = _DECAYS


@dataclass(slots=True)
class _Rate:
    """Events per second on both time scales, as they were at ``at_s``."""

    at_s: float
    fast: float
    slow: float


class Demand:
    """Request rates by key.

    limit  most keys remembered; beyond it the one not asked for the longest is forgotten
    """

    def __init__(self, limit: int = 100_000) -> None:
        assert limit > 0, f"demand of {limit} keys"
        self._limit = limit
        self._rates: dict[Hashable, _Rate] = {}

    def note(self, key: Hashable, now_s: float) -> None:
        """Count one request. Moments may arrive out of order; an older one counts as if it were the latest known."""
        rate = self._rates.pop(key, None)
        if rate is None:
            if len(self._rates) >= self._limit:
                del self._rates[next(iter(self._rates))]
            rate = _Rate(now_s, 0.0, 0.0)
        span_s = max(0.0, now_s - rate.at_s)
        rate.fast = rate.fast * math.exp(-_FAST * span_s) + _FAST
        rate.slow = rate.slow * math.exp(-_SLOW * span_s) + _SLOW
        rate.at_s += span_s
        self._rates[key] = rate  # last again: the dict's order is the order of the latest request

    def rate(self, key: Hashable, now_s: float) -> float:
        """Requests per second: the mean of both time scales; 0.0 for a key never noted or forgotten."""
        rate = self._rates.get(key)
        if rate is None:
            return 0.0
        span_s = max(0.0, now_s - rate.at_s)
        return (rate.fast * math.exp(-_FAST * span_s) + rate.slow * math.exp(-_SLOW * span_s)) / 2

    def __len__(self) -> int:
        return len(self._rates)
