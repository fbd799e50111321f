"""The live figures of a run: what happened since the last look, in numbers that add up over processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

STEPS: Final = 48
"""Per octave of milliseconds: a quantile is right within 1.5 %."""


def _step(milliseconds: float) -> int:
    return math.floor(STEPS * math.log2(max(milliseconds, 1e-3)))


@dataclass
class Tally:
    """Counts of one stretch of time; two of them add up. Histograms: step → how many."""

    offered: int = 0
    answered: int = 0
    cold: int = 0
    retries: int = 0
    in_flight: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    lags: Counter[int] = field(default_factory=Counter)

    def sent(self, lag_s: float) -> None:
        """A request was sent so long after it was due."""
        self.lags[_step(1e3 * lag_s)] += 1

    def done(self, latency_s: float | None, *, cold: bool, error: str, tries: int) -> None:
        """It was answered, or given up, so long after it was due; None: it was never sent."""
        self.answered += 1
        self.cold += cold
        self.retries += max(0, tries - 1)
        if latency_s is not None:
            self.latencies[_step(1e3 * latency_s)] += 1
        if error:
            self.errors[error] += 1

    def add(self, other: Tally) -> None:
        """Take another process's, or another second's, in. What is in flight adds up over processes only."""
        self.offered += other.offered
        self.answered += other.answered
        self.cold += other.cold
        self.retries += other.retries
        self.in_flight += other.in_flight
        self.errors.update(other.errors)
        self.latencies.update(other.latencies)
        self.lags.update(other.lags)

    def packed(self) -> dict[str, Any]:
        """As it travels between processes: maps with text keys only."""
        return {
            "counts": [self.offered, self.answered, self.cold, self.retries, self.in_flight],
            "errors": dict(self.errors),
            "latencies": list(self.latencies.items()),
            "lags": list(self.lags.items()),
        }

    @classmethod
    def unpacked(cls, told: Mapping[str, Any]) -> Tally:
        """What ``packed`` packed."""
        offered, answered, cold, retries, in_flight = told["counts"]
        errors, latencies, lags = Counter(told["errors"]), Counter(dict(told["latencies"])), Counter(dict(told["lags"]))
        return cls(offered, answered, cold, retries, in_flight, errors, latencies, lags)


def quantile_ms(histogram: Mapping[int, int], quantile: float) -> float:
    """In milliseconds; 0 where nothing was counted."""
    rank = quantile * sum(histogram.values())
    for step in sorted(histogram):
        rank -= histogram[step]
        if rank <= 0:
            return float(2.0 ** ((step + 0.5) / STEPS))
    return 0.0


def line(at_s: float, now: Tally, whole: Tally, *, over_s: float) -> str:
    """The progress line: ``now`` is what happened in the last ``over_s`` seconds, ``whole`` everything so far."""
    cold = 100.0 * whole.cold / whole.answered if whole.answered else 0.0
    errors = sum(whole.errors.values())
    told = f" ({whole.errors.most_common(1)[0][0]})" if errors else ""
    return (
        f"{at_s:6.0f} s  offered {now.offered / over_s:6.1f}/s  answered {now.answered / over_s:6.1f}/s  "
        f"in flight {now.in_flight:4d}  p50 {quantile_ms(now.latencies, 0.5):7.1f} ms  "
        f"p99 {quantile_ms(now.latencies, 0.99):7.1f} ms  cold {cold:4.1f} %  retries {whole.retries}  errors {errors}{told}  "
        f"lag p99 {quantile_ms(now.lags, 0.99):.1f} ms"
    )
