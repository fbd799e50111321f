"""Where demand lies while no pod runs: the hot set that a pod begins with, and the object that it leaves behind.

    <HEARTH_DECLARED_PATH>/hotset.json          mounted: a controller publishes it
    <HEARTH_STATE>/<pool>/hotset.json           the same as an object
    <HEARTH_STATE>/<pool>/heat/<pod>.json       what each pod noted: every 30 s if it changed, and when it ends

The first that can be read counts. Without a controller a pod takes over what ended pods left: it adds their demand to its own,
says so in its own object, and deletes theirs. Two that start at once may both take over the same one, which then counts twice
until it decays: twice the rate of every model of it changes no order among them.

Nothing here is needed to serve: what cannot be read or written is told once, and shows in WarmUp.trouble. What stays out: what
is done with the hot set (wakeup.py), what a document says (heat.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from predictor import heat
from predictor.errors import HearthError, InvalidModel, ObjectChanged
from predictor.health import go_on
from predictor.heat import HOTSET_FILE, MAX_MODELS, Document, Heat, HotSet, Warmth
from predictor.policy.hotset import counted, merged
from predictor.remembered import Remembered
from predictor.tiers.store import ObjectInfo, StateStore

log = logging.getLogger(__name__)

WRITE_S: Final = 30.0
"""What a pod that is killed may lose."""

WRITE_TIMEOUT_S: Final = 10.0
END_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 30.0

READ_AGAIN_S: Final = (5.0, 30.0)
"""After a start at which the store was throttled, or away: a pod reads once, and would do without for as long as it lives."""

RENEW_S: Final = 240.0
"""A pod that nobody asks any more writes its object again after so long, so that nobody takes it for one that ended."""

ENDED_S: Final = 600.0
"""Of a pod whose object is older nothing more will come: it has missed two renewals."""

OLD_S: Final = 7 * 24 * 3600.0
"""Older objects are deleted unread: of a request there is a hundredth left by then (policy/demand.py)."""

MAX_DOCUMENTS: Final = 100
"""Heat objects read at a start, the newest; there are more only where a hundred pods ended and none came up since."""

MAX_LISTED: Final = 1_000
"""Heat objects looked at; older ones wait for the next start."""

MAX_BYTES: Final = 4 << 20
AT_ONCE: Final = 4


class Found(NamedTuple):
    """The hot set, the most valuable first. ``source`` as WarmUp has it."""

    models: tuple[Warmth, ...] = ()
    source: str = ""


@dataclass(slots=True, kw_only=True)
class Keeping:
    """One pod's. Belongs to one event loop.

    pod         its name, and its object's; two pods that run at once must not have the same
    release     the distribution's version, asked for when a document is written
    folder      where a controller's documents are mounted; None: there is no controller
    store       where the state prefix lies; None: there is none
    prefix      of this pool's objects, ending in a slash
    wall_clock  seconds since the epoch
    trouble     why demand cannot be read or written; "": nothing is wrong
    """

    remembered: Remembered
    pod: str
    release: Callable[[], str]
    folder: Path | None
    store: StateStore | None
    prefix: str
    wall_clock: Callable[[], float] = time.time
    trouble: str = ""
    _absorbed: dict[str, str] = field(default_factory=dict)  # pod → key of its object
    _written_s: float | None = None  # second of demand's latest note then
    _renewed_s: float = 0.0
    _damaged: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)

    # ---- at the start ----------------------------------------------------------------------------------------

    async def read(self) -> Found:
        """Find the hot set, and let the pod's demand begin with it."""
        mounted = await asyncio.to_thread(self._mounted) if self.folder is not None else None
        if mounted is not None:
            return Found(self._published(mounted), "mounted")
        if self.store is None:
            return Found()
        for pause_s in (*READ_AGAIN_S, math.inf):
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    models = await self._kept(self.store)
            except (HearthError, TimeoutError) as error:
                self._complain("read", error)
                if pause_s == math.inf or (isinstance(error, HearthError) and not error.retryable):
                    break
                await asyncio.sleep(pause_s)
            else:
                self.trouble = ""
                return Found(models, "state prefix" if models else "")
        return Found()

    def _mounted(self) -> HotSet | None:
        assert self.folder is not None
        path = self.folder / HOTSET_FILE
        try:
            with path.open("rb") as document:
                return self._decoded(str(path), document.read(MAX_BYTES), HotSet)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
            return None

    async def _kept(self, store: StateStore) -> tuple[Warmth, ...]:
        """From the state prefix. Raises the store's errors."""
        key = self.prefix + HOTSET_FILE
        raw = await self._read(store, key)
        published = self._decoded(key, raw, HotSet) if raw is not None else None
        if published is not None and self.wall_clock() - published.at_s < OLD_S:
            return self._published(published)
        now_s = self.wall_clock()
        heats, ended = await self._heats(store)
        left: set[str] = set()
        if self.folder is None:
            running = {taken for told in counted(heats) if told.pod not in ended for taken in told.absorbed}
            left = {told.pod for told in heats if told.pod in ended and told.pod not in running}
        others, ours, models = await asyncio.to_thread(_split, heats, left, now_s)
        # From here on without a wait: a pod that is stopped in between would delete what it has not taken over.
        self.remembered.restore(others, now_s, own=False)
        self.remembered.restore(ours, now_s, own=True)
        self._absorbed = {pod: self._key(pod) for pod in left}
        return models

    def _published(self, hot: HotSet) -> tuple[Warmth, ...]:
        models = hot.models[:MAX_MODELS]
        self.remembered.restore(models, hot.at_s, own=False)
        return models

    async def _heats(self, store: StateStore) -> tuple[list[Heat], set[str]]:
        """What pods left and can be read, and the names of those that have ended."""
        listing = await store.listing(f"{self.prefix}heat/")
        newest = sorted(listing.objects, key=lambda entry: -entry.modified_s)[:MAX_LISTED]
        young = [entry for entry in newest if listing.date_s - entry.modified_s < OLD_S][:MAX_DOCUMENTS]
        gate = asyncio.Semaphore(AT_ONCE)

        async def read(entry: ObjectInfo) -> Heat | None:
            async with gate:
                raw = await self._read(store, entry.key)
            told = self._decoded(entry.key, raw, Heat) if raw is not None else None
            if told is not None and self._key(told.pod) != entry.key:
                self._set_aside(entry.key, f"it is of a pod called {told.pod[:64]!a}")
                return None
            return told

        found = list(zip(young, await asyncio.gather(*map(read, young)), strict=True))
        over = {entry.key for entry in young if listing.date_s - entry.modified_s > ENDED_S}
        heats = [told for _, told in found if told is not None]
        # An object of this pod's own name was written by the process before it.
        ended = {told.pod for told in heats if told.final or told.pod == self.pod or self._key(told.pod) in over}
        return heats, ended

    async def _read(self, store: StateStore, key: str) -> bytes | None:
        """None: there is no such object, or it is too long to be one of ours."""
        try:
            return await store.read(key, "", limit_bytes=MAX_BYTES)
        except ObjectChanged:
            return None
        except InvalidModel as error:
            self._set_aside(key, error.message)
            return None

    def _decoded(self, name: str, raw: bytes, kind: type[Document]) -> Document | None:
        try:
            return heat.decode(raw, kind)
        except ValueError as error:
            self._set_aside(name, str(error))
            return None

    def _set_aside(self, name: str, trouble: str) -> None:
        if name not in self._damaged and len(self._damaged) < MAX_LISTED:
            self._damaged.add(name)
            log.warning("%s is set aside, demand is restored without it: %s", name, trouble)

    # ---- while it runs ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write every ``WRITE_S`` what changed, for ever; after the first time tidy up."""
        if self.store is not None:
            await go_on("demand", partial(self._keep, self.store))

    async def _keep(self, store: StateStore) -> None:
        swept = False
        while True:
            await asyncio.sleep(WRITE_S)
            await self._try(self._write(store, final=False), WRITE_TIMEOUT_S)
            if not swept:
                swept = await self._try(self._sweep(store), READ_TIMEOUT_S)

    async def end(self) -> None:
        """Write for the last time, if that can be done within ``END_TIMEOUT_S``."""
        if self.store is not None:
            await self._try(self._write(self.store, final=True), END_TIMEOUT_S)

    async def _write(self, store: StateStore, *, final: bool) -> None:
        latest_s, now_s = self.remembered.demand.latest_s, self.wall_clock()
        unchanged = latest_s == self._written_s and now_s - self._renewed_s < RENEW_S
        if unchanged and not final and not self._absorbed:
            return
        told = await self.remembered.heat(self.pod, self.release(), final=final, absorbed=tuple(self._absorbed))
        if not told.models and self._written_s is None and not self._absorbed:
            return  # a pod that nobody asked leaves nothing
        await store.write(self._key(self.pod), heat.encode(told))
        self._written_s, self._renewed_s = latest_s, now_s
        for pod, key in tuple(self._absorbed.items()):
            if pod != self.pod:
                await store.remove(key)
            del self._absorbed[pod]

    async def _sweep(self, store: StateStore) -> None:
        """Delete what is too old to be read."""
        listing = await store.listing(f"{self.prefix}heat/")
        old = [entry.key for entry in listing.objects if listing.date_s - entry.modified_s >= OLD_S]
        for key in old[:MAX_DOCUMENTS]:
            await store.remove(key)

    async def _try(self, work: Awaitable[None], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await work
        except (HearthError, TimeoutError) as error:
            self._complain("written", error)
            return False
        if self.trouble:
            log.info("demand is kept in the state prefix again")
        self.trouble = ""
        self._told.clear()
        return True

    def _complain(self, what: str, error: Exception) -> None:
        trouble = f"demand cannot be {what} (HEARTH_STATE): {str(error) or 'it takes too long'}"
        if what not in self._told:
            self._told.add(what)
            log.warning("%s; what is served does not depend on it", trouble)
        self.trouble = trouble

    def _key(self, pod: str) -> str:
        return f"{self.prefix}heat/{pod}.json"


def _split(
    heats: Iterable[Heat], taken: Collection[str], now_s: float
) -> tuple[list[Warmth], list[Warmth], tuple[Warmth, ...]]:
    """What others tell yet, what this pod tells from now on, and all of it by value; in a thread."""
    kept = counted(heats)
    ours = [told for told in kept if told.pod in taken]
    others = [told for told in kept if told.pod not in taken]
    return merged(others, now_s), merged(ours, now_s), tuple(merged(kept, now_s))
