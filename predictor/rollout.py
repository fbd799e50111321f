"""From a declared name to the place that answers now: the new one once it is loaded, the old one until then.

A declaration has a target, and beside it a stable place while the target has not proven itself. A pod that serves the stable
place loads the target behind its requests, and moves them when that is done; a pod without either tries the target first and
falls back. What fails is tried again with growing pauses, and never taken from the stable place. Below 100 percent the two
share the requests for as long as they are declared so. Names that nobody declared are the repository's.

What stays out: what lies at a place (catalogue.py), loading it (cache.py), where declarations come from (declarations.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from predictor import declared
from predictor.cache import Cache
from predictor.catalogue import Catalogue
from predictor.declared import Declared, Location
from predictor.errors import HearthError, InvalidModel, UnknownModel
from predictor.model import ModelRef, ModelSpec
from predictor.policy.residency import DISK, State
from predictor.report import DeclaredReport, LocationReport
from predictor.repository import Source
from predictor.routes import Route, Side
from predictor.tiers.store import Buckets

log = logging.getLogger(__name__)

SCOPE_TIMEOUT_S: Final = 15.0
"""How long a request waits for credentials that are on their way: a model's declaration may come before them."""

RETIRE_S: Final = 1.0
"""How often a withdrawn model whose load is still on its way is looked at."""

