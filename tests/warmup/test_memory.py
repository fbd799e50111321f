"""What a controller remembers of a pool's demand: nothing counts twice, nothing is lost with a pod or a controller."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import heat
from predictor.heat import MAX_MODELS, Heat, HotSet, Warmth
from predictor.policy.demand import Demand
from warmup.memory import (
    DELETED_S,
    FORMAT,
    GONE_S,
    MAX_DELETED,
    MAX_GONE,
    MAX_RATE,
    RESTART_S,
    TOP,
    PoolDemand,
    decode,
    differ,
    encode,
    hot_set,
)

T0_S = 1_800_000_000.0


class Pod:
    """Notes what it is asked, as a pod does."""

    def __init__(self, name: str, began_s: float = T0_S) -> None:
        self.name = name
        self.began_s = began_s
        self.demand = Demand()

    def ask(self, model: str, at_s: float) -> None:
        self.demand.note((model, 1), at_s)

    def heat(self, now_s: float) -> Heat:
        lines = []
        for key, fast, slow in self.demand.rates(now_s):
            visits = tuple(int(now_s - moment_s) for moment_s in self.demand.visits(key))
            lines.append(Warmth(key[0], 1, fast, slow, 1.0, 10**6, visits))  # type: ignore[index]
        return Heat(self.name, now_s, tuple(lines))


def requests(pool: PoolDemand, now_s: float) -> dict[str, float]:
    """Decayed counts by model, of the slower rate: 1 for each request of just now."""
    return {one.name: one.slow * 24 * 3600 / math.log(2) for one in pool.models(now_s)}


def counted(pool: PoolDemand, now_s: float) -> dict[str, int]:
    return {name: round(count) for name, count in requests(pool, now_s).items()}


def tell(pool: PoolDemand, pod: Pod, now_s: float) -> None:
    pool.told(pod.name, pod.heat(now_s), pod.began_s, now_s)


def again(pool: PoolDemand, now_s: float) -> PoolDemand:
    """What the next controller knows."""
    return PoolDemand("gpu", decode(encode(pool.memory(now_s))))


def test_what_several_pods_noted_adds_up_and_what_one_tells_again_does_not() -> None:
    pool, a, b = PoolDemand("gpu"), Pod("a"), Pod("b")
    a.ask("m", T0_S)
    b.ask("m", T0_S)
    for now_s in (T0_S + 1, T0_S + 2, T0_S + 3):
        tell(pool, a, now_s)
        tell(pool, b, now_s)
    assert counted(pool, T0_S + 3) == {"m": 2}


def test_what_a_pod_noted_outlives_it_and_the_controller() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    tell(pool, a, T0_S + 1)
    pool.see((), T0_S + 2)
    assert counted(pool, T0_S + 2) == {"m": 1}
    pool = again(pool, T0_S + 3)
    pool.see((), T0_S + 4)
    assert counted(pool, T0_S + 4) == {"m": 1}
    pool.see((), T0_S + 4 + GONE_S)
    assert not pool.memory(T0_S).lives
    assert counted(again(pool, T0_S + 700), T0_S + 700) == {"m": 1}


def test_a_pod_that_was_lost_from_sight_for_a_moment_counts_once() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    tell(pool, a, T0_S + 1)
    pool.see((), T0_S + 2)
    tell(pool, a, T0_S + 3)
    pool.see(("a",), T0_S + 3)
    assert counted(pool, T0_S + 3) == {"m": 1}
    assert set(pool.heats()) == {"a"}


def test_a_container_that_started_again_begins_anew_and_what_it_noted_before_stays() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    tell(pool, a, T0_S + 10)
    a = Pod("a", T0_S + 20)
    a.ask("m", T0_S + 21)
    a.ask("n", T0_S + 21)
    tell(pool, a, T0_S + 22)
    tell(pool, a, T0_S + 23)
    assert counted(pool, T0_S + 23) == {"m": 2, "n": 1}


def test_a_start_that_is_told_a_little_differently_each_time_is_the_same_one() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    for late_s in range(10):
        a.began_s = T0_S + late_s * RESTART_S / 10
        tell(pool, a, T0_S + 20 + late_s)
    assert counted(pool, T0_S + 30) == {"m": 1}


def test_an_answer_that_comes_late_does_not_undo_a_newer_one() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    old = a.heat(T0_S + 1)
    a.ask("m", T0_S + 2)
    tell(pool, a, T0_S + 3)
    pool.told("a", old, T0_S, T0_S + 4)
    assert counted(pool, T0_S + 4) == {"m": 2}


def test_of_many_pods_that_ended_the_first_are_added_up() -> None:
    pool = PoolDemand("gpu")
    for number in range(3 * MAX_GONE):
        pod = Pod(f"pod-{number}")
        pod.ask("m", T0_S)
        tell(pool, pod, T0_S + number)
        pool.see((), T0_S + number)
    assert len(pool.memory(T0_S).lives) == MAX_GONE
    assert counted(pool, T0_S + 3 * MAX_GONE) == {"m": 3 * MAX_GONE}


def test_visits_do_not_creep_however_often_they_are_added_up() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    for hour in range(5):
        a.ask("m", T0_S + 3600 * hour)
    now_s = T0_S + 4 * 3600
    tell(pool, a, now_s + 0.4)
    for number in range(1, 100):
        now_s += GONE_S + 0.7
        pod = Pod(f"pod-{number}")
        pod.ask("n", now_s)
        tell(pool, pod, now_s)
        pool.see((), now_s)
    (m,) = (one for one in pool.models(now_s) if one.name == "m")
    assert [int(now_s) - ago_s for ago_s in m.visits] == pytest.approx([T0_S + 3600 * hour for hour in range(5)], abs=1)


def test_models_that_are_not_declared_any_more_are_left_out_until_they_are_again() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    for model in ("m", "root"):
        a.ask(model, T0_S)
    pool.declare({"m"}, T0_S)
    tell(pool, a, T0_S + 1)
    assert set(counted(pool, T0_S + 1)) == {"m", "root"}, "what lies in the pool's own bucket is declared by nobody"
    pool.declare((), T0_S + 2)
    assert set(counted(pool, T0_S + 2)) == {"root"}
    pool = again(pool, T0_S + 3)
    assert set(counted(pool, T0_S + 3)) == {"root"}
    pool.declare({"m"}, T0_S + 4)
    assert set(counted(pool, T0_S + 4)) == {"m", "root"}


def test_deleted_models_are_remembered_for_a_while_and_not_without_end() -> None:
    pool = PoolDemand("gpu")
    pool.declare({f"m{number}" for number in range(2 * MAX_DELETED)}, T0_S)
    pool.declare((), T0_S + 1)
    assert len(pool.memory(T0_S + 1).deleted) == MAX_DELETED
    pool.declare((), T0_S + 1 + DELETED_S)
    assert not pool.memory(T0_S + 1).deleted


def test_the_version_grows_with_requests_and_not_with_time() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    tell(pool, a, T0_S + 1)
    before = pool.version
    tell(pool, a, T0_S + 1000)
    pool.see(("a",), T0_S + 1000)
    pool.declare((), T0_S + 1000)
    assert pool.version == before
    a.ask("m", T0_S + 1001)
    tell(pool, a, T0_S + 1002)
    assert pool.version > before


def test_a_pod_that_tells_nonsense_does_not_spoil_what_others_told() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    a.ask("m", T0_S)
    tell(pool, a, T0_S + 1)
    wild = Heat("another name", T0_S + 1e9, (Warmth("wild", 1, 1e308, 1e308),) * 3)
    pool.told("b", wild, T0_S, T0_S + 2)
    assert set(pool.heats()) == {"a", "b"}
    assert requests(pool, T0_S + 2)["m"] == pytest.approx(1, rel=0.01)
    assert all(one.fast <= 3 * MAX_RATE for one in pool.models(T0_S + 2))
    decode(encode(pool.memory(T0_S + 2)))


def test_a_document_of_a_newer_release_is_not_read() -> None:
    raw = encode(PoolDemand("gpu").memory(T0_S)).replace(b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1))
    # The first format in it is the ended pods' heat's, which is of its own.
    with pytest.raises(ValueError, match=r"this release reads"):
        decode(raw)


def test_the_document_is_bounded_whatever_there_is() -> None:
    pool = PoolDemand("gpu")
    lines = tuple(Warmth(f"m{number}", 1, 1.0 / (number + 1), 0.1) for number in range(MAX_MODELS + 10))
    for number in range(4):
        pool.told(f"pod-{number}", Heat("", T0_S, lines), T0_S, T0_S)
    memory = pool.memory(T0_S, lines=100)
    assert [len(life.heat.models) for life in memory.lives] == [25] * 4
    assert {one.name for one in memory.lives[0].heat.models} == {f"m{number}" for number in range(25)}
    assert len(pool.models(T0_S)) == MAX_MODELS


def test_a_hot_set_is_by_value_without_visits_and_short() -> None:
    pool, a = PoolDemand("gpu"), Pod("a")
    for number in range(3):
        for _ in range(number + 1):
            a.ask(f"m{number}", T0_S)
    tell(pool, a, T0_S + 7)
    hot = hot_set("gpu", pool.models(T0_S + 8.5), T0_S + 8.5)
    assert [one.name for one in hot.models] == ["m2", "m1", "m0"]
    assert hot.at_s == T0_S + 8
    assert not any(one.visits for one in hot.models)
    assert len(heat.encode(hot)) < 400
    assert heat.decode(heat.encode(hot), HotSet) == hot


ONE = HotSet("gpu", T0_S, (Warmth("a", 1, 2.0, 2.0, 1.0, 5), Warmth("b", 1, 1.0, 1.0, 1.0, 5)))


@pytest.mark.parametrize(
    "other",
    [
        (ONE.models[1], ONE.models[0]),
        ONE.models[:1],
        (*ONE.models, Warmth("c", 1, 0.1, 0.1)),
        (Warmth("a", 2, 2.0, 2.0, 1.0, 5), ONE.models[1]),
        (Warmth("a", 1, 2.3, 2.3, 1.0, 5), ONE.models[1]),
        (Warmth("a", 1, 2.0, 2.0, 1.0, 6), ONE.models[1]),
        (Warmth("a", 1, 2.0, 2.0, 0.0, 5), ONE.models[1]),
    ],
    ids=["order", "fewer", "more", "version", "rate", "size", "never measured"],
)
def test_hot_sets_differ_by(other: tuple[Warmth, ...]) -> None:
    assert differ(ONE, HotSet("gpu", T0_S, other))


def test_the_order_of_the_first_counts_and_of_the_rest_only_who_they_are() -> None:
    many = tuple(Warmth(f"m{number}", 1, 1.0, 1.0) for number in range(TOP + 2))
    swapped = (*many[:TOP], many[TOP + 1], many[TOP])
    assert not differ(HotSet("gpu", T0_S, many), HotSet("gpu", T0_S, swapped))
    assert differ(HotSet("gpu", T0_S, many), HotSet("gpu", T0_S, many[:-1]))
    assert differ(HotSet("gpu", T0_S, many), HotSet("gpu", T0_S, (*many[:-1], Warmth("other", 1, 1.0, 1.0))))


def test_time_and_a_request_in_ten_are_no_difference() -> None:
    assert not differ(ONE, ONE)
    half = tuple(Warmth(one.name, 1, one.fast / 2, one.slow / 2 ** (1 / 48), 1.0, 5) for one in ONE.models)
    assert not differ(ONE, HotSet("gpu", T0_S + 1800, half))
    assert not differ(ONE, HotSet("gpu", T0_S, (Warmth("a", 1, 2.1, 2.1, 1.2, 5), ONE.models[1])))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "tell", "end", "restart", "controller", "pass"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.floats(0.1, 400),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_what_the_pods_noted_is_what_one_pod_would_have_noted(steps: list[tuple[str, int, int, float]]) -> None:
    pool, whole, now_s = PoolDemand("gpu"), Pod("whole"), T0_S
    pods = [Pod("p0"), Pod("p1"), Pod("p2")]
    for what, which, model, pause_s in steps:
        now_s = float(int(now_s + pause_s + RESTART_S + 1))
        if what == "ask":
            pods[which].ask(f"m{model}", now_s)
            whole.ask(f"m{model}", now_s)
        tell(pool, pods[which], now_s)
        if what in ("end", "restart"):
            pods[which] = Pod(f"at {now_s}" if what == "end" else pods[which].name, now_s)
        elif what == "controller":
            pool = again(pool, now_s)
        pool.see([pod.name for pod in pods], now_s)
    for pod in pods:
        tell(pool, pod, now_s)
    expected = {one.name: one for one in whole.heat(now_s).models}
    found = {one.name: one for one in pool.models(now_s)}
    assert set(found) == set(expected)
    for name, one in expected.items():
        assert found[name].slow == pytest.approx(one.slow, rel=1e-6)
        assert found[name].fast == pytest.approx(one.fast, rel=1e-6, abs=1e-15)
        assert found[name].visits == one.visits
