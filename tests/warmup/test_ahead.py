"""What is wished of a pool ahead of its traffic, and how its Revision comes to say how long the last pod stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from warmup import calendar
from warmup.activity import Activity
from warmup.ahead import (
    EARLY_S,
    GRACE_S,
    MAX_RETENTION_S,
    REST_S,
    RETAINED,
    RETAINED_FORMER,
    RETENTION,
    Outlook,
    Retention,
    keepings,
    outlook,
    parsed_s,
    retained_s,
    strongest,
)
from warmup.forecast import SLOT_S, SLOTS_A_DAY, Slots, slot_of
from warmup.prewarm import Patch, Revision, Wish

NINE = datetime(2026, 3, 2, 9, tzinfo=UTC).timestamp()
WEEKDAYS = calendar.parse("0 9 * * 1-5 for 2h with 2 pods")


def busy(days: int, pods: int) -> Slots:
    """So many days before ``NINE`` on which the slot at nine needed pods."""
    slot = slot_of(NINE)
    past = {slot - number: 0 for number in range(1, days * SLOTS_A_DAY + 1)}
    return Slots(past | {slot - day * SLOTS_A_DAY: pods for day in range(1, days + 1)})


def look(past: Activity, now_s: float, *, weight: float = 10.0, forecasts: bool = True, dates: str = "") -> Outlook:
    return outlook(calendar.parse(dates), past, now_s=now_s, weight=weight, longest_s=3600, window_s=60, forecasts=forecasts)


def test_a_window_of_the_calendar_opens_early_by_what_a_start_takes_without_any_history() -> None:
    lead_s = Activity().start_p90_s + EARLY_S
    dates = "0 9 * * 1-5 for 2h with 2 pods"
    assert look(Activity(), NINE - lead_s - 1, weight=0, dates=dates).wish is None
    wish = look(Activity(), NINE - lead_s, weight=0, dates=dates).wish
    assert wish is not None
    assert (wish.pods, wish.until_s, wish.reason) == (2, NINE + 7200, "calendar")
    assert "0 9 * * 1-5 for 2h" in wish.why
    assert look(Activity(), NINE + 7200, weight=0, dates=dates).wish is None


def test_the_same_window_has_the_same_key_before_and_after_it_begins() -> None:
    early, late = (look(Activity(), moment, dates="0 9 * * *").wish for moment in (NINE - 10, NINE + 10))
    assert early is not None
    assert late is not None
    assert early.key == late.key


def test_a_slow_pool_is_started_earlier() -> None:
    past = Activity(starts_s=[200.0] * 10)
    assert look(past, NINE - 229, dates="0 9 * * *").wish is not None
    assert look(past, NINE - 231, dates="0 9 * * *").wish is None


def test_a_forecast_wants_pods_ahead_of_the_slot() -> None:
    past = Activity(slots=busy(4, 3))
    lead_s = past.start_p90_s + EARLY_S
    assert look(past, NINE - lead_s - 1).wish is None
    wish = look(past, NINE - lead_s).wish
    assert wish is not None
    assert (wish.pods, wish.until_s, wish.reason) == (3, NINE + SLOT_S, "forecast")


@pytest.mark.parametrize(("weight", "forecasts"), [(0.0, True), (10.0, False)])
def test_nothing_is_forecast_where_it_is_switched_off_or_waiting_is_worth_nothing(weight: float, forecasts: bool) -> None:  # noqa: FBT001
    found = look(Activity(slots=busy(4, 3)), NINE, weight=weight, forecasts=forecasts)
    assert found.forecast is None
    assert found.wish is None


def test_the_strongest_wish_is_for_most_pods_and_then_for_longest() -> None:
    one = Wish(1, 100, "calendar", "", "a")
    two, longer = replace(one, pods=2), replace(one, until_s=200)
    assert strongest([]) is None
    assert strongest([one, two, longer]) == two
    assert strongest([one, longer]) == longer


def test_a_pod_is_kept_for_as_long_as_a_start_is_worth_and_no_less_than_knative_keeps_it() -> None:
    assert look(Activity(colds_s=[20.0]), NINE, weight=10).kept_s == 200
    assert look(Activity(colds_s=[2.0]), NINE, weight=10).kept_s == 60 + GRACE_S
    assert look(Activity(), NINE, weight=0).kept_s is None
    assert look(Activity(colds_s=[1000.0]), NINE, weight=10).kept_s == 3600


def test_knatives_retention_is_what_its_window_leaves() -> None:
    assert retained_s(200, 60) == 140
    assert retained_s(10, 60) == 0
    assert retained_s(99_999, 60) == MAX_RETENTION_S


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("90s", 90), ("1m30s", 90), ("1h", 3600), ("0s", 0), ("1.5s", 1.5), ("", None), ("90", None), ("1d", None), ("-5s", None)],
)
def test_durations_are_read_as_knative_writes_them(told: str, seconds: float | None) -> None:
    assert parsed_s(told) == seconds


PLAIN = Revision("r1", "7")
OURS = replace(PLAIN, retention="100s", retained="100s")
WITH_FORMER = replace(OURS, retained_former="30s")


def retention(seconds: int) -> Retention:
    return Retention("gpu", seconds, "because")


def both(value: str, former: str | None = None) -> Patch:
    """Set by us to ``value``."""
    return patch(retention=value, retained=value, **({"former": former} if former else {}))


def patch(**annotations: str | None) -> Patch:
    names = {"retention": RETENTION, "retained": RETAINED, "former": RETAINED_FORMER}
    return Patch("r1", "7", {names[name]: value for name, value in annotations.items()})


TABLE = [
    ("nothing is wished, nothing was done", PLAIN, None, None, []),
    ("a wish is set", PLAIN, 100, None, [both("100s")]),
    ("what was there is noted", replace(PLAIN, retention="30s"), 100, None, [both("100s", "30s")]),
    ("what Knative does by itself needs no patch", PLAIN, 30, None, []),
    ("but where somebody set more, it does", replace(PLAIN, retention="9m"), 30, None, [both("30s", "9m")]),
    ("what stands is left", OURS, 100, None, []),
    ("a small change is none", OURS, 119, None, []),
    ("a large one is", OURS, 130, None, [both("130s")]),
    ("in both directions", OURS, 79, None, [both("79s")]),
    ("down to nothing", OURS, 0, None, [both("0s")]),
    ("but not so soon", OURS, 130, REST_S - 1, []),
    ("later it is", OURS, 130, REST_S, [both("130s")]),
    ("what somebody else set meanwhile stays", replace(OURS, retention="5m"), 300, None, []),
    ("what somebody else removed stays so", replace(OURS, retention=None), 300, None, []),
    ("what is not wished any more goes", OURS, None, None, [patch(retained=None, former=None, retention=None)]),
    ("and what was there comes back", WITH_FORMER, None, 1, [patch(retained=None, former=None, retention="30s")]),
    ("unless somebody set another", replace(WITH_FORMER, retention="5m"), None, None, [patch(retained=None, former=None)]),
    ("what cannot be read is written anew", replace(OURS, retention="x", retained="x"), 100, None, [both("100s")]),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_what_is_set_on_a_revision(row: tuple[str, Revision, int | None, float | None, list[Patch]]) -> None:
    _, revision, seconds, ago_s, expected = row
    wanted = {"r1": retention(seconds)} if seconds is not None else {}
    moved_s = {"r1": NINE - ago_s} if ago_s is not None else {}
    found = keepings(wanted, [revision], moved_s, now_s=NINE)
    assert list(found.patches) == expected
    assert set(found.moved) == ({"r1"} if expected and seconds is not None else set())
