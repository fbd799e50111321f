"""How much each model is asked for: exponentially decayed request rates, kept also while a model is not resident.

Pure: time is an argument. What is done with the numbers is decided in eviction.py and ledger.py; how they outlive the
process is heat.py's.

Source: exponentially weighted event rates as in Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay: A Practical
Time Decay Model for Streaming Systems" (ICDE 2009); two time scales, because a model that is asked every morning
must outlive one that was asked once a minute ago. Such rates are sums over requests, so that those of several pods add
up, and those of one pod do not depend on the order in which it noted them.

Beside the rates stand the moments of a model's latest visits, by which periodic ones are told (a rate cannot tell that a
model is asked at every full hour), and how long the gaps between its requests were (gaps.py), by which it is valued: a rate
cannot tell that a burst is over.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from predictor.policy.gaps import APART_S, LEAST_S, count, none, prospect

HALF_LIVES_S: Final = (30 * 60.0, 24 * 3600.0)
_DECAYS: Final = tuple(math.log(2) / half_life_s for half_life_s in HALF_LIVES_S)
_FAST, _SLOW = _DECAYS

TICK_S: Final = 1.0
"""Rates and visits are counted by the second: inside one, the same requests in any order leave exactly the same numbers."""

VISITS: Final = 8
"""How many visits of a model are remembered."""

KEPT: Final = 0.9
"""Share of the limit that is left after forgetting, which looks at every key: so it is rare."""


@dataclass(slots=True)
class Rate:
    """Events per second on both time scales, as they were at ``at_s``.

    visits    moments at which a visit began, in order; the latest ones
    latest_s  moment of the latest request; -inf: there was none since the rates were added
    gaps      between requests noted here, in the order they came, by length: see gaps.py. What others noted is not among them
    begun     whether the latest of these requests began a visit: the first one, and each after a gap of ``APART_S``
    """

    at_s: float
    fast: float
    slow: float
    visits: list[float] = field(default_factory=list)
    latest_s: float = -math.inf
    gaps: array[int] = field(default_factory=none)
    begun: bool = True

    def at(self, now_s: float) -> tuple[float, float]:
        """Both as they are at ``now_s``, if nothing is noted until then."""
        span_s = max(0.0, now_s - self.at_s)
        return self.fast * math.exp(-_FAST * span_s), self.slow * math.exp(-_SLOW * span_s)


class Demand:
    """Request rates by key.

    limit  keys remembered; where there are more when a second begins (or twice as many), those with the lowest rates
           are forgotten
    """

    def __init__(self, limit: int = 100_000) -> None:
        assert limit > 0, f"demand of {limit} keys"
        self._limit = limit
        self._rates: dict[Hashable, Rate] = {}
        self._tick_s = -math.inf

    def note(self, key: Hashable, now_s: float, times: int = 1) -> None:
        """Count one request, or so many. Moments may come out of order: an older one counts for what is left of it."""
        tick_s = now_s - now_s % TICK_S
        rate = self._add(key, tick_s, times * _FAST, times * _SLOW)
        gap_s = now_s - rate.latest_s
        if gap_s > 0:
            if rate.latest_s > -math.inf:
                count(rate.gaps, gap_s, begun=rate.begun)
                rate.begun = gap_s >= APART_S
            if rate.latest_s < tick_s - APART_S + TICK_S:  # by the second as well: whichever request of this one came first
                rate.visits.append(tick_s)
                del rate.visits[:-VISITS]
            rate.latest_s = now_s

    def add(self, key: Hashable, fast: float, slow: float, at_s: float, visits: Sequence[float] = ()) -> None:
        """Add what somebody else noted: events per second on both time scales, as they were at ``at_s``."""
        assert fast >= 0, f"{key}: a rate of {fast}"
        assert slow >= 0, f"{key}: a rate of {slow}"
        rate = self._add(key, at_s, fast, slow)
        if visits:
            rate.visits = _merged(rate.visits, visits)
            rate.latest_s = max(rate.latest_s, rate.visits[-1])

    def rate(self, key: Hashable, now_s: float) -> float:
        """Requests per second: the mean of both time scales; 0.0 for a key never noted or forgotten."""
        rate = self._rates.get(key)
        return sum(rate.at(now_s)) / 2 if rate is not None else 0.0

    def prospect(self, key: Hashable, now_s: float) -> float:
        """Requests per second that keeping a copy now can count on: what eviction.value takes. 0.0: as for ``rate``.

        By the gaps that were seen to last longer than the present one. Where there was none, the rate, but not more than one
        request in as long as nobody asked: after the longest pause ever, the next request is as far away again.
        """
        rate = self._rates.get(key)
        if rate is None:
            return 0.0
        idle_s = max(0.0, now_s - max(rate.at_s, rate.latest_s))
        return prospect(rate.gaps, idle_s, begun=rate.begun) or min(sum(rate.at(now_s)) / 2, 1.0 / max(idle_s, LEAST_S))

    def visits(self, key: Hashable) -> Sequence[float]:
        """Moments at which its latest visits began, in order; at most ``VISITS``."""
        rate = self._rates.get(key)
        return rate.visits if rate is not None else ()

    @property
    def latest_s(self) -> float:
        """The second in which something was noted or added last; -inf: never."""
        return self._tick_s

    def keys(self) -> list[Hashable]:
        """Every key, in a list of its own: 1 ms for 100,000, where their rates take 70."""
        return list(self._rates)

    def at(self, key: Hashable, now_s: float) -> tuple[float, float]:
        """Both rates of one key at ``now_s``."""
        rate = self._rates.get(key)
        return rate.at(now_s) if rate is not None else (0.0, 0.0)

    def rates(self, now_s: float) -> Iterator[tuple[Hashable, float, float]]:
        """Every key with both its rates at ``now_s``, to be added elsewhere; in no order that means anything."""
        for key, rate in self._rates.items():
            yield key, *rate.at(now_s)

    def __len__(self) -> int:
        return len(self._rates)

    def _add(self, key: Hashable, at_s: float, fast: float, slow: float) -> Rate:
        if at_s > self._tick_s:
            self._tick_s = at_s
            if len(self._rates) > self._limit:
                self._forget()
        rate = self._rates.get(key)
        if rate is None:
            if len(self._rates) >= 2 * self._limit:
                self._forget()
            rate = self._rates[key] = Rate(at_s, fast, slow)
            return rate
        span_s = at_s - rate.at_s
        if span_s > 0:
            rate.fast *= math.exp(-_FAST * span_s)
            rate.slow *= math.exp(-_SLOW * span_s)
            rate.at_s = at_s
        elif span_s < 0:
            fast *= math.exp(_FAST * span_s)
            slow *= math.exp(_SLOW * span_s)
        rate.fast += fast
        rate.slow += slow
        return rate

    def _forget(self) -> None:
        """Those asked for least, by name where they are equal."""
        ranked = sorted(self._rates, key=lambda key: (-self.rate(key, self._tick_s), str(key)))
        for key in ranked[max(1, int(KEPT * self._limit)) :]:
            del self._rates[key]


def _merged(some: Sequence[float], others: Sequence[float]) -> list[float]:
    """Visits that began within ``APART_S`` of each other are one."""
    kept: list[float] = []
    for moment_s in sorted((*some, *others)):
        if not kept or moment_s - kept[-1] >= APART_S:
            kept.append(moment_s)
    return kept[-VISITS:]
