"""Who has to end when memory is short, and how soon one has to look again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.policy.pressure import LOOK_S, WORTH_BYTES, Holder, Usage, fattest, has_room, is_short, pause_s

GB = 1 << 30


def test_memory_is_short_above_its_share_of_the_limit() -> None:
    assert is_short(Usage(96, 100), 0.95)
    assert not is_short(Usage(95, 100), 0.95)


def test_the_fattest_worker_ends_and_none_that_is_lean() -> None:
    assert fattest([Holder("a", GB), Holder("b", 2 * GB)]) == Holder("b", 2 * GB)
    assert fattest([Holder("a", WORTH_BYTES - 1)]) is None
    assert fattest([]) is None


@pytest.mark.parametrize(
    ("usage", "before", "expected"),
    [
        (Usage(GB, 10 * GB), None, LOOK_S[1]),
        (Usage(GB, 10 * GB), Usage(GB, 10 * GB), LOOK_S[1]),
        (Usage(GB, 10 * GB), Usage(2 * GB, 10 * GB), LOOK_S[1]),
        (Usage(10 * GB, 10 * GB), Usage(9 * GB, 10 * GB), LOOK_S[0]),
        (Usage(9 * GB, 10 * GB), Usage(0, 10 * GB), LOOK_S[0]),
    ],
)
def test_memory_that_stands_still_is_looked_at_rarely(usage: Usage, before: Usage | None, expected: float) -> None:
    assert pause_s(usage, before, 0.5, 0.9) == expected


def test_memory_that_grows_is_looked_at_four_times_before_it_is_short() -> None:
    """One GB left of its share, at one GB a second."""
    assert pause_s(Usage(9 * GB, 20 * GB), Usage(8 * GB, 20 * GB), 1.0, 0.5) == pytest.approx(1 / 4)


@given(st.integers(0, 9 * GB), st.integers(1, GB), st.floats(0.02, 0.5))
def test_growth_that_goes_on_is_seen_before_the_limit(used: int, grown: int, since_s: float) -> None:
    """Unless it would take less than two of the shortest looks."""
    share = 0.95
    wait_s = pause_s(Usage(used, 10 * GB), Usage(used - grown, 10 * GB), since_s, share)
    assert LOOK_S[0] <= wait_s <= LOOK_S[1]
    until_s = (share * 10 * GB - used) / (grown / since_s)
    assert wait_s <= max(LOOK_S[0], until_s / 4) * (1 + 1e-9) or wait_s == LOOK_S[0]


def test_builds_begin_as_long_as_their_promises_fit_and_one_always_may() -> None:
    assert has_room(0, [], GB)
    assert has_room(None, [GB], GB)
    assert has_room(2 * GB, [GB], GB)
    assert not has_room(2 * GB, [GB, GB], GB)
