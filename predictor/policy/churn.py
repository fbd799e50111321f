"""Notices thrashing: models that come back soon after they were pushed out, so that their room was needed twice over.

Pure: time is an argument. What follows from an alarm is for people: a log line, a metric, a line in ``hearth ps``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from predictor.model import ModelRef
from predictor.policy.residency import Place

WINDOW_S: Final = 60.0
"""A model that comes back within this time left too early."""

RAISE_RETURNS: Final = 10
RAISE_SECONDS: Final = 15.0
"""Returns within the window, or seconds of loading for at least two of them, that raise the alarm. Half of it clears it."""

REMEMBERED: Final = 10_000
NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Alarm:
    """What goes round in circles.

    returns   loads within the window of models that had been pushed out within the window before
    seconds   what these loads took together
    models    how many models they were, and those with the most returns first
    """

    place: Place
    returns: int
    seconds: float
    models: int
    most: tuple[ModelRef, ...]


class Churn:
    """Drops and loads of one place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.alarm: Alarm | None = None
        self._gone: OrderedDict[ModelRef, float] = OrderedDict()
        self._returns: deque[tuple[float, ModelRef, float]] = deque(maxlen=REMEMBERED)

    def pushed_out(self, ref: ModelRef, now_s: float) -> None:
        """A copy was dropped for room."""
        self._gone[ref] = now_s
        self._gone.move_to_end(ref)
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def loaded(self, ref: ModelRef, seconds: float, now_s: float) -> None:
        """A copy came in."""
        gone_s = self._gone.pop(ref, None)
        if gone_s is not None and now_s - gone_s <= WINDOW_S:
            self._returns.append((now_s, ref, seconds))
        self.look(now_s)

    def look(self, now_s: float) -> Alarm | None:
        """Raise or clear the alarm as of ``now_s``, and return it."""
        while self._returns and now_s - self._returns[0][0] > WINDOW_S:
            self._returns.popleft()
        returns, seconds = len(self._returns), sum(entry[2] for entry in self._returns)
        share = 0.5 if self.alarm else 1.0
        if returns >= RAISE_RETURNS * share or (returns > 1 and seconds >= RAISE_SECONDS * share):
            counts: dict[ModelRef, int] = {}
            for _, ref, _ in self._returns:
                counts[ref] = counts.get(ref, 0) + 1
            most = sorted(counts, key=lambda ref: (-counts[ref], ref))[:NAMED]
            self.alarm = Alarm(self.place, returns, seconds, len(counts), tuple(most))
        else:
            self.alarm = None
        return self.alarm
