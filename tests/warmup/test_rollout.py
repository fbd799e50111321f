"""How a declaration follows its InferenceService: by table, and for every history."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.declared import Declared, Location
from warmup.rollout import Checked, Target, next_declared, settled

A, B, C = (Location(f"s3://m/{name}", number) for number, name in enumerate("abc", 1))


def wish(
    at: Location, percent: int | None = None, state: Literal["pending", "ok", "failed"] = "ok", tenant: str = ""
) -> Checked:
    return Checked(Target(at.uri, at.scope, at.format, percent, tenant), state)


@pytest.mark.parametrize(
    ("old", "checked", "loaded", "expected"),
    [
        pytest.param(None, wish(A), (), Declared(A), id="new, checked: declared"),
        pytest.param(None, wish(A, state="pending"), (), None, id="new, not checked yet: not declared"),
        pytest.param(None, wish(A, state="failed"), (), None, id="new, not there: not declared"),
        pytest.param(None, wish(A, percent=10), (), Declared(A), id="new, as a canary: gets everything, there is nothing else"),
        pytest.param(Declared(A), wish(B), (), Declared(B, A), id="changed: the old one stays beside it"),
        pytest.param(Declared(A), wish(B), (1,), Declared(B, A), id="changed while the old one is loaded: the same"),
        pytest.param(Declared(A), wish(B, state="pending"), (), Declared(A), id="changed, not checked yet: nothing changes"),
        pytest.param(
            Declared(A),
            wish(B, percent=5, state="failed", tenant="red"),
            (),
            Declared(A),
            id="changed, not there: nothing changes",
        ),
        pytest.param(Declared(B, A), wish(B), (1,), Declared(B, A), id="not loaded yet: the old one stays"),
        pytest.param(Declared(B, A), wish(B), (1, 2), Declared(B), id="loaded: the old one goes"),
        pytest.param(
            Declared(B, A), wish(B, state="failed"), (2,), Declared(B), id="loaded, then the store goes away: it counts"
        ),
        pytest.param(Declared(B, A, 10), wish(B, percent=10), (1, 2), Declared(B, A, 10), id="loaded as a canary: both stay"),
        pytest.param(Declared(B, A, 10), wish(B), (1, 2), Declared(B), id="canary becomes all: the old one goes"),
        pytest.param(Declared(B, A, 10), wish(B), (1,), Declared(B, A), id="canary becomes all, not loaded: the old one stays"),
        pytest.param(Declared(B, A, 10), wish(B, percent=50), (), Declared(B, A, 50), id="canary gets more"),
        pytest.param(
            Declared(B, A, 10),
            wish(C, percent=10),
            (1, 2),
            Declared(C, A, 10),
            id="a canary gives way to the next: the old one stays",
        ),
        pytest.param(
            Declared(B, A), wish(C), (1,), Declared(C, A), id="changed again before it was loaded: the proven one stays"
        ),
        pytest.param(Declared(B, A), wish(C), (2,), Declared(C, B), id="changed just when it was loaded: it is the proven one"),
        pytest.param(Declared(B, A), wish(A, state="failed"), (), Declared(A, B), id="back: swapped, without a check"),
        pytest.param(
            Declared(B, A), wish(A), (1,), Declared(A, highest=2), id="back while the old one is loaded: swapped, done"
        ),
        pytest.param(Declared(B, A), wish(A), (2,), Declared(A, B), id="back just when the new one is loaded: swapped"),
        pytest.param(Declared(A, highest=2), wish(C), (1,), Declared(C, A), id="changed after going back: a number of its own"),
        pytest.param(Declared(A), wish(A, tenant="red"), (), Declared(A, tenant="red"), id="another tenant: no new number"),
        pytest.param(
            Declared(A),
            Checked(Target(A.uri, "secret/x"), "ok"),
            (),
            Declared(Location(A.uri, 2, "secret/x"), A),
            id="other credentials: another location",
        ),
        pytest.param(
            Declared(A),
            Checked(Target(A.uri, format="onnx"), "ok"),
            (),
            Declared(Location(A.uri, 2, format="onnx"), A),
            id="another format: another location",
        ),
    ],
)
def test_what_is_declared_next(
    old: Declared | None, checked: Checked, loaded: tuple[int, ...], expected: Declared | None
) -> None:
    assert next_declared(old, checked, loaded) == expected


def test_an_invalid_wish_lets_a_rollout_end_and_nothing_else() -> None:
    assert settled(Declared(B, A), (2,)) == Declared(B)
    assert settled(Declared(B, A), (1,)) == Declared(B, A)
    assert settled(None, ()) is None


TARGETS = st.builds(
    Target,
    st.sampled_from(["s3://m/a", "s3://m/b", "s3://m/c"]),
    st.sampled_from(["", "secret/x"]),
    st.sampled_from(["", "onnx"]),
    st.sampled_from([None, 0, 10, 100]),
)
STEPS = st.lists(
    st.tuples(st.builds(Checked, TARGETS, st.sampled_from(["pending", "ok", "failed"])), st.booleans(), st.booleans()),
    max_size=20,
)


def locations(declared: Declared | None) -> list[Location]:
    return [] if declared is None else [one for one in (declared.target, declared.stable) if one is not None]


@given(STEPS)
def test_for_every_history(steps: list[tuple[Checked, bool, bool]]) -> None:
    now: Declared | None = None
    numbers: dict[int, Location] = {}
    for checked, target_loads, stable_loads in steps:
        old = now
        loaded = {one.number for one, loads in zip(locations(old), (target_loads, stable_loads), strict=False) if loads}
        now = next_declared(old, checked, loaded)
        assert next_declared(now, checked, loaded) == now, "the same facts lead nowhere else"
        for one in locations(now):
            assert numbers.setdefault(one.number, one) == one, "a number is never given to another location"
        if now is None:
            assert old is None, "once there was something to serve there always is"
            continue
        if now.stable is None:
            assert now.percent == 100, "nothing else gets the rest"
        if old is None:
            assert checked.state == "ok"
            continue
        assert set(locations(now)) & set(locations(old)), "something that was served until now still is"
        if checked.state != "ok":
            assert set(locations(now)) <= set(locations(old)), "what was not checked is not served"
        if old.stable is not None and old.stable not in locations(now):
            assert old.target.number in loaded, "what was proven goes only when the target is loaded"
            assert old.target in locations(now)
        if old.stable is not None and checked.target.is_at(old.stable):
            assert now.target == old.stable, "going back swaps"
