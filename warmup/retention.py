"""How long a pool's last pod is kept after its last request: idle seconds paid against cold starts avoided.

Pure: no clock, nothing read. What is measured of a pool is activity.py's, what is set on its Revision is ahead.py's.

Sources: with nothing known of the future, keep the pod for as long as a cold start costs: never more than twice what
somebody pays who knows it (ski rental; Karlin, Manasse, Rudolph, Sleator, "Competitive Snoopy Caching", Algorithmica 1988).
With past gaps known, keep it for the time that would have been cheapest for them (Karlin, Manasse, McGeoch, Owicki,
"Competitive Randomized Algorithms for Nonuniform Problems", Algorithmica 1994: the best time for a known distribution;
Krishnan, Long, Vitter, "Adaptive Disk Spindown via Optimal Rent-to-Buy", ICML 1995: the distribution that was seen comes
close to it). The histogram of Shahrad et al., "Serverless in the Wild" (ATC 2020), is its cousin for functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

FEW: Final = 4
"""Gaps below which the past says too little: then a pod is kept for as long as a cold start costs."""

RECENT: Final = 500
"""Gaps that are looked at: the latest ones."""


def keep_s(
    gaps_s: Sequence[float], *, cold_start_s: float, weight: float, longest_s: float, shortest_s: float = 0.0
) -> float:
    """How long the last pod is kept after its last request, in seconds, between ``shortest_s`` and ``longest_s``.

    gaps_s        past stretches without a request, in seconds, the oldest first; ``RECENT`` of them count
    cold_start_s  what a request waits that finds no pod
    weight        idle seconds of a pod that one second of a waiting user is worth
    shortest_s    what cannot be gone below: a pod is idle for so long anyway, and pays it
    """
    costs_s = cold_start_s * weight
    recent_s = sorted(gaps_s[-RECENT:])
    if len(recent_s) < FEW:
        return min(max(costs_s, shortest_s), longest_s)
    times_s = [shortest_s, *(gap_s for gap_s in recent_s if shortest_s < gap_s <= longest_s)]
    paid_s = [0.0, *accumulate(recent_s)]
    best_s, least_s = shortest_s, float("inf")
    position = 0
    for time_s in times_s:
        while position < len(recent_s) and recent_s[position] <= time_s:
            position += 1
        total_s = paid_s[position] + (len(recent_s) - position) * (time_s + costs_s)
        if total_s < least_s:
            best_s, least_s = time_s, total_s
    return best_s


def paid_s(gaps_s: Sequence[float], time_s: float, *, costs_s: float) -> float:
    """What a fixed ``time_s`` pays for these gaps: idle seconds, and ``costs_s`` for each that outlasts it."""
    return sum(gap_s if gap_s <= time_s else time_s + costs_s for gap_s in gaps_s)
