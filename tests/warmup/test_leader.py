"""One of several controllers acts. Virtual time, and a Lease that is kept by something simpler than an API server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.kube import FakeKube
from warmup.kube import LEASES, Conflict, Kube, NotFound, Object, Resource, Unreachable
from warmup.leader import Leader, Terms


class Board:
    """The Lease in memory, with the conflicts that the API server would see. ``away`` names who cannot reach it."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.away: set[str] = set()
        self.slow_s = 0.0
        self.writes = 0
        self._version = 0

    def kube(self, who: str) -> Kube:
        return _View(self, who)  # type: ignore[return-value]  # the four calls that a leader makes

    def written(self, body: Object) -> Object:
        self._version += 1
        self.writes += 1
        metadata = body["metadata"] | {"resourceVersion": str(self._version)}
        self.lease = copy.deepcopy(body) | {"metadata": metadata}
        return copy.deepcopy(self.lease)

    def expect(self) -> dict[str, Any]:
        assert self.lease is not None
        spec: dict[str, Any] = self.lease["spec"]
        return spec


class _View:
    def __init__(self, board: Board, who: str) -> None:
        self._board, self._who = board, who

    async def _reach(self) -> None:
        await asyncio.sleep(self._board.slow_s)
        if self._who in self._board.away:
            raise Unreachable(f"{self._who} is cut off")

    async def get(self, resource: Resource, name: str) -> Object:
        await self._reach()
        if self._board.lease is None:
            raise NotFound(name)
        return copy.deepcopy(self._board.lease)

    async def create(self, resource: Resource, body: Object) -> Object:
        await self._reach()
        if self._board.lease is not None:
            raise Conflict("exists")
        return self._board.written(body)

    async def replace(self, resource: Resource, body: Object) -> Object:
        await self._reach()
        if self._board.lease is None:
            raise NotFound("gone")
        if body["metadata"]["resourceVersion"] != self._board.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self._board.written(body)


@pytest.fixture
def board() -> Board:
    return Board()


def leader(board: Board, who: str) -> Leader:
    return Leader(board.kube(who), "hearth-controller", who)


@contextlib.asynccontextmanager
async def running(*leaders: Leader) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(one.run()) for one in leaders]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.looptime
async def test_the_first_one_leads_and_the_second_waits(board: Board) -> None:
    one, two = leader(board, "one"), leader(board, "two")
    async with running(one, two):
        for _ in range(60):
            await asyncio.sleep(1)
            assert one.is_leader()
            assert not two.is_leader()
    assert board.expect()["leaseTransitions"] == 0


@pytest.mark.looptime
async def test_a_leader_that_ends_gives_the_lease_back_and_the_next_one_leads_at_its_next_look(board: Board) -> None:
    one, two = leader(board, "one"), leader(board, "two")
    async with running(one, two) as tasks:
        await asyncio.sleep(5)
        assert one.is_leader()
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert not one.is_leader()
        assert board.expect()["holderIdentity"] == ""
        await asyncio.sleep(2.5)
        assert two.is_leader()
    assert board.expect()["leaseTransitions"] == 1


@pytest.mark.looptime
async def test_a_leader_that_is_cut_off_stops_before_another_begins(board: Board) -> None:
    one, two = leader(board, "one"), leader(board, "two")
    async with running(one):
        await asyncio.sleep(1)
        async with running(two):
            await asyncio.sleep(5)
            board.away.add("one")
            lost_s = won_s = 0.0
            for tick in range(400):
                await asyncio.sleep(0.1)
                assert not (one.is_leader() and two.is_leader())
                lost_s = lost_s or (not one.is_leader()) * tick * 0.1
                won_s = won_s or two.is_leader() * tick * 0.1
            assert 7.5 <= lost_s <= 10.2
            assert 15 <= won_s <= 20
            board.away.clear()
            await asyncio.sleep(30)
            assert two.is_leader()
            assert not one.is_leader()


@pytest.mark.looptime
async def test_a_leader_whose_requests_never_end_stops_too(board: Board) -> None:
    one = leader(board, "one")
    async with running(one):
        await asyncio.sleep(3)
        assert one.is_leader()
        board.slow_s = 3600
        await asyncio.sleep(10.5)
        assert not one.is_leader()
        board.slow_s = 0
        await asyncio.sleep(8)
        assert one.is_leader()


@pytest.mark.looptime
async def test_the_clock_of_another_machine_is_not_believed(board: Board) -> None:
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": "1999-01-01T00:00:00.000000Z"}
    board.written({"metadata": {"name": "hearth-controller"}, "spec": spec})
    one = leader(board, "one")
    async with running(one):
        await asyncio.sleep(14)
        assert not one.is_leader()
        await asyncio.sleep(4)
        assert one.is_leader()


@pytest.mark.looptime
async def test_a_lease_that_somebody_deletes_is_made_anew(board: Board) -> None:
    one = leader(board, "one")
    async with running(one):
        await asyncio.sleep(3)
        board.lease = None
        await asyncio.sleep(5)
        assert one.is_leader()
        assert board.expect()["holderIdentity"] == "one"


@pytest.mark.looptime
async def test_a_lease_that_somebody_takes_is_let_go_at_the_next_renewal(board: Board) -> None:
    one = leader(board, "one")
    told: list[bool] = []
    one.on_change(told.append)
    async with running(one):
        await asyncio.sleep(3)
        assert board.lease is not None
        board.written(board.lease | {"spec": board.expect() | {"holderIdentity": "two"}})
        await asyncio.sleep(4.5)
        assert not one.is_leader()
    assert told == [True, False]
    assert board.expect()["holderIdentity"] == "two"


@pytest.mark.looptime
async def test_a_renewal_is_one_request(board: Board) -> None:
    async with running(leader(board, "one")):
        await asyncio.sleep(61)
    assert 30 <= board.writes <= 33


async def test_it_works_with_an_api_server() -> None:
    async with FakeKube() as fake:
        terms = Terms(duration_s=1, renew_s=0.5, retry_s=0.01)
        one = Leader(fake.client(), "hearth-controller", "one", terms=terms)
        two = Leader(fake.client(), "hearth-controller", "two", terms=terms)
        turns: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        one.on_change(lambda leads: turns.put_nowait(("one", leads)))
        two.on_change(lambda leads: turns.put_nowait(("two", leads)))
        async with asyncio.timeout(10), running(one) as tasks:
            assert await turns.get() == ("one", True)
            async with running(two):
                tasks[0].cancel()
                assert await turns.get() == ("one", False)
                assert await turns.get() == ("two", True)
            assert await turns.get() == ("two", False)
        lease = await fake.client().get(LEASES, "hearth-controller")
        assert lease["spec"]["holderIdentity"] == ""
        assert lease["spec"]["leaseTransitions"] == 1
