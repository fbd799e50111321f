"""Who is asked in a rhythm, and when the next visit is due."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from predictor.policy.rhythm import LEAST_VISITS, SPREAD, Due, due

HOUR_S = 3600.0
HOURLY = [hour * HOUR_S for hour in range(8)]


def test_what_is_asked_at_every_full_hour_is_due_at_the_next() -> None:
    assert due(HOURLY, 7 * HOUR_S + 60) == Due(HOUR_S, 8 * HOUR_S)


def test_three_visits_are_no_rhythm() -> None:
    assert due(HOURLY[: LEAST_VISITS - 1], 3 * HOUR_S) is None
    assert due((), 0.0) is None


def test_one_visit_may_have_been_left_out() -> None:
    visits_s = [0.0, HOUR_S, 2 * HOUR_S, 4 * HOUR_S]
    assert due(visits_s, 4 * HOUR_S) == Due(HOUR_S, 5 * HOUR_S)


def test_two_that_were_left_out_are_an_end() -> None:
    visits_s = [0.0, HOUR_S, 3 * HOUR_S, 5 * HOUR_S]
    assert due(visits_s, 5 * HOUR_S) is None
    visits_s = [0.0, HOUR_S, 2 * HOUR_S, 4 * HOUR_S]
    assert due(visits_s, 5.2 * HOUR_S) is None


def test_a_visit_that_is_late_is_still_due_and_then_the_one_after_it() -> None:
    assert due(HOURLY, 8.05 * HOUR_S) == Due(HOUR_S, 8 * HOUR_S)
    assert due(HOURLY, 8.2 * HOUR_S) == Due(HOUR_S, 9 * HOUR_S)
    assert due(HOURLY, 9.2 * HOUR_S) is None


def test_gaps_of_chance_are_no_rhythm() -> None:
    assert due([0.0, 100.0, 900.0, 1000.0, 1700.0], 1700.0) is None


def test_a_rhythm_that_began_lately_is_seen_behind_what_was_before() -> None:
    visits_s = [0.0, 500.0, 9000.0, *(10_000.0 + 3600 * hour for hour in range(4))]
    assert due(visits_s, visits_s[-1]) == Due(HOUR_S, visits_s[-1] + HOUR_S)


def test_visits_of_one_moment_have_no_period() -> None:
    assert due([5.0] * 8, 5.0) is None


@given(
    st.floats(60, 90_000),
    st.lists(st.floats(-0.02, 0.02), min_size=LEAST_VISITS, max_size=8),
    st.integers(0, 6),
    st.floats(0, 1.1),
)
@example(60.0, [0.0, -0.015625, 0.01953125, -0.015625], 2, 0.0)  # half of the long gap is short, and the median long
def test_a_rhythm_is_found_whatever_its_jitter_and_whichever_visit_was_left_out(
    period_s: float, jitter: list[float], skipped: int, later: float
) -> None:
    numbers = [number for number in range(len(jitter) + 1) if number != skipped + 1][: len(jitter)]
    visits_s = [(number + one) * period_s for number, one in zip(numbers, jitter, strict=True)]
    left_out = numbers[-1] > len(jitter) - 1
    found = due(visits_s, visits_s[-1] + (0.9 if left_out else later) * period_s)
    assert found is not None
    assert found.period_s == pytest.approx(period_s, rel=0.05)
    steps = (found.at_s - visits_s[-1]) / period_s
    assert round(steps) in (1, 2)
    assert steps == pytest.approx(round(steps), abs=0.1)


@given(st.lists(st.floats(60, 100_000), min_size=3, max_size=7), st.floats(0, 10))
def test_the_next_visit_is_never_long_past_and_its_period_is_one_of_the_gaps(gaps_s: list[float], later: float) -> None:
    visits_s = list(itertools.accumulate(gaps_s, initial=1e6))
    now_s = visits_s[-1] + later * gaps_s[-1]
    found = due(visits_s, now_s)
    if found is not None:
        assert found.at_s >= now_s - SPREAD * found.period_s - 1e-6
        assert found.at_s > visits_s[-1]
        assert min(gaps_s) * 0.5 <= found.period_s <= max(gaps_s) + 1e-6
