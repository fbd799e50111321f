"""Who is kept apart, for how long, and which requests are refused: example by example, then for any order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictor.policy.quarantine import CALM_S, GOOD_ANSWERS, REMEMBERED, Poison, Quarantine, Verdict


def test_every_death_doubles_the_pause_up_to_the_longest() -> None:
    quarantine = Quarantine(1.0, 10.0)
    assert [quarantine.died("a", "SIGSEGV", float(moment)) for moment in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert quarantine.wait_s("a", 5.0) == 10.0
    assert quarantine.wait_s("a", 14.0) == 1.0
    assert quarantine.wait_s("a", 20.0) == 0.0
    assert (quarantine.wait_s("b", 0.0), "b" in quarantine, quarantine.of("b")) == (0.0, False, None)


def test_without_a_back_off_nobody_pauses() -> None:
    quarantine = Quarantine(0.0)
    assert [quarantine.died("a", "SIGSEGV", 0.0) for _ in range(100)] == [0.0] * 100
    assert "a" in quarantine


def test_a_model_leaves_by_answering_well_and_long_enough() -> None:
    quarantine = Quarantine()
    quarantine.died("a", "SIGSEGV", 0.0)
    assert not any(quarantine.answered("a", 1.0) for _ in range(GOOD_ANSWERS))
    assert quarantine.answered("a", CALM_S[0])
    assert "a" not in quarantine
    assert not quarantine.answered("a", CALM_S[0])
    assert quarantine.died("a", "again", 1000.0) == 1.0, "what left begins anew"


def test_time_alone_lets_nobody_go_and_a_death_begins_the_count_again() -> None:
    quarantine = Quarantine()
    quarantine.died("a", "SIGSEGV", 0.0)
    assert not any(quarantine.answered("a", 1e6) for _ in range(GOOD_ANSWERS - 1))
    quarantine.died("a", "SIGSEGV", 1e6)
    assert not quarantine.answered("a", 2e6)


def test_a_suspect_is_kept_apart_and_does_not_pause() -> None:
    quarantine = Quarantine()
    quarantine.suspected("a", "SIGSEGV", 5.0)
    assert ("a" in quarantine, quarantine.wait_s("a", 5.0), len(quarantine), list(quarantine)) == (True, 0.0, 1, ["a"])
    quarantine.answered("a", 6.0)
    quarantine.suspected("a", "SIGSEGV", 7.0)
    sick = quarantine.of("a")
    assert sick is not None
    assert (sick.deaths, sick.answers) == (0, 0)
    assert quarantine.died("a", "SIGSEGV", 8.0) == 1.0, "the first that is known to be its doing"


def test_an_operator_can_clear_a_model() -> None:
    quarantine = Quarantine()
    quarantine.died("a", "SIGSEGV", 0.0)
    assert quarantine.clear("a")
    assert not quarantine.clear("a")
    assert quarantine.wait_s("a", 0.0) == 0.0


def test_a_request_is_run_alone_after_one_worker_and_refused_after_two_for_a_while() -> None:
    poison = Poison(600.0)
    assert poison.verdict(b"x", 0.0) is Verdict.HARMLESS
    assert poison.killed("a", b"x", 0.0) == 1
    assert ("a" in poison, "b" in poison, len(poison)) == (True, False, 1)
    assert poison.verdict(b"x", 1.0) is Verdict.ALONE
    assert poison.killed("a", b"x", 2.0) == 2
    assert poison.verdict(b"x", 3.0) is Verdict.REFUSED
    assert poison.wait_s(b"x", 3.0) == 599.0
    assert poison.verdict(b"x", 602.0) is Verdict.HARMLESS
    assert ("a" in poison, poison.wait_s(b"x", 602.0)) == (False, 0.0)


def test_a_request_that_survives_alone_was_innocent() -> None:
    poison = Poison()
    poison.killed("a", b"x", 0.0)
    poison.survived(b"x")
    poison.survived(b"y")
    assert poison.verdict(b"x", 0.0) is Verdict.HARMLESS
    assert poison.killed("a", b"x", 1.0) == 1


def test_what_happened_too_long_ago_does_not_count() -> None:
    poison = Poison(10.0)
    poison.killed("a", b"x", 0.0)
    assert poison.killed("a", b"x", 11.0) == 1


def test_a_request_that_died_in_company_is_a_suspect_however_often_it_was_there() -> None:
    poison = Poison(10.0)
    assert [poison.killed("a", b"x", 0.0, alone=False) for _ in range(5)] == [1] * 5
    assert poison.verdict(b"x", 1.0) is Verdict.ALONE
    assert poison.killed("a", b"x", 1.0) == 2
    assert poison.killed("a", b"x", 2.0, alone=False) == 2
    assert poison.verdict(b"x", 3.0) is Verdict.REFUSED
    assert list(poison) == ["a"]


def test_remembering_can_be_turned_off_and_cleared() -> None:
    assert Poison(0.0).killed("a", b"x", 0.0) == 0
    poison = Poison()
    poison.killed("a", b"x", 0.0)
    poison.killed("b", b"y", 0.0)
    poison.clear("a")
    assert ("a" in poison, "b" in poison) == (False, True)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["died", "suspected", "answered", "clear"]), st.integers(0, 3), st.floats(0, 500)), max_size=60
)


@given(events=EVENTS, backoff_s=st.floats(0, 700))
def test_whatever_happens_a_pause_is_bounded_and_only_deaths_make_one(
    events: list[tuple[str, int, float]], backoff_s: float
) -> None:
    quarantine = Quarantine(backoff_s)
    now_s = 0.0
    for what, model, passed_s in events:
        now_s += passed_s
        before_s = quarantine.wait_s(model, now_s)
        if what == "died":
            assert quarantine.died(model, "x", now_s) == quarantine.wait_s(model, now_s) or backoff_s > 0
            assert model in quarantine
        elif what == "suspected":
            quarantine.suspected(model, "x", now_s)
            assert quarantine.wait_s(model, now_s) == before_s
        elif what == "answered":
            if quarantine.answered(model, now_s):
                assert model not in quarantine
        else:
            quarantine.clear(model)
            assert model not in quarantine
        assert 0 <= quarantine.wait_s(model, now_s) <= max(600.0, backoff_s) + 1e-6
    assert len(quarantine) <= 4


@given(digests=st.lists(st.integers(0, 3 * REMEMBERED), max_size=4 * REMEMBERED, unique=True), models=st.integers(1, 5))
def test_memory_is_bounded_and_what_is_counted_by_model_adds_up(digests: list[int], models: int) -> None:
    poison, quarantine = Poison(), Quarantine()
    for digest in digests:
        poison.killed(digest % models, digest.to_bytes(4, "little"), 0.0)
        quarantine.died(digest, "x", 0.0)
    assert len(poison) == len(quarantine) == min(len(digests), REMEMBERED)
    kept = {digest % models for digest in digests[-REMEMBERED:]}
    assert {model for model in range(models) if model in poison} == kept


def test_beyond_the_bound_the_oldest_are_forgotten() -> None:
    poison, quarantine = Poison(), Quarantine()
    for number in range(REMEMBERED + 1):
        poison.killed("m", b"%d" % number, 0.0)
        quarantine.died(number, "x", 0.0)
    assert (len(poison), len(quarantine)) == (REMEMBERED, REMEMBERED)
    assert poison.verdict(b"0", 0.0) is Verdict.HARMLESS
    assert 0 not in quarantine
