"""What a pool's past says of its future: when nobody asked, how many pods were needed when, and how long a start takes.

One ``Activity`` per pool, kept over the controller's restarts; a ``Watcher`` adds to it what the pods' reports tell, second
by second. Pure: no clock, nothing read. What follows from it is retention.py's, forecast.py's and ahead.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from warmup.forecast import Slots

FORMAT: Final = 1
MAX_GAPS: Final = 500
MAX_STARTS: Final = 50
MAX_NOTES: Final = 48
MAX_NOTE_CHARS: Final = 400

LEAST_GAP_S: Final = 10.0
"""Shorter ones are no reason to let a pod go, and a busy pool has thousands of them: they would push out its nights."""

UNWATCHED_S: Final = 60.0
"""After a longer blank nobody knows whether a pod came and went in it: Knative keeps one for at least that long."""

HELD_S: Final = 3.0
"""A request that comes within so long of the pod's readiness has been waiting for it: it is what the pod was made for."""

DEFAULT_START_S: Final = 30.0
"""Until one was measured."""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Something that was done for the pool, and why. ``what``: an Event's reason."""

    at_s: float
    what: str
    text: str


class Activity(msgspec.Struct):
    """What is kept of one pool. Moments in seconds since the epoch.

    at_s      of the latest look
    quiet_s   since when nobody asks; None: somebody does, or it is not known since when
    gaps_s    past stretches without a request, the oldest first; the latest ``MAX_GAPS`` of at least ``LEAST_GAP_S``
    slots     pods needed in each slot of the last days
    starts_s  pod created → serving, the latest ``MAX_STARTS``
    colds_s   the same with the first load of a model in that pod
    notes     what was done, the latest ``MAX_NOTES``
    wish      the key of the wish that was told last: it is not told again after a restart
    """

    at_s: float = 0.0
    quiet_s: float | None = None
    gaps_s: list[float] = []
    slots: Slots = msgspec.field(default_factory=Slots)
    starts_s: list[float] = []
    colds_s: list[float] = []
    notes: list[Note] = []
    wish: str = ""
    verdict: str = ""
    format: int = FORMAT

    @property
    def start_p90_s(self) -> float:
        """What nine of ten pods take at most until they serve."""
        if not self.starts_s:
            return DEFAULT_START_S
        return sorted(self.starts_s)[math.ceil(0.9 * len(self.starts_s)) - 1]

    @property
    def cold_start_s(self) -> float:
        """What a request waits that finds no pod: the median of what was measured."""
        known = self.colds_s or self.starts_s
        return sorted(known)[len(known) // 2] if known else DEFAULT_START_S

    def note(self, at_s: float, what: str, text: str) -> None:
        """Keep it; the oldest makes way."""
        self.notes = [*self.notes[-MAX_NOTES + 1 :], Note(at_s, what, text[:MAX_NOTE_CHARS])]


def encode(activity: Activity) -> bytes:
    """JSON."""
    return msgspec.json.encode(activity)


def decode(document: bytes) -> Activity:
    """Raises ValueError: it is none, or of a newer format."""
    found = msgspec.json.decode(document, type=Activity)
    if found.format > FORMAT:
        raise ValueError(f"it has format {found.format}, and this release reads {FORMAT} at most")
    return found


@dataclass(frozen=True, slots=True)
class Seen:
    """One pod at one look; see report.PodReport.

    created_s  seconds since the epoch; None where the cluster does not say
    answers    whether it told anything: else all below means nothing
    """

    name: str
    created_s: float | None
    answers: bool = True
    serving: bool = True
    asked: int = 0
    asked_s_ago: float | None = None
    running: int = 0


@dataclass(slots=True)
class _Known:
    """A pod, as it was at the last look. ``serving_s``: when it was seen to serve first; ``start_s``: what that took."""

    asked: int = 0
    serving_s: float | None = None
    start_s: float | None = None
    loaded: bool = False


@dataclass(slots=True)
class Watcher:
    """Adds looks at a pool's pods to its ``activity``."""

    activity: Activity
    began_s: float | None = None
    _pods: dict[str, _Known] = field(default_factory=dict)
    _running: bool = False

    def look(self, pods: Sequence[Seen], now_s: float, *, target: float) -> None:
        """Take in what running pods say. ``target``: requests at once that one pod is meant for, > 0."""
        activity, told = self.activity, [pod for pod in pods if pod.answers]
        if self.began_s is None:
            self.began_s = now_s
            if now_s - activity.at_s > UNWATCHED_S:
                activity.quiet_s = None
        last_s = activity.at_s if now_s - activity.at_s <= UNWATCHED_S else now_s
        arrivals = [moment for pod in told for moment in self._arrivals(pod, last_s, now_s)]
        running = sum(pod.running for pod in told)
        if arrivals:
            first_s = min(arrivals)
            if activity.quiet_s is not None:
                self._gap(first_s - activity.quiet_s)
            activity.slots.note(first_s, 1)
        latest_s = max((now_s - pod.asked_s_ago for pod in told if pod.asked_s_ago is not None), default=None)
        if running:
            activity.quiet_s = None
        elif arrivals or self._running:
            # It ended between the looks; who was still running at the last one ended after that.
            activity.quiet_s = max([*arrivals, last_s]) if self._running else max(arrivals)
        elif activity.quiet_s is None and latest_s is not None:
            activity.quiet_s = latest_s
        asked = bool(arrivals) or running > 0
        activity.slots.note(now_s, max(1, math.ceil(running / target)) if asked else 0)
        self._running = running > 0
        activity.at_s = now_s
        self._pods = {pod.name: self._pods[pod.name] for pod in pods if pod.name in self._pods}

    def loaded(self, pod: str, load_s: float) -> None:
        """A model was loaded in a pod; the first time, that ended its cold start."""
        known = self._pods.get(pod)
        if known is None or known.start_s is None or known.loaded:
            return
        known.loaded = True
        self.activity.colds_s = [*self.activity.colds_s[-MAX_STARTS + 1 :], known.start_s + load_s]

    def _arrivals(self, pod: Seen, last_s: float, now_s: float) -> Iterable[float]:
        """Moments of requests that came since the last look: of the first and the latest, as far as they are known."""
        known = self._pods.get(pod.name)
        began_s = now_s if self.began_s is None else self.began_s
        ours = pod.created_s is not None and pod.created_s >= began_s
        if known is None:
            # What one has taken before it was ever looked at is no news, unless it is no older than the looking.
            known = self._pods[pod.name] = _Known(0 if ours else pod.asked)
        if pod.serving and known.serving_s is None:
            known.serving_s = now_s
            if ours and pod.created_s is not None:
                known.start_s = now_s - pod.created_s
                self.activity.starts_s = [*self.activity.starts_s[-MAX_STARTS + 1 :], known.start_s]
        before, known.asked = known.asked, pod.asked
        if pod.asked < before:
            before = 0  # another process under the same name
        if pod.asked <= before:
            return
        latest_s = now_s - pod.asked_s_ago if pod.asked_s_ago is not None else now_s
        yield latest_s
        if before == 0 and known.start_s is not None and known.serving_s is not None and pod.created_s is not None:
            if latest_s - known.serving_s <= HELD_S:
                yield pod.created_s
        elif pod.asked - before > 1:
            yield min(latest_s, last_s)

    def _gap(self, gap_s: float) -> None:
        if gap_s >= LEAST_GAP_S:
            self.activity.gaps_s = [*self.activity.gaps_s[-MAX_GAPS + 1 :], round(gap_s, 1)]
