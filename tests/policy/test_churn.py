"""When models go round in circles."""

from __future__ import annotations

import pytest

from predictor.model import ModelRef
from predictor.policy import churn
from predictor.policy.churn import RAISE_RETURNS, WINDOW_S, Churn
from predictor.policy.residency import Place

A, B = (ModelRef("default", name, 1) for name in "ab")


def swap(watched: Churn, times: int, *, every_s: float = 1.0, seconds: float = 0.1, begin_s: float = 0.0) -> float:
    """A and B push each other out in turn; returns the moment after."""
    now_s = begin_s
    for turn in range(times):
        comes, goes = (A, B) if turn % 2 else (B, A)
        watched.pushed_out(goes, now_s)
        watched.loaded(comes, seconds, now_s)
        now_s += every_s
    return now_s


def test_two_models_that_push_each_other_out_raise_the_alarm_and_are_named() -> None:
    watched = Churn(Place(0))
    swap(watched, RAISE_RETURNS)
    assert watched.alarm is None, "the first load of each is no return"
    swap(watched, 2, begin_s=RAISE_RETURNS)
    assert watched.alarm is not None
    assert (watched.alarm.models, set(watched.alarm.most)) == (2, {A, B})
    assert watched.alarm.returns >= RAISE_RETURNS


def test_few_returns_that_take_long_raise_it_as_well() -> None:
    watched = Churn(Place(0))
    swap(watched, 4, every_s=20.0, seconds=18.0)
    assert watched.alarm is not None


def test_it_clears_when_half_of_that_is_over_and_not_before() -> None:
    watched = Churn(Place(0))
    end_s = swap(watched, RAISE_RETURNS + 2)
    assert watched.look(end_s) is not None
    assert watched.look(end_s - 1 + WINDOW_S - RAISE_RETURNS / 2) is not None
    assert watched.look(end_s + WINDOW_S) is None


def test_a_model_that_comes_back_late_or_was_never_here_is_no_churn() -> None:
    watched = Churn(Place(0))
    for turn in range(100):
        watched.pushed_out(A, turn * 1000.0)
        watched.loaded(A, 1.0, turn * 1000.0 + WINDOW_S + 1)
        watched.loaded(B, 1.0, turn * 1000.0)
    assert watched.alarm is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn, "REMEMBERED", 2)
    watched = Churn(Place(0))
    for number in range(5):
        watched.pushed_out(ModelRef("default", f"m{number}", 1), 0.0)
    assert len(watched._gone) == 2
