"""Carries out what prewarm.py decides: sends requests, patches Revisions, tells what was done.

It looks at everything once a second and does what is missing: there is nothing that a restart could lose. All it knows of
Revisions comes from watches; while those are not synced it does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp

from warmup import ahead, prewarm
from warmup.ahead import Retention
from warmup.kube import POD_AUTOSCALERS, REVISIONS, Conflict, Kube, KubeError, NotFound, Object, meta
from warmup.prewarm import Effort, Patch, Pool, Requests, Revision, State, Tell, Wake, Wish
from warmup.watch import Pace, Watched

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
MAX_SCALE: Final = "autoscaling.knative.dev/max-scale"
WINDOW: Final = "autoscaling.knative.dev/window"
TARGET: Final = "autoscaling.knative.dev/target"
DEFAULT_WINDOW_S: Final = 60.0
DEFAULT_TARGET: Final = 100
"""Knative's own defaults, of its ConfigMap config-autoscaler."""

WAKE_TIMEOUT_S: Final = 60.0
"""Knative's activator holds the request until there is a pod. It is the arrival that counts, not the answer."""

OK: Final = 200

Waker = Callable[[str], Awaitable[str]]
"""Sends GET to a URL; the value says why it came to nothing, "": it did not. Raises nothing."""


class _Asked(NamedTuple):
    """What a Revision's own object says: fields of prewarm.Revision, in its order."""

    version: str
    min_scale: str | None
    marked: bool
    set_scale: int
    former: str | None
    most: int
    window_s: float
    target: float
    retention: str | None
    retained: str
    retained_former: str | None


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
        self.wishes: Callable[[], Mapping[str, Wish]] = dict
        """By pool: pods that nobody asked for yet. Set by who looks ahead; so is ``retentions``."""
        self.retentions: Callable[[], Mapping[str, Retention]] = dict
        """By Revision; the last pods of those that are not in it stay for as long as Knative has them."""
        self.unsure: Callable[[], Collection[str]] = tuple
        """Revisions of which is not known yet what is wished of them: nothing is taken back from them."""
        self._kube = kube
        self._pools = pools
        self._may_act = may_act
        self._announce = announce
        self._clock = clock
        self._wake = wake or request
        self._efforts: Mapping[str, Effort] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, str] = {}
        self._moved_s: dict[str, float] = {}
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
        if not (self.synced and self._may_act()):
            self._efforts, self.states = {}, {}
            return
        seen, now_s = self.seen(), self._clock()
        unsure, wishes = self.unsure(), self.wishes()
        requests = Requests(self._waking.keys(), self._failed)
        decision = prewarm.decide(
            self._pools(), seen, self._efforts, now_s=now_s, wishes=wishes, unsure=unsure, requests=requests
        )
        self._efforts, self.states = decision.efforts, decision.states
        self._failed = {pool: why for pool, why in self._failed.items() if pool in decision.efforts}
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
        let_be = {action.revision for action in decision.actions if isinstance(action, Patch)} | set(unsure)
        let_be |= {effort.revision for effort in decision.efforts.values()}  # a pod is on its way there, or will be
        self._moved_s = {name: moved_s for name, moved_s in self._moved_s.items() if name in seen}
        at_rest = [revision for name, revision in seen.items() if name not in let_be and not revision.coming]
        await self._retain(at_rest, now_s)

    async def _retain(self, revisions: list[Revision], now_s: float) -> None:
        """Set how long last pods stay, of Revisions without pods: Knative gives every pod its Revision's annotations.

        So a patch replaces pods that run, with all that is loaded there (seen on 1.23); at zero it costs nothing, and counts
        for the next pod. A Revision that was patched just now has another version: it is looked at next time.
        """
        keeping = ahead.keepings(self.retentions(), revisions, self._moved_s, now_s=now_s)
        for patch in keeping.patches:
            if not self._may_act():
                return
            if not await self._patch(patch):
                continue
            retention = keeping.moved.get(patch.revision)
            if retention is not None:
                self._moved_s[patch.revision] = now_s
                text = (
                    f"the last pod of pool {retention.pool} stays {retention.seconds} s after Knative's window: {retention.why}"
                )
                await self._announce(Tell(retention.pool, "Normal", "RetentionSet", text, f"{patch.revision} {now_s:.0f}"))
            elif pool := next((pool.name for pool in self._pools() if pool.revision == patch.revision), ""):
                text = f"the last pod of pool {pool} stays for as long as its Revision said before, or Knative's own setting"
                await self._announce(Tell(pool, "Normal", "RetentionReleased", text, f"{patch.revision} {now_s:.0f}"))

    @property
    def synced(self) -> bool:
        """Whether every Revision was read once."""
        return self.revisions.synced and self.scalers.synced

    def seen(self) -> dict[str, Revision]:
        """Every Revision of the namespace by name, with what its PodAutoscaler says."""
        found = (self.revision(name) for name in self.revisions.objects)
        return {revision.name: revision for revision in found if revision is not None}

    def revision(self, name: str) -> Revision | None:
        """One of them; None: there is none of that name."""
        asked = self.revisions.objects.get(name)
        if asked is None:
            return None
        return Revision(name, *asked, *self.scalers.objects.get(name, _Scale(-1, 0)))  # it has its Revision's name

    async def _patch(self, patch: Patch) -> bool:
        """Whether it was taken."""
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
            told = ", ".join(f"{key} {value or 'removed'}" for key, value in patch.annotations.items())
            log.info("revision %s: %s", patch.revision, told)
            return True
        return False

    def _start_waking(self, wake: Wake) -> None:
        task = asyncio.create_task(self._send(wake))
        self._waking[wake.pool] = task
        task.add_done_callback(lambda _: self._waking.pop(wake.pool, None))

    async def _send(self, wake: Wake) -> None:
        before = self._failed.pop(wake.pool, "")
        failed = await self._wake(wake.url)
        if failed:
            self._failed[wake.pool] = failed
        if failed != before:
            log.info("request to pool %s (%s): %s", wake.pool, wake.url, failed or "answered")


async def request(url: str) -> str:
    """GET, within ``WAKE_TIMEOUT_S``. The value says why it came to nothing; "": it was answered as it should be."""
    limits = aiohttp.ClientTimeout(total=WAKE_TIMEOUT_S, sock_connect=5)
    try:
        async with aiohttp.ClientSession(timeout=limits) as session, session.get(url, allow_redirects=False) as response:
            return "" if response.status == OK else f"HTTP {response.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return str(error) or "no answer in time"


def _asked(found: Object) -> _Asked:
    annotations = found["metadata"].get("annotations") or {}
    return _Asked(
        str(found["metadata"].get("resourceVersion", "")),
        annotations.get(prewarm.MIN_SCALE),
        meta(found, prewarm.MARK) == "true",
        max(1, prewarm.count(annotations.get(prewarm.PODS))),
        annotations.get(prewarm.FORMER),
        prewarm.count(annotations.get(MAX_SCALE)),
        ahead.parsed_s(annotations.get(WINDOW, "")) or DEFAULT_WINDOW_S,
        float(prewarm.count(annotations.get(TARGET)) or DEFAULT_TARGET),
        annotations.get(ahead.RETENTION),
        annotations.get(ahead.RETAINED, ""),
        annotations.get(ahead.RETAINED_FORMER),
    )


def _scale(found: Object) -> _Scale:
    """Fields that are not there yet: nothing was decided, and nothing runs."""
    status = found.get("status") or {}
    wanted, ready = status.get("desiredScale"), status.get("actualScale")
    return _Scale(-1 if wanted is None else int(wanted), int(ready or 0))
