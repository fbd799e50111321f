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

import math
from collections.abc import Sequence
from typing import Final

RECENT: Final = 500
"""Gaps that are looked at: the latest ones."""

SMEAR: Final = (0.85, 1.0, 1.15)
"""A gap that was seen stands for gaps a little shorter and longer: a timer's 300 s are 290 once and 310 the next time, and
a time that is right by a second for the past is wrong by a cold start for the future. On Azure 2019, 8 h, this takes 10 to 43 %
off what is paid above the best fixed time."""


def keep_s(gaps_s: Sequence[float], *, cold_start_s: float, weight: float, longest_s: float, shortest_s: float = 0.0) -> float:
    """How long the last pod is kept after its last request, in seconds, between ``shortest_s`` and ``longest_s``.

    The cheapest time for the past gaps; with none known, as long as a cold start costs. Where no gap outlasted the best
    time, the past does not say when to give up: then it is at least as long as a cold start costs, too (without this, every
    gap that is longer than all before costs a cold start: 1.19 x the best fixed time instead of 1.005, measured as above).

    gaps_s        past stretches without a request, in seconds, the oldest first; ``RECENT`` of them count
    cold_start_s  what a request waits that finds no pod
    weight        idle seconds of a pod that one second of a waiting user is worth
    shortest_s    what cannot be gone below: a pod is idle for so long anyway, and pays it
    """
    costs_s = cold_start_s * weight
    even_s = min(max(costs_s, shortest_s), longest_s)
    seen_s = sorted(gap_s * factor for gap_s in gaps_s[-RECENT:] for factor in SMEAR)
    if not seen_s:
        return even_s
    best_s, least_s = shortest_s, math.inf
    waited_s, position = 0.0, 0  # what the gaps that a time outlasts take together, and how many they are
    for time_s in (shortest_s, *(gap_s for gap_s in seen_s if shortest_s < gap_s <= longest_s), longest_s):
        while position < len(seen_s) and seen_s[position] <= time_s:
            waited_s += seen_s[position]
            position += 1
        total_s = waited_s + (len(seen_s) - position) * (time_s + costs_s)
        if total_s < least_s:
            best_s, least_s = time_s, total_s
    return max(best_s, even_s) if best_s >= seen_s[-1] else best_s
