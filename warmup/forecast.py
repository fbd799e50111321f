"""How many pods a pool will need at this time of day, from the same ten minutes of the days before.

Pure: no clock, nothing read. Off while the past says too little, and while it said nothing that came true: of the pods that
it would have kept yesterday, in what share of their time was the pool asked at all?

Source: an upper quantile of the same slot of past days is the seasonal-naive forecast (Hyndman, Athanasopoulos,
"Forecasting: Principles and Practice", 5.2), with an empirical quantile instead of a mean: what is missing costs more than
what is too much.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

SLOT_S: Final = 600.0
SLOTS_A_DAY: Final = 144
DAYS: Final = 14
MAX_SLOTS: Final = DAYS * SLOTS_A_DAY

QUANTILE: Final = 0.8
LEAST_DAYS: Final = 3
LEAST_WATCHED: Final = SLOTS_A_DAY // 2
"""Slots of a day that were watched, for it to count as one."""

LEAST_PRECISION: Final = 0.5

_WEEKEND: Final = frozenset({5, 6})
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 was a Thursday; Monday is 0."""

Verdict = Literal["new", "poor", "quiet", "on"]
"""``new``: too few days were seen; ``poor``: yesterday's precision; ``quiet``: no pod is needed; ``on``: some are."""


class Slots(msgspec.Struct):
    """A pool's past: slot since the epoch → pods that were needed at its peak, 0 included. What was not watched is not there.

    Slots are of UTC: where clocks change, what is asked by the clock is an hour off until the new days outweigh the old ones.
    """

    pods: dict[int, int] = {}

    def note(self, now_s: float, pods: int) -> None:
        """So many are needed now. ``MAX_SLOTS`` are kept, the latest ones."""
        slot = slot_of(now_s)
        self.pods[slot] = max(pods, self.pods.get(slot, 0))
        if len(self.pods) > MAX_SLOTS:
            for old in sorted(self.pods)[:-MAX_SLOTS]:
                del self.pods[old]


class Forecast(msgspec.Struct, frozen=True):
    """What the past says of a moment.

    pods       that it takes; 0: none
    until_s    end of the slot, or of those after it that take as many
    why        for people
    verdict    see ``Verdict``
    precision  yesterday's, 0 to 1; None: nothing was forecast for yesterday
    """

    pods: int
    until_s: float
    why: str
    verdict: Verdict
    precision: float | None = None


def slot_of(now_s: float) -> int:
    """Slot since the epoch."""
    return int(now_s // SLOT_S)


def floor(history: Slots, now_s: float, *, ahead_s: float = 0.0) -> Forecast:
    """Pods that are to be there at ``now_s``, for what comes within ``ahead_s`` from then as well."""
    slot, last = slot_of(now_s), slot_of(now_s + ahead_s)
    until_s, right = (slot + 1) * SLOT_S, precision(history, slot)
    days = watched_days(history, slot)
    if days < LEAST_DAYS:
        return Forecast(0, until_s, f"{days} days were watched, of at least {LEAST_DAYS}", "new", right)
    if right is not None and right < LEAST_PRECISION:
        why = f"of the time of the pods that it would have kept in the last day, the pool was asked in {right:.0%}"
        return Forecast(0, until_s, why, "poor", right)
    pods, peak = max((quantile(history, one)[0], -one) for one in range(slot, last + 1))
    peak = -peak
    seen = quantile(history, peak)[1]
    if not pods:
        return Forecast(0, until_s, f"at this time of day no pod was needed on most of {seen} days", "quiet", right)
    until_s = (_same_until(history, peak, pods) + 1) * SLOT_S
    why = f"at this time of day {pods} pod{'s' * (pods > 1)} sufficed on {QUANTILE:.0%} of {seen} days, and no fewer did"
    return Forecast(pods, until_s, why, "on", right)


def watched_days(history: Slots, slot: int) -> int:
    """Of the last ``DAYS`` times 24 hours before ``slot``, those that were watched for the larger part."""
    days = [0] * DAYS
    for one in history.pods:
        back = (slot - 1 - one) // SLOTS_A_DAY
        if one < slot and back < DAYS:
            days[back] += 1
    return sum(watched >= LEAST_WATCHED for watched in days)


def precision(history: Slots, slot: int) -> float | None:
    """Of the pod-time that the forecast would have kept in the day before ``slot``, the share in whose slot it was needed.

    It is the forecast's own rule, applied to each of those slots as the days before it were: whether it is in force or not,
    so that one that was switched off may come back. None: it would have kept none.
    """
    promised = kept = 0
    for past in range(slot - SLOTS_A_DAY, slot):
        needed = history.pods.get(past)
        if needed is not None:
            pods, _ = quantile(history, past)
            promised += pods
            kept += min(pods, needed)
    return kept / promised if promised else None


def quantile(history: Slots, slot: int) -> tuple[int, int]:
    """Pods that the same slot of earlier days needed (0 where fewer than ``LEAST_DAYS`` are known), and of how many days.

    Of the days of the same kind (Monday to Friday, the weekend) where there are enough, else of all.
    """
    found = {back: history.pods.get(slot - back * SLOTS_A_DAY) for back in range(1, DAYS + 1)}
    seen = {back: pods for back, pods in found.items() if pods is not None}
    alike = [pods for back, pods in seen.items() if _is_weekend(slot) == _is_weekend(slot - back * SLOTS_A_DAY)]
    values = sorted(alike if len(alike) >= LEAST_DAYS else seen.values())
    if len(values) < LEAST_DAYS:
        return 0, len(values)
    return values[math.ceil(QUANTILE * len(values)) - 1], len(values)


def _same_until(history: Slots, slot: int, pods: int) -> int:
    """The last slot in a row, within a day, that needs as many."""
    last = slot
    while last < slot + SLOTS_A_DAY and quantile(history, last + 1)[0] >= pods:
        last += 1
    return last


def _is_weekend(slot: int) -> bool:
    return (slot // SLOTS_A_DAY + _EPOCH_WEEKDAY) % 7 in _WEEKEND
