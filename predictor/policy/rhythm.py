"""Which models are asked for in a rhythm, and when the next visit is due: told from the moments of their latest visits.

Pure. A rate cannot tell that a model is asked at every full hour; its latest visits (demand.py) can. What is done about it
is the controller's (warmup/placement.py): a model that is due soon is pre-loaded shortly before.

Source: the gaps' spread against their median as the sign of a rhythm, the histogram's narrow head in Shahrad et al.,
"Serverless in the Wild" (USENIX ATC 2020), in the small: eight visits are no histogram, but all that 100,000 models can
afford.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEAST_VISITS: Final = 4
"""Of chance (a minute and an exponential half hour between visits), 0.9 % of the visits seem to end such a row: 60,000 drawn.
A pre-load that nobody wanted is what each of them costs."""

SPREAD: Final = 0.1
"""Of the period: by so much may its gaps differ, longest less shortest, and a visit be late."""

SKIPPED: Final = 1
"""Visits that may have been left out, of those that are remembered and the one that is due."""


@dataclass(frozen=True, slots=True)
class Due:
    """A model's next visit.

    period_s  between two visits
    at_s      moment of the next; a little in the past while it is late
    """

    period_s: float
    at_s: float


def due(visits_s: Sequence[float], now_s: float) -> Due | None:
    """When the next visit is to be expected; None: there is no rhythm, or it has ended.

    visits_s  moments of the latest visits, in order; those of before a rhythm began do not hide it
    """
    for first in range(len(visits_s) - LEAST_VISITS + 1):
        found = _due(visits_s[first:], now_s)
        if found is not None:
            return found
    return None


def _due(visits_s: Sequence[float], now_s: float) -> Due | None:
    """The same of all these visits."""
    gaps_s = [after - before for before, after in itertools.pairwise(visits_s)]
    median_s = statistics.median_low(gaps_s)
    if median_s <= 0:
        return None
    skipped = [gap_s / 2 > (1 - SPREAD) * median_s for gap_s in gaps_s]
    alike_s = [gap_s / 2 if twice else gap_s for gap_s, twice in zip(gaps_s, skipped, strict=True)]
    if max(alike_s) - min(alike_s) >= SPREAD * median_s:
        return None
    period_s = (visits_s[-1] - visits_s[0]) / (len(gaps_s) + sum(skipped))
    for left_out in range(SKIPPED - sum(skipped) + 1):
        at_s = visits_s[-1] + (1 + left_out) * period_s
        if now_s <= at_s + SPREAD * period_s:
            return Due(period_s, at_s)
    return None
