"""Demand: decayed request rates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.policy.demand import HALF_LIVES_S, Demand

FAST_S, SLOW_S = HALF_LIVES_S


def test_a_steady_stream_is_measured_at_its_rate() -> None:
    demand = Demand()
    for second in range(int(10 * SLOW_S) // 60):
        demand.note("a", second * 60.0)
    assert demand.rate("a", 10 * SLOW_S) == pytest.approx(1 / 60, rel=0.03)


def test_after_one_half_life_the_fast_part_is_halved() -> None:
    demand = Demand()
    demand.note("a", 0.0)
    before = demand.rate("a", 0.0)
    after = demand.rate("a", FAST_S)
    assert 0.45 < after / before < 0.52


def test_what_was_never_asked_for_has_no_rate() -> None:
    assert Demand().rate("a", 1.0) == 0.0


def test_beyond_its_limit_those_asked_least_are_forgotten_when_the_next_second_begins() -> None:
    demand = Demand(limit=2)
    for moment_s, key in enumerate("aabac"):
        demand.note(key, float(moment_s))
    assert len(demand) == 3
    demand.note("a", 6.0)
    assert len(demand) == 1
    assert demand.rate("b", 6.0) == 0.0
    assert demand.rate("a", 6.0) > 0.0


def test_twice_its_limit_is_never_passed_even_inside_one_second() -> None:
    demand = Demand(limit=10)
    for key in range(1_000):
        demand.note(key, 1.0)
        assert len(demand) <= 20


def test_a_demand_of_one_key_keeps_it() -> None:
    demand = Demand(limit=1)
    for moment_s in range(5):
        demand.note("a", float(moment_s))
    demand.note("b", 5.0)
    demand.note("c", 6.0)
    assert demand.rate("a", 6.0) > 0.0


@given(st.permutations([("a", 0.2), ("b", 0.9), ("a", 0.5), ("c", 0.1), ("a", 0.7), ("b", 0.0)]))
def test_inside_one_second_the_order_changes_nothing(requests: list[tuple[str, float]]) -> None:
    demand = Demand()
    for key, moment_s in requests:
        demand.note(key, moment_s)
    assert [demand.rate(key, 100.0) for key in "abc"] == [demand_of(requests).rate(key, 100.0) for key in "abc"]
    assert sorted(demand.rates(1.0)) == sorted(demand_of(sorted(requests)).rates(1.0))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e5)), max_size=30), st.integers(0, 30))
def test_what_two_noted_adds_up_to_what_one_would_have(requests: list[tuple[str, float]], split: int) -> None:
    whole, left, right = demand_of(requests), demand_of(requests[:split]), demand_of(requests[split:])
    for key, fast, slow in left.rates(2e5):
        right.add(key, fast, slow, 2e5)
    for key in "abc":
        assert right.rate(key, 3e5) == pytest.approx(whole.rate(key, 3e5), rel=1e-6, abs=1e-12)


def test_an_older_moment_counts_for_what_is_left_of_it() -> None:
    late, ordered = Demand(), Demand()
    for moment_s in (5_000.0, 0.0, 9_000.0, 2_000.0):
        late.note("a", moment_s)
    for moment_s in (0.0, 2_000.0, 5_000.0, 9_000.0):
        ordered.note("a", moment_s)
    assert late.rate("a", 9_000.0) == pytest.approx(ordered.rate("a", 9_000.0))


def test_visits_are_the_moments_after_a_minute_of_quiet_the_latest_eight() -> None:
    demand = Demand()
    for hour in range(10):
        for second in (0.0, 30.0, 75.0):
            demand.note("a", hour * 3600.0 + second)
    assert demand.visits("a") == [hour * 3600.0 for hour in range(2, 10)]
    assert demand.visits("b") == ()


@pytest.mark.parametrize("moments_s", [(60.1, 60.9), (60.9, 60.1)])
def test_whether_a_second_begins_a_visit_does_not_depend_on_the_order_of_its_requests(moments_s: tuple[float, ...]) -> None:
    demand = Demand()
    for moment_s in (0.5, *moments_s):
        demand.note("a", moment_s)
    assert demand.visits("a") == [0.0, 60.0]


def test_visits_of_two_pods_are_merged_and_those_of_the_same_minute_are_one() -> None:
    demand = Demand()
    demand.note("a", 0.0)
    demand.note("a", 7200.0)
    demand.add("a", 0.1, 0.1, 7200.0, visits=(3600.0, 7230.0))
    assert demand.visits("a") == [0.0, 3600.0, 7200.0]


def demand_of(requests: list[tuple[str, float]]) -> Demand:
    """A Demand that noted them."""
    demand = Demand()
    for key, moment_s in requests:
        demand.note(key, moment_s)
    return demand


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_rates_are_finite_never_negative_and_fall_while_nobody_asks(moments: list[float]) -> None:
    demand = Demand()
    for moment_s in moments:
        demand.note("a", moment_s)
    end_s = max(moments)
    rates = [demand.rate("a", end_s + after_s) for after_s in (0.0, 1.0, 1e3, 1e6, 1e9)]
    assert rates[0] > 0.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] >= 0.0


def test_a_keys_rates_are_told_one_by_one_or_all_at_once() -> None:
    demand = Demand()
    assert demand.latest_s == -math.inf
    demand.note("a", 5.5)
    demand.note("b", 3.0)
    assert demand.latest_s == 5.0
    assert demand.keys() == ["a", "b"]
    assert {key: demand.at(key, 60.0) for key in "ab"} == {key: (fast, slow) for key, fast, slow in demand.rates(60.0)}
    assert demand.at("nobody", 60.0) == (0.0, 0.0)
