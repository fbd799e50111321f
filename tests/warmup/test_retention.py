"""How long a pool's last pod is kept: beside the best fixed time in hindsight, and beside somebody who knows the future."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmup.retention import RECENT, SMEAR, keep_s

COLD_S = 20.0
WEIGHT = 15.0
COSTS_S = COLD_S * WEIGHT
HOUR_S = 3600.0

gaps = st.lists(st.floats(0.1, 20_000), max_size=40)


def paid_s(gaps_s: Sequence[float], time_s: float, *, costs_s: float) -> float:
    """What a fixed ``time_s`` pays for these gaps: idle seconds, and ``costs_s`` for each that outlasts it."""
    return sum(gap_s if gap_s <= time_s else time_s + costs_s for gap_s in gaps_s)


def kept(gaps_s: Sequence[float], *, longest_s: float = HOUR_S, shortest_s: float = 0.0) -> float:
    return keep_s(gaps_s, cold_start_s=COLD_S, weight=WEIGHT, longest_s=longest_s, shortest_s=shortest_s)


def online(gaps_s: Sequence[float]) -> float:
    """What is paid by who decides before every gap from those before it."""
    return sum(paid_s([gap_s], kept(gaps_s[:number]), costs_s=COSTS_S) for number, gap_s in enumerate(gaps_s))


def best_fixed(gaps_s: Sequence[float]) -> float:
    return min(paid_s(gaps_s, time_s, costs_s=COSTS_S) for time_s in (0.0, *(gap_s for gap_s in gaps_s if gap_s <= HOUR_S)))


@given(st.floats(0.1, 100_000))
def test_with_nothing_known_it_pays_at_most_twice_what_one_pays_who_knows_the_future(gap_s: float) -> None:
    assert kept([]) == COSTS_S
    assert paid_s([gap_s], kept([]), costs_s=COSTS_S) <= 2 * min(gap_s, COSTS_S) + 1e-6


@given(gaps, st.floats(0, 500), st.floats(500, 5000))
def test_it_stays_within_its_bounds(gaps_s: list[float], shortest_s: float, longest_s: float) -> None:
    assert shortest_s <= kept(gaps_s, shortest_s=shortest_s, longest_s=longest_s) <= longest_s


@given(gaps)
def test_for_the_past_as_it_is_smeared_no_other_time_would_have_been_cheaper(gaps_s: list[float]) -> None:
    smeared = [gap_s * factor for gap_s in gaps_s for factor in SMEAR]
    times_s = [0.0, HOUR_S, *(gap_s for gap_s in smeared if gap_s <= HOUR_S)]
    least_s = min(paid_s(smeared, time_s, costs_s=COSTS_S) for time_s in times_s)
    assert paid_s(smeared, kept(gaps_s), costs_s=COSTS_S) == pytest.approx(least_s)


@given(gaps)
def test_weighing_a_waiting_user_more_never_keeps_a_pod_for_less(gaps_s: list[float]) -> None:
    light = keep_s(gaps_s, cold_start_s=COLD_S, weight=WEIGHT, longest_s=HOUR_S)
    assert keep_s(gaps_s, cold_start_s=COLD_S, weight=2 * WEIGHT, longest_s=HOUR_S) >= light


def test_a_user_who_is_worth_nothing_is_waited_for_by_nobody() -> None:
    assert keep_s([], cold_start_s=COLD_S, weight=0.0, longest_s=HOUR_S) == 0.0
    assert keep_s([100.0, 200.0], cold_start_s=COLD_S, weight=0.0, longest_s=HOUR_S) == 0.0


def test_a_timer_that_comes_just_within_what_a_start_is_worth_is_waited_for() -> None:
    assert 250 <= kept([250.0] * 10) <= COSTS_S
    assert kept([1000.0] * 10) == 0.0


def test_a_pool_that_was_never_idle_for_long_is_kept_as_long_as_a_start_is_worth() -> None:
    assert kept([5.0, 12.0, 7.0] * 20) == COSTS_S


def test_only_the_latest_gaps_count() -> None:
    assert kept([30.0] * RECENT + [2000.0] * RECENT) == 0.0


@pytest.mark.parametrize("mean_s", [30.0, 200.0, 2000.0])
def test_a_poisson_stream_costs_about_what_the_best_fixed_time_costs(mean_s: float) -> None:
    draw = random.Random(7)
    gaps_s = [draw.expovariate(1 / mean_s) for _ in range(400)]
    assert online(gaps_s) <= 1.10 * best_fixed(gaps_s)


@pytest.mark.parametrize("period_s", [60.0, 290.0, 600.0, 3500.0])
def test_so_does_a_timer_that_is_a_little_late_or_early(period_s: float) -> None:
    draw = random.Random(7)
    gaps_s = [period_s * draw.uniform(0.95, 1.05) for _ in range(300)]
    assert online(gaps_s) <= 1.10 * best_fixed(gaps_s)


@pytest.mark.parametrize("shape", [0.6, 1.1, 2.0])
def test_so_does_a_heavy_tail(shape: float) -> None:
    draw = random.Random(7)
    gaps_s = [10 * draw.paretovariate(shape) for _ in range(400)]
    assert online(gaps_s) <= 1.10 * best_fixed(gaps_s)


def test_a_pool_whose_days_change_is_followed() -> None:
    """Busy days, and nights in which somebody asks every half hour: no fixed time is good at both."""
    day = [20.0] * 100 + [1800.0] * 16
    assert online(day * 4) <= 1.10 * best_fixed(day * 4)
