"""A simulated pod: the production ledger, whose Plans take as long as was measured.

    fetches   side by side; each takes its own time, or they share a network (network.py)
    builds    one after the other on each device
    drops     take no time; there is no disk
    requests  take their serve time and do not wait for each other: what is asked here is who finds its model there

What stays out: when pods start and stop, who asks which pod (fleet.py).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from loadtest.simulation.catalogue import Model
from loadtest.simulation.network import Fetch, Network
from predictor.heat import Warmth
from predictor.model import ModelRef, Tier
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Abort, Action, Drop, Footprint, Grant, Place, Refuse, Start, State

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
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)

    @property
    def next_s(self) -> float:
        """Moment of the next event; infinity: there is none."""
        return self._events[0][0] if self._events else math.inf


class Served(NamedTuple):
    """How one line of requests was served. ``start``: hot, ram or s3."""

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
    preloads: int = 0
    touched: set[ModelRef] = field(default_factory=set)
    ahead: int = 0


class Pod:
    """One pod's life.

    rests    told whenever nobody is served and nobody waits any more
    network  that fetches share; None: each takes its own time
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
    ) -> None:
        self._rests = rests
        self._network = network
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
            Footprint(model.size_bytes, ASIDE_BYTES if shares_ram else model.size_bytes, shares_ram=shares_ram)
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
        self._touch(ref, is_there=bool(books.of(ref)))
        ram = books.at(ref, RAM)
        start = "ram" if ram is not None and ram.state is State.READY else "s3"
        waiting = Waiting(number, due_s, served, start)
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
        """Begin with the hot set, the most valuable first, as much as RAM and devices hold.

        What was told of it counts as demand. Devices are filled first.
        """
        room = {Tier.DEVICE: sum(self.ledger.budgets[place] for place in self.ledger.books.devices)}
        room[Tier.RAM] = self.ledger.budgets[RAM]
        wanted: list[tuple[int, Tier]] = []
        for warmth in hot:
            number = numbers[warmth.name]
            visits = [now_s - ago_s for ago_s in warmth.visits]
            self.ledger.demand.add(self._refs[number], warmth.fast, warmth.slow, now_s, visits)
            size_bytes = self._models[number].size_bytes
            device_bytes = self._needs[number].device_bytes
            tier = Tier.DEVICE if room[Tier.DEVICE] >= device_bytes else Tier.RAM
            if room[Tier.RAM] >= size_bytes:
                room[Tier.RAM] -= size_bytes
                room[Tier.DEVICE] -= device_bytes if tier is Tier.DEVICE else 0
                if self._refs[number] not in self.tally.touched:  # else it is on its way already
                    wanted.append((number, tier))
        for number, tier in wanted:
            self.tally.preloaded.add(self._refs[number])
            self.tally.preloads += 1
            self._carry_out(self.ledger.preload(self._refs[number], self._needs[number], now_s, tier))

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
        while waiting:  # a drop is done at once, and what follows from it comes after the rest of the plan
            action = waiting.pop(0)
            match action:
                case Grant(_, ref, place):
                    self._granted(self._awaited.pop(self._numbers[ref]), ref, place)
                case Start(ref, target, source):
                    self._start(ref, target, source)
                case Drop(ref, place):
                    waiting += self.ledger.dropped(ref, place, self.clock.now_s)
                case Abort(ref, place):
                    if place.tier is not Tier.DEVICE:  # a build cannot be stopped: it ends, then the copy goes
                        if self._network is not None and ref in self._fetching:
                            self._network.stop(self._fetching.pop(ref))
                        waiting += self.ledger.failed(ref, place, self.clock.now_s)
                case Refuse():
                    raise AssertionError(f"nothing fails in a simulation: {action}")
        wake_s = self.ledger.wake_s
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self.clock.at(wake_s + TICK_S, self._tick)

    def _tick(self, now_s: float) -> None:
        self._wake_s = math.inf
        self._carry_out(self.ledger.tick(now_s))

    def _start(self, ref: ModelRef, target: Place, source: Place | None) -> None:
        model = self._models[self._numbers[ref]]
        now_s = self.clock.now_s
        cost_s, begin_s = model.fetch_s, now_s
        if target.tier is Tier.DEVICE:
            cost_s, begin_s = model.build_s, max(now_s, self._built_s.get(target, 0.0))
            self._built_s[target] = begin_s + cost_s
        elif source is None:
            self.tally.fetched_bytes += model.size_bytes
            self.tally.fetches += 1
            self.tally.load_s += model.load_s
        copy = self.ledger.books.at(ref, target)

        def end(now_s: float) -> None:
            if self.ledger.books.at(ref, target) is copy:  # else it was stopped, and perhaps begun anew
                self._fetching.pop(ref, None)
                self._carry_out(self.ledger.finished(ref, target, now_s - begin_s, now_s))

        if self._network is not None and target == RAM:

            def in_background() -> bool:
                return self.ledger.is_background(ref, RAM)

            self._fetching[ref] = self._network.begin(model.size_bytes, cost_s, is_background=in_background, done=end)
        else:
            self.clock.at(begin_s + cost_s, end)

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
