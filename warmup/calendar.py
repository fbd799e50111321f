"""When somebody wants a pool or a model to be warm, as cron lines in an annotation.

    hearth.dev/warm-at: "55 8 * * 1-5 for 2h; 0 18 * * 0 for 30m with 2 pods"
    hearth.dev/warm-timezone: Europe/Berlin

Entries are parted by ``;`` or by line ends. Each is five cron fields, then how long it lasts (30 minutes where it does not
say), then, for pools, how many pods. Pure, but for the time zones' files, which zoneinfo reads once.

Where clocks change, cronsim does as Debian's cron: what falls into the hour that is left out comes right after it, what
falls into the one that comes twice comes once (an entry with a ``*`` among its first two fields: each time).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from warmup.objects import shown

WARM_AT: Final = "hearth.dev/warm-at"
WARM_TIMEZONE: Final = "hearth.dev/warm-timezone"

DEFAULT_S: Final = 1800.0
LONGEST_S: Final = 7 * 86400.0
MAX_ENTRIES: Final = 32
"""Of one annotation; those beyond are left out, and said."""

MAX_LINE_CHARS: Final = 200
MAX_PODS: Final = 100
MAX_STEPS: Final = 64
"""Occurrences looked at: an entry of every minute that lasts for hours needs not be counted out."""

_FIELDS: Final = 5
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ENTRY: Final = re.compile(
    r"(?P<cron>.+?)(?:\s+for\s+(?P<count>\d{1,6})\s*(?P<unit>[smhd]))?(?:\s+with\s+(?P<pods>\d{1,3})\s+pods?)?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``lasts_s``: seconds from each of its moments on; ``text``: as somebody wrote it."""

    cron: str
    lasts_s: float
    pods: int
    text: str


@dataclass(frozen=True, slots=True)
class Calendar:
    """All lines of an annotation. ``remarks``: what is wrong with it, in sentences that say what to write instead."""

    entries: tuple[Entry, ...] = ()
    zone: tzinfo = UTC
    remarks: tuple[str, ...] = ()


NEVER: Final = Calendar()


@dataclass(frozen=True, slots=True)
class Window:
    """One occurrence of an entry. Moments in seconds since the epoch."""

    begins_s: float
    until_s: float
    entry: Entry

    @property
    def pods(self) -> int:
        """How many it asks for."""
        return self.entry.pods


def parse(lines: str, timezone: str = "") -> Calendar:
    """Read an annotation; what cannot be read is left out and remarked. ``timezone``: of IANA; "": UTC."""
    remarks: list[str] = []
    zone: tzinfo = UTC
    if timezone:
        try:
            zone = ZoneInfo(timezone)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError; a folder's name is an OSError
            remarks.append(
                f"{WARM_TIMEZONE} is {shown(timezone)}, no time zone such as Europe/Berlin: no entry counts until it is"
            )
            return Calendar(remarks=tuple(remarks))
    told = [line.strip() for line in re.split(r"[;\n]", lines) if line.strip()]
    if len(told) > MAX_ENTRIES:
        remarks.append(f"{WARM_AT} has {len(told)} entries: those after the first {MAX_ENTRIES} count for nothing")
    entries = []
    for line in told[:MAX_ENTRIES]:
        entry = _entry(line)
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            remarks.append(f"{WARM_AT}: {shown(line)} {entry}; write `55 8 * * 1-5 for 2h`, for example")
    return Calendar(tuple(entries), zone, tuple(remarks))


def open_at(calendar: Calendar, now_s: float, *, ahead_s: float = 0.0) -> tuple[Window, ...]:
    """Windows that are open at ``now_s`` or open within ``ahead_s``; of each entry the latest such."""
    found = (_latest(entry, calendar.zone, now_s, ahead_s) for entry in calendar.entries)
    return tuple(window for window in found if window is not None)


def next_after(calendar: Calendar, now_s: float) -> Window | None:
    """The window that begins first after ``now_s``; None: none ever does."""
    found = (_first(entry, calendar.zone, now_s) for entry in calendar.entries)
    return min((window for window in found if window is not None), key=lambda window: window.begins_s, default=None)


def _entry(line: str) -> Entry | str:
    """An entry, or what is wrong with it, to follow its text in a sentence."""
    matched = _ENTRY.fullmatch(line) if len(line) <= MAX_LINE_CHARS else None
    if matched is None:
        return f"is longer than {MAX_LINE_CHARS} characters"
    cron = " ".join(matched["cron"].split())
    if len(cron.split()) != _FIELDS:
        return "does not begin with the five fields minute, hour, day of month, month, day of week"
    try:
        CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        return f"is no cron line ({error})"
    lasts_s = float(matched["count"]) * _UNITS_S[matched["unit"].lower()] if matched["count"] else DEFAULT_S
    if not 0 < lasts_s <= LONGEST_S:
        return f"lasts {lasts_s:.0f} s, and may last up to {LONGEST_S / 86400:.0f} days"
    pods = int(matched["pods"] or 1)
    if not 0 < pods <= MAX_PODS:
        return f"asks for {pods} pods, and may ask for 1 to {MAX_PODS}"
    return Entry(cron, lasts_s, pods, line)


def _latest(entry: Entry, zone: tzinfo, now_s: float, ahead_s: float) -> Window | None:
    latest = None
    for begins_s in islice(_moments(entry, zone, now_s - entry.lasts_s), MAX_STEPS):
        if begins_s > now_s + ahead_s:
            break
        latest = Window(begins_s, begins_s + entry.lasts_s, entry)
    return latest


def _first(entry: Entry, zone: tzinfo, now_s: float) -> Window | None:
    begins_s = next(_moments(entry, zone, now_s), None)
    return None if begins_s is None else Window(begins_s, begins_s + entry.lasts_s, entry)


def _moments(entry: Entry, zone: tzinfo, after_s: float) -> Iterator[float]:
    """Its moments after ``after_s``, in order."""
    start = datetime.fromtimestamp(after_s, UTC).replace(microsecond=0)
    # An hour that is left out moves what falls into it to the hour's end: an hour earlier finds it from every beginning.
    for moment in CronSim(entry.cron, (start - timedelta(hours=2)).astimezone(zone)):
        if moment.timestamp() > after_s:
            yield moment.timestamp()
