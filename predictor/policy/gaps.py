"""How long a model is left alone between two requests, and what that says about the next one. Pure.

Lengths of gaps are counted by their power of two, from 31 ms up. Small models come back from RAM in less than that: so gaps of
moments count, too. A gap depends on the one before it: in a burst the next request is near, after a lone one it is not. So
there are two rows, 92 bytes a model: one where gaps after a request that began a visit weigh more, one for those after others.

Source: the index of J. C. Gittins, "Bandit Processes and Dynamic Allocation Indices" (J. R. Statist. Soc. B 41, 1979): of all
spans for which a copy could be kept on, the best ratio of the chance that it is asked for within the span to the seconds it
is kept for that. Where gaps are exponential it is the request rate; where they are not, it is what a rate cannot be: high
while a burst goes on and low once it is over, low after a timer rang and high before it rings again. Panigrahy, Nain,
Neglia and Towsley ("A New Upper Bound on Cache Hit Probability for Non-anticipative Caching Policies", 2020) rank by
the hazard rate, the same ratio for the shortest of spans; counted in bins that would be the chance of one bin.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

LEAST_S: Final = 1 / 32
"""Of the first bin, which has all gaps below it; the next ones end at twice as much each. Spans are not told apart below it."""

BINS: Final = 23
"""The last one has all gaps of 18 hours and longer."""

FULL: Final = 1023
"""A bin that would count more halves all of them, in both rows: recent gaps weigh more, and two bytes are enough."""

ALIKE: Final = 4
"""A gap counts so much in its own row and 1 in the other: rows that know nothing of each other have few gaps each. They are as
good on Azure's trace, and cost up to 2 % of LRU's reload seconds where no request depends on others: this half of it."""

APART_S: Final = 60.0
"""Requests with less between them are one visit. To value copies, 30 to 90 s are as good (decision 18)."""


def none() -> array[int]:
    """Counts of a model whose gaps are to be counted."""
    return array("H", bytes(2 * 2 * BINS))


def bin_of(gap_s: float) -> int:
    """The place of its count."""
    return min(int(gap_s / LEAST_S).bit_length(), BINS - 1)


def count(gaps: array[int], gap_s: float, *, begun: bool) -> None:
    """Count one gap. ``begun``: the request before it began a visit."""
    place = bin_of(gap_s)
    alike, other = (place + BINS, place) if begun else (place, place + BINS)
    if gaps[alike] > FULL - ALIKE or gaps[other] == FULL:
        gaps[:] = array("H", [number >> 1 for number in gaps])
    gaps[alike] += ALIKE
    gaps[other] += 1


def prospect(gaps: Sequence[int], idle_s: float, *, begun: bool) -> float:
    """Requests per second that one can count on by keeping a copy on, now that nobody asked for ``idle_s``.

    ``begun``: the latest request began a visit. 0.0: no gap was counted that lasted longer. Never above 1 / ``LEAST_S``.
    """
    row = gaps[BINS:] if begun else gaps[:BINS]
    first = bin_of(idle_s)
    ends_s = (1 << first) * LEAST_S
    begins_s = ends_s / 2 if first else 0.0
    # Gaps are taken as spread evenly over their bin: of those in the first one, as many last longer. This runs for every copy
    # whenever room is made (1 µs): no min and max here.
    share = (ends_s - idle_s) / (ends_s - begins_s)
    weight = row[first] * (share if share > 0.0 else 0.0)
    left = weight + sum(row[first + 1 :])
    best = asked = kept_s = 0.0
    for place in range(first, BINS):
        found = row[place] if place > first else weight
        if found:
            begin_s, end_s = ends_s / 2 - idle_s, ends_s - idle_s
            middle_s = (begin_s + end_s) / 2 if begin_s > 0.0 else end_s / 2
            asked += found
            kept_s += found * (middle_s if middle_s > LEAST_S else LEAST_S)
            left -= found
            ratio = asked / (kept_s + left * (end_s if end_s > LEAST_S else LEAST_S))
            if ratio > best:
                best = ratio
            if left <= 0.0:
                break
        ends_s *= 2
    return best
