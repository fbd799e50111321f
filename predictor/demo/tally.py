"""What the answers add up to: counts, percentiles, drops. Plain arithmetic; how it looks is show.py's business."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from predictor.demo.traffic import Outcome

STARTS: Final = ("hot", "ram", "s3")
"""Hearth-Start's values, cheapest first."""

MAX_ERRORS_KEPT: Final = 5


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least ``share`` of them do not exceed (nearest rank); nan for none at all."""
    assert 0 < share <= 1, f"a percentile of {share}"
    if not values:
        return math.nan
    return sorted(values)[math.ceil(share * len(values)) - 1]


class Tally:
    """The sums over all answers so far.

    by_model  (model, start) → requests answered
    latencies_s  start → one latency for every answer
    """

    def __init__(self) -> None:
        self.by_model: Counter[tuple[int, str]] = Counter()
        self.latencies_s: dict[str, list[float]] = {start: [] for start in STARTS}
        self.requests = 0
        self.binary = 0
        self.images = 0
        self.right = 0
        self.different = 0
        self.failed = 0
        self.errors: list[str] = []

    def add(self, outcome: Outcome) -> None:
        """Count one answer."""
        self.requests += 1
        self.binary += outcome.binary
        error = outcome.error or ("" if outcome.start in STARTS else f"Hearth-Start is {outcome.start!r}")
        if error:
            self.failed += 1
            if len(self.errors) < MAX_ERRORS_KEPT:
                self.errors.append(error)
            return
        self.by_model[outcome.model, outcome.start] += 1
        self.latencies_s[outcome.start].append(outcome.latency_s)
        self.images += outcome.images
        self.right += outcome.right
        self.different += outcome.different

    def asked(self, model: int) -> int:
        """Requests this model has answered."""
        return sum(self.by_model[model, start] for start in STARTS)

    @property
    def accuracy(self) -> float:
        """Share of the images named rightly; nan before the first answer."""
        return self.right / self.images if self.images else math.nan

    @property
    def faultless(self) -> bool:
        """Every request was answered, and answered as the model answers when it runs alone."""
        return self.requests > 0 and self.failed == 0 and self.different == 0


_DROPS: Final = re.compile(r'^hearth_drops_total\{[^}]*tier="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)


def drops_by_tier(metrics: str) -> Counter[str]:
    """Copies dropped in each tier, from the text that /metrics shows to Prometheus."""
    drops: Counter[str] = Counter()
    for tier, count in _DROPS.findall(metrics):
        drops[tier] += int(float(count))
    return drops
