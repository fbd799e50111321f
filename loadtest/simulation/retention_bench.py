"""Retention alone: a trace's functions as pools, and what the last pod's idle time and cold starts cost beside fixed times.

Production part: warmup.retention.keep_s, asked before every gap with the gaps before it and nothing else. All times begin
with ``LEAST_GAP_S``: gaps below it are no reason to let a pod go, are noted by nobody (activity.py), and cost all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.draws import Draw
from warmup.activity import LEAST_GAP_S, MAX_GAPS
from warmup.retention import keep_s

Floats = NDArray[np.float64]

LONGEST_S: Final = 3600.0
ANEW: Final = 25
"""It is decided anew when the history has grown by this part of itself: the controller does every few seconds, and a
decision from 500 gaps takes half a millisecond."""


@dataclass(frozen=True)
class Row:
    """All pools of one size with one price of a cold start. Costs in idle seconds of a pod.

    pools   that had a gap at all
    paid    by keep_s
    even    by break-even: as long as a cold start costs, whatever was seen
    best    the best fixed time of each pool, known afterwards
    common  the best fixed time for all pools, known afterwards, and ``common_s``: which that is
    ratios  ``paid / best`` of each pool
    """

    size: int
    costs_s: float
    pools: int
    paid: float
    even: float
    best: float
    common: float
    common_s: float
    ratios: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the pools' ratios: pools with three gaps count as much as those with three thousand."""
        return sum(self.ratios) / max(1, len(self.ratios))

    def cells(self) -> list[str]:
        """For a table, in the order of ``HEADINGS``."""
        worst = max(self.ratios, default=0.0)
        told = [self.paid / self.best, self.even / self.best, self.common / self.best, self.mean, worst]
        return [str(self.size), f"{self.costs_s:.0f}", str(self.pools), *(f"{one:.3f}" for one in told)]


HEADINGS: Final = (
    "functions",
    "cold start costs, s",
    "pools",
    "keep_s",
    "break-even",
    "one fixed time",
    "mean of pools",
    "worst",
)
"""The ratios are to the best fixed time of each pool in hindsight; all but the last two of sums over all pools."""


def rows(
    due_s: Floats, function: NDArray[np.int64], *, sizes: Sequence[int] = (1, 5, 20), costs_s: Sequence[float] = (60, 300, 1200)
) -> Iterator[Row]:
    """Replay requests: their moments in order, and whose they are. ``sizes``: functions of one pool, drawn at random."""
    for size in sizes:
        gaps = list(gaps_of(due_s, function, size))
        yield from (row(size, gaps, price_s) for price_s in costs_s)


def gaps_of(due_s: Floats, function: NDArray[np.int64], size: int, seed: int = 1) -> Iterator[Floats]:
    """Gaps of every pool of ``size`` functions that has some, in order."""
    names = [int(name) for name in np.unique(function)]
    Draw(seed, "pools").shuffle(names)
    pool_of = np.zeros(max(names, default=0) + 1, np.int64)
    pool_of[names] = np.arange(len(names)) // size
    pool = pool_of[function]
    order = np.lexsort((due_s, pool))
    for moments in np.split(due_s[order], np.flatnonzero(np.diff(pool[order])) + 1):
        gaps = np.diff(moments)
        if (found := gaps[gaps >= LEAST_GAP_S]).size:
            yield found


def row(size: int, gaps: Sequence[Floats], price_s: float) -> Row:
    """What all these pools pay where a cold start costs so much."""
    paid = [online(one, price_s) for one in gaps]
    best = [best_fixed(one, price_s)[1] for one in gaps]
    common_s, common = best_fixed(np.concatenate(gaps), price_s) if gaps else (0.0, 0.0)
    even_s = min(max(price_s, LEAST_GAP_S), LONGEST_S)
    even = sum(float(fixed(np.sort(one), np.array([even_s]), price_s)[0]) for one in gaps)
    ratios = tuple(mine / its for mine, its in zip(paid, best, strict=True))
    return Row(size, price_s, len(gaps), sum(paid), even, sum(best), common, common_s, ratios)


def online(gaps: Floats, price_s: float) -> float:
    """What keep_s pays, gap by gap."""
    past: list[float] = []
    decided, paid, kept_s = -1, 0.0, 0.0
    for gap_s in gaps.tolist():
        if decided < 0 or len(past) - decided > decided // ANEW:
            kept_s = keep_s(past, cold_start_s=price_s, weight=1.0, longest_s=LONGEST_S, shortest_s=LEAST_GAP_S)
            decided = len(past)
        paid += gap_s if gap_s <= kept_s else kept_s + price_s
        past.append(gap_s)
        if len(past) > 2 * MAX_GAPS:
            del past[:-MAX_GAPS]
            decided = min(decided, len(past))
    return paid


def best_fixed(gaps: Floats, price_s: float) -> tuple[float, float]:
    """The fixed time that is cheapest for these gaps, and what it pays."""
    ordered = np.sort(gaps)
    times = np.concatenate([[LEAST_GAP_S], ordered[ordered <= LONGEST_S]])
    paid = fixed(ordered, times, price_s)
    least = int(paid.argmin())
    return float(times[least]), float(paid[least])


def fixed(ordered: Floats, times: Floats, price_s: float) -> Floats:
    """What each of these fixed times pays for gaps in ascending order."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    outlasted = np.searchsorted(ordered, times, side="right")
    paid: Floats = sums[outlasted] + (ordered.size - outlasted) * (times + price_s)
    return paid
