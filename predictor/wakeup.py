"""A pod that comes up loads what was asked most; while it runs, what a controller orders. Both behind every request.

The hot set comes most valuable first: into RAM from the first moment, while torch is still imported (where there are cores
enough), and on to devices once the request that the pod was woken for has its model, or after ``GRACE_S`` if none comes. What
is worth more stays where it is (policy/room.py), so the hot set of a pod that is in use already only fills its gaps.

What stays out: where the hot set comes from (keeping.py), when a load begins and what it may push out (policy/preloads.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from predictor.cache import Cache
from predictor.errors import HearthError, MalformedRequest, Unavailable
from predictor.health import go_on
from predictor.keeping import Found
from predictor.model import ModelSpec, Tier
from predictor.policy.hotset import Key
from predictor.report import MAX_ORDERS, Order, Orders, WarmUp
from predictor.wishes import Wish

log = logging.getLogger(__name__)

GRACE_S: Final = 3.0
"""A pod from zero gets its first request 0.5 to 1.5 s after exec. A build that began before cannot be stopped, and would keep
it waiting for up to its whole length."""

SPARE_CORES: Final = 4
"""Below so many, importing torch and fetching the hot set take each other's time: measured on two, 10 models of 32 MB made the
first answer 0.3 s later (1.3 s without). There the hot set waits for the first request, or the grace, before it is fetched."""

LOOK_UPS: Final = 4
"""Models looked up ahead of their turn: half of what the store answers at once, so that a request's own never waits."""

LOOK_UP_TIMEOUT_S: Final = 30.0
"""One that is still being uploaded, or whose credentials have not come, is not waited for any longer."""

QUEUED: Final = 64
"""Loads queued in the ledger, which walks through them at every event."""

ENOUGH: Final = 16
"""After so many in a row that found no room and nothing colder, the rest of the hot set would find none either."""

TOLD: Final = 16
"""Models of the hot set that cannot be loaded are told so many, then counted alone: of a catalogue that moved, all 4,000 are
gone."""

MAX_NAME_CHARS: Final = 80

PAUSE_S: Final = 0.05
"""How often is looked whether still somebody waits."""


class Catalogue(Protocol):
    """What is asked of the catalogue; the real one is rollout.py's."""

    async def settled(self, name: str, version: int | None) -> ModelSpec:
        """What would answer a request now, looked up; brings nothing up. Raises as ``resolve`` does."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model that is to be loaded. ``version`` 0: whichever is served; ``until_s``: on the wall clock, 0: for ever."""

    name: str
    version: int
    tier: Tier
    why: str
    until_s: float = 0.0
    hot: bool = False


