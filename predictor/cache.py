"""Where decisions meet bytes: the single writer of the ledger.

Requests come in as ``hit`` or ``lease``; the ledger answers with a Plan; ``_carry_out`` turns each of its actions into
work of a tier; every piece of work ends in the ledger's next event. All on one event loop and without an await between
asking the ledger and acting on its answer, so nothing needs a lock.

What stays out: who should be where (policy/ledger.py), how bytes move (tiers/).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from predictor.errors import DeadlineExceeded, HearthError, LoadFailed, ModelTooLarge, TooManyRequests, Unavailable
from predictor.lease import History, Lease, Schema, Stage, Waiter, again
from predictor.model import ModelRef, ModelSpec
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Abort, Cause, Drop, Footprint, Grant, Place, Plan, Refuse, Skip, Start
from predictor.report import Event
from predictor.telemetry import Telemetry, Timeline
from predictor.tiers.device import DeviceTier
from predictor.tiers.ram import RamTier
from predictor.wire import Loaded

log = logging.getLogger(__name__)

REMEMBERED_MODELS: Final = 100_000
"""Models whose schema, last failure and load time are kept while they are not resident."""


@dataclass(slots=True)
class Cache:
    """Hands out leases and keeps the tiers in step with the ledger.

    footprint    what a model takes in each place
    max_waiting  requests that may wait at once, and pre-loads that may be queued
    wall_clock   seconds since the epoch, for what people read
    clock        seconds; asyncio's own clock ticks in milliseconds under uvloop, too coarse for a stage
    """

    ledger: Ledger
    ram: RamTier
    devices: Sequence[DeviceTier]
    footprint: Callable[[ModelSpec], Footprint]
    telemetry: Telemetry
    timeline: Timeline
    max_waiting: int = 1000
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    loads: int = 0
    drops: int = 0
    _specs: dict[ModelRef, ModelSpec] = field(default_factory=dict)
    _histories: dict[ModelRef, History] = field(default_factory=dict)
    _waiters: dict[int, Waiter] = field(default_factory=dict)
    _stages: dict[ModelRef, list[Stage]] = field(default_factory=dict)
    _tasks: dict[tuple[ModelRef, Place], asyncio.Task[None]] = field(default_factory=dict)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    # ---- requests --------------------------------------------------------------------------------------------

    def hit(self, ref: ModelRef) -> Lease | None:
        """A lease on a model that is ready now; None: it has to be waited for, with ``lease``."""
        now_s = self.clock()
        place = self.ledger.hit(ref, now_s)
        if place is None:
            return None
        history = self._histories[ref]
        history.last_used_s = now_s
        return Lease(ref, place, history.schema, self.devices[place.device], self.release)

    async def lease(self, spec: ModelSpec, *, deadline_s: float) -> Lease:
        """Wait until the model is ready, loading it if nobody does yet.

        deadline_s  moment of the loop's clock

        Raises ModelTooLarge, Unavailable (waiting room full), DeadlineExceeded, and whatever failed the load.
        """
        lease = self.hit(spec.ref)
        if lease is not None:
            return lease
        need = self._admit(spec)
        loop = asyncio.get_running_loop()
        if len(self._waiters) >= self.max_waiting:
            raise Unavailable(
                f"{len(self._waiters)} requests already wait for models to load (HEARTH_MAX_WAITING): try again later",
                retry_after_s=max(1.0, self.history(spec.ref).load_s),
            )
        self._specs[spec.ref] = spec
        waiter = Waiter(spec.ref, self.clock(), loop.create_future())
        ticket, plan = self.ledger.wait(spec.ref, need, waiter.arrived_s)
        self._waiters[ticket] = waiter
        self._carry_out(plan)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await waiter.lease
        except BaseException as error:
            self._give_up(ticket, waiter)
            if isinstance(error, TimeoutError):
                waited_s = self.clock() - waiter.arrived_s
                raise DeadlineExceeded(
                    f"model {spec.ref} was not ready within {waited_s:.1f} s; its load goes on, so a retry may find it ready",
                    retry_after_s=max(1.0, self.history(spec.ref).load_s),
                ) from None
            raise

    def release(self, lease: Lease) -> None:
        """End a lease; called by the lease."""
        self._carry_out(self.ledger.release(lease.ref, lease.place))
        self._tidy(lease.ref)

    def preload(self, spec: ModelSpec) -> None:
        """Load in the background, in free room only. Raises ModelTooLarge, TooManyRequests (too many queued)."""
        need = self._admit(spec)
        if self.ledger.preloads_queued >= self.max_waiting:
            raise TooManyRequests(f"{self.max_waiting} pre-loads are queued already (HEARTH_MAX_WAITING)", retry_after_s=5.0)
        self._specs[spec.ref] = spec
        self._carry_out(self.ledger.preload(spec.ref, need, self.clock()))
        self._tidy(spec.ref)

    async def unload(self, name: str) -> bool:
        """Drop every copy of every version of ``name``, once the requests that use it ended. False: none was resident."""
        refs = {copy.ref for copy in self.ledger.copies() if copy.ref.name == name}
        for ref in refs:
            self._touch(ref).unloaded = True
            self._carry_out(self.ledger.unload(ref, self.clock()))
        while any(self.ledger.is_draining(ref) for ref in refs):
            self._gone.clear()
            await self._gone.wait()
        return bool(refs)

    def device_lost(self, device: int) -> None:
        """The worker of ``device`` died: nothing is on that device any more."""
        self._carry_out(self.ledger.lost(Place(device), self.clock()))

    async def close(self) -> None:
        """Stop every transfer and refuse whoever still waits. Nothing may be asked of the cache afterwards."""
        for waiter in self._waiters.values():
            if not waiter.lease.done():
                waiter.lease.set_exception(Unavailable("this pod is stopping: ask again", retry_after_s=1.0))
        while self._tasks:
            tasks = tuple(self._tasks.values())
            for task in tasks:
                task.cancel()
            self._tasks.clear()
            await asyncio.wait(tasks)

    # ---- questions -------------------------------------------------------------------------------------------

    def history(self, ref: ModelRef) -> History:
        """What is remembered of a model; an empty History where nothing is."""
        return self._histories.get(ref) or History()

    def why(self, name: str) -> tuple[Event, ...]:
        """What happened to every version of ``name``, oldest first."""
        events = [event for ref, history in self._histories.items() if ref.name == name for event in history.events]
        return tuple(sorted(events, key=lambda event: event.at_s))

    @property
    def waiting(self) -> int:
        """Requests that wait for a model."""
        return len(self._waiters)

    def spec(self, ref: ModelRef) -> ModelSpec:
        """The spec of a model that has a copy somewhere."""
        return self._specs[ref]

    # ---- carrying out ----------------------------------------------------------------------------------------

    def _carry_out(self, plan: Plan, failure: HearthError | None = None) -> None:  # noqa: C901 (one case an action)
        for action in plan:
            match action:
                case Grant():
                    self._grant(action)
                case Refuse(ticket):
                    waiter = self._waiters.pop(ticket)
                    if not waiter.lease.done():
                        waiter.lease.set_exception(again(failure))
                case Start(ref, target):
                    self._begin(ref, target, self._fetch(ref) if target == RAM else self._promote(ref, target))
                case Drop(ref, place, cause):
                    self._begin(ref, place, self._drop(ref, place))
                    if cause is not None:
                        self._note_drop(ref, place, cause)
                case Abort(ref, place):
                    # A worker cannot be stopped in the middle of a build: it finishes, then the copy is dropped.
                    if place == RAM:
                        self._tasks[ref, place].cancel()
                case Skip(ref, place):
                    log.info("pre-load of %s ends: no free room in %s", ref, place)

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
        history = self._histories[grant.ref]
        history.last_used_s = now_s
        waited = {"fetch": 0.0, "device": 0.0, "build": 0.0}
        for stage in self._stages.get(grant.ref, ()):
            waited[stage.name] += max(0.0, stage.end_s - max(stage.begin_s, waiter.arrived_s))
        lease = Lease(
            grant.ref,
            grant.place,
            history.schema,
            self.devices[grant.place.device],
            self.release,
            start="s3" if waited["fetch"] else "ram",
            wait_s=max(0.0, now_s - waiter.arrived_s - sum(waited.values())),
            fetch_s=waited["fetch"],
            device_s=waited["device"],
            build_s=waited["build"],
        )
        if waiter.lease.done():  # cancelled in this very tick
            lease.release()
        else:
            waiter.lease.set_result(lease)

    async def _fetch(self, ref: ModelRef) -> None:
        begin_s = self.clock()
        try:
            await self.ram.fetch(self._specs[ref], lambda: self.ledger.is_background(ref, RAM))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (a task's root)
            self._failed(ref, RAM, error)
            return
        end_s = self.clock()
        self.timeline.mark("fetched")
        self._stages[ref] = [Stage("fetch", begin_s, end_s)]
        self._finished(ref, RAM, end_s - begin_s)

    async def _promote(self, ref: ModelRef, place: Place) -> None:
        begin_s = self.clock()
        try:
            loaded = await self.devices[place.device].promote(self._specs[ref])
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (a task's root)
            self._failed(ref, place, error)
            return
        end_s = self.clock()
        self.timeline.mark("built")
        built_from_s = max(begin_s, end_s - loaded.build_s)
        stages = [stage for stage in self._stages.get(ref, ()) if stage.name == "fetch"]
        self._stages[ref] = [*stages, Stage("device", begin_s, built_from_s), Stage("build", built_from_s, end_s)]
        self._remember(ref, loaded, sum(stage.end_s - stage.begin_s for stage in self._stages[ref]))
        self.loads += 1
        self._finished(ref, place, end_s - begin_s)
        self._stages.pop(ref, None)

    async def _drop(self, ref: ModelRef, place: Place) -> None:
        tier = self.ram if place == RAM else self.devices[place.device]
        await tier.drop(ref)
        self._tasks.pop((ref, place), None)
        self.drops += 1
        self.telemetry.counter("hearth_drops_total", ref.name, place.tier.value).inc()
        self._carry_out(self.ledger.dropped(ref, place, self.clock()))
        self._tidy(ref)
        self._gone.set()

    def _finished(self, ref: ModelRef, place: Place, seconds: float) -> None:
        self._tasks.pop((ref, place), None)
        self._note(ref, "loaded", place, seconds=seconds)
        self.telemetry.counter("hearth_loads_total", ref.name, place.tier.value, "ok").inc()
        self.telemetry.histogram("hearth_load_seconds", place.tier.value).observe(seconds)
        self._carry_out(self.ledger.finished(ref, place, seconds, self.clock()))

    def _failed(self, ref: ModelRef, place: Place, error: BaseException) -> None:
        self._tasks.pop((ref, place), None)
        aborted = isinstance(error, asyncio.CancelledError)
        self.telemetry.counter("hearth_loads_total", ref.name, place.tier.value, "aborted" if aborted else "failed").inc()
        if aborted:
            known: HearthError = Unavailable(f"the load of model {ref} was stopped", retry_after_s=1.0)
        elif isinstance(error, HearthError):
            known = error
            log.warning("model %s could not be loaded into %s: %s: %s", ref, place, type(error).__name__, error)
        else:
            known = LoadFailed(f"model {ref} could not be loaded into {place}: {type(error).__name__}: {error}")
            log.error("model %s could not be loaded into %s", ref, place, exc_info=error)
        self._note(ref, "stopped" if aborted else "failed", place, cause=known.message)
        if not aborted:
            self._touch(ref).failure = known
        self._stages.pop(ref, None)
        self._carry_out(self.ledger.failed(ref, place, self.clock()), known)
        self._tidy(ref)
        self._gone.set()

    # ---- small print -----------------------------------------------------------------------------------------

    def _admit(self, spec: ModelSpec) -> Footprint:
        need = self.footprint(spec)
        excess = self.ledger.too_large(need)
        if excess is not None:
            place, need_bytes = excess
            raise ModelTooLarge(
                f"model {spec.ref} needs {need_bytes} bytes in {place}, the budget there is "
                f"{self.ledger.budgets[place]} bytes: raise HEARTH_{place.tier.name}_BUDGET_BYTES or use a larger pool"
            )
        return need

    def _give_up(self, ticket: int, waiter: Waiter) -> None:
        """The waiter's task ends without its lease: by deadline, by cancellation, or by a refusal."""
        if self._waiters.pop(ticket, None) is not None:
            self._carry_out(self.ledger.leave(ticket, waiter.ref, self.clock()))
            self._tidy(waiter.ref)
        elif waiter.lease.done() and not waiter.lease.cancelled() and waiter.lease.exception() is None:
            waiter.lease.result().release()  # granted in the same tick

    def _touch(self, ref: ModelRef) -> History:
        history = self._histories.pop(ref, None) or History()
        if len(self._histories) >= REMEMBERED_MODELS:
            resident = {copy.ref for copy in self.ledger.copies()}
            del self._histories[next(known for known in self._histories if known not in resident)]
        self._histories[ref] = history
        return history

    def _remember(self, ref: ModelRef, loaded: Loaded, load_s: float) -> None:
        history = self._touch(ref)
        history.schema = Schema.of(loaded)
        history.loads += 1
        history.load_s = load_s
        history.failure = None
        history.unloaded = False

    def _note(self, ref: ModelRef, what: str, place: Place, *, seconds: float = 0.0, cause: str = "") -> None:
        event = Event(self.wall_clock(), what, str(place), ref.version, seconds=seconds, cause=cause)
        self._touch(ref).events.append(event)

    def _note_drop(self, ref: ModelRef, place: Place, cause: Cause) -> None:
        """Both sides remember: who was dropped, and who needed the room."""
        newcomer = str(cause.newcomer or "")
        event = Event(
            self.wall_clock(),
            "dropped",
            str(place),
            ref.version,
            cause=cause.kind,
            other=newcomer,
            value=cause.value,
            rate_per_s=cause.rate_per_s,
            other_rate_per_s=cause.newcomer_rate_per_s,
        )
        self._touch(ref).events.append(event)
        if cause.newcomer is not None:
            mirrored = msgspec.structs.replace(event, what="pushed out", version=cause.newcomer.version, other=str(ref))
            self._touch(cause.newcomer).events.append(mirrored)

    def _tidy(self, ref: ModelRef) -> None:
        if not self.ledger.knows(ref):
            self._specs.pop(ref, None)
            self._stages.pop(ref, None)
