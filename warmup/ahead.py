"""What a pool shall have before anybody asks: how many pods, until when, why; and how long its last one is kept.

Puts together what the calendar says and what the past says. Pure: no clock, nothing read. How pods come of it is
prewarm.py's decision, how long one is kept is written here as a patch of the Revision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from warmup import calendar, forecast, retention
from warmup.activity import Activity
from warmup.calendar import Calendar
from warmup.forecast import Forecast
from warmup.prewarm import Patch, Wish

RETENTION: Final = "autoscaling.knative.dev/scale-to-zero-pod-retention-period"
RETAINED: Final = "hearth.dev/retained"
"""Beside it: the value that we wrote. Another one was set by somebody else meanwhile, and stays."""

RETAINED_FORMER: Final = "hearth.dev/retained-former"
"""What it was before, if anything."""

EARLY_S: Final = 30.0
"""A pod is asked for so long before nine of ten starts would have it: models are loaded in that time."""

GRACE_S: Final = 30.0
"""Knative's scale-to-zero-grace-period: after the window, the last pod stays for so long at least."""

MAX_RETENTION_S: Final = 3600.0
"""Knative refuses more."""

MOVED: Final = 0.2
"""A retention that differs by less is left as it is: every change is a write, and a line that somebody reads."""

REST_S: Final = 300.0
"""Between two changes of a Revision's retention."""

_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")

Switch = Literal["auto", "off"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """All that is wished of a pool ahead of its traffic.

    wish      the strongest of what the calendar and the forecast say; None: neither says anything
    forecast  None: it is switched off
    kept_s    how long the last pod is to be kept after its last request; None: as Knative does by itself
    """

    wish: Wish | None
    forecast: Forecast | None
    kept_s: float | None


def outlook(
    dates: Calendar, past: Activity, *, now_s: float, weight: float, longest_s: float, window_s: float, forecasts: bool
) -> Outlook:
    """Look at one pool.

    weight     idle seconds of a pod that one second of a waiting user is worth; 0: nothing is kept, nothing forecast
    longest_s  longest time that a pod is kept
    window_s   Knative's stable window: a pod is idle for so long, and for ``GRACE_S``, whatever is done here
    """
    lead_s = past.start_p90_s + EARLY_S
    wishes = [_dated(window, now_s) for window in calendar.open_at(dates, now_s, ahead_s=lead_s)]
    foreseen = forecast.floor(past.slots, now_s, ahead_s=lead_s) if forecasts and weight > 0 else None
    if foreseen is not None and foreseen.pods:
        wishes.append(Wish(foreseen.pods, foreseen.until_s, "forecast", foreseen.why, f"forecast {foreseen.pods}"))
    kept_s = None
    if weight > 0:
        shortest_s = min(window_s + GRACE_S, longest_s)
        kept_s = retention.keep_s(
            past.gaps_s, cold_start_s=past.cold_start_s, weight=weight, longest_s=longest_s, shortest_s=shortest_s
        )
    return Outlook(strongest(wishes), foreseen, kept_s)


def strongest(wishes: Iterable[Wish]) -> Wish | None:
    """The one for most pods; of those the one that lasts longest."""
    return max(wishes, key=lambda wish: (wish.pods, wish.until_s), default=None)


def retained_s(kept_s: float, window_s: float) -> int:
    """Knative's retention period for a pod that is to be kept for ``kept_s``: what its window leaves, in whole seconds."""
    return round(min(MAX_RETENTION_S, max(0.0, kept_s - window_s)))


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a Revision's last pod stays after Knative's window, of which pool, and why, for people."""

    pool: str
    seconds: int
    why: str


class Retained(Protocol):
    """What is asked of a Revision; warming.py has it."""

    @property
    def name(self) -> str:
        """Its own."""

    @property
    def version(self) -> str:
        """Its resourceVersion."""

    @property
    def retention(self) -> str | None:
        """``RETENTION`` as it stands; None: it does not."""

    @property
    def retained(self) -> str:
        """``RETAINED`` as it stands; "": it does not."""

    @property
    def retained_former(self) -> str | None:
        """``RETAINED_FORMER`` as it stands; None: it does not."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is to be set on Revisions. ``moved``: of those whose retention is set or changed, not given back."""

    patches: tuple[Patch, ...]
    moved: Mapping[str, Retention]


def keepings(
    wanted: Mapping[str, Retention], revisions: Iterable[Retained], moved_s: Mapping[str, float], *, now_s: float
) -> Keeping:
    """Make Revisions say how long their last pod stays, and take back what is not wanted any more.

    wanted   by Revision; those that are not in it get back what they had
    moved_s  by Revision: when its retention was set last by this controller
    """
    patches, moved = [], {}
    for revision in revisions:
        retention = wanted.get(revision.name)
        if retention is None:
            if revision.retained:
                patches.append(_given_back(revision))
            continue
        is_ours, seconds = bool(revision.retained), retention.seconds
        if not is_ours and revision.retention is None and seconds <= GRACE_S:
            continue  # that is what Knative does by itself
        if is_ours and (revision.retention != revision.retained or not _has_moved(seconds, parsed_s(revision.retained))):
            continue  # somebody else set another one meanwhile, or it is as good as that
        if is_ours and now_s - moved_s.get(revision.name, float("-inf")) < REST_S:
            continue
        value = f"{seconds}s"
        annotations: dict[str, str | None] = {RETENTION: value, RETAINED: value}
        if not is_ours and revision.retention is not None:
            annotations[RETAINED_FORMER] = revision.retention
        patches.append(Patch(revision.name, revision.version, annotations))
        moved[revision.name] = retention
    return Keeping(tuple(patches), moved)


def parsed_s(duration: str) -> float | None:
    """Seconds of a Go duration, as annotations have them (90s, 1m30s, 1h); None: it is none such."""
    matched = _DURATION.fullmatch(duration)
    if matched is None or not any(matched.groups()):
        return None
    hours, minutes, seconds = (float(group or 0) for group in matched.groups())
    return hours * 3600 + minutes * 60 + seconds


def _dated(window: calendar.Window, now_s: float) -> Wish:
    begins = "" if window.begins_s <= now_s else f", which begins in {window.begins_s - now_s:.0f} s"
    why = f"{calendar.WARM_AT}: {window.entry.text}{begins}"
    # Without its moment: an entry of every ten minutes that lasts for an hour is one wish, not one after the other.
    return Wish(window.pods, window.until_s, "calendar", why, f"calendar {window.entry.text}")


def _has_moved(seconds: int, before_s: float | None) -> bool:
    return before_s is None or abs(seconds - before_s) > MOVED * max(seconds, before_s)


def _given_back(revision: Retained) -> Patch:
    annotations: dict[str, str | None] = {RETAINED: None, RETAINED_FORMER: None}
    if revision.retention == revision.retained:
        annotations[RETENTION] = revision.retained_former
    return Patch(revision.name, revision.version, annotations)
