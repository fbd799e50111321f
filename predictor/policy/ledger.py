"""The books: which model is where, what it takes, who uses it, who waits. Decides everything, moves nothing.

The whole idea of Hearth's cache is in this file. Every method is one event of the outside world and returns the
Plan: what is to be done about it, as plain data. ``cache.py`` carries Plans out and reports back with the next event.

    wait ──▶ Start(ram) ··· finished ──▶ Start(device) ··· finished ──▶ Grant ··· release
                └─ no room: Drop ··· dropped ─┘

Rules, each of them a property in tests/policy:

1.  Bytes are reserved when a transfer is decided and count until their tier confirms that they are free:
    no place ever holds more than its budget.
2.  What is held is never dropped: a device copy while a request uses it, a RAM copy while a transfer reads it or a
    device copy shares its bytes.
3.  Every waiter is answered once: granted, refused, or it left.
4.  One transfer per copy, shared by all who wait for it.
5.  Nothing is dropped while there is room, and then the least valuable first.
6.  Whoever has waited longest is served first at each place. If only copies in use stand in its way, those drain: they
    take no new requests until they are dropped. So nobody waits for ever beside a model that is never idle.
7.  A pre-load takes only free room, begins only while nobody waits, and gives its room back to whoever needs it.

There can be no deadlock: a model goes RAM → device, what it needs next is held only by computations and transfers,
which end, and the RAM copy of a model that waits for its device is not taken away for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from predictor.model import ModelRef, Tier
from predictor.policy.demand import Demand
from predictor.policy.eviction import value, victims
from predictor.policy.residency import (
    RAM,
    Abort,
    Action,
    Cause,
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

PRELOADS_AT_ONCE: Final = 2
"""One pre-load can fetch while another is being built; more would only delay the most wanted of them."""


class Ledger:
    """Bytes used, reserved and held per place; the queue of those who wait.

    budgets  bytes per place: RAM and at least one device
    demand   request rates, which the ledger notes requests in and values copies by
    """

    def __init__(self, budgets: Mapping[Place, int], demand: Demand) -> None:
        assert RAM in budgets, f"no RAM budget among {list(budgets)}"
        assert len(budgets) > 1, "no device"
        self.budgets = dict(budgets)
        self.demand = demand
        self._devices = tuple(sorted(place for place in budgets if place.tier is Tier.DEVICE))
        self._used = dict.fromkeys(budgets, 0)
        self._copies: dict[tuple[ModelRef, Place], Copy] = {}
        self._needs: dict[ModelRef, Footprint] = {}
        self._waiting: dict[ModelRef, list[int]] = {}  # in order of the first waiter's arrival
        self._preloads: dict[ModelRef, None] = {}  # in the order asked for
        self._ticket = 0

    # ---- questions -------------------------------------------------------------------------------------------

    def used_bytes(self, place: Place) -> int:
        """Bytes of all copies at ``place``, whatever their state."""
        return self._used[place]

    def ready_bytes(self, place: Place) -> int:
        """Bytes of the copies at ``place`` that can be used."""
        return sum(copy.size_bytes for copy in self._copies.values() if copy.place == place and copy.state is State.READY)

    def copies(self) -> Iterable[Copy]:
        """Every line of the books; not to be changed."""
        return self._copies.values()

    def knows(self, ref: ModelRef) -> bool:
        """Whether the model has a copy anywhere, or somebody waits for one."""
        return ref in self._needs

    def is_draining(self, ref: ModelRef) -> bool:
        """Whether some copy of the model is on its way out."""
        return any(copy.ref == ref and copy.state is State.DRAINING for copy in self._copies.values())

    @property
    def preloads_queued(self) -> int:
        """Pre-loads asked for and not ended."""
        return len(self._preloads)

    def is_background(self, ref: ModelRef, place: Place) -> bool:
        """Whether the transfer into ``place`` serves nobody who waits."""
        copy = self._copies.get((ref, place))
        return copy is not None and copy.background

    def too_large(self, need: Footprint) -> tuple[Place, int] | None:
        """The place that could not hold the model even if it were empty, and the bytes needed there; None: it fits."""
        if need.ram_bytes > self.budgets[RAM]:
            return RAM, need.ram_bytes
        largest = max(self._devices, key=self.budgets.__getitem__)
        if need.device_bytes > self.budgets[largest]:
            return largest, need.device_bytes
        return None

    # ---- requests --------------------------------------------------------------------------------------------

    def hit(self, ref: ModelRef, now_s: float) -> Place | None:
        """Lease a copy that is ready. None: there is none, and nothing was noted; ask again with ``wait``."""
        copy = self._ready(ref)
        if copy is None:
            return None
        copy.holds += 1
        self.demand.note(ref, now_s)
        return copy.place

    def wait(self, ref: ModelRef, need: Footprint, now_s: float) -> tuple[int, Plan]:
        """Queue for a lease. Returns the ticket that a Grant or Refuse will name, and what to do now."""
        assert self.too_large(need) is None, f"{ref} needs {need}, budgets {self.budgets}"
        self._ticket += 1
        self.demand.note(ref, now_s)
        self._needs[ref] = need
        self._preloads.pop(ref, None)
        self._waiting.setdefault(ref, []).append(self._ticket)
        for place in self.budgets:
            if copy := self._copies.get((ref, place)):
                copy.background = copy.background and copy.state is State.DRAINING
        return self._ticket, tuple(self._pump(now_s))

    def leave(self, ticket: int, ref: ModelRef, now_s: float) -> Plan:
        """The waiter gave up. A load under way goes on, as a pre-load: clients that give up ask again."""
        queue = self._waiting.get(ref, [])
        assert ticket in queue, f"ticket {ticket} does not wait for {ref}: {queue}"
        queue.remove(ticket)
        if not queue:
            del self._waiting[ref]
            if any((ref, place) in self._copies for place in self.budgets):
                self._preloads[ref] = None
            self._tidy(ref)
        return tuple(self._pump(now_s))

    def release(self, ref: ModelRef, place: Place) -> Plan:
        """A lease ended. Nobody can be served by that alone: what a waiter needs is drained already, or being filled."""
        return tuple(self._unhold(self._copies[ref, place]))

    def preload(self, ref: ModelRef, need: Footprint, now_s: float) -> Plan:
        """Bring the model to a device if that costs nobody anything; otherwise as far as there is free room."""
        if ref in self._waiting or self._ready(ref) or self.too_large(need):
            return ()
        self._needs[ref] = need
        self._preloads[ref] = None
        return tuple(self._pump(now_s))

    def unload(self, ref: ModelRef, now_s: float) -> Plan:
        """Drop every copy of the model as soon as nobody uses it. Who asks for it meanwhile loads it again afterwards."""
        self._preloads.pop(ref, None)
        actions: list[Action] = []
        for place in (*self._devices, RAM):
            copy = self._copies.get((ref, place))
            if copy is None:
                continue
            if copy.state is State.FILLING and copy.background:
                actions += self._abort(copy, self._cause(copy, "order", now_s))
            elif copy.state is State.READY and not self._being_read(copy):
                actions += self._drain(copy, self._cause(copy, "order", now_s))
        self._tidy(ref)
        return (*actions, *self._pump(now_s))

    # ---- what the tiers report -------------------------------------------------------------------------------

    def finished(self, ref: ModelRef, place: Place, seconds: float, now_s: float) -> Plan:
        """The transfer into ``place`` succeeded after ``seconds``."""
        copy = self._copies[ref, place]
        actions: list[Action] = []
        if not self._needs[ref].shares_ram:
            actions += self._let_go_of_source(copy)
        if copy.state is State.DRAINING:  # an abort that came too late
            actions.append(Drop(ref, place, copy.cause))
        else:
            copy.state = State.READY
            copy.load_s = seconds
            if place is not RAM and ref in self._waiting:
                actions += self._serve(ref, set(), now_s)
        return (*actions, *self._pump(now_s))

    def failed(self, ref: ModelRef, place: Place, now_s: float) -> Plan:
        """The transfer into ``place`` failed or was aborted: the bytes are free, whoever waited is refused."""
        copy = self._copies[ref, place]
        aborted = copy.state is State.DRAINING
        actions = self._forget(copy)
        if not aborted:
            self._preloads.pop(ref, None)
            actions += [Refuse(ticket, ref) for ticket in self._waiting.pop(ref, ())]
            self._tidy(ref)
        return (*actions, *self._pump(now_s))

    def dropped(self, ref: ModelRef, place: Place, now_s: float) -> Plan:
        """The bytes of a copy that was to be dropped are free."""
        copy = self._copies[ref, place]
        assert copy.state is State.DRAINING, f"dropped unasked: {copy}"
        assert copy.holds == 0, f"dropped in use: {copy}"
        return (*self._forget(copy), *self._pump(now_s))

    def lost(self, place: Place, now_s: float) -> Plan:
        """The device's worker died and every ready copy with it. Those in use go as their requests fail."""
        actions: list[Action] = []
        for copy in [copy for copy in self._copies.values() if copy.place == place]:
            if copy.state is State.READY:
                actions += self._drain(copy, self._cause(copy, "lost", now_s))
        return (*actions, *self._pump(now_s))

    # ---- decisions -------------------------------------------------------------------------------------------

    def _pump(self, now_s: float) -> list[Action]:
        """Serve whoever can be served, longest waiting first; then pre-loads, if nobody waits."""
        actions: list[Action] = []
        if self._waiting:
            blocked: set[Place] = set()
            for ref in tuple(self._waiting):
                if len(blocked) == len(self.budgets):
                    break
                actions += self._serve(ref, blocked, now_s)
        if self._preloads and not self._waiting:
            actions += self._pump_preloads()
        return actions

    def _serve(self, ref: ModelRef, blocked: set[Place], now_s: float) -> list[Action]:
        """One step for those who wait for ``ref``. A place in ``blocked`` is claimed by somebody who waits longer."""
        if ready := self._ready(ref):
            tickets = self._waiting.pop(ref)
            ready.holds += len(tickets)
            return [Grant(ticket, ref, ready.place) for ticket in tickets]
        if any((ref, place) in self._copies for place in self._devices):
            return []  # on its way in or out: finished, failed or dropped will bring us back
        source = self._copies.get((ref, RAM))
        if source is not None and source.state is not State.READY:
            return []
        target = RAM if source is None else self._choose_device(ref, blocked, now_s)
        if target is None or target in blocked:
            return []
        size_bytes = self._size(ref, target)
        missing_bytes = size_bytes - self._free(target)
        if missing_bytes <= 0:
            return [self._start(ref, target, background=False)]
        blocked.add(target)
        return self._make_room(target, missing_bytes, ref, now_s)

    def _pump_preloads(self) -> list[Action]:
        actions: list[Action] = []
        active = sum(copy.state is State.FILLING and copy.background for copy in self._copies.values())
        for ref in tuple(self._preloads):
            if active >= PRELOADS_AT_ONCE:
                break
            present = [self._copies[ref, place] for place in self.budgets if (ref, place) in self._copies]
            if any(copy.state is not State.READY for copy in present):
                continue
            if any(copy.place is not RAM for copy in present):
                del self._preloads[ref]
                continue
            target = max(self._devices, key=self._free) if present else RAM
            if self._size(ref, target) > self._free(target):
                del self._preloads[ref]
                self._tidy(ref)
                actions.append(Skip(ref, target))
                continue
            actions.append(self._start(ref, target, background=True))
            active += 1
        return actions

    def _make_room(self, place: Place, missing_bytes: int, newcomer: ModelRef, now_s: float) -> list[Action]:
        """Have copies dropped, or drained if all are in use, until ``missing_bytes`` are free or on their way to be."""
        here = [copy for copy in self._copies.values() if copy.place == place]
        missing_bytes -= sum(copy.size_bytes for copy in here if copy.state is State.DRAINING)
        if missing_bytes <= 0:
            return []
        if place is not RAM and any(copy.state is State.FILLING and not copy.background for copy in here):
            return []  # a worker builds one model at a time: room made now would only stand empty
        preloads = [copy for copy in here if copy.state is State.FILLING and copy.background]
        ready = [copy for copy in here if copy.state is State.READY and self._droppable(copy)]
        ready.sort(key=lambda copy: self._value(copy, now_s))
        idle = [copy for copy in ready if not self._in_use(copy)]
        chosen = victims([*preloads, *idle], missing_bytes)
        if chosen is None:
            chosen = victims([*preloads, *idle, *(copy for copy in ready if self._in_use(copy))], missing_bytes)
        actions: list[Action] = []
        for copy in chosen or ():
            cause = self._cause(copy, "room", now_s, newcomer)
            actions += self._abort(copy, cause) if copy.state is State.FILLING else self._drain(copy, cause)
        return actions

    def _droppable(self, copy: Copy) -> bool:
        """Whether draining this READY copy ends by itself and takes nothing from who waits for its model."""
        if copy.place is not RAM:
            return True
        return copy.ref not in self._waiting and not self._being_read(copy)

    def _being_read(self, copy: Copy) -> bool:
        """Whether a transfer to a device reads this copy."""
        return copy.place is RAM and any(above.state is State.FILLING for above in self._above(copy.ref))

    def _in_use(self, copy: Copy) -> bool:
        if copy.place is not RAM:
            return copy.holds > 0
        return any(above.holds for above in self._above(copy.ref)) if self._needs[copy.ref].shares_ram else copy.holds > 0

    def _choose_device(self, ref: ModelRef, blocked: set[Place], now_s: float) -> Place | None:
        """Where there is room; otherwise where the least value is in the way; None: every fitting device is claimed."""
        size_bytes = self._needs[ref].device_bytes
        fitting = [place for place in self._devices if self.budgets[place] >= size_bytes and place not in blocked]
        if not fitting:
            return None

        def cost(place: Place) -> tuple[float, int]:
            free_bytes = self._free(place)
            if free_bytes >= size_bytes:
                return (-1.0, -free_bytes)
            here = (copy for copy in self._copies.values() if copy.place == place)
            return (sum(self._value(copy, now_s) * copy.size_bytes for copy in here), -free_bytes)

        return min(fitting, key=cost)

    def _value(self, copy: Copy, now_s: float) -> float:
        return value(self.demand.rate(copy.ref, now_s), copy.load_s, copy.size_bytes)

    def _cause(self, copy: Copy, kind: str, now_s: float, newcomer: ModelRef | None = None) -> Cause:
        newcomer_rate = self.demand.rate(newcomer, now_s) if newcomer else 0.0
        return Cause(kind, self._value(copy, now_s), self.demand.rate(copy.ref, now_s), newcomer, newcomer_rate)

    # ---- book-keeping ----------------------------------------------------------------------------------------

    def _ready(self, ref: ModelRef) -> Copy | None:
        """The least used ready device copy."""
        best: Copy | None = None
        for place in self._devices:
            copy = self._copies.get((ref, place))
            if copy is not None and copy.state is State.READY and (best is None or copy.holds < best.holds):
                best = copy
        return best

    def _above(self, ref: ModelRef) -> list[Copy]:
        return [copy for place in self._devices if (copy := self._copies.get((ref, place)))]

    def _free(self, place: Place) -> int:
        return self.budgets[place] - self._used[place]

    def _size(self, ref: ModelRef, place: Place) -> int:
        need = self._needs[ref]
        return need.ram_bytes if place.tier is Tier.RAM else need.device_bytes

    def _start(self, ref: ModelRef, target: Place, *, background: bool) -> Start:
        size_bytes = self._size(ref, target)
        assert size_bytes <= self._free(target), f"{ref}: {size_bytes} bytes, {self._free(target)} free at {target}"
        assert (ref, target) not in self._copies, f"{ref} is already at {target}"
        if target is not RAM:
            self._copies[ref, RAM].holds += 1  # the transfer reads it; a view keeps the hold
        self._copies[ref, target] = Copy(
            ref, target, size_bytes, State.FILLING, holds_source=target is not RAM, background=background
        )
        self._used[target] += size_bytes
        return Start(ref, target)

    def _drain(self, copy: Copy, cause: Cause) -> list[Action]:
        """No new leases; dropped when the last hold ends. Draining a RAM copy drains the device copies that share it."""
        assert copy.state is State.READY, f"drained while {copy.state}: {copy}"
        copy.state = State.DRAINING
        copy.cause = cause
        if copy.holds == 0:
            return [Drop(copy.ref, copy.place, cause)]
        actions: list[Action] = []
        if copy.place is RAM and self._needs[copy.ref].shares_ram:
            for above in self._above(copy.ref):
                if above.state is State.READY:
                    actions += self._drain(above, cause)
        return actions

    def _abort(self, copy: Copy, cause: Cause) -> list[Action]:
        assert copy.state is State.FILLING, f"aborted while {copy.state}: {copy}"
        copy.state = State.DRAINING
        copy.cause = cause
        return [Abort(copy.ref, copy.place)]

    def _unhold(self, copy: Copy) -> list[Action]:
        copy.holds -= 1
        assert copy.holds >= 0, f"released twice: {copy}"
        return [Drop(copy.ref, copy.place, copy.cause)] if copy.holds == 0 and copy.state is State.DRAINING else []

    def _let_go_of_source(self, copy: Copy) -> list[Action]:
        """The RAM copy that ``copy`` was made from is not needed for it any more."""
        if not copy.holds_source:
            return []
        copy.holds_source = False
        return self._unhold(self._copies[copy.ref, RAM])

    def _forget(self, copy: Copy) -> list[Action]:
        """Take the copy out of the books."""
        del self._copies[copy.ref, copy.place]
        self._used[copy.place] -= copy.size_bytes
        actions = self._let_go_of_source(copy)
        self._tidy(copy.ref)
        return actions

    def _tidy(self, ref: ModelRef) -> None:
        """Forget what a model needs once nothing of it is left."""
        wanted = ref in self._waiting or ref in self._preloads
        if not wanted and not any((ref, place) in self._copies for place in self.budgets):
            self._needs.pop(ref, None)
