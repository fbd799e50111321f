"""Where decisions meet bytes: the single writer of the ledger.

Requests come in as ``hit`` or ``lease``; the ledger answers with a Plan; ``_carry_out`` turns each of its actions into
work of a tier; every piece of work ends in the ledger's next event. All on one event loop and without an await between
asking the ledger and acting on its answer, so nothing needs a lock.

What stays out: who should be where (policy/ledger.py), how bytes move (tiers/).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from predictor import why
from predictor.chronicle import Chronicle
from predictor.errors import DeadlineExceeded, HearthError, ModelTooLarge, TooManyRequests, Unavailable
from predictor.hops import Hops
from predictor.infirmary import Infirmary
from predictor.lease import History, Journeys, Lease, Waiter, again
from predictor.model import ModelRef, ModelSpec, Tier
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Abort, Action, Drop, Footprint, Grant, Place, Plan, Refuse, Skip, Start
from predictor.profiles import Profiles
from predictor.remembered import Remembered
from predictor.telemetry import Telemetry, Timeline
from predictor.tiers.disk_files import DiskFault
from predictor.wishes import Wish, Wishes

log = logging.getLogger(__name__)

TICK_S: Final = 0.001  # the loop's timers count whole milliseconds: one that rang early would ring again
SETTLE_S: Final = 5.0
"""How long a build that ran out of memory waits for others to make room before it is tried once more."""


@dataclass(slots=True)
class Cache:
    """Hands out leases and keeps the tiers in step with the ledger.

    hops         the tiers
    profiles     what a model takes in each place
    max_waiting  requests that may wait for models at once, and pre-loads that may be queued
    max_queued   requests of one model that may wait for its device
    infirmary    which models may not be loaded now, because they ended workers
    wall_clock   seconds since the epoch, for what people read
    clock        seconds; asyncio's own clock ticks in milliseconds under uvloop, too coarse for a stage
    """

    ledger: Ledger
    hops: Hops
    profiles: Profiles
    telemetry: Telemetry
    timeline: Timeline
    max_waiting: int = 1000
    max_queued: int = 512
    infirmary: Infirmary = field(default_factory=Infirmary)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    loads: int = 0
    drops: int = 0
    draining: bool = False
    _specs: dict[ModelRef, ModelSpec] = field(default_factory=dict)
    chronicle: Chronicle = field(init=False)
    remembered: Remembered = field(init=False)
    wishes: Wishes = field(init=False)
    _waiters: dict[int, Waiter] = field(default_factory=dict)
    _journeys: Journeys = field(default_factory=Journeys)
    _tasks: dict[tuple[ModelRef, Place], asyncio.Task[None]] = field(default_factory=dict)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _timer: tuple[float, asyncio.TimerHandle] | None = None

    def __post_init__(self) -> None:
        self.chronicle = Chronicle(self.wall_clock, lambda: {copy.ref for copy in self.ledger.copies()})
        self.remembered = Remembered(self.ledger.demand, self.clock, self.wall_clock, self.chronicle.broken)
        self.wishes = Wishes(self.ledger, self.chronicle, self.telemetry)

    # ---- requests --------------------------------------------------------------------------------------------

    def hit(self, ref: ModelRef, elements: int = 0) -> Lease | None:
        """A lease on a model that is ready now; None: it has to be waited for, with ``lease``.

        elements  of all inputs together: a request larger than the model was measured with needs room made for it first
        """
        history = self.chronicle.get(ref)
        if history is None or elements > history.limit:
            return None
        now_s = self.clock()
        place = self.ledger.hit(ref, now_s)
        if place is None:
            return None
        history.last_used_s = now_s
        return Lease(ref, place, history.schema, history.terms, self.hops.devices[place.device], self.release)

    async def lease(self, spec: ModelSpec, *, deadline_s: float, elements: int = 0) -> Lease:
        """Wait until the model is ready, loading it if nobody does yet, and until its device has room for the request.

        deadline_s  moment of the loop's clock
        elements    as for ``hit``

        Raises ModelTooLarge, Unavailable (waiting room full, pod drains), Quarantined, DeadlineExceeded, or what failed it.
        """
        lease = self.hit(spec.ref, elements)
        if lease is not None:
            return lease
        self._check(spec.ref)
        need = self._admit(spec, elements)
        if len(self._waiters) >= self.max_waiting:
            raise Unavailable(why.crowded(len(self._waiters)), retry_after_s=max(1.0, self.history(spec.ref).load_s))
        self._specs[spec.ref] = spec
        waiter = Waiter(spec.ref, self.clock(), asyncio.get_running_loop().create_future(), elements)
        ticket, plan = self.ledger.wait(spec.ref, need, waiter.arrived_s)
        self._waiters[ticket] = waiter
        self._carry_out(plan)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await waiter.lease
        except BaseException as error:
            self._give_up(ticket, waiter)
            if isinstance(error, TimeoutError):
                late = why.late(spec.ref, self.clock() - waiter.arrived_s)
                raise DeadlineExceeded(late, retry_after_s=max(1.0, self.history(spec.ref).load_s)) from None
            raise

    def release(self, lease: Lease) -> None:
        """End a lease; called by the lease."""
        if plan := self.ledger.release(lease.ref, lease.place, self.clock()):  # the usual end of a lease changes nothing
            self._carry_out(plan)
            self._tidy(lease.ref)

    def learn(self, lease: Lease, peak_bytes: int) -> None:
        """The largest request so far ended and was measured; called by the lease, before it is released."""
        spec = self._specs[lease.ref]
        self.profiles.ran(spec, lease.elements, peak_bytes)
        self.rebook(spec)

    def exhausted(self, ref: ModelRef, elements: int) -> None:
        """A request ran out of memory: ask for a lease once more, and more room is made, up to the whole device."""
        spec = self._specs.get(ref)
        if spec is not None:
            self.profiles.exhausted(spec, elements)
            self.chronicle.measured(spec, self.profiles.of(spec).limit, max_queued=self.max_queued)

    def preload(self, spec: ModelSpec, wish: Wish) -> None:
        """Load in the background, behind every request. Raises ModelTooLarge, TooManyRequests (too many queued)."""
        if len(self.ledger.preloads) >= self.max_waiting:
            raise TooManyRequests(f"{self.max_waiting} pre-loads are queued already (HEARTH_MAX_WAITING)", retry_after_s=5.0)
        self._check(spec.ref)
        need = self._admit(spec)
        self.wishes.add(spec.ref, wish)
        plan = self.ledger.preload(spec.ref, need, self.clock(), wish.tier)
        self._specs[spec.ref] = spec
        self._carry_out(plan)
        self._tidy(spec.ref)

    async def unload(self, name: str) -> bool:
        """Drop every copy of every version of ``name``, once the requests that use it ended. False: none was resident."""
        refs = {copy.ref for copy in self.ledger.copies() if copy.ref.name == name and copy.place != DISK}
        for ref in refs:
            self.chronicle.touch(ref).unloaded = True
            self.retire(ref)
        while any(self.ledger.books.is_draining(ref) for ref in refs):
            self._gone.clear()
            await self._gone.wait()
        return bool(refs)

    def retire(self, ref: ModelRef) -> None:
        """Drop what nobody can ask for any more from RAM and devices, once the requests that use it ended."""
        self._carry_out(self.ledger.unload(ref, self.clock()))

    def pin(self, name: str) -> None:
        """Never drop a copy of any version of ``name`` for another model."""
        self.ledger.pin(name)

    def unpin(self, name: str) -> None:
        """Undo ``pin``."""
        self._carry_out(self.ledger.unpin(name, self.clock()))

    def adopt(self, ref: ModelRef, size_bytes: int) -> None:
        """Enter a copy that an earlier process left on disk."""
        self._carry_out(self.ledger.adopt(ref, size_bytes, self.clock()))

    def device_lost(self, device: int, refs: Iterable[ModelRef], *, kind: str = "lost") -> None:
        """A worker of ``device`` died, or is not to be asked any more: these models are not on that device any more."""
        self._carry_out(self.ledger.lost(Place(device), refs, self.clock(), kind=kind))

    def drain(self) -> None:
        """Load nothing any more: refuse whoever waits, and from now on whoever would have to."""
        self.draining = True
        self.ledger.preloads.close()
        for waiter in self._waiters.values():
            waiter.refuse(Unavailable(why.DRAINS, retry_after_s=1.0))

    async def close(self) -> None:
        """Stop every transfer. Nothing may be asked of the cache afterwards."""
        self.drain()
        if self._timer is not None:
            self._timer[1].cancel()
        while self._tasks:
            tasks = tuple(self._tasks.values())
            for task in tasks:
                task.cancel()
            self._tasks.clear()
            await asyncio.wait(tasks)

    def history(self, ref: ModelRef) -> History:
        """What is remembered of a model; an empty History where nothing is."""
        return self.chronicle.get(ref) or History()

    @property
    def waiting(self) -> int:
        """Requests that wait for a model."""
        return len(self._waiters)

    def spec(self, ref: ModelRef) -> ModelSpec | None:
        """The spec of a model that has a copy in RAM or on a device; None: it is only on disk, or not here."""
        return self._specs.get(ref)

    # ---- carrying out ----------------------------------------------------------------------------------------

    def _carry_out(self, plan: Plan, failure: HearthError | None = None) -> None:
        for action in plan:
            self._act(action, failure)
        self.wishes.settle()
        wake_s = self.ledger.wake_s
        if self._timer is not None and wake_s != self._timer[0]:
            self._timer[1].cancel()
            self._timer = None
        if self._timer is None and wake_s < math.inf:
            self._timer = wake_s, asyncio.get_running_loop().call_later(max(wake_s - self.clock(), 0.0) + TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self.ledger.tick(self.clock()))

    def _act(self, action: Action, failure: HearthError | None) -> None:
        match action:
            case Grant():
                self._grant(action)
            case Refuse(ticket):
                self._waiters.pop(ticket).refuse(again(failure))
            case Start(ref, target, source):
                self._begin(ref, target, self._transfer(ref, target, source))
            case Drop(ref, place, cause):
                self._begin(ref, place, self._drop(ref, place))
                if cause is not None:
                    self.chronicle.note_drop(ref, place, cause)
            case Abort(ref, place):
                # A worker cannot be stopped in the middle of a build: it finishes, then the copy is dropped.
                if place.tier is not Tier.DEVICE:
                    self._tasks[ref, place].cancel()
            case Skip(ref, place):
                log.info("pre-load of %s ends: no room in %s, and nothing there is worth much less", ref, place)

    def _transfer(self, ref: ModelRef, target: Place, source: Place | None) -> Coroutine[None, None, None]:
        if target == RAM:
            return self._fetch(ref, from_disk=source == DISK)
        return self._keep(ref) if target == DISK else self._promote(ref, target)

    def _begin(self, ref: ModelRef, place: Place, work: Coroutine[None, None, None]) -> None:
        # A copy has one piece of work at a time, and the last one's task is about to end when the next one begins.
        task = self._tasks[ref, place] = asyncio.create_task(work, name=f"{ref} at {place}")

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # before its first step: it could not report by itself
                self._failed(ref, place, asyncio.CancelledError())

        task.add_done_callback(ended)

    def _grant(self, grant: Grant) -> None:
        waiter = self._waiters.pop(grant.ticket)
        now_s = self.clock()
        history = self.chronicle.touch(grant.ref)
        history.last_used_s = now_s
        waited = self._journeys.waited(grant.ref, waiter.arrived_s)
        self.ledger.preloads.builds_from_s = -math.inf  # what they were put off for has come
        device = self.hops.devices[grant.place.device]
        waiter.answer(waiter.granted(grant.place, history, waited, now_s, device=device, end=self.release, learn=self.learn))

    async def _fetch(self, ref: ModelRef, *, from_disk: bool) -> None:
        begin_s = self.clock()

        def damaged(fault: DiskFault) -> None:
            self.telemetry.counter("hearth_disk_faults_total", fault.kind.value).inc()
            self._carry_out(self.ledger.damaged(ref, self.clock()))

        try:
            is_background = partial(self.ledger.is_background, ref, RAM)
            start = await self.hops.fetch(self._specs[ref], is_background, damaged if from_disk else None)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (a task's root)
            self._failed(ref, RAM, error)
            return
        end_s = self.clock()
        self.timeline.mark("fetched")
        self._journeys.fetched(ref, begin_s, end_s, start)
        self._finished(ref, RAM, end_s - begin_s)

    async def _keep(self, ref: ModelRef) -> None:
        begin_s = self.clock()
        try:
            await self.hops.keep(self._specs[ref])
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (a task's root)
            self._failed(ref, DISK, error)
            return
        self._finished(ref, DISK, self.clock() - begin_s)

    async def _promote(self, ref: ModelRef, place: Place) -> None:
        spec = self._specs[ref]
        begin_s = self.clock()
        try:
            self.infirmary.check(ref)  # it may have been found out while it waited
            probe = self.profiles.must_probe(spec)
            loaded = await self.hops.promote(spec, place, probe=probe, make_room=lambda: self._make_more_room(spec, place))
            end_s = self.clock()
            self.profiles.built(spec, loaded)
            if self.ledger.too_large(self.profiles.need(spec)) is not None:
                await self.hops.drop(ref, place)
            self._admit(spec)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (a task's root)
            self._failed(ref, place, error)
            return
        self.timeline.mark("built")
        load_s = self._journeys.built(ref, begin_s, end_s, loaded.build_s)
        self.chronicle.loaded(ref, loaded, load_s)
        if self._journeys.came_from(ref) == "s3":
            self.remembered.measured(ref, load_s, spec.arena_bytes)
        self.loads += 1
        self.rebook(spec)
        self._finished(ref, place, end_s - begin_s, cost_s=loaded.device_s + loaded.build_s)
        self._journeys.end(ref)

    async def _make_more_room(self, spec: ModelSpec, place: Place) -> bool:
        """A build found no memory: book twice as much and wait until others made room. False: there is no more to be had."""
        larger = self.profiles.larger_need(spec, self.ledger.budgets[place])
        if larger is None:
            return False
        self._carry_out(self.ledger.measured(spec.ref, larger, self.clock()))
        with contextlib.suppress(TimeoutError):  # then it is tried with what there is
            async with asyncio.timeout(SETTLE_S):
                while self.ledger.books.missing(spec.ref, place) > 0:
                    self._gone.clear()
                    await self._gone.wait()
        return True

    async def _drop(self, ref: ModelRef, place: Place) -> None:
        await self.hops.drop(ref, place)
        self._tasks.pop((ref, place), None)
        self.drops += 1
        self.telemetry.counter("hearth_drops_total", ref.name, place.tier.value).inc()
        self._carry_out(self.ledger.dropped(ref, place, self.clock()))
        self._tidy(ref)
        self._gone.set()

    def _finished(self, ref: ModelRef, place: Place, seconds: float, *, cost_s: float | None = None) -> None:
        """``cost_s``: what it would take again, without the wait for a worker or for other builds; None: ``seconds``."""
        self._tasks.pop((ref, place), None)
        wanted_by = self.wishes.why(ref, place)
        self.chronicle.note(ref, "preloaded" if wanted_by else "loaded", place, seconds=seconds, cause=wanted_by)
        self.telemetry.counter("hearth_loads_total", ref.name, place.tier.value, "ok").inc()
        self.telemetry.histogram("hearth_load_seconds", place.tier.value).observe(seconds)
        self._carry_out(self.ledger.finished(ref, place, seconds if cost_s is None else cost_s, self.clock()))
        if place in self.ledger.churn:
            self.chronicle.note_churn(place, self.ledger.churn[place].alarm)

    def _failed(self, ref: ModelRef, place: Place, error: BaseException) -> None:
        self._tasks.pop((ref, place), None)
        aborted = isinstance(error, asyncio.CancelledError)
        self.telemetry.counter("hearth_loads_total", ref.name, place.tier.value, "aborted" if aborted else "failed").inc()
        if isinstance(error, DiskFault):
            self.telemetry.counter("hearth_disk_faults_total", error.kind.value).inc()
        known = self.chronicle.failed(ref, place, error)
        if place != DISK:
            self._journeys.end(ref)
        self._carry_out(self.ledger.failed(ref, place, self.clock()), known)
        self._tidy(ref)
        self._gone.set()

    def rebook(self, spec: ModelSpec) -> None:
        """Book what is known of a resident model now, and let requests up to that size pass."""
        self.chronicle.measured(spec, self.profiles.of(spec).limit, max_queued=self.max_queued)
        waiting = [waiter.elements for waiter in self._waiters.values() if waiter.ref == spec.ref]
        for elements in (max(waiting, default=0), 0):  # one that has become too large may not keep the others from theirs
            need = self.profiles.need(spec, elements)
            if self.ledger.too_large(need) is None:
                self._carry_out(self.ledger.measured(spec.ref, need, self.clock()))
                return

    def _check(self, ref: ModelRef) -> None:
        """Whether models, and this one, may be loaded now. Raises Unavailable, Quarantined."""
        if self.draining:
            raise Unavailable(why.DRAINS, retry_after_s=1.0)
        self.infirmary.check(ref)

    def _admit(self, spec: ModelSpec, elements: int = 0) -> Footprint:
        self.remembered.claim(spec.ref)
        need = self.profiles.need(spec, elements)
        room = self.ledger.too_large(need)
        if room is not None:
            raise ModelTooLarge(why.too_large(spec.ref, need, self.profiles.of(spec), elements, room=room))
        return need

    def _give_up(self, ticket: int, waiter: Waiter) -> None:
        """The waiter's task ends without its lease."""
        if self._waiters.pop(ticket, None) is not None:
            self._carry_out(self.ledger.leave(ticket, waiter.ref, self.clock()))
            self._tidy(waiter.ref)
        elif waiter.lease.done() and not waiter.lease.cancelled() and waiter.lease.exception() is None:
            waiter.lease.result().release()  # granted in the same tick

    def _tidy(self, ref: ModelRef) -> None:
        if not self.ledger.knows(ref):
            self._specs.pop(ref, None)
            self._journeys.end(ref)
