"""Carries out what prewarm.py decides: patches Revisions, sends wake requests, tells what was done.

It looks at everything once a second and does what is missing: there is nothing that a restart could lose. All it knows of
Revisions comes from watches; while those are not synced it does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp

from warmup import prewarm
from warmup.kube import POD_AUTOSCALERS, REVISIONS, Conflict, Kube, KubeError, NotFound, Object, meta
from warmup.prewarm import Effort, Patch, Pool, Revision, State, Tell, Wake
from warmup.watch import Pace, Watched

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
WAKE_TIMEOUT_S: Final = 60.0
"""Knative's activator holds the request until there is a pod. It is the arrival that counts, not the answer."""

Waker = Callable[[str], Awaitable[str]]
"""Sends GET to a URL; the value is what came of it, in words. Raises nothing."""


class _Asked(NamedTuple):
    """What a Revision's own object says."""

    version: str
    min_scale: str | None
    marked: bool
    former: str | None


class _Scale(NamedTuple):
    """What a PodAutoscaler says."""

    wanted: int
    ready: int


class Warming:
    """Keeps pools warm for as long as their annotation says.

    pools     all of the namespace, as known now
    may_act   whether this controller is the one that writes, and all that ``pools`` is made from was read
    announce  makes an Event of a ``Tell``; its loss is no error
    clock     seconds since the epoch
    wake      sends a wake request
    """

    def __init__(
        self,
        kube: Kube,
        *,
        pools: Callable[[], Iterable[Pool]],
        may_act: Callable[[], bool],
        announce: Callable[[Tell], Awaitable[None]],
        clock: Callable[[], float],
        wake: Waker | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.revisions = Watched(kube, REVISIONS, _asked, pace=pace)
        self.scalers = Watched(kube, POD_AUTOSCALERS, _scale, pace=pace)
        self.states: Mapping[str, State] = {}
        """By pool: how it stands with its warmth. Empty while this controller does not act."""
        self._kube = kube
        self._pools = pools
        self._may_act = may_act
        self._announce = announce
        self._clock = clock
        self._wake = wake or request
        self._efforts: Mapping[str, Effort] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each for ever."""
        return [self.revisions.run(), self.scalers.run(), self.run()]

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        try:
            while True:
                await self.tick()
                await asyncio.sleep(TICK_S)
        finally:
            for task in self._waking.values():
                task.cancel()
            await asyncio.gather(*self._waking.values(), return_exceptions=True)

    async def tick(self) -> None:
        """Look, decide, act. Never raises what the API server may say: the next look finds what is still missing."""
        if not (self.revisions.synced and self.scalers.synced and self._may_act()):
            self._efforts, self.states = {}, {}
            return
        decision = prewarm.decide(self._pools(), self._seen(), self._efforts, now_s=self._clock())
        self._efforts, self.states = decision.efforts, decision.states
        for action in decision.actions:
            if not self._may_act():
                return
            if isinstance(action, Patch):
                await self._patch(action)
            elif isinstance(action, Wake):
                self._start_waking(action)
            else:
                log.info("%s", action.message)
                await self._announce(action)

    def _seen(self) -> dict[str, Revision]:
        found = {}
        for name, asked in self.revisions.objects.items():
            scale = self.scalers.objects.get(name, _Scale(-1, 0))  # it has its Revision's name
            found[name] = Revision(name, *asked, *scale)
        return found

    async def _patch(self, patch: Patch) -> None:
        try:
            await self._kube.patch(REVISIONS, patch.revision, patch.body)
        except (Conflict, NotFound):
            pass  # the watch has not told yet what changed; the next look decides anew
        except KubeError as error:
            if error.message != self._trouble:
                log.warning("%s", error.message)
            self._trouble = error.message
        else:
            self._trouble = ""
            log.info("revision %s: %s", patch.revision, "kept warm" if patch.annotations[prewarm.MARK] else "released")

    def _start_waking(self, wake: Wake) -> None:
        """One at a time for a pool: an earlier one that still waits does the same."""
        if wake.pool not in self._waking:
            task = asyncio.create_task(self._send(wake))
            self._waking[wake.pool] = task
            task.add_done_callback(lambda _: self._waking.pop(wake.pool, None))

    async def _send(self, wake: Wake) -> None:
        log.info("wake request to pool %s (%s): %s", wake.pool, wake.url, await self._wake(wake.url))


async def request(url: str) -> str:
    """GET, within ``WAKE_TIMEOUT_S``. The value says what came of it."""
    limits = aiohttp.ClientTimeout(total=WAKE_TIMEOUT_S, sock_connect=5)
    try:
        async with aiohttp.ClientSession(timeout=limits) as session, session.get(url, allow_redirects=False) as response:
            return f"HTTP {response.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return str(error) or "no answer in time"


def _asked(found: Object) -> _Asked:
    annotations = found["metadata"].get("annotations") or {}
    return _Asked(
        str(found["metadata"].get("resourceVersion", "")),
        annotations.get(prewarm.MIN_SCALE),
        meta(found, prewarm.MARK) == "true",
        annotations.get(prewarm.FORMER),
    )


def _scale(found: Object) -> _Scale:
    """Fields that are not there yet: nothing was decided, and nothing runs."""
    status = found.get("status") or {}
    wanted, ready = status.get("desiredScale"), status.get("actualScale")
    return _Scale(-1 if wanted is None else int(wanted), int(ready or 0))
