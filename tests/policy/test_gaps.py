"""What gaps between requests say about the next one."""

from __future__ import annotations

from array import array
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.policy.demand import Demand
from predictor.policy.gaps import ALIKE, BINS, FULL, LEAST_S, bin_of, count, none, prospect

GAPS = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60)


def counted(lengths_s: list[float], *, begun: bool = False, into: array[int] | None = None) -> array[int]:
    gaps = none() if into is None else into
    for gap_s in lengths_s:
        count(gaps, gap_s, begun=begun)
    return gaps


def test_a_gap_is_counted_by_its_power_of_two() -> None:
    lengths_s = (0.0, 0.031, 0.032, 0.99, 1.0, 1.9, 2.0, 3.9, 4.0, 65535.0, 65536.0, 1e12)
    assert [bin_of(gap_s) for gap_s in lengths_s] == [0, 0, 1, 5, 6, 6, 7, 7, 8, 21, 22, 22]


@given(soon_s=GAPS, late_s=GAPS, begun=st.booleans(), idle_s=st.floats(0.0, 1e6))
def test_a_prospect_is_between_nothing_and_one_in_the_least_span(
    soon_s: list[float], late_s: list[float], *, begun: bool, idle_s: float
) -> None:
    gaps = counted(soon_s, into=counted(late_s, begun=True))
    assert 0.0 <= prospect(gaps, idle_s, begun=begun) <= 1.0 / LEAST_S


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=FULL // (4 * ALIKE)), st.integers(2, 4), st.floats(0.0, 1e5))
def test_seeing_the_same_again_changes_nothing(lengths_s: list[float], times: int, idle_s: float) -> None:
    once, often = counted(lengths_s), counted(lengths_s * times)
    assert prospect(often, idle_s, begun=False) == pytest.approx(prospect(once, idle_s, begun=False))


@given(lengths_s=GAPS, begun=st.booleans())
def test_who_was_never_idle_so_long_has_no_prospect_that_was_counted(lengths_s: list[float], *, begun: bool) -> None:
    longest_s = 2.0 ** bin_of(max(lengths_s)) * LEAST_S
    assert prospect(counted(lengths_s), longest_s, begun=begun) == 0.0


def test_gaps_after_the_same_kind_of_request_weigh_more_and_the_others_count_where_there_is_none() -> None:
    gaps = counted([10.0] * 10, into=counted([3600.0] * 10, begun=True))
    assert prospect(gaps, 1.0, begun=False) > 4 * prospect(gaps, 1.0, begun=True)
    assert prospect(gaps, 20.0, begun=False) == prospect(gaps, 20.0, begun=True) > 0.0


def test_a_timer_is_worth_more_the_nearer_it_is() -> None:
    timer = counted([300.0] * 20, begun=True)
    assert prospect(timer, 10.0, begun=True) < prospect(timer, 150.0, begun=True) < prospect(timer, 280.0, begun=True)


def test_a_burst_is_worth_much_while_it_goes_on_and_little_once_it_is_over() -> None:
    bursts = counted([2.0] * 90 + [3600.0] * 10)
    during, after = prospect(bursts, 1.0, begun=False), prospect(bursts, 10.0, begun=False)
    assert during > 0.1
    assert after < 1 / 1000


def test_after_the_first_request_of_a_pair_the_second_is_due_and_after_the_second_nothing_is() -> None:
    demand = Demand()
    for hour in range(8):
        demand.note("pairs", hour * 3600.0)
        demand.note("pairs", hour * 3600.0 + 10.0)
    begun_s = 8 * 3600.0
    demand.note("pairs", begun_s)
    after_first = demand.prospect("pairs", begun_s + 5.0)
    demand.note("pairs", begun_s + 10.0)
    assert after_first > 3 * demand.prospect("pairs", begun_s + 15.0)


@pytest.mark.parametrize("seconds", [10.0, 1.0])
def test_who_is_asked_ten_times_as_often_is_worth_more_also_where_both_are_asked_every_few_moments(seconds: float) -> None:
    demand, draw = Demand(), Random(1)
    for model, rate_per_s in (("often", 10 / seconds), ("seldom", 1 / seconds)):
        moment_s = 0.0
        while (moment_s := moment_s + draw.expovariate(rate_per_s)) < 30 * seconds:
            demand.note(model, moment_s)
    assert demand.prospect("often", 30 * seconds) > 3 * demand.prospect("seldom", 30 * seconds)


@pytest.mark.parametrize("begun", [False, True])
def test_full_counts_are_halved_all_of_them(*, begun: bool) -> None:
    times = FULL // ALIKE
    gaps = counted([10.0] * times + [100.0] * 10, begun=begun)
    count(gaps, 10.0, begun=begun)
    alike, other = (BINS, 0) if begun else (0, BINS)
    assert (gaps[alike + bin_of(10.0)], gaps[alike + bin_of(100.0)]) == (times * ALIKE // 2 + ALIKE, 5 * ALIKE)
    assert (gaps[other + bin_of(10.0)], gaps[other + bin_of(100.0)]) == (times // 2 + 1, 5)


def test_a_count_in_the_other_row_that_is_full_halves_all_too() -> None:
    gaps = counted([100.0] * 2)
    gaps[BINS + bin_of(10.0)] = FULL
    count(gaps, 10.0, begun=False)
    assert (gaps[BINS + bin_of(10.0)], gaps[bin_of(100.0)]) == (FULL // 2 + 1, ALIKE)


def test_where_no_gap_lasted_longer_the_rate_counts_but_not_more_than_one_in_as_long_as_nobody_asked() -> None:
    demand = Demand()
    for second in range(100):
        demand.note("m", float(second))
    assert demand.prospect("m", 99.0) == pytest.approx(1 / 1.5)  # of gaps from 1 to 2 s
    assert demand.prospect("m", 99.0 + 30.0) == pytest.approx(demand.rate("m", 129.0))
    assert demand.prospect("m", 99.0 + 1800.0) == pytest.approx(1 / 1800.0)
    assert demand.prospect("nobody", 0.0) == 0.0


def test_what_others_noted_is_valued_by_its_rate_until_there_are_gaps() -> None:
    demand = Demand()
    demand.add("m", 0.01, 0.01, 1000.0)
    assert demand.prospect("m", 1000.0) == pytest.approx(demand.rate("m", 1000.0))
    demand.note("m", 1030.0)
    demand.note("m", 1090.0)
    assert demand.prospect("m", 1091.0) == pytest.approx(1 / (48.0 - 1.0))  # between 32 and 64 s


def test_requests_of_one_second_are_noted_at_once() -> None:
    one, many = Demand(), Demand()
    one.note("m", 5.0, 3)
    for _ in range(3):
        many.note("m", 5.0)
    assert one.rate("m", 9.0) == pytest.approx(many.rate("m", 9.0))
    assert one.visits("m") == many.visits("m")
