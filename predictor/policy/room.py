"""How room is made in one place: who may be dropped, in which order, until a newcomer fits.

Part of the ledger, which decides when room is needed and for whom. Pure, as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Final

from predictor.model import ModelRef, Tier
from predictor.policy.books import Books
from predictor.policy.churn import Churn
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules, value, victims
from predictor.policy.residency import DISK, RAM, Action, Cause, Copy, Place, State

PRELOAD_MARGIN: Final = 2.0
"""A pre-load pushes out what is worth less than this part of it, and nothing else. Rates are estimates: two models that are
asked alike would otherwise take turns, each fetched for nothing."""


class Room:
    """Drops by value, within the operator's rules.

    waiting  models that somebody waits for; the ledger's own
    pins     names of models that stay
    churn    per place, whether models go round in circles
    wake_s   moment from which a copy that is spared now may be dropped; infinity: none is spared for a time
    """

    def __init__(self, books: Books, demand: Demand, rules: Rules, waiting: Collection[ModelRef]) -> None:
        self.books = books
        self.demand = demand
        self.rules = rules
        self.pins: set[str] = set()
        self.churn = {place: Churn(place) for place in books.budgets if place != DISK}
        self.wake_s = math.inf
        self._waiting = waiting

    def shrink(self, place: Place, now_s: float) -> list[Action]:
        """Drop what a place holds over its budget, as far as that can be: copies turned out larger than they were booked."""
        if self.books.used(place) + self.books.headroom(place) <= self.books.budgets[place]:
            return []
        candidates = self.candidates(place, None, now_s)
        actions = self.drop_until_fits(place, lambda: candidates, None, now_s)
        if actions is None:
            actions = [action for copy in candidates for action in self.books.drain(copy, self.cause(copy, "room", now_s))]
        return actions

    def make(self, place: Place, newcomer: ModelRef, now_s: float) -> list[Action]:
        """Have copies dropped, or drained if all are in use, until the newcomer fits or will fit."""
        if place.tier is Tier.DEVICE and self.books.needs[newcomer].domain in self.building(place):
            return []  # a worker builds one model at a time: room made now would only stand empty

        def droppable() -> list[Copy]:
            background = [copy for copy in self.books.filling(place) if copy.background]
            return [*background, *self.candidates(place, newcomer, now_s)]

        return self.drop_until_fits(place, droppable, newcomer, now_s) or []

    def building(self, *places: Place) -> set[str]:
        """Whose workers build a model that somebody waits for, on these devices or on any: domains."""
        return {
            self.books.needs[copy.ref].domain
            for place in places or self.books.devices
            for copy in self.books.filling(place)
            if not copy.background
        }

    def make_for_preload(self, place: Place, newcomer: ModelRef, now_s: float) -> list[Action] | None:
        """Have copies dropped that are worth much less, and that nobody uses. None: those would not do, and none goes.

        []: enough is on its way.
        """

        def colder() -> list[Copy]:
            worth = self.worth(newcomer, place, now_s)
            return [
                copy
                for copy in self.candidates(place, newcomer, now_s)
                if self.value(copy, now_s) * PRELOAD_MARGIN < worth and not self._is_spared(copy, now_s)
            ]

        return self.drop_until_fits(place, colder, newcomer, now_s)

    def make_for_spill(self, newcomer: ModelRef, load_s: float, now_s: float) -> list[Action] | None:
        """Have disk copies dropped that are worth less than the newcomer's, whose load took ``load_s``. None: not enough.

        []: enough is on its way.
        """

        def cheaper() -> list[Copy]:
            worth = value(self.demand.prospect(newcomer, now_s), load_s, self.books.needs[newcomer].disk_bytes)
            return [copy for copy in self.candidates(DISK, newcomer, now_s) if self.value(copy, now_s) < worth]

        return self.drop_until_fits(DISK, cheaper, newcomer, now_s)

    def worth(self, newcomer: ModelRef, place: Place, now_s: float) -> float:
        """The value of a copy that is not there yet. What its load takes is not known: as much a byte as the others' here."""
        size_bytes = self.books.needs[newcomer].size(place)
        paces = sorted(
            copy.load_s / copy.size_bytes for copy in self.books.here(place) if copy.state is State.READY and copy.size_bytes
        )
        load_s = paces[len(paces) // 2] * size_bytes if paces else 0.0
        return value(self.demand.prospect(newcomer, now_s), load_s, size_bytes)

    def _is_spared(self, copy: Copy, now_s: float) -> bool:
        """Whether a request uses it, or it has not stayed long enough; or one that goes with it."""
        going = [copy]
        if copy.place == RAM and self.books.needs[copy.ref].shares_ram:
            going += self.books.above(copy.ref)
        return any(self.rules.stays_until_s(one) > now_s or (one.place != RAM and one.holds > 0) for one in going)

    def drop_until_fits(
        self, place: Place, droppable: Callable[[], Collection[Copy]], newcomer: ModelRef | None, now_s: float
    ) -> list[Action] | None:
        """Drain some of the ``droppable``, least valuable first. None: not even all would do.

        []: enough is on its way, or one that is to go has not stayed long enough yet (``wake_s``).

        droppable  called only if something has to go: to put hundreds of copies in order takes a millisecond, and this is
                   asked again for everybody who waits whenever anything happens
        """
        staying = [copy for copy in self.books.here(place) if copy.state is not State.DRAINING]
        excess_bytes = sum(copy.size_bytes for copy in staying) - self.books.budgets[place]
        headroom_bytes = 0
        if newcomer is not None:
            need = self.books.needs[newcomer]
            headroom_bytes = need.headroom(place)
            excess_bytes += need.size(place, filling=True) if self.books.at(newcomer, place) is None else 0
        if excess_bytes + max([headroom_bytes, *(copy.headroom_bytes for copy in staying)]) <= 0:
            return []
        candidates = tuple(droppable())
        dropped = {id(copy) for copy in candidates}
        others = [copy.headroom_bytes for copy in staying if id(copy) not in dropped]
        chosen = victims(candidates, excess_bytes, max([headroom_bytes, *others]))
        if chosen is None:
            return None
        young = [self.rules.stays_until_s(copy) for copy in chosen if copy.state is State.READY and newcomer is not None]
        if young and max(young) > now_s:
            self.wake_s = min(self.wake_s, max(young))
            return []  # wait for the least valuable rather than take a dearer one
        actions: list[Action] = []
        for copy in chosen:
            cause = self.cause(copy, "room", now_s, newcomer)
            if copy.state is State.FILLING:
                actions += self.books.abort(copy, cause)
            else:
                actions += self.books.drain(copy, cause)
                if place in self.churn:
                    self.churn[place].pushed_out(copy.ref, now_s)
        return actions

    def candidates(self, place: Place, newcomer: ModelRef | None, now_s: float) -> list[Copy]:
        """The READY copies that may be dropped, least valuable first. Without a newcomer only pins spare a copy."""
        found: list[Copy] = []
        own = self.books.at(newcomer, place) if newcomer is not None else None
        for copy in self.books.here(place):
            if copy.state is not State.READY or copy is own or copy.ref.name in self.pins:
                continue
            if place == RAM and (copy.ref in self._waiting or self.books.is_read(copy)):
                continue  # draining it would not end by itself, or take it from who waits for it
            if place == DISK and copy.holds:
                continue
            found.append(copy)
        found.sort(key=lambda copy: self.value(copy, now_s))
        if newcomer is None or place == DISK or not self.rules.floors:
            return found
        return self._outside_floors(place, found, self.books.needs[newcomer].tenant)

    def _outside_floors(self, place: Place, candidates: list[Copy], newcomer: str) -> list[Copy]:
        """Without the most valuable copies of every other tenant that fit into its floor, headroom included.

        So what floors keep from a newcomer is never more than the floors, however large a tenant's models are.
        """
        kept: set[int] = set()
        sizes: dict[str, tuple[int, int]] = {}
        for copy in reversed(candidates):
            tenant = self.books.needs[copy.ref].tenant
            size_bytes, headroom_bytes = sizes.get(tenant, (0, 0))
            size_bytes += copy.size_bytes
            headroom_bytes = max(headroom_bytes, copy.headroom_bytes)
            if tenant != newcomer and size_bytes + headroom_bytes <= self.rules.floor_bytes(tenant, self.books.budgets[place]):
                sizes[tenant] = (size_bytes, headroom_bytes)
                kept.add(id(copy))
        return [copy for copy in candidates if id(copy) not in kept]

    def expires_s(self, copy: Copy) -> float:
        """Moment at which the copy's time to live runs out; infinity: as things are it does not."""
        if copy.state is not State.READY or copy.holds or copy.place == DISK:
            return math.inf
        if copy.ref in self._waiting or copy.ref.name in self.pins:
            return math.inf
        return max(other.used_s for other in self.books.of(copy.ref)) + self.rules.idle_ttl_s

    def value(self, copy: Copy, now_s: float) -> float:
        """What the copy is worth: eviction.value."""
        return value(self.demand.prospect(copy.ref, now_s), copy.load_s, copy.size_bytes)

    def cause(self, copy: Copy, kind: str, now_s: float, newcomer: ModelRef | None = None) -> Cause:
        """Why the copy goes, with the numbers of this moment."""
        newcomer_rate = self.demand.rate(newcomer, now_s) if newcomer else 0.0
        return Cause(kind, self.value(copy, now_s), self.demand.rate(copy.ref, now_s), newcomer, newcomer_rate)
