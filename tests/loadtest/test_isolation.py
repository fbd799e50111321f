"""What the bench of evil models makes of the answers it saw."""

from __future__ import annotations

import pytest

from loadtest.isolation.load import Seen
from loadtest.isolation.scene import silence


def answers(*right_at_s: float, until_s: float) -> list[Seen]:
    """A question a second, answered at once; right ones at these moments."""
    moments = [float(second) for second in range(1, int(until_s) + 1)]
    return [Seen("m", at_s, 0.0, 200, "" if at_s in right_at_s else "wrong") for at_s in moments]


@pytest.mark.parametrize(
    ("right_at_s", "silent_s"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 0.0),
        ((1, 2, 6, 7, 8, 9, 10), 3.0),
        ((1, 2, 3), 6.0),
        ((), 9.0),
    ],
    ids=["never", "in between", "until the end", "always"],
)
def test_silence_is_the_longest_time_without_a_right_answer_also_where_none_came_any_more(
    right_at_s: tuple[float, ...], silent_s: float
) -> None:
    seen = answers(*right_at_s, until_s=10)
    assert silence(seen, 0.0, 1.0) == silent_s
