"""What looks after the pod as a whole: its event loop, its container's memory, its devices; and says when to restart it.

What stays out: one worker's life (workers/worker.py), what the probes' URLs are (api/rest.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from predictor.health import Ailment, Pulse
from predictor.settings import Settings
from predictor.telemetry import Telemetry
from predictor.workers.memory_watch import Candidate, MemoryWatch

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0


class Supervision:
    """Runs from ``start`` to ``stop``.

    limit_bytes  of the container's memory; None: it has no limit of its own, and other processes beside it
    failures     of each device: why its workers do not start; "": they do
    candidates   the workers there are
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        limit_bytes: int | None,
        failures: Sequence[Callable[[], str]],
        candidates: Callable[[], Iterable[Candidate]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._clock = clock
        self._pulse = Pulse(
            telemetry.histogram("hearth_loop_lag_seconds"),
            max_late_s=settings.max_late_s,
            stuck_log_s=settings.stuck_log_s,
            stuck_exit_s=settings.stuck_exit_s,
        )
        self._ailment = Ailment(settings.sick_timeout_s)
        self._told = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._memory: MemoryWatch | None = None
        if limit_bytes is not None:
            ended = telemetry.counter("hearth_memory_ends_total")
            root = Path(settings.system_root)
            memory = self._memory = MemoryWatch(limit_bytes, settings.memory_share, candidates, ended.inc, root=root)
            telemetry.gauge("hearth_working_set_bytes").set_function(lambda: memory.used_bytes)
        for device, failure in enumerate(failures):
            telemetry.gauge("hearth_device_failed", str(device)).set_function(lambda failure=failure: bool(failure()))

    def start(self) -> None:
        """Begin, on the running loop."""
        self._pulse.start()
        self._tasks.append(asyncio.create_task(self._look(), name="health"))
        if self._memory is not None:
            self._tasks.append(asyncio.create_task(self._memory.watch(), name="memory"))

    async def stop(self) -> None:
        """End; a loop that stands still is nobody's concern any more."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._pulse.stop()

    def device_failure(self) -> str:
        """Why this pod cannot compute; "" while it can, or is still starting."""
        return "; ".join(found for failure in self._failures if (found := failure()))

    def hopeless(self) -> str:
        """Why this pod should be restarted; "" if it should not."""
        return self._pulse.stalled() or self._ailment.hopeless(self.device_failure(), self._clock())

    async def _look(self) -> None:
        """Tell the log once what the probes tell."""
        while True:
            failure, hopeless = self.device_failure(), self.hopeless()
            state = "this pod is not live" if hopeless else "this pod is not ready" if failure else ""
            if state and state != self._told:
                log.error("%s: %s", state, hopeless or failure)
            self._told = state
            await asyncio.sleep(LOOK_S)
