"""What looks after the pod as a whole: its event loop, its memory, its disk, its devices; and says when to restart it.

What stays out: one worker's life (workers/worker.py), what the probes' URLs are (api/rest.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from predictor import human, log_stream
from predictor.descriptors import connections, raise_limit
from predictor.health import Ailment, Pulse, go_on
from predictor.settings import Settings
from predictor.telemetry import Telemetry
from predictor.workers.domains import Domains
from predictor.workers.memory_watch import Candidate, MemoryKills, MemoryWatch
from predictor.workers.scratch_watch import ScratchWatch
from predictor.workers.spawn import end_orphans

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0


class Supervision:
    """Runs from ``start`` to ``stop``.

    limit_bytes  of the container's memory; None: it has no limit of its own, and other processes beside it
    devices      with the workers of each
    kills        by the kernel, looked at regularly
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        limit_bytes: int | None,
        devices: Sequence[Domains],
        kills: MemoryKills,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices = devices
        self._kills = kills
        self._clock = clock
        self._pulse = Pulse(
            telemetry.histogram("hearth_loop_lag_seconds"),
            max_late_s=settings.max_late_s,
            stuck_log_s=settings.stuck_log_s,
            stuck_exit_s=settings.stuck_exit_s,
        )
        self._ailment = Ailment(settings.sick_timeout_s)
        self._told = ""
        self._log_dropped = telemetry.counter("hearth_log_dropped_total")
        self._counted = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._memory: MemoryWatch | None = None
        if limit_bytes is not None:
            ended = telemetry.counter("hearth_memory_ends_total")
            root = Path(settings.system_root)
            memory = self._memory = MemoryWatch(limit_bytes, settings.memory_share, self._candidates, ended.inc, root=root)
            telemetry.gauge("hearth_working_set_bytes").set_function(lambda: memory.used_bytes)
        scratch = self._scratch = ScratchWatch(
            settings.scratch_bytes, self._candidates, telemetry.counter("hearth_scratch_ends_total").inc
        )
        telemetry.gauge("hearth_scratch_bytes").set_function(lambda: scratch.used_bytes)
        for domains in devices:
            telemetry.gauge("hearth_device_failed", str(domains.device)).set_function(partial(_failed, domains))

    def start(self) -> None:
        """Begin, on the running loop."""
        self._pulse.start()
        watches = {"health": self._look, "scratch": self._scratch.watch}
        if self._memory is not None:
            watches["memory"] = self._memory.watch
        self._tasks += [asyncio.create_task(go_on(name, watch), name=name) for name, watch in watches.items()]

    async def stop(self) -> None:
        """End; a loop that stands still is nobody's concern any more."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._pulse.stop()

    def device_failure(self) -> str:
        """Why this pod cannot compute; "" while it can, or is still starting."""
        return "; ".join(domains.failure for domains in self._devices if domains.failure)

    def hopeless(self) -> str:
        """Why this pod should be restarted; "" if it should not."""
        return self._pulse.stalled() or self._ailment.hopeless(self.device_failure(), self._clock())

    def _candidates(self) -> Iterator[Candidate]:
        for domains in self._devices:
            for worker in domains.occupied():
                # A model that has a worker for itself need not be inside it to be the one that grew there.
                alone = worker.refs[0] if len(worker.refs) == 1 else None
                end = partial(domains.end, worker.name, blame=alone)
                name = f"{worker.name} of device {domains.device}"
                yield Candidate(
                    name,
                    worker.pid,
                    end,
                    worker.scratch,
                    f"in it: {human.few(worker.refs)}" if worker.refs else "no model is in it",
                )

    async def _look(self) -> None:
        """Tell the log once what the probes tell, and end what dead workers left behind."""
        while True:
            failure, hopeless = self.device_failure(), self.hopeless()
            state = "this pod is not live" if hopeless else "this pod is not ready" if failure else ""
            if state and state != self._told:
                log.error("%s: %s", state, hopeless or failure)
            self._told = state
            self._kills.look()
            self._count_dropped()
            end_orphans()
            await asyncio.sleep(LOOK_S)

    def _count_dropped(self) -> None:
        stream = log_stream.installed()
        dropped = stream.dropped if stream is not None else 0
        self._log_dropped.inc(dropped - self._counted)
        self._counted = dropped


def _failed(domains: Domains) -> bool:
    return bool(domains.failure)


def within_descriptors(settings: Settings) -> Settings:
    """Raise the limit of open files, and promise no more connections than that allows. Raises TooFewDescriptors."""
    limit, workers = raise_limit(), settings.max_workers * settings.device_count
    possible = connections(limit, settings.max_connections, workers=workers, parts=settings.fetch_concurrency)
    if possible == settings.max_connections:
        return settings
    log.warning(
        "of %d connections per port (HEARTH_MAX_CONNECTIONS) only %d are possible: this process may open %d files and sockets, "
        "and %d workers may need theirs (ulimit -Hn, HEARTH_MAX_WORKERS)",
        settings.max_connections,
        possible,
        limit,
        workers,
    )
    return settings.model_copy(update={"max_connections": possible})
