"""Keeps what the cluster has of one kind of object, up to date, by a listing and a watch that goes on from there.

Ours, because the package's informer asks again at once when the API server is away, as often as the machine can. What is
made of the objects is the callers' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from warmup.kube import Gone, Kube, KubeError, NotFound, Object, Resource, name_of

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

MISSES_BELIEVED: Final = 2
"""How often a kind that had objects must not be found before they count as gone: a Custom Resource Definition that is
replaced answers 404 for a moment."""

BELATED: Final = frozenset({"managedFields"})


@dataclass(frozen=True)
class Pace:
    """How often the API server is asked.

    first_s   wait after a first failure, doubled with each further one up to ``most_s``; from half to all of it
    most_s    also what an API server that comes back waits at most to be noticed
    healthy_s a watch that lasted this long is no failure, however it ended: the next one starts at once
    watch_s   after it the server ends a watch, so that a connection that died silently is noticed soon after; ± 20 %
    absent_s  between two looks for a kind that the cluster does not have
    relist_s  after it all is listed anew, for what a watch can miss: an API server restored from an older backup
    """

    first_s: float = 0.5
    most_s: float = 10.0
    healthy_s: float = 5.0
    watch_s: float = 50.0
    absent_s: float = 60.0
    relist_s: float = 1800.0


def whole(found: Object) -> Object:
    """Keep all of an object but the books of who wrote which field, which can be most of it."""
    metadata = {key: value for key, value in found["metadata"].items() if key not in BELATED}
    return found | {"metadata": metadata}


class Watched(Generic[Kept]):
    """The objects of one kind in the namespace, by name.

    keep    what to hold of an object: thousands of them are mostly fields that nobody reads. None: not this one at all.
            Two that are kept alike are alike: no change is told
    labels  selector on the server's side

    Read ``objects`` only when ``synced``: before, it is not that there are none, but that nobody knows. A kind that the
    cluster does not have (no Knative, no KServe) is empty and synced, and looked for again.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        keep: Callable[[Object], Kept | None],
        *,
        labels: str = "",
        pace: Pace | None = None,
    ) -> None:
        self.resource = resource
        self.error = ""
        """What is wrong with the connection; "" while nothing is."""
        self.present = False
        """Whether the cluster has this kind."""
        self._kube = kube
        self._keep = keep
        self._labels = labels
        self._pace = pace or Pace()
        self._objects: dict[str, Kept] = {}
        self._callbacks: list[Callable[[str, Kept | None, Kept | None], None]] = []
        self._synced = asyncio.Event()
        self._version = ""
        self._heard_s = self._listed_s = float("-inf")
        self._misses = 0
        self._random = random.Random()  # noqa: S311 (spreads waits)

    @property
    def objects(self) -> Mapping[str, Kept]:
        """What is kept of each; a live view."""
        return MappingProxyType(self._objects)

    @property
    def synced(self) -> bool:
        """Whether all that exists was read once. Stays true when the API server is away: see ``stale_s``."""
        return self._synced.is_set()

    def stale_s(self) -> float:
        """Seconds since the API server last said anything; up to a minute while all is well. inf: never yet."""
        return asyncio.get_running_loop().time() - self._heard_s

    def on_change(self, callback: Callable[[str, Kept | None, Kept | None], None]) -> None:
        """Call it with name, old and new at every change; old is None for a new one, new is None for one that is gone."""
        self._callbacks.append(callback)

    async def until_synced(self) -> None:
        """Return once ``synced``."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep up, until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started_s = loop.time()
            wait_s = 0.0
            try:
                await self._keep_up(loop)
                self.error = ""
            except NotFound:
                wait_s = self._missed()
            except Gone:
                self._version = ""
            except KubeError as error:
                self._failed(error)
                wait_s = min(error.retry_after_s or 0.0, self._pace.absent_s)
            failures = 0 if loop.time() - started_s >= self._pace.healthy_s else failures + 1
            await asyncio.sleep(max(wait_s, self._wait_s(failures)))

    async def _keep_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """A listing where one is needed, then a watch to its end."""
        if not self._version or loop.time() - self._listed_s > self._pace.relist_s:
            await self._list()
            self._listed_s = self._heard_s = loop.time()
        lasts_s = self._pace.watch_s * self._random.uniform(0.8, 1.2)
        stream = self._kube.watch(self.resource, self._version, labels=self._labels, timeout_s=lasts_s)
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._heard_s = loop.time()
                self.error = ""
                found = event["object"]
                if event["type"] == "DELETED":
                    self._put(name_of(found), None)
                elif event["type"] != "BOOKMARK":
                    self._put(name_of(found), self._keep(found))
                self._version = str(found["metadata"]["resourceVersion"])
        self._heard_s = loop.time()

    async def _list(self) -> None:
        listing = await self._kube.list(self.resource, labels=self._labels)
        kept = {name_of(found): self._keep(found) for found in listing.items}
        self._misses, self.present = 0, True
        for name in self._objects.keys() - kept.keys():
            self._put(name, None)
        for name, new in kept.items():
            self._put(name, new)
        self._version = listing.resource_version
        self.error = ""
        self._synced.set()

    def _put(self, name: str, new: Kept | None) -> None:
        old = self._objects.get(name)
        if new is None:
            self._objects.pop(name, None)
        else:
            self._objects[name] = new
        if old != new:
            for callback in self._callbacks:
                callback(name, old, new)

    def _missed(self) -> float:
        """The kind is not there: what now, and how long until the next look."""
        self._version = ""
        self._misses += 1
        self._heard_s = asyncio.get_running_loop().time()
        if self._objects and self._misses < MISSES_BELIEVED:
            return self._pace.first_s
        self.present, self.error = False, ""
        for name in list(self._objects):
            self._put(name, None)
        self._synced.set()
        return self._pace.absent_s * self._random.uniform(0.8, 1.2)

    def _failed(self, error: KubeError) -> None:
        if not self.error:
            log.warning("watch of %s: %s", self.resource.plural, error.message)
        self.error = error.message

    def _wait_s(self, failures: int) -> float:
        if failures == 0:
            return 0.0
        longest_s = min(self._pace.most_s, self._pace.first_s * 2.0 ** min(failures - 1, 16))
        return longest_s * self._random.uniform(0.5, 1.0)
