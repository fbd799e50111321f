"""Demand: decayed request rates."""

from __future__ import annotations

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


def test_beyond_its_limit_the_key_unasked_for_longest_is_forgotten() -> None:
    demand = Demand(limit=2)
    for moment_s, key in enumerate("abac"):
        demand.note(key, float(moment_s))
    assert len(demand) == 2
    assert demand.rate("b", 4.0) == 0.0
    assert demand.rate("a", 4.0) > demand.rate("c", 4.0) > 0.0


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