WHOLE: Final = 100
"""Percent."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Rollout:
    """Knows every name, declared or in the repository; keeps api's ModelCatalogue. Belongs to one event loop.

    namespace    of the models
    trusts_code  whether they may bring Python code
    timeout_s    how long a target may take to come up
    clock        monotonic seconds
    wall_clock   seconds since the epoch, for what people read
    chance       a number below 1, evenly spread
    """

    catalogue: Catalogue
    cache: Cache
    stores: Buckets
    namespace: str
    trusts_code: bool
    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random  # noqa: S311 (a share, no secret)
    _declared: dict[str, Declared] = field(default_factory=dict)
    _routes: dict[str, Route] = field(default_factory=dict)
    _scopes_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    # ---- questions -------------------------------------------------------------------------------------------

    def known(self, name: str, version: int | None) -> ModelSpec | None:
        """What answers a request now, if that was looked up before; None: it has to be resolved."""
        route = self._route(name)
        if route is None:
            return self.catalogue.known(name, version)
        if route.stable is None:
            return self.catalogue.known(route.target.key, version)
        if version is not None:
            return self.catalogue.known(route.target.key, version) or self.catalogue.known(route.stable.key, version)
        side = self._choose(route)
        return self.catalogue.known(side.key, None) if side is not None else None

    async def resolve(self, name: str, version: int | None) -> ModelSpec:
        """What answers a request, looked up; where a target has to prove itself first, loaded.

        Raises as Catalogue.resolve does.
        """
        route = self._route(name)
        if route is None:
            return await self.catalogue.resolve(name, version)
        if route.stable is None:
            return await self._resolved(route.target, version)
        if version is not None:
            try:
                return await self._resolved(route.target, version)
            except UnknownModel:
                return await self._resolved(route.stable, version)
        side = self._choose(route)
        if side is None:
            # Shielded: who gives up leaves alone, and the target goes on coming up for the others.
            failure = await asyncio.shield(self._bring_up(route))
            side = route.stable if failure is not None else route.target
        return await self._resolved(side, None)

    async def settled(self, name: str, version: int | None) -> ModelSpec:
        """What would answer a request now, looked up; a target that has not proven itself is not brought up for that.

        Raises as Catalogue.resolve does.
        """
        route = self._route(name)
        if route is None or route.stable is None or version is not None:
            return await self.resolve(name, version)
        return await self._resolved(route.target if route.target.proven else route.stable, None)

    def forget(self, name: str) -> None:
        """Its objects are not what was listed any more: the next look-up reads a new listing."""
        route = self._route(name)
        for key in [side.key for side in route.sides] if route is not None else [name]:
            self.catalogue.forget(key)

    async def names(self) -> tuple[str, ...]:
        """Every model that can be asked for."""
        found = await self.catalogue.names()
        return tuple(sorted({*found, *self._declared})) if self._declared else found

    def report(self) -> tuple[DeclaredReport, ...]:
        """How the declared models fare that were asked for in this pod."""
        reports = []
        for route in self._routes.values():
            told = tuple(report for side in route.sides if (report := self._side_report(side)) is not None)
            if told:
                reports.append(DeclaredReport(route.name, told))
        return tuple(reports)

    # ---- what is declared ------------------------------------------------------------------------------------

    def declare(self, changes: Mapping[str, Declared | None]) -> None:
        """Go by these from now on. None: the model is not declared any more, and leaves."""
        for name, entry in changes.items():
            before = self._declared.pop(name, None)
            if entry is not None:
                self._declared[name] = entry
            route = self._routes.pop(name, None)
            if route is not None and entry is not None and before is not None:
                self._move(route, entry, anew=(entry.tenant, entry.priority) != (before.tenant, before.priority))
            elif route is not None:
                self._end(route, keep=())

    def declare_scopes(self, scopes: Mapping[str, Mapping[str, str]]) -> None:
        """Take these for the credentials of all scopes. Models that use one that changed are listed anew."""
        changed = self.stores.declare(scopes)
        for route in self._routes.values():
            for side in route.sides:
                if side.location.scope in changed:
                    side.placed = False
                    self.catalogue.forget(side.key)
        self._scopes_changed.set()
        self._scopes_changed = asyncio.Event()

    async def close(self) -> None:
        """Stop everything that runs."""
        for route in self._routes.values():
            if route.again is not None:
                route.again.cancel()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- routes ----------------------------------------------------------------------------------------------

    def _route(self, name: str) -> Route | None:
        """Made when it is first asked for: a pod may have 10,000 models declared, and serve 20."""
        route = self._routes.get(name)
        if route is None and name in self._declared:
            entry = self._declared[name]
            stable = self._side(name, entry.stable) if entry.stable is not None else None
            route = self._routes[name] = Route(name, self._side(name, entry.target), stable, entry.percent)
        return route

    def _side(self, name: str, location: Location) -> Side:
        return Side(f"{name}\n{location.number}", location)

    def _move(self, route: Route, entry: Declared, *, anew: bool) -> None:
        """Replace a route by one for ``entry``, with what is known of places that both have.

        anew  what the places' specs say has changed, too
        """
        known = {side.location: side for side in route.sides}
        target = known.get(entry.target) or self._side(route.name, entry.target)
        stable = None
        if entry.stable is not None:
            stable = known.get(entry.stable) or self._side(route.name, entry.stable)
        moved = Route(route.name, target, stable, entry.percent)
        self._end(route, keep=moved.sides)
        self._routes[route.name] = moved
        if anew:
            for side in moved.sides:
                side.placed = False
                self.catalogue.forget(side.key)
        if stable is not None and not target.proven and self._is_resident(stable):
            self._bring_up(moved)

    def _end(self, route: Route, *, keep: Collection[Side]) -> None:
        """Let the places go that nothing leads to any more; requests that use them finish."""
        if route.again is not None:
            route.again.cancel()
        for side in route.sides:
            if side in keep:
                continue
            if side.loading is not None:
                side.loading.cancel()
            for spec in self.catalogue.withdraw(side.key):
                self._spawn(self._retire(spec.ref), f"retire {route.name}")

    async def _retire(self, ref: ModelRef) -> None:
        """Drop its copies; one that is on its way, when it has come: a transfer that began for a request is not stopped."""
        deadline_s = self.clock() + self.timeout_s
        books = self.cache.ledger.books
        while copies := [copy for copy in books.of(ref) if copy.place != DISK]:
            if self._leads_to(ref) or self.clock() > deadline_s:
                return
            self.cache.retire(ref)
            if all(copy.state is State.DRAINING for copy in copies):
                return
            await asyncio.sleep(RETIRE_S)

    def _leads_to(self, ref: ModelRef) -> bool:
        """Whether it was declared again meanwhile."""
        route = self._routes.get(ref.name)
        return route is not None and any(spec.ref == ref for side in route.sides for spec in self.catalogue.specs(side.key))

    def _choose(self, route: Route) -> Side | None:
        """Whose turn it is; None: a target has to prove itself, and nothing else is at hand."""
        target, stable = route.target, route.stable
        assert stable is not None, f"{route.name} has no choice"
        if target.proven:
            if route.percent == WHOLE or self.chance() * WHOLE < route.percent:
                return target
            return stable
        failing = target.pause_s(self.clock()) > 0
        if not failing and self._is_resident(stable):
            self._bring_up(route)
            return stable
        return stable if failing else None

    def _is_resident(self, side: Side) -> bool:
        books = self.cache.ledger.books
        return any(books.ready(spec.ref) is not None for spec in self.catalogue.specs(side.key))

    # ---- places ----------------------------------------------------------------------------------------------

    async def _resolved(self, side: Side, version: int | None) -> ModelSpec:
        try:
            await self._place(side)
            spec = await self.catalogue.resolve(side.key, version)
        except HearthError as error:
            if version is None:
                self._failed(side, error)
            raise
        if not side.tries:  # what loads of it come to is another question
            side.failure = None
        return spec

    async def _place(self, side: Side) -> None:
        """Tell the catalogue of a place, once its credentials are here."""
        if side.placed:
            return
        location = side.location
        if not self.stores.knows(location.scope):
            try:
                async with asyncio.timeout(SCOPE_TIMEOUT_S):
                    while not self.stores.knows(location.scope):
                        await self._scopes_changed.wait()
            except TimeoutError:
                pass  # what asks the store says what is missing
        try:
            bucket, key = declared.bucket_and_key(location.uri)
        except ValueError as error:
            raise InvalidModel(f"{error}: correct the storageUri of its InferenceService") from None
        store = self.stores.at(bucket, location.scope)
        name = side.key.partition("\n")[0]
        entry = self._declared.get(name)
        source = Source(
            self.namespace,
            store.origin,
            bucket,
            "",
            self.trusts_code,
            scope=location.scope,
            key=key,
            number=location.number,
            format=location.format,
            tenant=entry.tenant if entry is not None else "",
            priority=entry.priority if entry is not None else "",
        )
        if not side.placed:
            self.catalogue.declare(side.key, store, source)
            side.placed = True

    def _bring_up(self, route: Route) -> asyncio.Task[HearthError | None]:
        """Load the target, if nobody does already. The task's result: why that failed; None: it did not."""
        side = route.target
        if side.loading is None:
            side.loading = self._spawn(self._load(route, side), f"bring up {route.name}")
        return side.loading

    async def _load(self, route: Route, side: Side) -> HearthError | None:
        failure: HearthError | None = None
        try:
            spec = await self._resolved(side, None)
            lease = await self.cache.lease(spec, deadline_s=asyncio.get_running_loop().time() + self.timeout_s)
            lease.release()
        except HearthError as error:
            failure = error
        finally:
            side.loading = None
        if failure is None:
            side.proven, side.failure, side.tries = True, None, 0
            log.info(
                "model %s: number %d is loaded, %d %% of its requests go there", route.name, side.location.number, route.percent
            )
            return None
        self._failed(side, failure)
        side.tries += 1
        pause_s = side.pause_s(self.clock())
        log.warning(
            "model %s: number %d cannot be served, the one before it stays; next try in %.0f s: %s",
            route.name,
            side.location.number,
            pause_s,
            failure,
        )
        current = self._routes.get(route.name)
        if current is not None and current.target is side:  # else it was declared anew meanwhile
            if current.again is not None:
                current.again.cancel()
            current.again = asyncio.get_running_loop().call_later(pause_s, self._try_again, current)
        return failure

    def _try_again(self, route: Route) -> None:
        """Without a request, too: whoever repaired the model wants to see that."""
        if route.stable is not None and self._is_resident(route.stable):
            self._bring_up(route)

    def _failed(self, side: Side, error: HearthError) -> None:
        side.failure = type(error)(error.message, retry_after_s=error.retry_after_s)
        side.failed_s, side.at_s = self.clock(), self.wall_clock()

    def _side_report(self, side: Side) -> LocationReport | None:
        """None: it stands by."""
        books = self.cache.ledger.books
        specs = self.catalogue.specs(side.key)
        newest = max(specs, key=lambda spec: spec.ref.version, default=None)
        version = newest.ref.version if newest is not None else 0
        number = side.location.number
        if any(books.ready(spec.ref) is not None for spec in specs):
            return LocationReport(number, "loaded", version, proven=True)
        failure = side.failure
        if failure is None and newest is not None:
            failure = self.cache.history(newest.ref).failure
        filling = any(copy.state is State.FILLING for spec in specs for copy in books.of(spec.ref) if copy.place.device >= -1)
        if side.loading is not None or filling:
            return LocationReport(number, "loading", version, proven=side.proven)
        if failure is not None:
            permanent = not failure.retryable
            return LocationReport(number, "failed", version, failure.message, permanent, side.at_s or self.wall_clock())
        return LocationReport(number, "standby", version, proven=True) if side.proven else None

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
