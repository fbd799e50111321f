"""How many workers build a model at once: as many as there is memory for what no ledger knows beforehand.

What a build takes beside the model is booked nowhere: up to 128 MiB, for a file that is parsed or for what a model's code
imports. One build at a time has its place in the budgets (POOL_WORKER_BYTES of tiers/budgets.py), which is enough where all
models of a device share a worker. Where they do not, twenty could begin at once, and the memory watch would then end, and
blame, whoever is fattest. What stays out: when memory suffices (policy/pressure.py), building itself (engine/).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from predictor.policy.pressure import has_room

SEEN_S: Final = 5.0
"""After so long, what a build takes is in the working set, and counted there. So one that hangs holds up nobody for longer."""

LOOK_S: Final = 0.05
"""How often the next one looks whether there is room by now: memory may become free without a build's end."""


@dataclass(eq=False)
class _Build:
    worker: object
    wanted_bytes: int
    since_s: float


class Builds:
    """A gate that loads go through in the order in which they come.

    left_bytes  what may yet be used of the container's memory, as it is now; None: it has no limit of its own
    """

    def __init__(self, left_bytes: Callable[[], int | None]) -> None:
        self.waiting = 0
        self._left_bytes = left_bytes
        self._under_way: list[_Build] = []
        self._turn = asyncio.Lock()  # first come, first served

    @asynccontextmanager
    async def one(self, worker: object, wanted_bytes: int) -> AsyncIterator[None]:
        """Wait until ``worker`` may build, and be counted until the build is over.

        worker        builds one model at a time: who asks for one that builds already goes behind that, in its own queue
        wanted_bytes  what the build may take beyond what is booked
        """
        if all(build.worker is not worker for build in self._under_way):
            await self._wait(worker, wanted_bytes)
        build = _Build(worker, wanted_bytes, asyncio.get_running_loop().time())
        self._under_way.append(build)
        try:
            yield
        finally:
            self._under_way.remove(build)
            following = next((other for other in self._under_way if other.worker is worker), None)
            if following is not None:
                following.since_s = max(following.since_s, asyncio.get_running_loop().time())

    async def _wait(self, worker: object, wanted_bytes: int) -> None:
        self.waiting += 1
        try:
            async with self._turn:
                while not self._has_room(worker, wanted_bytes):  # noqa: ASYNC110 (the container's memory tells no events)
                    await asyncio.sleep(LOOK_S)
        finally:
            self.waiting -= 1

    def _has_room(self, worker: object, wanted_bytes: int) -> bool:
        now_s = asyncio.get_running_loop().time()
        building = {id(build.worker): build for build in reversed(self._under_way)}  # of each worker the first: the others wait
        promised = [build.wanted_bytes for build in building.values() if now_s - build.since_s < SEEN_S]
        return id(worker) in building or has_room(self._left_bytes(), promised, wanted_bytes)
