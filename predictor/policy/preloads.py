"""Loads that nobody waits for: the hot set of a pod coming up, a controller's orders, loads whose clients gave up.

Part of the ledger, which calls ``pump`` only while nobody waits. Pure, as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Final

from predictor.model import ModelRef, Tier
from predictor.policy.books import Books
from predictor.policy.residency import DISK, RAM, Action, Place, Skip, State
from predictor.policy.room import Room

FETCHES: Final = 2
"""At once into RAM: one more than the network needs, so that it never stands still; more would delay the most wanted."""

BUILDS: Final = 1
"""At once in each worker: it builds one model at a time, and a request that comes meanwhile waits for it."""

WORKERS: Final = 2
"""That build at once on each device: one more than the processor needs, so that a build that hangs does not stop the others.
Where every model has a worker of its own, a hot set would otherwise be built all at once, at the expense of requests."""


class Preloads:
    """The queue, in the order asked for.

    builds_from_s  moment from which models are built on devices; until then they come as far as RAM
    wake_s         moment at which ``pump`` has more to do though nothing happens; infinity: none. Who pumps resets it
    """

    def __init__(self, books: Books, room: Room, start: Callable[[ModelRef, Place], Action]) -> None:
        self.builds_from_s = -math.inf
        self.wake_s = math.inf
        self._books = books
        self._room = room
        self._start = start
        self._wanted: dict[ModelRef, Tier] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, ref: ModelRef) -> bool:
        return ref in self._wanted

    def add(self, ref: ModelRef, tier: Tier = Tier.DEVICE) -> None:
        """Want it at ``tier``, RAM or device; of two wishes the further one counts, at the place in the queue of the first."""
        if not self._closed and self._wanted.get(ref) is not Tier.DEVICE:
            self._wanted[ref] = tier

    def discard(self, ref: ModelRef) -> None:
        """Nobody wants it ahead of requests any more."""
        self._wanted.pop(ref, None)

    def close(self) -> None:
        """Want nothing any more: the pod ends. What is on its way goes no further than it has begun to."""
        self._closed = True
        self._wanted.clear()

    def pump(self, now_s: float) -> list[Action]:
        """Begin what can begin, and make room where that costs what is worth less. Who waits for room claims its place."""
        actions: list[Action] = []
        places = (*self._books.devices, RAM)
        closed: set[Place] = set()
        under_way = Counter[Place]()
        workers = Counter[tuple[Place, str]]()
        for copy in (copy for place in places for copy in self._books.filling(place)):
            if copy.background:
                under_way[copy.place] += 1
                workers[copy.place, self._domain(copy.ref)] += 1
        for ref in tuple(self._wanted):
            closed.update(place for place in places if under_way[place] >= (FETCHES if place == RAM else WORKERS))
            if len(closed) == len(places):
                break
            target = self._target(ref)
            if target is None:
                continue
            if target.tier is Tier.DEVICE and now_s < self.builds_from_s:
                self.wake_s = self.builds_from_s
            elif target not in closed and (target == RAM or workers[target, self._domain(ref)] < BUILDS):
                actions += self._step(ref, target, closed, now_s)
                begun = self._books.at(ref, target) is not None
                under_way[target] += begun
                workers[target, self._domain(ref)] += begun
        return actions

    def _domain(self, ref: ModelRef) -> str:
        return self._books.needs[ref].domain

    def _target(self, ref: ModelRef) -> Place | None:
        """Where it goes next; None: it is on its way, or there, and then wanted no more."""
        present = [copy for copy in self._books.of(ref) if copy.place != DISK]
        if any(copy.state is not State.READY for copy in present):
            return None
        if any(copy.place != RAM for copy in present) or (present and self._wanted[ref] is Tier.RAM):
            del self._wanted[ref]
            return None
        return min(self._books.devices, key=lambda place: self._books.missing(ref, place)) if present else RAM

    def _step(self, ref: ModelRef, target: Place, closed: set[Place], now_s: float) -> list[Action]:
        if self._books.missing(ref, target) <= 0:
            return [self._start(ref, target)]
        actions = self._room.make_for_preload(target, ref, now_s)
        if actions is None:
            del self._wanted[ref]
            return [Skip(ref, target)]
        closed.add(target)  # or a smaller one behind it would take the room that was made
        return actions
