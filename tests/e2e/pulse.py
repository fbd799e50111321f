"""A request every so often, whatever became of the one before, and what each got: for watching a pool through a change."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self

import httpx

MAX_OUTSTANDING: Final = 512
"""A start takes seconds, at ten requests a second; who has more outstanding than this has lost them."""

FAILURES_NAMED: Final = 5


@dataclass(frozen=True)
class Seen:
    """One request. ``answer``: what it came to, for counting; ``fault``: why that is wrong, "" if it is right."""

    due_s: float
    took_s: float
    answer: str
    fault: str = ""


@dataclass
class Pulse:
    """Sends when due, and keeps what came of it.

    ask      one request; raises httpx.HTTPError
    judge    what an answer comes to, and what is wrong with it: "" for nothing
    every_s  between two requests
    """

    ask: Callable[[], httpx.Response]
    judge: Callable[[httpx.Response], tuple[str, str]]
    every_s: float = 0.1
    seen: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def beating(self) -> Iterator[Self]:
        """Send until the block ends; then wait for every answer."""
        ended = threading.Event()
        with ThreadPoolExecutor(MAX_OUTSTANDING) as threads:
            beat = threading.Thread(target=self._beat, args=(ended, threads), name="pulse")
            beat.start()
            try:
                yield self
            finally:
                ended.set()
                beat.join()

    def _beat(self, ended: threading.Event, threads: ThreadPoolExecutor) -> None:
        due_s = time.monotonic()
        while not ended.wait(max(0.0, due_s - time.monotonic())):
            threads.submit(self._once, due_s)
            due_s += self.every_s

    def _once(self, due_s: float) -> None:
        try:
            answer, fault = self.judge(self.ask())
        except httpx.HTTPError as error:
            answer, fault = "no answer", f"{type(error).__name__}: {error}"
        seen = Seen(due_s, time.monotonic() - due_s, answer, fault)
        with self._lock:
            self.seen.append(seen)

    @property
    def answers(self) -> Counter[str]:
        """How often each answer came so far."""
        with self._lock:
            return Counter(seen.answer for seen in self.seen)

    @property
    def faults(self) -> list[Seen]:
        """What was wrong so far."""
        with self._lock:
            return [seen for seen in self.seen if seen.fault]

    def check(self) -> None:
        """Fail where anything was wrong, with the first few."""
        faults = self.faults
        assert not faults, f"{len(faults)} of {len(self.seen)} requests failed; the first: " + "; ".join(
            f"{seen.took_s:.2f} s: {seen.fault}" for seen in faults[:FAILURES_NAMED]
        )
