"""Which part is fetched next: a fixed number at a time, shared fairly, background transfers only while nobody waits.

All of it runs on the event loop, so nothing here needs a lock; the parts run in threads. What stays out: how a part is
fetched (s3_objects.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from predictor.tiers.s3_arriving import Part
from predictor.tiers.s3_http import Halt
from predictor.tiers.s3_requests import Stopped

POLL_S: Final = 0.02
"""How often a transfer that is held back looks whether it may go on: whether it is in the background is not told, but asked."""

KEPT_FREE: Final = 4
"""One lane in so many is never the background's: a request's first part goes out at once, and not when one of 16 MiB ends,
which takes 0.13 s at 1 GB/s and 1.3 s at 100 MB/s."""

Submit = Callable[[Part, Halt], asyncio.Future[None]]
"""Fetches one part in a thread."""


class Overdue(Exception):
    """A transfer took longer than it may: ``spent_s``, not counting when it was held back."""

    def __init__(self, spent_s: float) -> None:
        super().__init__(spent_s)
        self.spent_s = spent_s


class Transfer:
    """One ``fetch``: parts not begun yet, how many are running, and how much time it has left.

    deadline_s  how long its parts may run; while none does, because others go first, its clock stands
    """

    def __init__(self, waiting: Iterable[Part], background: Callable[[], bool], submit: Submit, deadline_s: float) -> None:
        self.waiting = deque(waiting)
        self.background = background
        self.submit = submit
        self.halt = Halt()
        self.running = 0
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self._deadline_s = deadline_s
        self._spent_s = 0.0
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A part begins to run."""
        self.running += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._since_s = loop.time()
            self._timer = loop.call_later(self._deadline_s - self._spent_s, self._overdue)

    def end(self) -> None:
        """A part runs no more."""
        self.running -= 1
        if not self.running and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._spent_s += asyncio.get_running_loop().time() - self._since_s

    def _overdue(self) -> None:
        self.stop(Overdue(self._deadline_s))

    def stop(self, error: BaseException | None) -> None:
        """Begin no more parts and end those that run. The first error is the one that is told."""
        self.error = self.error or error
        self.waiting.clear()
        self.halt.stop()


class Transfers:
    """At most ``count`` parts at once, over all transfers; each has ``deadline_s``."""

    def __init__(self, count: int, deadline_s: float) -> None:
        self._free = count
        self._kept_free = count // KEPT_FREE
        self._deadline_s = deadline_s
        self._all: list[Transfer] = []
        self._timer: asyncio.TimerHandle | None = None

    async def carry(self, waiting: Iterable[Part], background: Callable[[], bool], submit: Submit) -> None:
        """Fetch every part with ``submit``, or raise the first error once none runs any more, Overdue too."""
        transfer = Transfer(waiting, background, submit, self._deadline_s)
        cancelled: asyncio.CancelledError | None = None
        self._all.append(transfer)
        try:
            self._go_on()
            while transfer.waiting or transfer.running:
                transfer.ended.clear()
                try:
                    await transfer.ended.wait()
                except asyncio.CancelledError as error:  # threads still write: their memory must not go yet
                    cancelled = error
                    transfer.stop(None)
        finally:
            self._all.remove(transfer)
            self._go_on()
        if cancelled is not None:
            raise cancelled
        if transfer.error is not None:
            raise transfer.error

    def stop(self) -> None:
        """Let every transfer fail."""
        for transfer in self._all:
            transfer.stop(Stopped("the store is closed"))
            transfer.ended.set()

    def _go_on(self) -> None:
        """Start whatever may start now."""
        while self._free and (transfer := self._next()):
            part = transfer.waiting.popleft()
            self._free -= 1
            transfer.begin()
            transfer.submit(part, transfer.halt).add_done_callback(partial(self._done, transfer))
        held_back = any(transfer.waiting for transfer in self._all)
        if held_back and self._free and self._timer is None:  # also to learn that one is waited for by now
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _next(self) -> Transfer | None:
        """Of those that somebody waits for, the one with the fewest running parts; else the oldest in the background.

        Fair among those waited for, so that a small model need not wait behind a large one. In order in the background,
        where models come most wanted first.
        """
        foreground = [transfer for transfer in self._all if not transfer.background()]
        if foreground:
            ready = [transfer for transfer in foreground if transfer.waiting]
            return min(ready, key=lambda transfer: transfer.running, default=None)
        if self._free <= self._kept_free:
            return None
        return next((transfer for transfer in self._all if transfer.waiting), None)

    def _done(self, transfer: Transfer, part: asyncio.Future[None]) -> None:
        self._free += 1
        transfer.end()
        error = Stopped() if part.cancelled() else part.exception()  # cancelled: only by a loop that is torn down
        if error is not None and transfer.error is None:
            transfer.stop(error)
        if not transfer.waiting and not transfer.running:
            transfer.ended.set()
        self._go_on()

    def _poll(self) -> None:
        self._timer = None
        self._go_on()