@dataclass(slots=True)
class WakeUp:
    """Belongs to one event loop.

    read        finds the hot set, once
    cores       what the pod may use
    loads       whether the hot set is loaded; its rates are known to the ledger all the same
    trouble     why there is none, or why demand is not kept
    wall_clock  seconds since the epoch
    ordered     highest number of an order that was taken
    """

    cache: Cache
    catalogue: Catalogue
    read: Callable[[], Awaitable[Found]]
    cores: int = SPARE_CORES
    loads: bool = True
    trouble: Callable[[], str] = lambda: ""
    wall_clock: Callable[[], float] = time.time
    ordered: int = 0
    _reading: bool = True
    _source: str = ""
    _wanted: int = 0
    _keys: frozenset[Key] = frozenset()
    _hot: deque[Wanted] = field(default_factory=deque)
    _orders: deque[Wanted] = field(default_factory=deque)
    _outcomes: Counter[str] = field(default_factory=Counter)
    _skips: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        gauge = self.cache.telemetry.gauge
        for outcome in ("loaded", "skipped", "failed"):
            gauge("hearth_wakeup_models", outcome).set_function(partial(self._count, outcome))

    def report(self) -> WarmUp:
        """How far it is."""
        open_ = self._wanted - sum(self._outcomes.values())
        state = "done" if self._wanted else "off"
        if self._reading:
            state = "reading"
        elif open_:
            state = "paused" if self.cache.waiting else "loading"
        loaded, skipped, failed = map(self._count, ("loaded", "skipped", "failed"))
        return WarmUp(state, self._source, self._wanted, loaded, skipped, failed, self.trouble())

    def take(self, orders: Orders) -> int:
        """Queue what was not taken before. Returns ``ordered``: those above it found no room in the queue.

        Raises MalformedRequest: more than MAX_ORDERS, or to a tier that nothing is ordered to.
        """
        if len(orders.orders) > MAX_ORDERS:
            raise MalformedRequest(f"{len(orders.orders)} orders at once, the most are {MAX_ORDERS}")
        for order in orders.orders:
            if order.tier not in {Tier.DEVICE.value, Tier.RAM.value}:
                raise MalformedRequest(
                    f"order {order.number}: models are ordered to `device` or `ram`, not {order.tier[:32]!a}"
                )
        for order in sorted(orders.orders, key=lambda order: order.number):
            if order.number <= self.ordered:
                continue
            if len(self._orders) >= MAX_ORDERS:
                break
            self.ordered = order.number
            self._orders.append(_wanted(order))
            self._wanted += 1
        self._news.set()
        return self.ordered

    async def run(self) -> None:
        """Load the hot set, then what is ordered, for ever."""
        cache, found = self.cache, Found()
        try:
            found = await self.read()
        except Exception:  # a task's root: a pod without a hot set takes orders all the same
            log.exception("the hot set cannot be read")
        for ref in {copy.ref for copy in cache.ledger.copies()} | {*cache.ledger.books.needs}:
            cache.remembered.claim(ref)  # those that were there before their demand was known
        models = found.models if self.loads else ()
        if models:
            if not cache.loads:
                cache.ledger.preloads.builds_from_s = cache.clock() + GRACE_S
            log.info("hot set of %d models (%s): loading them behind requests", len(models), found.source)
        self._reading = False
        self._source = found.source
        self._keys = frozenset((one.name, one.version) for one in models)
        self._hot.extend(Wanted(one.name, one.version, Tier.DEVICE, "hot set", hot=True) for one in models)
        self._wanted += len(self._hot)
        while self.cores < SPARE_CORES and cache.clock() < cache.ledger.preloads.builds_from_s:  # noqa: ASYNC110 (see _next)
            await asyncio.sleep(PAUSE_S)
        await go_on("the wake-up", self._load)

    async def _load(self) -> None:
        ahead: deque[tuple[Wanted, asyncio.Task[ModelSpec | HearthError]]] = deque()
        try:
            while True:
                while len(ahead) < LOOK_UPS and (wanted := await self._next()) is not None:
                    ahead.append((wanted, asyncio.create_task(self._found(wanted), name=f"look up {wanted.name}")))
                if ahead:
                    wanted, looking = ahead[0]
                    await self._bring(wanted, await looking)
                    ahead.popleft()
                else:
                    self._news.clear()
                    await self._news.wait()
        finally:
            for wanted, looking in ahead:
                looking.cancel()
                self._over(wanted, "failed")

    async def _next(self) -> Wanted | None:
        """Orders first: they are younger than the hot set. None: there is nothing."""
        if not self._orders and not self._hot:
            return None
        while self.cache.waiting:  # noqa: ASYNC110 (who waits changes with every request: an event would ring too often)
            await asyncio.sleep(PAUSE_S)
        queue = self._orders or self._hot
        return queue.popleft() if queue else None  # the rest of the hot set may have been given up meanwhile

    async def _found(self, wanted: Wanted) -> ModelSpec | HearthError:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                return await self._served(wanted)
        except HearthError as error:
            return error
        except TimeoutError:
            return Unavailable(f"model {wanted.name} could not be looked up within {LOOK_UP_TIMEOUT_S:g} s")

    async def _served(self, wanted: Wanted) -> ModelSpec:
        """Which version of it is served now.

        The hot set is older than the pod. A version of it that is not the one served by default is meant where both are in
        it; else the one served now was published since, and takes over its demand.
        """
        spec = await self.catalogue.settled(wanted.name, None)
        served = spec.ref.version
        if wanted.version in {0, served}:
            return spec
        if wanted.hot and (wanted.name, served) not in self._keys:
            self.cache.remembered.claim(spec.ref, (wanted.name, wanted.version))
            return spec
        return await self.catalogue.settled(wanted.name, wanted.version)

    async def _bring(self, wanted: Wanted, found: ModelSpec | HearthError) -> None:
        while len(self.cache.wishes) >= QUEUED:
            self._news.clear()
            await self._news.wait()
        if 0 < wanted.until_s <= self.wall_clock():
            self._over(wanted, "skipped")
            return
        try:
            if isinstance(found, HearthError):
                raise found
            self.cache.preload(found, Wish(wanted.why, wanted.tier, partial(self._over, wanted)))
        except HearthError as error:
            if not wanted.hot or self._outcomes["failed"] < TOLD:
                name = ascii(wanted.name[:MAX_NAME_CHARS])[1:-1]  # it comes from outside: it may be long, or have line ends
                log.info("model %s is not loaded ahead of requests: %s", name, error.message[:500])
            self._over(wanted, "failed")

    def _over(self, wanted: Wanted, outcome: str) -> None:
        self._outcomes[outcome] += 1
        if wanted.hot:
            self._skips = self._skips + 1 if outcome == "skipped" else 0
            if self._skips >= ENOUGH:
                self._outcomes["skipped"] += len(self._hot)
                self._hot.clear()
        self._news.set()

    def _count(self, outcome: str) -> int:
        """One in RAM alone counts as loaded."""
        return self._outcomes[outcome] + (self._outcomes["ram"] if outcome == "loaded" else 0)


def _wanted(order: Order) -> Wanted:
    why = f"order {order.number}" + (f": {order.why[:200]}" if order.why else "")
    return Wanted(order.name, order.version, Tier(order.tier), why, order.until_s)
