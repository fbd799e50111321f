"""Eviction: values and victims."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from predictor.model import ModelRef
from predictor.policy.eviction import value, victims
from predictor.policy.residency import RAM, Copy, State

COPIES = st.lists(st.integers(0, 50), max_size=12).map(
    lambda sizes: [Copy(ModelRef("n", f"m{index}", 1), RAM, size, State.READY) for index, size in enumerate(sizes)]
)


@given(COPIES, st.integers(1, 200))
def test_victims_are_enough_and_none_of_them_is_needless(residents: list[Copy], need_bytes: int) -> None:
    chosen = victims(residents, need_bytes)
    if chosen is None:
        assert sum(copy.size_bytes for copy in residents) < need_bytes
        return
    freed = sum(copy.size_bytes for copy in chosen)
    assert freed >= need_bytes
    assert all(freed - copy.size_bytes < need_bytes for copy in chosen)
    assert len({copy.ref for copy in chosen}) == len(chosen)


def test_the_least_valuable_go_first_and_a_large_last_one_spares_them() -> None:
    sizes = {"small": 1, "middle": 2, "large": 9}
    small, middle, large = (Copy(ModelRef("n", name, 1), RAM, size, State.READY) for name, size in sizes.items())
    assert victims([small, middle, large], 3) == (small, middle)
    assert victims([small, middle, large], 9) == (large,)


def test_value_grows_with_rate_and_cost_and_shrinks_with_size() -> None:
    base = value(1.0, 2.0, 100)
    assert value(2.0, 2.0, 100) > base
    assert value(1.0, 4.0, 100) > base
    assert value(1.0, 2.0, 200) < base
    assert value(1.0, 0.0, 0) > 0.0
