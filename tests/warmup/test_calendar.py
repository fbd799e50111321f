"""Cron lines in annotations: what they mean, when they are open, and where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmup.calendar import DEFAULT_S, MAX_ENTRIES, Calendar, next_after, open_at, parse

BERLIN = ZoneInfo("Europe/Berlin")


def at(*when: int, zone: ZoneInfo | None = None, fold: int = 0) -> float:
    return datetime(*when, tzinfo=zone or UTC, fold=fold).timestamp()  # type: ignore[misc, arg-type]


def one(line: str, timezone: str = "") -> Calendar:
    found = parse(line, timezone)
    assert not found.remarks, found.remarks
    return found


def test_entries_say_when_for_how_long_and_for_how_many() -> None:
    found = one("55 8 * * 1-5 for 2h; 0 18 * * SUN\n*/30 * * * * for 90s with 2 pods;; 1 1 1 1 * FOR 1 D")
    assert [(entry.cron, entry.lasts_s, entry.pods) for entry in found.entries] == [
        ("55 8 * * 1-5", 7200, 1),
        ("0 18 * * SUN", DEFAULT_S, 1),
        ("*/30 * * * *", 90, 2),
        ("1 1 1 1 *", 86400, 1),
    ]


WRONG = [
    ("every morning", "five fields"),
    ("0 9 * *", "five fields"),
    ("0 0 9 * * *", "five fields"),
    ("0 25 * * * for 2h", "Bad hour"),
    ("0 9 * * * for 0m", "may last"),
    ("0 9 * * * for 8d", "may last"),
    ("0 9 * * * for ever", "five fields"),
    ("0 9 * * * with 0 pods", "1 to"),
    ("0 9 30 2 *", "Bad day"),
    ("0 " * 200, "longer"),
]


@pytest.mark.parametrize(("line", "why"), WRONG)
def test_what_cannot_be_read_is_left_out_and_says_what_to_write(line: str, why: str) -> None:
    found = parse(f"{line}; 0 9 * * *")
    assert len(found.entries) == 1
    (remark,) = found.remarks
    assert why in remark
    assert "hearth.dev/warm-at" in remark
    assert "55 8 * * 1-5 for 2h" in remark


@pytest.mark.parametrize("zone", ["Europe/Bonn", "../etc/passwd", "Europe", "\0", "x" * 5000])
def test_an_unknown_time_zone_stops_all_entries(zone: str) -> None:
    found = parse("0 9 * * *", zone)
    assert not found.entries
    assert "hearth.dev/warm-timezone" in found.remarks[0]


def test_there_are_only_so_many() -> None:
    found = parse("\n".join(["0 9 * * *"] * (MAX_ENTRIES + 1)))
    assert len(found.entries) == MAX_ENTRIES
    assert str(MAX_ENTRIES) in found.remarks[0]


@given(st.text(max_size=60) | st.from_regex(r"[0-9*,/#L-]{1,6}( [0-9*,/#LW-]{1,6}){4}( for \d{1,3}[smhd])?", fullmatch=True))
def test_no_text_breaks_it(text: str) -> None:
    found = parse(text)
    open_at(found, at(2026, 3, 1), ahead_s=100)
    next_after(found, at(2026, 3, 1))


def test_a_window_opens_at_its_minute_and_closes_when_its_time_is_over() -> None:
    nine = one("0 9 * * 1-5 for 2h")
    begins = at(2026, 3, 2, 9)  # a Monday
    for moment_s, is_open in ((begins - 1, False), (begins, True), (begins + 7199, True), (begins + 7200, False)):
        assert bool(open_at(nine, moment_s)) is is_open
    (window,) = open_at(nine, begins - 90, ahead_s=90)
    assert (window.begins_s, window.until_s, window.pods) == (begins, begins + 7200, 1)
    assert not open_at(nine, at(2026, 3, 1, 10)), "a Sunday"


def test_a_window_that_begins_again_before_it_ends_goes_on() -> None:
    often = one("*/10 * * * * for 1h")
    (window,) = open_at(often, at(2026, 3, 2, 9, 5))
    assert window.until_s == at(2026, 3, 2, 10, 0)
    long = one("* * * * * for 1d")
    (window,) = open_at(long, at(2026, 3, 2, 9, 5))
    assert window.until_s > at(2026, 3, 2, 9, 5)


def test_the_next_one_is_the_first_of_all_entries() -> None:
    found = one("0 9 * * *; 30 8 * * *")
    following = next_after(found, at(2026, 3, 2, 7))
    assert following is not None
    assert following.begins_s == at(2026, 3, 2, 8, 30)
    assert next_after(Calendar(), 0) is None


def test_hours_are_those_of_the_time_zone_in_summer_and_winter() -> None:
    nine = one("0 9 * * *", "Europe/Berlin")
    assert bool(open_at(nine, at(2026, 1, 10, 8)))
    assert bool(open_at(nine, at(2026, 7, 10, 7)))
    assert not open_at(nine, at(2026, 7, 10, 8))


def test_what_falls_into_the_hour_that_is_left_out_comes_right_after_it() -> None:
    lost = one("30 2 * * * for 10m", "Europe/Berlin")
    three = at(2026, 3, 29, 3, zone=BERLIN)
    (window,) = open_at(lost, three)
    assert window.begins_s == three
    assert not open_at(lost, three - 1)
    following = next_after(lost, three - 60)
    assert following is not None
    assert following.begins_s == three


def test_what_falls_into_the_hour_that_comes_twice_comes_once() -> None:
    twice = one("30 2 * * * for 10m", "Europe/Berlin")
    first, second = at(2026, 10, 25, 2, 30, zone=BERLIN), at(2026, 10, 25, 2, 30, zone=BERLIN, fold=1)
    assert second - first == 3600
    assert [bool(open_at(twice, moment_s)) for moment_s in (first, second)] == [True, False]
