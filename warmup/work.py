"""A queue of names that need a pass: each is in it once, runs once at a time, and comes back later when it fails.

What stays out: what a pass does. Also how fast one may write: ``Bucket``.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from predictor.errors import HearthError

log = logging.getLogger(__name__)

RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 30.0


class Work:
    """Level-triggered: a name says that something about it changed, not what. Belongs to one event loop.

    handle    one pass; the value: seconds until the next one, None: when something changes
    workers   passes at once, each of another name
    on_done   name, outcome (``ok``, ``failed``), seconds
    """

    def __init__(
        self,
        kind: str,
        handle: Callable[[str], Awaitable[float | None]],
        *,
        workers: int,
        on_done: Callable[[str, str, float], None] = lambda _kind, _outcome, _seconds: None,
    ) -> None:
        self.kind = kind
        self._handle = handle
        self._workers = workers
        self._on_done = on_done
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    def add(self, name: str, delay_s: float = 0.0) -> None:
        """A pass within ``delay_s``; one that is due sooner stands for this one, too."""
        assert name, f"{self.kind}: nothing has no name"
        if name in self._running and not delay_s:
            self._again.add(name)
            return
        due_s = asyncio.get_running_loop().time() + delay_s
        if name in self._due and self._due[name] <= due_s:
            return
        self._due[name] = due_s
        heapq.heappush(self._heap, (due_s, name))
        self._wake.set()

    def pressing(self, within_s: float = 1.0) -> int:
        """How many passes run, or are due so soon. Those that wait for time to go by are none of them."""
        soon_s = asyncio.get_running_loop().time() + within_s
        return len(self._running) + sum(due_s <= soon_s for due_s in self._due.values())

    def clear(self) -> None:
        """Forget what waits. What runs ends by itself."""
        self._due.clear()
        self._heap.clear()
        self._again.clear()
        self._failures.clear()

    async def run(self) -> None:
        """Work until cancelled; passes under way are then cancelled, too."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while len(self._running) < self._workers and (name := self._next(loop.time())):
                    self._running.add(name)
                    group.create_task(self._one(name), name=f"{self.kind} {name}")
                pause_s = self._heap[0][0] - loop.time() if self._heap and len(self._running) < self._workers else None
                try:
                    async with asyncio.timeout(None if pause_s is None else max(0.0, pause_s)):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def _next(self, now_s: float) -> str | None:
        """A name that is due and not running; entries that a sooner one replaced are passed over."""
        while self._heap and self._heap[0][0] <= now_s:
            due_s, name = heapq.heappop(self._heap)
            if self._due.get(name) != due_s:
                continue
            del self._due[name]
            if name in self._running:
                self._again.add(name)
                continue
            return name
        return None

    async def _one(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        outcome, pause_s = "ok", None
        try:
            pause_s = await self._handle(name)
            self._failures.pop(name, None)
        except Exception as error:  # a pass's root: the next one starts from what the cluster has then
            outcome = "failed"
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            pause_s = min(RETRY_S * 2.0 ** min(failures - 1, 16), RETRY_MAX_S)
            if isinstance(error, HearthError):
                pause_s = min(max(pause_s, error.retry_after_s or 0.0), RETRY_MAX_S)
                log.warning("%s %s: %s; again in %.1f s", self.kind, name, error.message, pause_s)
            else:
                log.exception("%s %s; again in %.1f s", self.kind, name, pause_s)
        finally:
            self._running.discard(name)
            self._on_done(self.kind, outcome, loop.time() - begin_s)
        if name in self._again and outcome == "ok":
            self._again.discard(name)
            pause_s = 0.0
        self._again.discard(name)
        if pause_s is not None:
            self.add(name, pause_s)
        self._wake.set()


class Bucket:
    """Tokens for writes: ``burst`` at once, ``rate_per_s`` in the long run. First come, first served."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at_s: float | None = None

    async def take(self) -> None:
        """Wait for a token. One may be owed: who came later waits longer."""
        now_s = asyncio.get_running_loop().time()
        if self._at_s is not None:
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        self._tokens -= 1.0
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate_per_s)
