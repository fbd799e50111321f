"""Which pod should load which model before anybody asks it there."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.heat import Warmth
from predictor.policy.demand import HALF_LIVES_S
from warmup.placement import (
    AGAIN_S,
    MARGIN_S,
    MAX_WISHES,
    WORTH_MORE,
    Appointment,
    Held,
    Key,
    PodView,
    Wish,
    near,
    orders,
)

NOW_S = 1_800_000_000.0
GB = 10**9
ONE = math.log(2) / HALF_LIVES_S[0]
"""What one request just now adds to the faster rate."""


def warm(name: str, *, requests: float = 5.0, load_s: float = 2.0, gigabytes: float = 1.0, version: int = 1) -> Warmth:
    return Warmth(name, version, requests * ONE, requests * ONE / 48, load_s, int(gigabytes * GB))


def by_key(*models: Warmth) -> dict[Key, Warmth]:
    return {(one.name, one.version): one for one in models}


def pod(name: str, room: float = 10.0, *, held: dict[str, Held] | None = None, asked: str = "", **more: object) -> PodView:
    return PodView(
        name,
        {0: int(room * GB)},
        {(model, 1): copy for model, copy in (held or {}).items()},
        frozenset((model, 1) for model in asked.split()),
        **more,  # type: ignore[arg-type]
    )


def shown(wishes: tuple[Wish, ...]) -> list[tuple[str, str]]:
    return [(wish.pod, wish.name) for wish in wishes]


HERE = Held(0, GB)


def test_what_is_asked_on_one_pod_and_cold_on_another_is_ordered_there_with_the_reason() -> None:
    a, b = pod("a", held={"m": HERE}, asked="m"), pod("b")
    (wish,) = orders([a, b], by_key(warm("m")), (), now_s=NOW_S)
    assert (wish.pod, wish.name, wish.version, wish.reason) == ("b", "m", 1, "demand")
    assert wish.why == "asked on a, cold on b"
    assert wish.until_s > NOW_S


def test_a_pool_of_one_pod_has_no_other_pod() -> None:
    assert orders([pod("a", asked="m")], by_key(warm("m")), (), now_s=NOW_S) == ()


def test_one_request_is_no_reason_and_two_are() -> None:
    pods = [pod("a", held={"m": HERE}, asked="m"), pod("b")]
    assert not orders(pods, by_key(warm("m", requests=1)), (), now_s=NOW_S)
    assert orders(pods, by_key(warm("m", requests=2)), (), now_s=NOW_S)


def test_what_a_pod_is_asked_itself_and_nobody_else_it_loads_by_itself() -> None:
    assert orders([pod("a"), pod("b", asked="m")], by_key(warm("m")), (), now_s=NOW_S)[0].pod == "a"


@pytest.mark.parametrize(
    "other",
    [
        pod("b", held={"m": HERE}),
        pod("b", failed=frozenset({("m", 1)})),
        pod("b", ordered={("m", 1): NOW_S - 1}),
        pod("b", is_busy=True),
        pod("b", 0.5),
    ],
    ids=["has it", "failed to load it", "was ordered it", "loads its hot set", "has no room"],
)
def test_a_pod_is_left_alone_that(other: PodView) -> None:
    assert orders([pod("a", held={"m": HERE}, asked="m"), other], by_key(warm("m")), (), now_s=NOW_S) == ()


def test_what_was_ordered_long_ago_and_is_not_there_is_ordered_again() -> None:
    pods = [pod("a", held={"m": HERE}, asked="m"), pod("b", ordered={("m", 1): NOW_S - AGAIN_S})]
    assert shown(orders(pods, by_key(warm("m")), (), now_s=NOW_S)) == [("b", "m")]


@pytest.mark.parametrize(("requests", "goes"), [(2 * WORTH_MORE, True), (2 * WORTH_MORE - 0.1, False)])
def test_a_newcomer_pushes_out_only_what_is_worth_half_of_it(requests: float, goes: bool) -> None:  # noqa: FBT001
    models = by_key(warm("m", requests=requests), warm("resident", requests=2))
    pods = [pod("a", held={"m": HERE}, asked="m"), pod("b", 0.0, held={"resident": HERE})]
    assert bool(orders(pods, models, (), now_s=NOW_S)) is goes


def test_what_is_pinned_or_in_use_makes_no_room() -> None:
    pods = [pod("a", held={"m": HERE}, asked="m"), pod("b", 0.0, held={"resident": Held(0, GB, stays=True)})]
    assert not orders(pods, by_key(warm("m")), (), now_s=NOW_S)


def test_of_two_devices_the_one_that_loses_less_makes_room() -> None:
    held = {"dear": Held(0, GB), "cheap": Held(1, GB)}
    b = PodView("b", {0: 0, 1: 0}, {(name, 1): copy for name, copy in held.items()})
    models = by_key(warm("m", requests=100), warm("n", requests=99), warm("dear", requests=40), warm("cheap", requests=3))
    both = {"m": HERE, "n": HERE}
    assert shown(orders([pod("a", held=both, asked="m n"), b], models, (), now_s=NOW_S)) == [("b", "m"), ("b", "n")]
    models[("n", 1)] = warm("n", requests=50)
    assert shown(orders([pod("a", held=both, asked="m n"), b], models, (), now_s=NOW_S)) == [("b", "m")]


def test_never_more_than_would_fit_and_what_is_worth_most_first() -> None:
    models = by_key(*(warm(f"m{number}", requests=number + 2) for number in range(6)))
    a = pod("a", held={name: HERE for name, _ in models}, asked=" ".join(name for name, _ in models))
    assert shown(orders([a, pod("b", 3.5)], models, (), now_s=NOW_S)) == [("b", "m5"), ("b", "m4"), ("b", "m3")]


def test_of_a_size_that_nobody_knows_nothing_is_ordered_for_demand_alone() -> None:
    assert not orders([pod("a", asked="m"), pod("b")], by_key(warm("m", gigabytes=0)), (), now_s=NOW_S)


def test_one_look_orders_a_few() -> None:
    models = by_key(*(warm(f"m{number:02}", gigabytes=0.1) for number in range(40)))
    a = pod("a", held={name: HERE for name, _ in models}, asked=" ".join(name for name, _ in models))
    assert len(orders([a, pod("b", 99), pod("c", 99)], models, (), now_s=NOW_S)) == 2 * MAX_WISHES


def test_many_pods_that_were_asked_are_not_all_named() -> None:
    pods = [pod(name, held={"m": HERE}, asked="m") for name in "abcde"]
    (wish,) = orders([*pods, pod("z")], by_key(warm("m")), (), now_s=NOW_S)
    assert wish.why == "asked on a, b, c and others, cold on z"


def appointment(name: str = "m", in_s: float = 12.0, version: int = 1, **more: float) -> Appointment:
    return Appointment(name, version, NOW_S + in_s, NOW_S + in_s + 120, "rhythm", "asked every 60 min", **more)


@pytest.mark.parametrize(("in_s", "is_near"), [(MARGIN_S + 2.1, False), (MARGIN_S + 2, True), (-119, True), (-120, False)])
def test_an_appointment_is_near_a_load_and_a_margin_before_until_it_means_nothing(in_s: float, is_near: bool) -> None:  # noqa: FBT001
    assert bool(near([appointment(in_s=in_s)], by_key(warm("m", load_s=2.0)), NOW_S)) is is_near


def test_what_is_due_is_ordered_on_every_pod_that_lacks_it_also_where_there_is_only_one() -> None:
    models = by_key(warm("m", requests=0.01))
    assert shown(orders([pod("a")], models, [appointment()], now_s=NOW_S)) == [("a", "m")]
    pods = [pod("a", held={"m": HERE}), pod("b"), pod("c")]
    assert shown(orders(pods, models, [appointment()], now_s=NOW_S)) == [("b", "m"), ("c", "m")]


def test_of_which_nobody_knows_a_version_or_a_size_is_ordered_all_the_same() -> None:
    (wish,) = orders([pod("a", 0.0)], {}, [appointment(version=0, in_s=5)], now_s=NOW_S)
    assert (wish.version, wish.reason, wish.until_s) == (0, "rhythm", NOW_S + 125)


def test_what_is_due_in_any_version_is_not_ordered_where_one_is() -> None:
    assert not orders([pod("a", held={"m": HERE})], by_key(warm("m")), [appointment(version=0)], now_s=NOW_S)


def test_two_reasons_for_one_model_are_one_order() -> None:
    both = [appointment(version=0, in_s=3), appointment()]
    models = by_key(warm("m"))
    pods = [pod("a", held={"m": HERE}, asked="m"), pod("b")]
    assert shown(orders(pods, models, both, now_s=NOW_S)) == [("b", "m")]


def test_what_is_due_but_fits_nowhere_is_not_ordered() -> None:
    assert not orders([pod("a", 1.0)], by_key(warm("m", gigabytes=2)), [appointment()], now_s=NOW_S)


NAMES = st.sampled_from([f"m{number}" for number in range(8)])
WARMTH = st.builds(
    warm,
    NAMES,
    requests=st.floats(0, 100),
    load_s=st.floats(0, 30),
    gigabytes=st.floats(0, 8),
)
COPY = st.builds(Held, st.integers(0, 1), st.integers(1, 8 * GB), st.booleans())
PODS = st.lists(
    st.builds(
        PodView,
        st.sampled_from("abcd"),
        st.dictionaries(st.integers(0, 1), st.integers(-GB, 16 * GB), max_size=2),
        st.dictionaries(st.tuples(NAMES, st.just(1)), COPY, max_size=6),
        st.frozensets(st.tuples(NAMES, st.just(1)), max_size=6),
        st.frozensets(st.tuples(NAMES, st.just(1)), max_size=2),
        st.dictionaries(st.tuples(NAMES, st.just(1)), st.floats(NOW_S - 2 * AGAIN_S, NOW_S), max_size=3),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda pod: pod.name,
)
APPOINTMENTS = st.lists(
    st.builds(lambda name, version, in_s: appointment(name, in_s, version), NAMES, st.integers(0, 1), st.floats(-200, 200)),
    max_size=4,
)


@given(PODS, st.lists(WARMTH, max_size=8), APPOINTMENTS)
def test_whatever_there_is(pods: list[PodView], models: list[Warmth], appointments: list[Appointment]) -> None:
    warmth = by_key(*models)
    wishes = orders(pods, warmth, appointments, now_s=NOW_S)
    due = {one.name for one in near(appointments, warmth, NOW_S)}
    named = {one.name: one for one in pods}
    assert len({(wish.pod, wish.name) for wish in wishes}) == len(wishes)
    sizes: dict[Key, int] = {}
    for key, copy in (each for one in pods for each in one.held.items()):
        sizes[key] = max(copy.size_bytes, sizes.get(key, 0))
    for wish in wishes:
        one, key = named[wish.pod], (wish.name, wish.version)
        assert not one.is_busy
        assert key not in one.held
        assert key not in one.failed
        assert NOW_S - one.ordered.get(key, -math.inf) >= AGAIN_S
        assert wish.until_s > NOW_S
        if wish.reason == "demand":
            assert any(key in other.asked for other in pods if other.name != wish.pod)
        else:
            assert wish.name in due
    for one in pods:
        evictable = dict.fromkeys(one.room_bytes, 0)
        for copy in one.held.values():
            if copy.device in evictable and not copy.stays:
                evictable[copy.device] += copy.size_bytes
        whole = sum(max(0, evictable[device] + room) for device, room in one.room_bytes.items())
        asked = sum(
            sizes.get((wish.name, wish.version)) or warmth[wish.name, wish.version].size_bytes
            for wish in wishes
            if wish.pod == one.name and wish.reason == "demand"
        )
        assert asked <= whole
    # The same in any order, and once they are ordered, nothing more.
    assert set(orders(pods[::-1], dict(reversed(warmth.items())), appointments[::-1], now_s=NOW_S)) == set(wishes)
    taken = [
        PodView(
            one.name, one.room_bytes, one.held, one.asked, one.failed,
            {**one.ordered, **{(wish.name, wish.version): NOW_S for wish in wishes if wish.pod == one.name}}, one.is_busy,
        )
        for one in pods
    ]  # fmt: skip
    again = orders(taken, warmth, appointments, now_s=NOW_S + 1)
    assert not {(wish.pod, wish.name, wish.version) for wish in again} & {
        (wish.pod, wish.name, wish.version) for wish in wishes
    }
