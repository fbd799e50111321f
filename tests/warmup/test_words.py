"""What ``hearth ps`` says of hot sets."""

from __future__ import annotations

from warmup.cluster import Pool, pool_rows
from warmup.words import HotSet


def test_a_hot_set_is_told_with_its_size_and_its_age() -> None:
    pools = (Pool("gpu", hot_set=HotSet(412, 31_000, 1000.0)), Pool("cpu"))
    heads, *rows = pool_rows(pools, now_s=1090.0)
    cell = heads.index("HOT SET")
    assert [row[cell] for row in rows] == ["412 models, 31.0 kB, 2 min old", "-"]


def test_a_moment_of_a_clock_that_is_ahead_is_now() -> None:
    assert "0.00 ms old" in pool_rows((Pool("gpu", hot_set=HotSet(1, 10, 2000.0)),), now_s=1000.0)[1][5]
