"""A simulated pod: the production ledger, whose Plans take as long as was measured.

    fetches   side by side; each takes its own time, or they share a network (network.py)
    disk      reads and writes at one speed each, beside each other; without one a copy dropped from RAM is fetched again
    builds    one after the other on each device
    drops     take no time
    requests  take their serve time and do not wait for each other: what is asked here is who finds its model there

What stays out: when pods start and stop, who asks which pod (fleet.py).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from loadtest.simulation.catalogue import Model
from loadtest.simulation.network import Fetch, Network
from predictor.heat import Warmth
from predictor.model import ModelRef, Tier
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Abort, Action, Drop, Footprint, Grant, Place, Refuse, Skip, Start, State
from predictor.wakeup import ENOUGH, QUEUED

TICK_S: Final = 0.001
"""A timer rings this much late, as the cache's does: one that rang early would ring again."""

ASIDE_BYTES: Final = 1 << 20
"""What a model takes on a processor beside its weights (tiers/device.py)."""

Event = tuple[float, int, Callable[[float], None]]


class Clock:
    """What is to happen, in order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[Event] = []
        self._number = 0

    def at(self, moment_s: float, act: Callable[[float], None]) -> None:
        """Do it then; of things at one moment the first one asked for is first."""
        self._number += 1
        heapq.heappush(self._events, (max(moment_s, self.now_s), self._number, act))

    def run(self, until_s: float) -> None:
        """Let happen what is due by ``until_s``, that moment included."""
        events = self._events
        while events and events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(events)
            act(self.now_s)
        if self.now_s < until_s < math.inf:
            self.now_s = until_s

    @property
    def next_s(self) -> float:
        """Moment of the next event; infinity: there is none."""
        return self._events[0][0] if self._events else math.inf


class Served(NamedTuple):
    """How one line of requests was served. ``start``: hot, ram, disk or s3."""

    start: str
    begin_s: float
    end_s: float


@dataclass
class Waiting:
    """A request for a model that is not there."""

    number: int
    due_s: float
    served: Callable[[Served], None]
    start: str = "s3"


@dataclass
class Tally:
    """What a pod did in its life.

    preloaded  models brought ahead of any request; ``used`` of them were asked before they went
    touched    models asked in this life; ``ahead`` of them had been brought, or were on their way
    """

    fetched_bytes: int = 0
    fetches: int = 0
    load_s: float = 0.0
    preloaded: set[ModelRef] = field(default_factory=set)
    used: int = 0
    touched: set[ModelRef] = field(default_factory=set)
    ahead: int = 0


class Pod:
    """One pod's life.

    rests     told whenever nobody is served and nobody waits any more
    network   that fetches share; None: each takes its own time
    disk_bytes_per_s  that a disk reads and writes, where the ledger has one
    measured  seconds that the latest load of each model from the model store took, as a pod tells them; written here
    """

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        models: Sequence[Model],
        refs: Sequence[ModelRef],
        *,
        rests: Callable[[float], None],
        network: Network | None = None,
        shares_ram: bool = False,
        disk_bytes_per_s: float = math.inf,
        measured: MutableMapping[int, float],
    ) -> None:
        self._rests = rests
        self._network = network
        self._disk_bytes_per_s = disk_bytes_per_s
        self._measured = measured
        self._fetched_s: dict[ModelRef, float] = {}  # what came from the model store and is not on a device yet
        self._hot: deque[int] = deque()
        self._skips = 0
        self._fetching: dict[ModelRef, Fetch] = {}
        self._first: Callable[[float], None] | None = None
        self.clock = clock
        self.ledger = ledger
        self.tally = Tally()
        self.running = 0
        self._models = models
        self._refs = refs
        self._numbers = {ref: number for number, ref in enumerate(refs)}
        self._needs = [
            Footprint(
                model.size_bytes,
                ASIDE_BYTES if shares_ram else model.size_bytes,
                shares_ram=shares_ram,
                disk_bytes=model.size_bytes if DISK in ledger.budgets else 0,
            )
            for model in models
        ]
        self._awaited: dict[int, list[Waiting]] = {}
        self._built_s: dict[Place, float] = {}
        self._wake_s = math.inf

    # ---- who asks --------------------------------------------------------------------------------------------

    def ask(self, number: int, now_s: float, *, count: int = 1, span_s: float = 0.0) -> Served | None:
        """Serve a line now if its model is there. None: it is not; ``wait`` for it, one request at a time."""
        ref = self._refs[number]
        place = self.ledger.hit(ref, now_s, count)
        if place is None:
            return None
        if ref not in self.tally.touched:
            self._touch(ref, is_there=True)
        serve_s = self._models[number].serve_s
        end_s = now_s + (serve_s if count == 1 else max(serve_s, min(span_s, count * serve_s)))
        self._lease(ref, place, end_s)
        return Served("hot", now_s, end_s)

    def wait(self, number: int, due_s: float, served: Callable[[Served], None]) -> None:
        """One request that was due at ``due_s`` waits from now on for its model. ``served`` is told when it came."""
        ref = self._refs[number]
        now_s = self.clock.now_s
        books = self.ledger.books
        ram = books.at(ref, RAM)
        self._touch(ref, is_there=ram is not None)
        waiting = Waiting(number, due_s, served, "ram" if ram is not None and ram.state is State.READY else "s3")
        if number in self._awaited:  # it shares the first one's ticket: the ledger would only find that nothing changed
            self._awaited[number].append(waiting)
            self.ledger.demand.note(ref, now_s)
            return
        self._awaited[number] = [waiting]
        _, plan = self.ledger.wait(ref, self._needs[number], now_s)
        self._carry_out(plan)
        if self._network is not None and ref in self._fetching:
            self._network.changed()

    def on_first(self, act: Callable[[float], None]) -> None:
        """Do it once the first request has its model."""
        self._first = act

    def preload(self, hot: Iterable[Warmth], numbers: Mapping[str, int], now_s: float) -> None:
        """Begin with the hot set, the most valuable first, as predictor/wakeup.py does. What is told of it counts as demand."""
        for warmth in hot:
            number = numbers[warmth.name]
            visits = [now_s - ago_s for ago_s in warmth.visits]
            self.ledger.demand.add(self._refs[number], warmth.fast, warmth.slow, now_s, visits)
            self._hot.append(number)
        self._carry_out(())

    def has(self, number: int) -> bool:
        """Whether the model is on a device."""
        return self.ledger.books.ready(self._refs[number]) is not None

    def _touch(self, ref: ModelRef, *, is_there: bool) -> None:
        tally = self.tally
        if ref not in tally.touched:
            tally.touched.add(ref)
            if ref in tally.preloaded and is_there:
                tally.used += 1
                tally.ahead += 1

    # ---- carrying out ----------------------------------------------------------------------------------------

    def _carry_out(self, plan: Iterable[Action]) -> None:
        waiting = list(plan)
        while waiting or (self._hot and len(self.ledger.preloads) < QUEUED):
            if waiting:  # a drop is done at once, and what follows from it comes after the rest of the plan
                waiting += self._act(waiting.pop(0))
            else:
                number = self._hot.popleft()
                waiting += self.ledger.preload(self._refs[number], self._needs[number], self.clock.now_s)
        wake_s = self.ledger.wake_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self.clock.at(wake_s + TICK_S, self._tick)

    def _act(self, action: Action) -> Iterable[Action]:
        """Returns what follows at once."""
        match action:
            case Grant(_, ref, place):
                self._granted(self._awaited.pop(self._numbers[ref]), ref, place)
            case Start(ref, target, source):
                self._start(ref, target, source)
            case Drop(ref, place):
                return self.ledger.dropped(ref, place, self.clock.now_s)
            case Abort(ref, place):
                if place.tier is not Tier.DEVICE:  # a build cannot be stopped: it ends, then the copy goes
                    if self._network is not None and ref in self._fetching:
                        self._network.stop(self._fetching.pop(ref))
                    return self.ledger.failed(ref, place, self.clock.now_s)
            case Skip(_, place):
                self._skips += place == RAM
                if self._skips >= ENOUGH:
                    self._hot.clear()
            case Refuse():
                raise AssertionError(f"nothing fails in a simulation: {action}")
        return ()

    def _tick(self, now_s: float) -> None:
        self._wake_s = math.inf
        self._carry_out(self.ledger.tick(now_s))

    def _start(self, ref: ModelRef, target: Place, source: Place | None) -> None:
        number, started_s = self._numbers[ref], self.clock.now_s
        model = self._models[number]
        begin_s, cost_s = self._span(model, target, source)
        copy = self.ledger.books.at(ref, target)

        def end(now_s: float) -> None:
            if self.ledger.books.at(ref, target) is copy:  # else it was stopped, and perhaps begun anew
                self._fetching.pop(ref, None)
                self._learn(ref, target, source, now_s - started_s)
                self._carry_out(self.ledger.finished(ref, target, now_s - begin_s, now_s))

        if target == RAM:
            if self.ledger.is_background(ref, RAM):
                self.tally.preloaded.add(ref)
                self._skips = 0
            for waiting in self._awaited.get(number, ()):
                waiting.start = "disk" if source == DISK else "s3"
        if self._network is not None and target == RAM and source is None:
            in_background = partial(self.ledger.is_background, ref, RAM)
            self._fetching[ref] = self._network.begin(model.size_bytes, cost_s, is_background=in_background, done=end)
        else:
            self.clock.at(begin_s + cost_s, end)

    def _span(self, model: Model, target: Place, source: Place | None) -> tuple[float, float]:
        """When it begins, and what it takes if nothing else is fetched."""
        now_s = self.clock.now_s
        if target.tier is Tier.DEVICE:
            begin_s = max(now_s, self._built_s.get(target, 0.0))
            self._built_s[target] = begin_s + model.build_s
            return begin_s, model.build_s
        if source is not None or target == DISK:
            return now_s, model.size_bytes / self._disk_bytes_per_s
        self.tally.fetched_bytes += model.size_bytes
        self.tally.fetches += 1
        self.tally.load_s += model.load_s
        return now_s, model.fetch_s

    def _learn(self, ref: ModelRef, target: Place, source: Place | None, seconds: float) -> None:
        """A whole load from the model store was measured, waits for the builder included, as Cache does it."""
        if target == RAM:
            self._fetched_s.pop(ref, None)
            if source is None:
                self._fetched_s[ref] = seconds
        elif target.tier is Tier.DEVICE and ref in self._fetched_s:
            self._measured[self._numbers[ref]] = self._fetched_s.pop(ref) + seconds

    def _granted(self, together: Sequence[Waiting], ref: ModelRef, place: Place) -> None:
        now_s = self.clock.now_s
        end_s = now_s + self._models[together[0].number].serve_s
        self._lease(ref, place, end_s)
        for waiting in together:
            waiting.served(Served(waiting.start, now_s, end_s))
        first, self._first = self._first, None
        if first is not None:
            first(now_s)

    def _lease(self, ref: ModelRef, place: Place, until_s: float) -> None:
        self.running += 1

        def release(now_s: float) -> None:
            self.running -= 1
            plan = self.ledger.release(ref, place, now_s)
            if plan:
                self._carry_out(plan)
            if not self.running and not self._awaited:
                self._rests(now_s)

        self.clock.at(until_s, release)

    @property
    def is_idle(self) -> bool:
        """Nobody is served and nobody waits."""
        return not self.running and not self._awaited
