"""The books: which model is where, what it takes, who uses it, who waits. Decides everything, moves nothing.

The whole idea of Hearth's cache is in this file. Every method is one event of the outside world and returns the
Plan: what is to be done about it, as plain data. ``cache.py`` carries Plans out and reports back with the next event.

    wait ──▶ Start(ram) ··· finished ──▶ Start(device) ··· finished ──▶ Grant ··· release
                │  └─ no room: Drop ··· dropped ─┘    └▶ Start(disk), behind everybody's back
                └─ from disk, else from the model store

Rules, each of them a property in tests/policy:

1.  Bytes are reserved when a transfer is decided and count until their tier confirms that they are free: no place ever
    holds more than its budget. On a device the largest computation counts, too: one runs at a time. A model that turns
    out larger than it was booked makes its place drop others until the books are right again.
2.  What is held is never dropped: a device copy while a request uses it, a RAM copy while a transfer reads it or a
    device copy shares its bytes, a disk copy while it is read.
3.  Every waiter is answered once: granted, refused, or it left.
4.  One transfer per copy, shared by all who wait for it.
5.  Nothing is dropped while there is room (unless it has a time to live), and then the least valuable first. Pins,
    minimum residency and tenants' floors spare a copy: they can delay a newcomer, and refuse none that fits beside them.
6.  Whoever has waited longest is served first at each place, of those whose workers can begin. If only copies in use stand
    in its way, those drain: they take no new requests until they are dropped. So nobody waits for ever beside a model that
    is never idle.
7.  A pre-load begins only while nobody waits, and gives its room back to whoever needs it. It takes free room, or that of
    what is worth less than half of it; never of what is pinned, in use, or has not stayed its least time.
8.  What came from the model store goes to disk afterwards, if it is worth more than what it would push out there. That
    never delays anybody: it is stopped when its RAM copy's room is needed.

There can be no deadlock: a model goes RAM → device, what it needs next is held only by computations and transfers,
which end, and the RAM copy of a model that waits for its device is not taken away for another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

from predictor.model import ModelRef, Tier
from predictor.policy.books import Books
from predictor.policy.churn import Churn
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.preloads import Preloads
from predictor.policy.residency import (
    DISK,
    RAM,
    Action,
    Copy,
    Drop,
    Footprint,
    Grant,
    Place,
    Plan,
    Refuse,
    Skip,
    Start,
    State,
)
from predictor.policy.room import Room


class Ledger:
    """Bytes used, reserved and held per place; the queue of those who wait.

    books    every copy; to be read by anybody
    budgets  bytes per place: RAM, at least one device, and the disk if there is one
    demand   request rates, which the ledger notes requests in and values copies by
    preloads the queue of those that nobody waits for
    wake_s   moment from which ``tick`` has something to do though nothing else happens; infinity: none
    rooms    how room is made; a simulation compares it with others
    """

    rooms: ClassVar[type[Room]] = Room

    def __init__(self, budgets: Mapping[Place, int], demand: Demand, rules: Rules | None = None) -> None:
        assert RAM in budgets, f"no RAM budget among {list(budgets)}"
        self.books = Books(budgets)
        assert self.books.devices, "no device"
        self.demand = demand
        self.rules = rules or Rules()
        self.wake_s = math.inf
        self._waiting: dict[ModelRef, list[int]] = {}  # in order of the first waiter's arrival
        self._room = self.rooms(self.books, demand, self.rules, self._waiting)
        self.preloads = Preloads(self.books, self._room, partial(self._start, background=True))
        self._spills: dict[ModelRef, None] = {}  # to be written to disk
        self._ticket = 0

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def pins(self) -> frozenset[str]:
        """Names of models whose copies are never dropped for others."""
        return frozenset(self._room.pins)

    @property
    def churn(self) -> Mapping[Place, Churn]:
        """Per place, whether models go round in circles."""
        return self._room.churn

    @property
    def budgets(self) -> Mapping[Place, int]:
        """Bytes per place."""
        return self.books.budgets

    def used_bytes(self, place: Place) -> int:
        """Bytes of all copies at ``place``, whatever their state."""
        return self.books.used(place)

    def copies(self) -> Iterable[Copy]:
        """Every line of the books; not to be changed."""
        return self.books.all()

    def knows(self, ref: ModelRef) -> bool:
        """Whether the model has a copy anywhere, or somebody waits for one."""
        return ref in self.books.needs

    def is_awaited(self, ref: ModelRef) -> bool:
        """Whether a request waits for the model."""
        return ref in self._waiting

    def is_background(self, ref: ModelRef, place: Place) -> bool:
        """Whether the transfer into ``place`` serves nobody who waits."""
        copy = self.books.at(ref, place)
        return copy is not None and copy.background

    def too_large(self, need: Footprint) -> tuple[Place, int, int] | None:
        """The place that could not hold the model even if it held nothing else: what can be had there, and its budget.

        None: it fits. Other tenants' floors cannot be had. Pins can: an operator may take them back.
        """
        for place in (RAM, max(self.books.devices, key=self.budgets.__getitem__)):
            available_bytes = self.budgets[place] - self.rules.kept_for_others_bytes(need.tenant, self.budgets[place])
            if need.size(place, filling=True) + need.headroom(place) > available_bytes:
                return place, available_bytes, self.budgets[place]
        return None

    # ---- requests --------------------------------------------------------------------------------------------

    def hit(self, ref: ModelRef, now_s: float, times: int = 1) -> Place | None:
        """Lease a copy that is ready, for one request or so many. None: none is, nothing was noted; ask again with ``wait``."""
        copy = self.books.ready(ref)
        if copy is None:
            return None
        copy.holds += 1
        copy.used_s = now_s
        self.demand.note(ref, now_s, times)
        return copy.place

    def wait(self, ref: ModelRef, need: Footprint, now_s: float) -> tuple[int, Plan]:
        """Queue for a lease. Returns the ticket that a Grant or Refuse will name, and what to do now.

        A need larger than a resident model was booked with, for a larger request, makes its device hold that much free.
        """
        assert self.too_large(need) is None, f"{ref} needs {need}, budgets {self.budgets}"
        self._ticket += 1
        self.demand.note(ref, now_s)
        self._enter(ref, need)
        self.preloads.discard(ref)
        self._waiting.setdefault(ref, []).append(self._ticket)
        for copy in self.books.of(ref):
            copy.background = copy.background and (copy.state is State.DRAINING or copy.place == DISK)
        return self._ticket, tuple(self._pump(now_s))

    def leave(self, ticket: int, ref: ModelRef, now_s: float) -> Plan:
        """The waiter gave up. A load under way goes on, as a pre-load: clients that give up ask again."""
        queue = self._waiting.get(ref, [])
        assert ticket in queue, f"ticket {ticket} does not wait for {ref}: {queue}"
        queue.remove(ticket)
        if not queue:
            del self._waiting[ref]
            if self.books.of(ref) and self.books.ready(ref) is None:
                self.preloads.add(ref)
            self._tidy(ref)
        return tuple(self._pump(now_s))

    def release(self, ref: ModelRef, place: Place, now_s: float) -> Plan:
        """A lease ended. Nobody can be served by that alone: what a waiter needs is drained already, or being filled."""
        copy = self.books.at(ref, place)
        assert copy is not None, f"released without a copy: {ref} at {place}"
        copy.used_s = now_s
        return tuple(self.books.unhold(copy))

    def preload(self, ref: ModelRef, need: Footprint, now_s: float, tier: Tier = Tier.DEVICE) -> Plan:
        """Bring the model to ``tier``, RAM or a device, if that costs nobody what is worth more; else as far as it does."""
        if ref in self._waiting or self.books.ready(ref) or self.too_large(need):
            return ()
        self._enter(ref, need)
        self.preloads.add(ref, tier)
        return tuple(self._pump(now_s))

    def unload(self, ref: ModelRef, now_s: float) -> Plan:
        """Drop the copies in RAM and on devices as soon as nobody uses them. Who asks meanwhile loads it again afterwards."""
        self.preloads.discard(ref)
        actions: list[Action] = []
        for place in (*self.books.devices, RAM):
            copy = self.books.at(ref, place)
            if copy is None:
                continue
            if copy.state is State.FILLING and copy.background:
                actions += self.books.abort(copy, self._room.cause(copy, "order", now_s))
            elif copy.state is State.READY and not self.books.is_read(copy):
                actions += self.books.drain(copy, self._room.cause(copy, "order", now_s))
        self._tidy(ref)
        return (*actions, *self._pump(now_s))

    def pin(self, name: str) -> None:
        """Drop no copy of the model for another one from now on."""
        self._room.pins.add(name)

    def unpin(self, name: str, now_s: float) -> Plan:
        """Undo ``pin``."""
        self._room.pins.discard(name)
        return tuple(self._pump(now_s))

    # ---- what the tiers report -------------------------------------------------------------------------------

    def adopt(self, ref: ModelRef, size_bytes: int, now_s: float) -> Plan:
        """A whole copy was found on disk at the start. Those that are over the budget, the first ones found, go again."""
        self.books.adopt(ref, DISK, size_bytes)
        return tuple(self._room.shrink(DISK, now_s))

    def finished(self, ref: ModelRef, place: Place, seconds: float, now_s: float) -> Plan:
        """The transfer into ``place`` succeeded after ``seconds``."""
        copy = self.books.at(ref, place)
        assert copy is not None, f"finished without a copy: {ref} at {place}"
        actions: list[Action] = []
        if place == RAM and copy.source is None and DISK in self.budgets:
            self._spills[ref] = None
        if place.tier is not Tier.DEVICE or not self.books.needs[ref].shares_ram:
            actions += self.books.let_go_of_source(copy)
        if copy.state is State.DRAINING:  # an abort that came too late
            actions.append(Drop(ref, place, copy.cause))
        else:
            self.books.publish(copy, seconds, now_s)
            if place in self.churn:
                self.churn[place].loaded(ref, seconds, now_s)
            if place.tier is Tier.DEVICE and ref in self._waiting:
                actions += self._serve(ref, set(), now_s)
        return (*actions, *self._pump(now_s))

    def failed(self, ref: ModelRef, place: Place, now_s: float) -> Plan:
        """The transfer into ``place`` failed or was aborted: the bytes are free, whoever waited is refused."""
        copy = self.books.at(ref, place)
        assert copy is not None, f"failed without a copy: {ref} at {place}"
        aborted = copy.state is State.DRAINING
        actions = self.books.forget(copy)
        if not aborted and place != DISK:
            self.preloads.discard(ref)
            actions += [Refuse(ticket, ref) for ticket in self._waiting.pop(ref, ())]
        self._tidy(ref)
        return (*actions, *self._pump(now_s))

    def measured(self, ref: ModelRef, need: Footprint, now_s: float) -> Plan:
        """What a resident model really takes. Its device drops others where it is more than was booked."""
        self.books.resize(ref, need)
        return tuple(self._pump(now_s))

    def damaged(self, ref: ModelRef, now_s: float) -> Plan:
        """The disk copy cannot be read: it goes, and the transfer that read it goes on from the model store."""
        copy, reader = self.books.at(ref, DISK), self.books.at(ref, RAM)
        assert copy is not None, f"no disk copy of {ref}"
        assert reader is not None, f"nothing reads the disk copy of {ref}"
        self.books.drain(copy, self._room.cause(copy, "damaged", now_s))
        return tuple(self.books.let_go_of_source(reader))

    def dropped(self, ref: ModelRef, place: Place, now_s: float) -> Plan:
        """The bytes of a copy that was to be dropped are free."""
        copy = self.books.at(ref, place)
        assert copy is not None, f"dropped without a copy: {ref} at {place}"
        assert copy.state is State.DRAINING, f"dropped unasked: {copy}"
        assert copy.holds == 0, f"dropped in use: {copy}"
        actions = self.books.forget(copy)
        self._tidy(ref)
        return (*actions, *self._pump(now_s))

    def lost(self, place: Place, refs: Iterable[ModelRef], now_s: float, *, kind: str = "lost") -> Plan:
        """A worker of the device died and ready copies of ``refs`` with it. Those in use go as their requests fail."""
        actions: list[Action] = []
        for copy in [copy for ref in refs if (copy := self.books.at(ref, place))]:
            if copy.state is State.READY:
                actions += self.books.drain(copy, self._room.cause(copy, kind, now_s))
        return (*actions, *self._pump(now_s))

    def tick(self, now_s: float) -> Plan:
        """Time went by: copies may have outlived their minimum residency, or their time to live."""
        actions: list[Action] = []
        for place in (*self.books.devices, RAM) if self.rules.idle_ttl_s < math.inf else ():
            for copy in tuple(self.books.here(place)):
                if self._room.expires_s(copy) <= now_s:
                    actions += self.books.drain(copy, self._room.cause(copy, "idle", now_s))
        return (*actions, *self._pump(now_s))

    # ---- decisions -------------------------------------------------------------------------------------------

    def _pump(self, now_s: float) -> list[Action]:
        """Serve whoever can be served, longest waiting first; then pre-loads, if nobody waits; then the disk."""
        self._room.wake_s = self.preloads.wake_s = math.inf
        actions: list[Action] = []
        for place in self.books.devices:
            actions += self._room.shrink(place, now_s)
        if self._waiting:
            blocked: set[Place] = set()
            for ref in self._in_turn():
                if len(blocked) > len(self.books.devices):
                    break
                actions += self._serve(ref, blocked, now_s)
        elif self.preloads:
            begun = self.preloads.pump(now_s)
            for ref in [action.ref for action in begun if isinstance(action, Skip)]:
                self._tidy(ref)
            actions += begun
        if self._spills:
            actions += self._pump_spills(now_s)
        self.wake_s = min(self._room.wake_s, self.preloads.wake_s)
        if self.rules.idle_ttl_s < math.inf:
            self.wake_s = min([self.wake_s, *map(self._room.expires_s, self.books.all())])
        return actions

    def _in_turn(self) -> list[ModelRef]:
        """Who waits longest first; but whose worker builds another model cannot come to a device yet, and stands back."""
        building = self._room.building()
        if not building or all(self.books.needs[ref].domain in building for ref in self._waiting):
            return list(self._waiting)

        def is_stalled(ref: ModelRef) -> bool:
            source = self.books.at(ref, RAM)
            return source is not None and source.state is State.READY and self.books.needs[ref].domain in building

        return sorted(self._waiting, key=is_stalled)

    def _serve(self, ref: ModelRef, blocked: set[Place], now_s: float) -> list[Action]:
        """One step for those who wait for ``ref``. A place in ``blocked`` is claimed by somebody who waits longer."""
        if ready := self.books.ready(ref):
            if self.books.missing(ref, ready.place) > 0:  # a larger computation than there is room for
                blocked.add(ready.place)
                return self._room.make(ready.place, ref, now_s)
            tickets = self._waiting.pop(ref)
            ready.holds += len(tickets)
            ready.used_s = now_s
            return [Grant(ticket, ref, ready.place) for ticket in tickets]
        source = self.books.at(ref, RAM)
        if self.books.above(ref) or (source is not None and source.state is not State.READY):
            return []  # on its way in or out: finished, failed or dropped will bring us back
        target = RAM if source is None else self._choose_device(ref, blocked, now_s)
        if target is None or target in blocked:
            return []
        if self.books.missing(ref, target) <= 0:
            return [self._start(ref, target, background=False)]
        blocked.add(target)
        return self._room.make(target, ref, now_s)

    def _start(self, ref: ModelRef, target: Place, *, background: bool) -> Start:
        source = RAM if target != RAM else None
        if target == RAM and (kept := self.books.at(ref, DISK)) and kept.state is State.READY:
            source = DISK
        return self.books.start(ref, target, source, background=background)

    def _pump_spills(self, now_s: float) -> list[Action]:
        """Write to disk what came from the model store, one at a time; never push out what is worth more."""
        actions: list[Action] = []
        for ref in tuple(self._spills):
            if self.books.filling(DISK):
                break
            source, present = self.books.at(ref, RAM), self.books.at(ref, DISK)
            if source is None or source.state is not State.READY or (present and present.state is State.READY):
                del self._spills[ref]
            elif present is None and self.books.missing(ref, DISK) <= 0:
                del self._spills[ref]
                actions.append(self._start(ref, DISK, background=True))
            elif present is None:
                room = self._room.make_for_spill(ref, source.load_s, now_s)
                if room is None:
                    del self._spills[ref]
                actions += room or ()
        return actions

    def _choose_device(self, ref: ModelRef, blocked: set[Place], now_s: float) -> Place | None:
        """Where there is room; otherwise where the least value is in the way; None: every fitting device is claimed."""
        need = self.books.needs[ref]
        fitting = [
            place
            for place in self.books.devices
            if place not in blocked and self.budgets[place] >= need.size(place, filling=True) + need.activation_bytes
        ]
        if len(fitting) <= 1:
            return fitting[0] if fitting else None

        def cost(place: Place) -> tuple[float, int]:
            missing_bytes = self.books.missing(ref, place)
            if missing_bytes <= 0:
                return (-1.0, missing_bytes)
            here = self.books.here(place)
            return (sum(self._room.value(copy, now_s) * copy.size_bytes for copy in here), missing_bytes)

        return min(fitting, key=cost)

    # ---- book-keeping ----------------------------------------------------------------------------------------

    def _enter(self, ref: ModelRef, need: Footprint) -> None:
        """Note what a model needs. Copies on devices are booked with what is known now, as much as it is."""
        known = self.books.needs.get(ref)
        if known is None or not (ref in self._waiting or self.books.above(ref)):
            self.books.needs[ref] = need
        elif need.activation_bytes > known.activation_bytes:
            self.books.resize(ref, replace(known, activation_bytes=need.activation_bytes))

    def _tidy(self, ref: ModelRef) -> None:
        """Forget what a model needs once nothing of it is left but a copy on disk."""
        wanted = ref in self._waiting or ref in self.preloads
        if not wanted and all(copy.place == DISK for copy in self.books.of(ref)):
            self.books.needs.pop(ref, None)
            self._spills.pop(ref, None)
