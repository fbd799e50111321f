"""What a slot of past days says of today's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmup.forecast import MAX_SLOTS, SLOT_S, SLOTS_A_DAY, Slots, floor, precision, quantile, slot_of, watched_days

MONDAY = 4 * SLOTS_A_DAY
"""1970-01-05 was one."""

NINE = 54
"""Slot of the day that begins at 9:00."""


def week(days: dict[int, int], *, at: int = NINE, first: int = MONDAY, watched: int = SLOTS_A_DAY) -> Slots:
    """Days that were watched, and pods needed in one slot of each: day → pods."""
    slots = Slots({first + day * SLOTS_A_DAY + slot: 0 for day in days for slot in range(watched)})
    for day, pods in days.items():
        slots.pods[first + day * SLOTS_A_DAY + at] = pods
    return slots


def moment(day: int, slot: int = NINE) -> float:
    return (MONDAY + day * SLOTS_A_DAY + slot) * SLOT_S


TABLE = [
    ("nothing known", {}, 3, "new", 0),
    ("two days are too few", {0: 1, 1: 1}, 2, "new", 0),
    ("three days alike", {0: 1, 1: 1, 2: 1}, 3, "on", 1),
    ("with three days, the largest", {0: 1, 1: 1, 2: 3}, 3, "on", 3),
    ("two of three without", {0: 0, 1: 0, 2: 0}, 3, "quiet", 0),
    ("of five, one outlier is left out", {0: 1, 1: 1, 2: 1, 3: 9, 4: 1}, 7, "on", 1),
    ("the weekend is judged by all days while there is one of it", {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}, 5, "on", 1),
]


@pytest.mark.parametrize(("days", "today", "verdict", "pods"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_forecast(days: dict[int, int], today: int, verdict: str, pods: int) -> None:
    found = floor(week(days), moment(today) + 10)
    assert (found.verdict, found.pods) == (verdict, pods), found


def test_working_days_say_nothing_of_a_weekend_once_three_weekend_days_are_known() -> None:
    slots = week({day: int(day % 7 < 5) for day in range(13)})
    saturday, sunday = MONDAY + 12 * SLOTS_A_DAY + NINE, MONDAY + 13 * SLOTS_A_DAY + NINE
    assert quantile(slots, saturday) == (1, 12)
    assert quantile(slots, sunday) == (0, 3)
    assert quantile(slots, sunday + SLOTS_A_DAY) == (1, 10)


def test_pods_are_there_before_the_slot_begins() -> None:
    history = week({0: 1, 1: 1, 2: 1})
    assert floor(history, moment(3) - 61, ahead_s=60).pods == 0
    early = floor(history, moment(3) - 60, ahead_s=60)
    assert early.pods == 1
    assert early.until_s == moment(3) + SLOT_S


def test_slots_in_a_row_are_one_stretch() -> None:
    history = week({0: 1, 1: 1, 2: 1})
    for day in range(3):
        for slot in range(NINE, NINE + 6):
            history.pods[MONDAY + day * SLOTS_A_DAY + slot] = 2 if slot < NINE + 3 else 1
    assert floor(history, moment(3)).until_s == moment(3, NINE + 3)
    assert floor(history, moment(3, NINE + 3)).until_s == moment(3, NINE + 6)


def test_a_day_of_which_little_was_watched_is_none() -> None:
    history = week({0: 1, 1: 1, 2: 1, 3: 1}, watched=60)
    assert watched_days(history, slot_of(moment(4))) == 0
    assert floor(history, moment(4)).verdict == "new"


def test_a_forecast_that_kept_pods_for_nobody_is_switched_off_and_comes_back() -> None:
    history = week({0: 1, 1: 1, 2: 1, 3: 0})
    poor = floor(history, moment(4))
    assert (poor.verdict, poor.pods, poor.precision) == ("poor", 0, 0.0)
    assert "0%" in poor.why
    history.pods |= week({4: 1}).pods
    again = floor(history, moment(5))
    assert (again.verdict, again.pods, again.precision) == ("on", 1, 1.0)


def test_precision_weighs_pods() -> None:
    history = week({0: 4, 1: 4, 2: 4, 3: 1})
    assert precision(history, MONDAY + 4 * SLOTS_A_DAY) == 0.25
    assert precision(history, MONDAY + SLOTS_A_DAY) is None


def test_what_was_not_watched_is_neither_right_nor_wrong() -> None:
    history = week({0: 1, 1: 1, 2: 1})
    assert precision(history, MONDAY + 4 * SLOTS_A_DAY) is None


@given(st.lists(st.tuples(st.floats(0, 40 * 86400), st.integers(0, 5)), max_size=200))
def test_the_past_is_bounded_and_keeps_the_peak(looks: list[tuple[float, int]]) -> None:
    slots = Slots()
    for now_s, pods in looks:
        slots.note(now_s, pods)
    assert len(slots.pods) <= MAX_SLOTS
    if len(looks) < 20:
        assert all(slots.pods[slot_of(now_s)] >= pods for now_s, pods in looks)


def test_the_oldest_slots_make_way() -> None:
    slots = Slots()
    for slot in range(MAX_SLOTS + 5):
        slots.note(slot * SLOT_S, 1)
    assert min(slots.pods) == 5
    assert len(slots.pods) == MAX_SLOTS
