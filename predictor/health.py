"""The front's own health: how late its event loop is, and when somebody should restart this pod.

Three things happen to a loop that stands still, the sooner the worse the matter: its stacks are written to the log once
(``stuck_log_s``; by faulthandler's own thread where the GIL is held, some seconds later); ``/livez`` says 503 where it was
late for too many seconds of the last minute (a probe that falls into a stall times out by itself, but one stall after the
other lets probes through in between); and the process ends (``stuck_exit_s``), because not everywhere somebody probes.
Ending the front ends its workers; what is on disk is adopted by its successor.

A process that was stopped as a whole (a frozen container, a debugger, a laptop's lid) is not stuck: the watchdog counts
its own ticks, not a clock, and it was stopped, too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from predictor import human, log_stream

log = logging.getLogger(__name__)

BEAT_S: Final = 0.1
"""Ten wakes a second: 0.05 % of a core."""
WATCHDOG_S: Final = 0.5
REARM_TICKS: Final = 20
"""Setting faulthandler's timer ends a thread and makes one: 0.1 to 0.6 ms with the GIL held, every ten seconds."""
MINUTE_S: Final = 60.0
SETTLE_S: Final = 1.0
"""How long the watchdog waits for the log, whose thread may not be heard at all when the GIL is held."""
STUCK_STATUS: Final = 70
"""EX_SOFTWARE of sysexits.h: our own mistake, not the operator's."""


AGAIN_S: Final = 1.0
"""After a mistake of ours in a task that runs for as long as the pod."""


async def go_on(name: str, watch: Callable[[], Coroutine[object, object, None]]) -> None:
    """The root of such a task. A mistake of ours in one look must not be the last one: the next may be when it matters.

    watch  begins it, anew after every mistake; over when that returns
    """
    while True:
        try:
            await watch()
        except Exception:  # a task's root
            log.exception("the watch over %s failed, and goes on", name)
            await asyncio.sleep(AGAIN_S)
        else:
            return


class Observer(Protocol):
    """A histogram."""

    def observe(self, value: float) -> object:
        """Count it."""


class Lateness:
    """How late the loop was, in seconds of the last minute. Pure: time is an argument."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()  # bounded: a minute has so many beats

    def note(self, late_s: float, now_s: float) -> None:
        """A beat that ended at ``now_s`` came so late."""
        if late_s > BEAT_S:  # less is the business of a loop that works
            self._late.append((now_s, late_s))
        self._forget(now_s)

    def seconds(self, now_s: float) -> float:
        """Of the last minute."""
        self._forget(now_s)
        return sum(late_s for _, late_s in self._late)

    def _forget(self, now_s: float) -> None:
        while self._late and self._late[0][0] < now_s - MINUTE_S:
            self._late.popleft()


class Pulse:
    """The heartbeat of the loop that it is started on, and the thread that listens to it.

    max_late_s    of a minute; more, and ``stalled`` says so for the next one
    stuck_log_s   a stall as long as this is logged with the stacks of all threads; 0: none is
    stuck_exit_s  a stall as long as this ends the process; 0: none does
    """

    def __init__(
        self,
        lag: Observer,
        *,
        max_late_s: float,
        stuck_log_s: float,
        stuck_exit_s: float,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lag = lag
        self._max_late_s = max_late_s
        self._stuck_log_s = stuck_log_s
        self._stuck_exit_s = stuck_exit_s
        self._end = end
        self._clock = clock
        self._lateness = Lateness()
        self._beats = 0
        self._stopped_ticks = 0  # the watchdog's, since the last beat that it saw
        self._stopping = threading.Event()
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="hearth-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to beat on the running loop."""
        self._due_s = self._clock() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        self._thread.start()

    def stop(self) -> None:
        """Neither beat nor listen any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(WATCHDOG_S + 1)
        if self._stuck_log_s:
            faulthandler.cancel_dump_traceback_later()

    def stalled(self) -> str:
        """Why this pod should be restarted; "" if it should not."""
        late_s = self._lateness.seconds(self._clock())
        if late_s <= self._max_late_s:
            return ""
        return (
            f"the event loop stood still for {human.span(late_s)} of the last minute, and {human.span(self._max_late_s)} are "
            f"allowed (HEARTH_MAX_LATE_S)"
        )

    def _beat(self) -> None:
        now_s = self._clock()
        late_s = max(now_s - self._due_s, 0.0)
        self._beats += 1
        self._lag.observe(late_s)
        # What the watchdog slept through as well was no stall of the loop.
        self._lateness.note(min(late_s, (self._stopped_ticks + 2) * WATCHDOG_S), now_s)
        self._stopped_ticks = 0
        self._due_s = now_s + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        seen, ticks, log_ticks = -1, 0, max(round(self._stuck_log_s / WATCHDOG_S), 1)
        while not self._stopping.wait(WATCHDOG_S):
            if self._stuck_log_s and ticks % REARM_TICKS == 0:
                # Only heard of where this thread is not: whoever computes without end may hold the GIL.
                faulthandler.dump_traceback_later(REARM_TICKS * WATCHDOG_S + self._stuck_log_s, file=log_stream.descriptor())
            ticks += 1
            if self._beats != seen:
                seen = self._beats
                self._stopped_ticks = 0
                continue
            self._stopped_ticks += 1
            stuck_s = self._stopped_ticks * WATCHDOG_S
            if self._stuck_log_s and self._stopped_ticks == log_ticks:
                log.error("the event loop stands still for %s (HEARTH_STUCK_LOG_S); all threads:", human.span(stuck_s))
                log_stream.settle(SETTLE_S)
                # With the GIL held, as whoever waits for faulthandler's thread does: a descriptor that blocks would stop all.
                faulthandler.dump_traceback(file=log_stream.descriptor())
            if self._stuck_exit_s and stuck_s >= self._stuck_exit_s:
                log.critical("the event loop stands still for %s: this process ends (HEARTH_STUCK_EXIT_S)", human.span(stuck_s))
                log_stream.settle(SETTLE_S)
                self._end(STUCK_STATUS)
                return


class Ailment:
    """Something that is wrong, and has been for how long. Pure: time is an argument.

    patience_s  after which a restart is worth trying
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since_s: float | None = None

    def hopeless(self, reason: str, now_s: float) -> str:
        """Why this pod should be restarted; "" if it should not. ``reason``: what is wrong; "": nothing any more."""
        if not reason:
            self._since_s = None
            return ""
        if self._since_s is None:
            self._since_s = now_s
        lasted_s = now_s - self._since_s
        return f"for {human.span(lasted_s)} already: {reason}" if lasted_s >= self._patience_s else ""
