"""The queue of passes: nothing is lost, nothing runs twice at once, and what fails comes back later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from predictor.errors import Unavailable
from warmup.work import Bucket, Work

pytestmark = pytest.mark.looptime


@asynccontextmanager
async def working(handle: Callable[[str], Awaitable[float | None]], workers: int = 2) -> AsyncIterator[Work]:
    work = Work("test", handle, workers=workers)
    task = asyncio.create_task(work.run())
    try:
        yield work
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Log:
    """Writes down who had a pass when; a pass takes ``takes_s``."""

    def __init__(self, takes_s: float = 0.0, again_s: float | None = None) -> None:
        self.passes: list[tuple[str, float]] = []
        self.at_once: dict[str, int] = {}
        self.most_at_once = 0
        self._takes_s, self._again_s = takes_s, again_s

    async def __call__(self, name: str) -> float | None:
        self.passes.append((name, round(asyncio.get_running_loop().time(), 3)))
        self.at_once[name] = self.at_once.get(name, 0) + 1
        self.most_at_once = max(self.most_at_once, sum(self.at_once.values()))
        assert self.at_once[name] == 1
        await asyncio.sleep(self._takes_s)
        self.at_once[name] -= 1
        return self._again_s


async def test_changes_before_a_pass_are_one_pass() -> None:
    async with working(log := Log()) as work:
        for _ in range(5):
            work.add("a", 1.0)
        work.add("b")
        await asyncio.sleep(10)
        assert log.passes == [("b", 0.0), ("a", 1.0)]


async def test_the_sooner_of_two_wishes_counts() -> None:
    async with working(log := Log()) as work:
        work.add("a", 5.0)
        work.add("a", 1.0)
        work.add("a", 3.0)
        await asyncio.sleep(10)
        assert log.passes == [("a", 1.0)]


async def test_a_change_during_a_pass_is_another_pass_after_it() -> None:
    async with working(log := Log(takes_s=2.0)) as work:
        work.add("a")
        await asyncio.sleep(1)
        work.add("a")
        work.add("a")
        await asyncio.sleep(10)
        assert log.passes == [("a", 0.0), ("a", 2.0)]


async def test_a_pass_may_ask_for_the_next_one() -> None:
    async with working(log := Log(again_s=3.0)) as work:
        work.add("a")
        await asyncio.sleep(7)
        assert log.passes == [("a", 0.0), ("a", 3.0), ("a", 6.0)]
        assert work.pressing() == 0
        assert work.pressing(2.5) == 1


async def test_no_more_than_so_many_run_at_once_and_nobody_is_forgotten() -> None:
    async with working(log := Log(takes_s=1.0)) as work:
        for number in range(9):
            work.add(f"m{number}")
        await asyncio.sleep(20)
        assert log.most_at_once == 2
        assert {name for name, _ in log.passes} == {f"m{number}" for number in range(9)}


async def test_a_pass_that_fails_comes_back_later_and_later_and_others_go_on() -> None:
    moments: list[float] = []

    async def handle(name: str) -> None:
        if name == "good":
            return
        moments.append(asyncio.get_running_loop().time())
        if len(moments) == 2:
            raise Unavailable("wait", retry_after_s=7.0)
        raise RuntimeError("broken")

    async with working(handle) as work:
        work.add("bad")
        work.add("good")
        await asyncio.sleep(40)
        assert [round(moment, 1) for moment in moments] == [0.0, 0.5, 7.5, 9.5, 13.5, 21.5, 37.5]


async def test_what_waits_can_be_forgotten() -> None:
    async with working(log := Log()) as work:
        work.add("a", 1.0)
        work.clear()
        await asyncio.sleep(5)
        assert log.passes == []


async def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket, taken = Bucket(10.0, 5), []
    for _ in range(10):
        await bucket.take()
        taken.append(round(asyncio.get_running_loop().time(), 2))
    assert taken == [0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    await asyncio.sleep(100)
    before = asyncio.get_running_loop().time()
    for _ in range(5):
        await bucket.take()
    assert asyncio.get_running_loop().time() == before
