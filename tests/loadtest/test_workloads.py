"""Schedules: in order, the same each time, of the rate and the popularity that were asked for, and split without doubling."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.draws import Choice, Draw
from loadtest.options import Options
from loadtest.workloads import BadWorkload, Event, Shape, Workload, compressed, profile, schedule, share

LONG = Workload(Shape.STEADY, targets=20, rate_per_s=50.0, duration_s=200.0)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    period_s = draw(st.floats(0.5, 20))
    return Workload(
        draw(st.sampled_from(Shape)),
        targets=draw(st.integers(1, 40)),
        rate_per_s=draw(st.floats(0.1, 60)),
        duration_s=draw(st.floats(0.1, 30)),
        peak_rate_per_s=draw(st.floats(0.1, 60)),
        period_s=period_s,
        active_s=period_s * draw(st.floats(0.05, 1)),
        zipf_exponent=draw(st.floats(0, 2)),
        priorities=draw(st.sampled_from([(), (("high", 1.0), ("batch", 3.0))])),
        seed=draw(st.integers(0, 1 << 70)),
    )


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_a_schedule_is_in_order_inside_the_run_and_the_same_each_time(workload: Workload) -> None:
    events = list(schedule(workload))
    assert events == list(schedule(workload))
    assert all(0 <= event.due_s < workload.duration_s and 0 <= event.target < workload.targets for event in events)
    assert all(one.due_s <= other.due_s for one, other in pairwise(events))
    assert {event.priority for event in events} <= {name for name, _ in workload.priorities} | {""}


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(1, 7))
def test_the_shares_of_all_processes_are_the_schedule_each_event_once(workload: Workload, processes: int) -> None:
    shares = [list(share(schedule(workload), index, processes)) for index in range(processes)]
    whole = list(schedule(workload))
    assert sorted(event for part in shares for event in part) == sorted(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_rate_and_the_gaps_are_those_of_a_poisson_process() -> None:
    events = list(schedule(LONG))
    expected = LONG.rate_per_s * LONG.duration_s
    assert abs(len(events) - expected) < 5 * math.sqrt(expected)
    gaps_s = [other.due_s - one.due_s for one, other in pairwise(events)]
    mean_s = sum(gaps_s) / len(gaps_s)
    deviation_s = math.sqrt(sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s))
    assert deviation_s / mean_s == pytest.approx(1.0, abs=0.05)


def test_popularity_follows_zipf_and_the_seed_says_which_model_is_popular() -> None:
    counts = Counter(event.target for event in schedule(LONG)).most_common()
    assert counts[0][1] / counts[9][1] == pytest.approx(10.0, rel=0.25)
    others = {
        Counter(event.target for event in schedule(Workload(Shape.STEADY, 20, 50.0, 50.0, seed=seed))).most_common(1)[0][0]
        for seed in range(6)
    }
    assert len(others) > 1


@pytest.mark.parametrize(
    ("shape", "first", "second"), [(Shape.RAMP, 25.0, 75.0), (Shape.BURST, 100.0, 10.0), (Shape.ON_OFF, 10.0, 0.0)]
)
def test_the_rate_follows_its_shape(shape: Shape, first: float, second: float) -> None:
    rate = 0.0001 if shape is Shape.RAMP else 10.0
    workload = Workload(shape, 1, rate, 200.0, peak_rate_per_s=100.0, period_s=200.0, active_s=100.0)
    halves = Counter(event.due_s < 100.0 for event in schedule(workload))
    assert halves[True] / 100.0 == pytest.approx(first, rel=0.15)
    assert halves[False] / 100.0 == pytest.approx(second, rel=0.2)


def test_a_day_is_low_at_its_ends_and_high_in_the_middle() -> None:
    workload = Workload(Shape.DIURNAL, 1, 1.0, 100.0, peak_rate_per_s=101.0, period_s=100.0)
    middle = sum(25.0 <= event.due_s < 75.0 for event in schedule(workload))
    assert middle / len(list(schedule(workload))) > 0.75


def test_clocks_strike_together_at_the_full() -> None:
    workload = Workload(Shape.CRON, 30, 1.0, 600.0, period_s=60.0)
    events = list(schedule(workload))
    assert all(event.due_s % 60.0 < 1.0 for event in events)
    assert sum(event.due_s < 1.0 for event in events) == 30


def test_the_cold_tail_comes_back_after_exactly_its_period_and_the_head_all_the_time() -> None:
    workload = Workload(Shape.COLD_TAIL, 20, 20.0, 100.0, period_s=25.0)
    by_target: dict[int, list[float]] = {}
    for event in schedule(workload):
        by_target.setdefault(event.target, []).append(event.due_s)
    hot = [target for target, moments in by_target.items() if len(moments) > 8]
    assert len(hot) == 2
    for target, moments in by_target.items():
        if target not in hot:
            assert [b - a for a, b in pairwise(moments)] == pytest.approx([25.0] * 3)


def test_compressed_events_are_the_same_requests_sooner() -> None:
    events = [Event(6.0, 1, 2), Event(60.0, 0, 3, "high")]
    assert list(compressed(iter(events), 60.0)) == [Event(0.1, 1, 2), Event(1.0, 0, 3, "high")]


def test_time_is_not_compressed_unless_keep_alives_are_said_to_be() -> None:
    with pytest.raises(BadWorkload, match="HEARTH_IDLE_TTL_S"):
        Options(trace="day.csv", compress=60.0)
    assert Options(trace="day.csv", compress=60.0, keep_alive_scaled=True).compress == 60.0
    with pytest.raises(BadWorkload, match="for traces"):
        Options(compress=60.0, keep_alive_scaled=True)


def test_the_quiet_profile_asks_no_model_more_than_once_a_second() -> None:
    workload = profile("many-quiet", targets=200, duration_s=400.0)
    counts = Counter(event.target for event in schedule(workload))
    assert max(counts.values()) / 400.0 < 1.0
    assert len(counts) > 150


def test_two_versions_share_nine_to_one() -> None:
    counts = Counter(event.target for event in schedule(profile("two-versions", targets=2, duration_s=100.0)))
    assert counts[0] / counts.total() == pytest.approx(0.9, abs=0.03)
    with pytest.raises(BadWorkload, match="two targets"):
        profile("two-versions", targets=3, duration_s=1.0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s above 0"),
        ({"shape": Shape.BURST, "period_s": 1.0, "active_s": 1.0}, "peak_rate_per_s"),
        ({"shape": Shape.ON_OFF, "period_s": 1.0, "active_s": 2.0}, "longer than"),
        ({"weights": (1.0,)}, "1 weights for 2 models"),
        ({"zipf_exponent": -1.0}, "below 0"),
    ],
)
def test_numbers_that_make_no_schedule_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(BadWorkload, match=told):
        Workload(**({"shape": Shape.STEADY, "targets": 2, "rate_per_s": 1.0, "duration_s": 1.0} | fields))  # type: ignore[arg-type]


def test_draws_are_what_they_were_on_the_day_this_was_written() -> None:
    draw = Draw(1, "arrivals")
    assert [draw.below(1000) for _ in range(4)] == [195, 864, 651, 746]


@pytest.mark.parametrize("shape", [0.2, 1.0, 9.0])
def test_gamma_draws_have_the_mean_and_variance_of_their_shape(shape: float) -> None:
    draw = Draw(3)
    values = [draw.gamma(shape) for _ in range(20_000)]
    mean = sum(values) / len(values)
    assert mean == pytest.approx(shape, rel=0.06)
    assert sum((value - mean) ** 2 for value in values) / len(values) == pytest.approx(shape, rel=0.12)


def test_a_choice_never_takes_what_has_no_weight() -> None:
    choose, draw = Choice([0.0, 1.0, 0.0, 2.0, 0.0]), Draw(4)
    assert {choose(draw) for _ in range(1000)} == {1, 3}
