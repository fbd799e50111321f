"""The bars of fairness, and whether figures reach them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FLOOD_FACTOR: Final = 1.5
SHARE_TOLERANCE: Final = 0.05
SAMPLES: Final = 300
"""Requests that a p99 needs: with fewer than this, fewer than three lie above it."""


@dataclass(frozen=True)
class Verdict:
    """Whether a bar was reached. ``told``: the bar and the figure, in words."""

    reached: bool
    told: str

    def __str__(self) -> str:
        """For the table."""
        return f"{'reached' if self.reached else 'MISSED'}: {self.told}"


def flood(*, idle_p99_us: float, flooded_p99_us: float, batch_s: float, requests: int, failed: int) -> Verdict:
    """p99 under a flood of another model ≤ FLOOD_FACTOR times the p99 on an idle machine + one batch of the other model.

    The batch is what nobody can be spared: it runs already when the request comes, and nothing stops a batch halfway.

    batch_s   mean time of one batch of the flooding model; 0.0 if none ended, and then nothing was flooded
    requests  behind ``flooded_p99_us``; ``failed`` of them were not answered with 200
    """
    if not requests:
        return Verdict(reached=False, told="no request was answered in the time given")
    bar_us = FLOOD_FACTOR * idle_p99_us + batch_s * 1e6
    told = f"p99 {flooded_p99_us / 1e3:.1f} ms, bar {bar_us / 1e3:.1f} ms"
    if requests < SAMPLES:
        told += f" (n = {requests}: a rough p99)"
    if failed:
        told += f"; {failed} of {requests} failed"
    if not batch_s:
        told += "; the flooding model computed nothing"
    return Verdict(flooded_p99_us <= bar_us and not failed and batch_s > 0, told)


@dataclass(frozen=True)
class Share:
    """A model's part of the device time that all had, beside its weight's part of all weights. Both of 1."""

    had: float
    due: float

    @property
    def deviation(self) -> float:
        """Relative: 0.0 is what is due, -1.0 nothing."""
        return self.had / self.due - 1.0


def shares(device_s: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, Share]:
    """Of every model that has a weight. One that computed nothing had nothing.

    device_s  seconds inside each model, over one window
    weights   by model, > 0
    """
    assert all(weight > 0 for weight in weights.values()), f"weights must be above zero: {weights}"
    all_s = sum(device_s.get(model, 0.0) for model in weights)
    all_weights = sum(weights.values())
    return {
        model: Share(device_s.get(model, 0.0) / all_s if all_s else 0.0, weight / all_weights)
        for model, weight in weights.items()
    }


def fair(found: Mapping[str, Share]) -> Verdict:
    """Every share within SHARE_TOLERANCE (relative) of what is due."""
    worst = max(found.values(), key=lambda share: abs(share.deviation))
    reached = abs(worst.deviation) <= SHARE_TOLERANCE
    return Verdict(reached, f"{worst.deviation:+.1%} at worst, bar ±{SHARE_TOLERANCE:.0%}")


def needed_s(*, requests: int, seconds: float, at_least_s: int, at_most_s: int) -> int:
    """How long to time a client for SAMPLES requests, from what a look gave: ``requests`` in ``seconds``."""
    if not requests:
        return at_most_s
    wanted_s = 1 + int(1.2 * SAMPLES * seconds / requests)  # a fifth to spare: the look was short
    return min(at_most_s, max(at_least_s, wanted_s))
