"""When is which model asked: arrivals as a seeded schedule. Pure; the same numbers give the same events everywhere.

Arrivals are Poisson with a rate that follows a shape (thinning: Lewis and Shedler, 1979), except where something else
is the point: cron-like clocks, and a tail that comes back just when it is cold. Which model an arrival is for follows
Zipf's law, or weights.

What stays out: real traces (traces.py), what is asked (payloads.py), the asking (drive.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

from loadtest.draws import Choice, Draw


class Shape(StrEnum):
    """How the rate goes over time. ``rate``, ``peak``, ``period`` and ``active`` are the workload's fields.

    steady     rate
    ramp       from rate to peak over the whole duration, linearly
    burst      rate, and in the first ``active`` seconds of every ``period`` peak
    on-off     rate in the first ``active`` seconds of every ``period``, otherwise nothing
    diurnal    a sine between rate and peak, lowest at the start; its day lasts ``period``
    cron       each model on a clock of its own: every 1, 5, 15 or 60 ``period``, all of them at the full, within a second
    cold-tail  a tenth of the models at rate; each of the others every ``period``, so that it is cold each time
    """

    STEADY = "steady"
    RAMP = "ramp"
    BURST = "burst"
    ON_OFF = "on-off"
    DIURNAL = "diurnal"
    CRON = "cron"
    COLD_TAIL = "cold-tail"


NEEDS: Final = {
    Shape.STEADY: (),
    Shape.RAMP: ("peak_rate_per_s",),
    Shape.BURST: ("peak_rate_per_s", "period_s", "active_s"),
    Shape.ON_OFF: ("period_s", "active_s"),
    Shape.DIURNAL: ("peak_rate_per_s", "period_s"),
    Shape.CRON: ("period_s",),
    Shape.COLD_TAIL: ("period_s",),
}
"""What a shape needs beyond rate and duration."""

CRON_PERIODS: Final = (1, 5, 15, 60)
CRON_JITTER_S: Final = 1.0
HEAD_SHARE: Final = 0.1
"""Of the models of a cold tail; these few are hot."""


class Event(NamedTuple):
    """One request that is due.

    due_s     seconds from the start of the run
    target    which model, an index into the deck's targets
    pick      a number by which the question, and the encoding where several are mixed, is chosen
    priority  Hearth-Priority; "": none sent
    """

    due_s: float
    target: int
    pick: int
    priority: str = ""


class BadWorkload(ValueError):
    """These numbers make no schedule; the message says which and why."""


@dataclass(frozen=True)
class Workload:
    """What to ask of how many models, when. Raises BadWorkload where the numbers do not fit together.

    weights     popularity of each target; empty: Zipf's law with ``zipf_exponent``, its ranks dealt out by the seed
    priorities  (Hearth-Priority, weight) pairs; empty: none sent
    """

    shape: Shape
    targets: int
    rate_per_s: float
    duration_s: float
    peak_rate_per_s: float = 0.0
    period_s: float = 0.0
    active_s: float = 0.0
    zipf_exponent: float = 1.0
    weights: tuple[float, ...] = ()
    priorities: tuple[tuple[str, float], ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "duration_s", "targets", *NEEDS[self.shape]):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise BadWorkload(f"a {self.shape} workload needs {name} above 0, not {value}")
        if "active_s" in NEEDS[self.shape] and self.active_s > self.period_s:
            raise BadWorkload(f"active_s={self.active_s} is longer than period_s={self.period_s}")
        if self.zipf_exponent < 0:
            raise BadWorkload(f"zipf_exponent={self.zipf_exponent} is below 0")
        if self.weights and len(self.weights) != self.targets:
            raise BadWorkload(f"{len(self.weights)} weights for {self.targets} models")

    def rate_at(self, at_s: float) -> float:
        """Arrivals a second, ``at_s`` seconds from the start. Not for clocks: they have none."""
        phase_s = math.fmod(at_s, self.period_s) if self.period_s else 0.0
        match self.shape:
            case Shape.RAMP:
                return self.rate_per_s + (self.peak_rate_per_s - self.rate_per_s) * at_s / self.duration_s
            case Shape.BURST:
                return self.peak_rate_per_s if phase_s < self.active_s else self.rate_per_s
            case Shape.ON_OFF:
                return self.rate_per_s if phase_s < self.active_s else 0.0
            case Shape.DIURNAL:
                height = (1.0 - math.cos(2.0 * math.pi * at_s / self.period_s)) / 2.0
                return self.rate_per_s + (self.peak_rate_per_s - self.rate_per_s) * height
            case _:
                return self.rate_per_s


def zipf(targets: int, exponent: float) -> list[float]:
    """Weights of the most, second most, ... popular of so many: 1/rank^exponent."""
    return [1.0 / rank**exponent for rank in range(1, targets + 1)]


def popularity(workload: Workload) -> list[float]:
    """Each target's weight. Which one is popular is drawn: a deck's order means nothing."""
    if workload.weights:
        return list(workload.weights)
    weights = zipf(workload.targets, workload.zipf_exponent)
    Draw(workload.seed, "popularity").shuffle(weights)
    return weights


def schedule(workload: Workload) -> Iterator[Event]:
    """Every request of the run, in the order in which they are due; made while it is walked."""
    weights = popularity(workload)
    match workload.shape:
        case Shape.CRON:
            moments = _clocks(workload)
        case Shape.COLD_TAIL:
            moments = merge(_poisson(workload, _head(weights)), _tail(workload, weights), key=itemgetter(0))
        case _:
            moments = _poisson(workload, weights)
    return dressed(moments, priorities=workload.priorities, seed=workload.seed)


def dressed(
    moments: Iterator[tuple[float, int]], *, priorities: Sequence[tuple[str, float]] = (), seed: int
) -> Iterator[Event]:
    """Make (due_s, target) pairs events: a pick and a priority for each."""
    draw = Draw(seed, "picks")
    names = [name for name, _ in priorities]
    choose = Choice([weight for _, weight in priorities]) if priorities else None
    for due_s, target in moments:
        yield Event(due_s, target, draw.bits() >> 32, names[choose(draw)] if choose else "")


def share(events: Iterator[Event], index: int, count: int) -> Iterator[Event]:
    """What process ``index`` of ``count`` sends: every count-th event. Together the processes send each event once."""
    assert 0 <= index < count, f"no share {index} of {count}"
    return islice(events, index, None, count)


def compressed(events: Iterator[Event], factor: float) -> Iterator[Event]:
    """The same requests in 1/factor of the time. Only the arrivals shrink: see ``KEEP_ALIVES``."""
    assert factor > 0, f"time cannot be compressed {factor} times"
    return (event._replace(due_s=event.due_s / factor) for event in events)


KEEP_ALIVES: Final = (
    "HEARTH_IDLE_TTL_S",
    "HEARTH_MIN_RESIDENCY_S",
    "autoscaling.knative.dev/window",
    "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
    "autoscaling.knative.dev/scale-down-delay",
)
"""What must shrink with the arrivals, or a compressed trace finds warm what it would have found cold: a gap of an hour,
sixty times compressed, is one minute, and a pod kept for ninety seconds never ends. What cannot be scaled (loading,
computing, the half-lives of demand) is why a compressed run says nothing about absolute rates of cold starts."""


def _poisson(workload: Workload, weights: Sequence[float]) -> Iterator[tuple[float, int]]:
    draw, choose = Draw(workload.seed, "arrivals"), Choice(weights)
    highest = max(workload.rate_per_s, workload.peak_rate_per_s if "peak_rate_per_s" in NEEDS[workload.shape] else 0.0)
    at_s = 0.0
    while True:
        at_s += draw.exponential() / highest
        if at_s >= workload.duration_s:
            return
        if draw.uniform() * highest < workload.rate_at(at_s):
            yield at_s, choose(draw)


def _clocks(workload: Workload) -> Iterator[tuple[float, int]]:
    def clock(target: int) -> Iterator[tuple[float, int]]:
        draw = Draw(workload.seed, "clock", target)
        period_s = workload.period_s * CRON_PERIODS[draw.below(len(CRON_PERIODS))]
        jitter_s = min(CRON_JITTER_S, period_s)
        for tick in range(math.ceil(workload.duration_s / period_s)):
            due_s = tick * period_s + draw.uniform() * jitter_s
            if due_s < workload.duration_s:
                yield due_s, target

    return merge(*(clock(target) for target in range(workload.targets)))


def _hot(weights: Sequence[float]) -> frozenset[int]:
    """The targets of the head."""
    ranked = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
    return frozenset(ranked[: max(1, round(HEAD_SHARE * len(weights)))])


def _head(weights: Sequence[float]) -> list[float]:
    hot = _hot(weights)
    return [weight if target in hot else 0.0 for target, weight in enumerate(weights)]


def _tail(workload: Workload, weights: Sequence[float]) -> Iterator[tuple[float, int]]:
    """Each once every period, at a phase of its own: the gap is known, and longer than what keeps it warm."""
    hot, draw = _hot(weights), Draw(workload.seed, "tail")
    phases = sorted((draw.uniform() * workload.period_s, target) for target in range(workload.targets) if target not in hot)
    for turn in range(math.ceil(workload.duration_s / workload.period_s)):
        for phase_s, target in phases:
            due_s = turn * workload.period_s + phase_s
            if due_s < workload.duration_s:
                yield due_s, target


def profile(name: str, *, targets: int, duration_s: float, seed: int = 1) -> Workload:
    """A workload that has a name.

    many-quiet    up to 200 models, none of them asked more often than once a second: what one device is shared for
    two-versions  two targets, 90 % and 10 % of 50 requests a second, both resident: what a canary costs
    """
    match name:
        case "many-quiet":
            if targets > QUIET_MODELS:
                raise BadWorkload(f"many-quiet has {QUIET_MODELS} models at most, not {targets}: choose with --models")
            weights = zipf(targets, 1.0)
            return Workload(Shape.STEADY, targets, QUIET_PEAK_PER_S * sum(weights), duration_s, seed=seed)
        case "two-versions":
            if targets != len(SPLIT):
                raise BadWorkload(f"two-versions needs a deck of two targets, two versions of one model, not {targets}")
            return Workload(Shape.STEADY, targets, SPLIT_RATE_PER_S, duration_s, weights=SPLIT, seed=seed)
        case _:
            raise BadWorkload(f"no profile {name!r}; there are {', '.join(PROFILES)}")


PROFILES: Final = ("many-quiet", "two-versions")
QUIET_MODELS: Final = 200
QUIET_PEAK_PER_S: Final = 0.9
"""Of the most popular one."""
SPLIT: Final = (0.9, 0.1)
SPLIT_RATE_PER_S: Final = 50.0
