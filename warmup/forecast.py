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
    right = precision(history, slot)
    told = {one: quantile(history, one) for one in range(slot, last + 1)}
    until_s = (slot + 1) * SLOT_S
    if all(pods is None for pods, _ in told.values()):
        days = max(days for _, days in told.values())
        return Forecast(0, until_s, f"this slot was watched on {days} of at least {LEAST_DAYS} days", "new", right)
    pods, most = max((pods or 0, -one) for one, (pods, _) in told.items())
    peak = -most
    days = told[peak][1]
    if not pods:
        return Forecast(0, until_s, f"no pod was needed in this slot on most of {days} days", "quiet", right)
    until_s = (_same_until(history, peak, pods) + 1) * SLOT_S
    why = f"{pods} pod{'s' * (pods > 1)} in this slot on {days} days, {QUANTILE:.0%} quantile"
    if right is not None and right < LEAST_PRECISION:
        why = f"of the pods that yesterday's forecast would have kept, only {right:.0%} of the time was asked for"
        return Forecast(0, until_s, why, "poor", right)
    return Forecast(pods, until_s, why, "on", right)


def precision(history: Slots, slot: int) -> float | None:
    """Share of the pod-time forecast for the 144 slots before ``slot`` in whose slot the pool was asked as much."""
    promised = kept = 0
    for past in range(slot - SLOTS_A_DAY, slot):
        needed = history.pods.get(past)
        pods, _ = quantile(history, past)
        if needed is None or not pods:
            continue
        promised += pods
        kept += min(pods, needed)
    return kept / promised if promised else None


def quantile(history: Slots, slot: int) -> tuple[int | None, int]:
    """Pods that the same slot of earlier days needed, and of how many days; None: too few.

    Of the days of the same kind (Monday to Friday, the weekend) where there are enough, else of all.
    """
    found = {back: history.pods.get(slot - back * SLOTS_A_DAY) for back in range(1, DAYS + 1)}
    seen = {back: pods for back, pods in found.items() if pods is not None}
    alike = [pods for back, pods in seen.items() if _is_weekend(slot) == _is_weekend(slot - back * SLOTS_A_DAY)]
    values = sorted(alike if len(alike) >= LEAST_DAYS else seen.values())
    if len(values) < LEAST_DAYS:
        return None, len(values)
    return values[math.ceil(QUANTILE * len(values)) - 1], len(values)


def _same_until(history: Slots, slot: int, pods: int) -> int:
    """The last slot in a row, within a day, that needs as many."""
    last = slot
    while last < slot + SLOTS_A_DAY and (quantile(history, last + 1)[0] or 0) >= pods:
        last += 1
    return last


def _is_weekend(slot: int) -> bool:
    return (slot // SLOTS_A_DAY + _EPOCH_WEEKDAY) % 7 in _WEEKEND
