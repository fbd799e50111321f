"""What a pod should have first: demand of several pods added up, in the order of value."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.heat import Heat, Warmth
from predictor.policy.demand import HALF_LIVES_S
from predictor.policy.hotset import ASSUMED_BYTES, counted, merged, ordered, worth

GB = 1_000_000_000
rates = st.floats(0, 1000, allow_subnormal=False)
warmths = st.builds(
    Warmth,
    name=st.sampled_from("abcdef"),
    version=st.integers(1, 3),
    fast=rates,
    slow=rates,
    load_s=st.floats(0, 100, allow_subnormal=False),
    size_bytes=st.integers(0, 30 * GB),
    visits=st.lists(st.integers(0, 10_000), max_size=8).map(lambda ago_s: tuple(sorted(ago_s, reverse=True))),
)
heats = st.builds(
    Heat,
    pod=st.sampled_from("pqrs"),
    at_s=st.integers(0, 100_000).map(float),
    models=st.lists(warmths, max_size=5, unique_by=lambda one: (one.name, one.version)).map(tuple),
    final=st.booleans(),
    absorbed=st.lists(st.sampled_from("pqrs"), max_size=2).map(tuple),
)


@given(st.lists(warmths, max_size=20))
def test_the_most_valuable_comes_first_and_nothing_is_lost(models: list[Warmth]) -> None:
    found = ordered(models)
    assert sorted(map(repr, found)) == sorted(map(repr, models))
    assert all(worth(one) >= worth(another) for one, another in itertools.pairwise(found))
    assert ordered(reversed(models)) == found or len({(one.name, one.version) for one in models}) < len(models)


def test_what_is_asked_as_often_and_loads_as_fast_per_byte_is_worth_the_same_whatever_its_size() -> None:
    small, large = Warmth("small", 1, 1.0, 1.0, 1.0, GB), Warmth("large", 1, 1.0, 1.0, 2.0, 2 * GB)
    assert worth(small) == pytest.approx(worth(large))
    assert [one.name for one in ordered([small, large])] == ["large", "small"], "alike in all but their names"


def test_a_model_that_nobody_measured_counts_as_one_of_a_gigabyte() -> None:
    known = Warmth("known", 1, 1.0, 1.0, 1.5, ASSUMED_BYTES)
    assert worth(Warmth("unknown", 1, 1.0, 1.0)) == pytest.approx(worth(known))


def test_of_a_model_whose_size_is_known_and_whose_load_is_not_the_larger_one_is_worth_less_per_byte() -> None:
    assert worth(Warmth("m", 1, 1.0, 1.0, size_bytes=GB)) > worth(Warmth("m", 1, 1.0, 1.0, size_bytes=10 * GB))


def test_demand_of_two_pods_adds_up_at_one_moment() -> None:
    early = Heat("p", 0.0, (Warmth("a", 1, 1.0, 1.0, 2.0, 100, (60, 0)),))
    late = Heat("q", HALF_LIVES_S[0], (Warmth("a", 1, 0.25, 0.0, 3.0, 0),))
    (a,) = merged([early, late], HALF_LIVES_S[0])
    assert a.fast == pytest.approx(0.75)
    assert (a.load_s, a.size_bytes) == (3.0, 100), "the latest that tells any"
    assert a.visits == (1860, 1800)


def test_a_pod_whose_clock_is_ahead_takes_nothing_from_the_others() -> None:
    ahead, right = Heat("p", 1e9, (Warmth("a", 1, 1.0, 1.0),)), Heat("q", 0.0, (Warmth("a", 1, 1.0, 1.0),))
    (a,) = merged([ahead, right], 0.0)
    assert (a.fast, a.slow) == (2.0, 2.0)


def test_of_one_pod_the_last_document_counts_and_a_final_one_is_the_last() -> None:
    old, new, final = Heat("p", 1.0), Heat("p", 9.0), Heat("p", 8.0, final=True)
    assert counted([old, new]) == (new,)
    assert counted([final, new, old]) == (final,)


def test_a_pod_that_another_one_has_taken_over_counts_no_more_however_long_the_chain() -> None:
    first, second = Heat("p", 1.0), Heat("q", 2.0, absorbed=("p",))
    third = Heat("r", 3.0, absorbed=("q", "p"))
    assert counted([first, second]) == (second,)
    assert counted([third, first, second]) == (third,)


def test_of_two_that_took_each_other_over_the_later_one_counts() -> None:
    one, another = Heat("p", 1.0, absorbed=("q",)), Heat("q", 2.0, absorbed=("p",))
    assert counted([one, another]) == (another,)


def test_who_claims_to_have_taken_itself_over_counts_all_the_same() -> None:
    odd = Heat("p", 1.0, absorbed=("p",))
    assert counted([odd]) == (odd,)


def test_only_the_most_valuable_are_kept() -> None:
    told = Heat("p", 0.0, tuple(Warmth(str(number), 1, float(number), 0.0, 1.0, GB) for number in range(10)))
    assert [one.name for one in merged([told], 0.0, limit=3)] == ["9", "8", "7"]


@given(st.lists(heats, max_size=4, unique_by=lambda heat: (heat.pod, heat.at_s)), st.randoms())
def test_the_order_of_the_documents_changes_no_rate(told: list[Heat], random: object) -> None:
    shuffled = list(told)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ours, theirs = ({(one.name, one.version): one for one in merged(order, 100_000.0)} for order in (told, shuffled))
    assert ours.keys() == theirs.keys()
    for key, one in ours.items():
        assert one.fast == pytest.approx(theirs[key].fast)
        assert one.slow == pytest.approx(theirs[key].slow)
