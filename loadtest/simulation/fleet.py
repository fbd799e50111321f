"""A pool's pods from zero and back, replayed: who starts them, who asks which of them, when they go.

    0 ──a request──▶ starting ──start_s──▶ up ──nobody for keep_s──▶ 0

All pods of a pool start and go together; with several, a request goes to one that has its model, else to the one that
rendezvous hashing says (Thaler, Ravishankar, 1998), as routing between replicas is designed. What stays out: what a pod
does with a request (pod.py), what becomes of the record (outcome.py).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.simulation.arrivals import Arrivals, Earlier
from loadtest.simulation.catalogue import Model
from loadtest.simulation.network import Network
from loadtest.simulation.outcome import Life, Record
from loadtest.simulation.pod import Clock, Pod, Served
from loadtest.simulation.policies import Policy
from loadtest.simulation.rivals import Foresight
from predictor.heat import MAX_MODELS, Warmth
from predictor.model import ModelRef
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.hotset import ordered
from predictor.policy.residency import DISK, RAM, Place
from predictor.wakeup import SPARE_CORES
from warmup.retention import keep_s

PARTS: Final = 8
"""A line of many requests whose model is not there falls into so many: they come while it loads, and after."""


@dataclass(frozen=True)
class Pool:
    """What there is, and what an operator set.

    device_bytes  of each device; RAM of each pod
    start_s       from the first request at zero until a pod serves
    window_s      Knative's stable window and grace: a pod without requests goes after it
    weight        idle seconds of a pod that one second of a waiting user is worth (retention)
    longest_s     longest time that an idle pod is kept
    network_bytes_per_s  of a pod's fetches together; infinity: each takes its own time
    shares_ram    devices are processors: a model there is a view of its RAM copy, and takes ``ASIDE_BYTES`` beside it
    cores         of a pod; with few of them the hot set waits until the first request has its model (predictor/wakeup.py)
    disk_bytes    of each pod, empty when it comes up; 0: it has none. It reads and writes ``disk_bytes_per_s`` each
    """

    device_bytes: int
    ram_bytes: int
    pods: int = 1
    devices: int = 1
    start_s: float = 10.0
    window_s: float = 90.0
    weight: float = 10.0
    longest_s: float = 3600.0
    network_bytes_per_s: float = math.inf
    cores: int = SPARE_CORES
    shares_ram: bool = False
    disk_bytes: int = 0
    disk_bytes_per_s: float = 2e9
    rules: Rules = Rules()  # noqa: RUF009 (frozen, and the production default)

    def budgets(self) -> Mapping[Place, int]:
        """Of one pod."""
        disk = {DISK: self.disk_bytes} if self.disk_bytes else {}
        return {RAM: self.ram_bytes} | {Place(device): self.device_bytes for device in range(self.devices)} | disk


class Fleet:
    """One replay of ``arrivals`` under one policy. ``earlier``: what was asked before, which the hot set begins with."""

    def __init__(
        self, pool: Pool, models: Sequence[Model], policy: Policy, arrivals: Arrivals, *, earlier: Iterable[Earlier] = ()
    ) -> None:
        self.pool, self.policy, self.models, self.arrivals = pool, policy, models, arrivals
        self.record = Record(arrivals.models, pool.devices)
        self.refs = [ModelRef("sim", model.name, 1) for model in models]
        self.clock = Clock()
        self._numbers = {model.name: number for number, model in enumerate(models)}
        self._ranks = [sorted(range(pool.pods), key=lambda pod: _draw(model.name, pod)) for model in models]
        self._heard = Demand()
        self._measured: dict[int, float] = {}
        for at_s, name, load_s in earlier:
            number = self._numbers[name]
            self._heard.note(self.refs[number], at_s)
            self._measured[number] = load_s or self._measured.get(number, 0.0)
        self._foresight = Foresight() if policy.demand is Foresight else None
        self._next_s = arrivals.next_s().tolist() if self._foresight is not None else []
        self._pods: list[Pod] = []
        self._held: list[tuple[int, float]] = []
        self._up_s = math.inf  # moment from which the pods serve
        self._born_s = 0.0
        self._quiet_s = 0.0  # moment since which nobody was served and nobody waited
        self._gaps_s: list[float] = []
        self._line = -1
        self._arrived = self._told = 0  # lines; those that the controller was told

    def replay(self) -> Record:
        """All of it, to the last answer. What still runs then has its window before it goes."""
        columns = (self.arrivals.due_s, self.arrivals.model, self.arrivals.count, self.arrivals.span_s)
        lines = zip(*(column.tolist() for column in columns), strict=True)
        if self.policy.retention == "always":
            self._wake(0.0)
            self._ready(0.0)
        clock = self.clock
        for self._line, (due_s, number, count, span_s) in enumerate(lines):
            if clock.next_s <= due_s:
                clock.run(due_s)
            clock.now_s = due_s
            self._arrive(number, count, span_s, due_s)
        end_s = self.arrivals.due_s[-1] if len(self.arrivals) else 0.0
        self._line = -1
        if self.policy.retention == "always":
            clock.run(end_s)
            while self._held or not all(pod.is_idle for pod in self._pods):
                clock.run(clock.next_s)
            self._end(clock.now_s)
        else:
            clock.run(math.inf)
        return self.record

    # ---- who asks --------------------------------------------------------------------------------------------

    def _arrive(self, number: int, count: int, span_s: float, now_s: float) -> None:
        if self._foresight is not None and self._line >= 0:
            self._foresight.next_s[self.refs[number]] = self._next_s[self._line]
        self._arrived += 1
        if not self._pods:
            if self._line > 0 and self._quiet_s < now_s:
                self._gaps_s.append(now_s - self._quiet_s)
            self._wake(now_s)
        elif self._quiet_s < math.inf and self._up_s <= now_s:
            self._gaps_s.append(now_s - self._quiet_s)
        self._quiet_s = math.inf
        if now_s < self._up_s:
            self._divide(number, count, span_s, now_s, held=True)
            return
        self._ask(number, count, span_s, now_s)

    def _ask(self, number: int, count: int, span_s: float, now_s: float) -> None:
        how = self._route(number).ask(number, now_s, count=count, span_s=span_s)
        if how is None:
            self._divide(number, count, span_s, now_s, held=False)
        else:
            self.record.note(number, now_s, count=count, start=how.start, begin_s=how.begin_s, end_s=how.end_s)

    def _divide(self, number: int, count: int, span_s: float, now_s: float, *, held: bool) -> None:
        """The first of a line waits; the others come over its span, when the model may be there."""
        if held:
            self._held.append((number, now_s))
        else:
            self._route(number).wait(number, now_s, self._served(number, now_s))
        left = count - 1
        parts = min(left, PARTS)
        for part in range(parts):
            share = left // parts + (part < left % parts)
            at_s = now_s + span_s * (part + 1) / (parts + 1)
            self.clock.at(at_s, lambda at_s, share=share: self._again(number, share, span_s / (parts + 1), at_s))  # type: ignore[misc]

    def _again(self, number: int, count: int, span_s: float, now_s: float) -> None:
        if now_s < self._up_s:
            self._divide(number, count, span_s, now_s, held=True)
            return
        self._ask(number, count, span_s, now_s)

    def _route(self, number: int) -> Pod:
        ranks = self._ranks[number]
        if len(ranks) > 1:
            for rank in ranks:
                if self._pods[rank].has(number):
                    return self._pods[rank]
        return self._pods[ranks[0]]

    def _served(self, number: int, due_s: float, start: str = "") -> Callable[[Served], None]:
        """Of one request; ``start``: what it is called whatever its pod says."""

        def served(how: Served) -> None:
            self.record.note(number, due_s, count=1, start=start or how.start, begin_s=how.begin_s, end_s=how.end_s)

        return served

    # ---- pods ------------------------------------------------------------------------------------------------

    def _wake(self, now_s: float) -> None:
        pool = self.pool
        self._born_s, self._up_s = now_s, now_s + pool.start_s
        demands = [self._foresight or self.policy.demand() for _ in range(pool.pods)]
        self._pods = [
            Pod(
                self.clock,
                self.policy.ledger(pool.budgets(), demand, pool.rules),
                self.models,
                self.refs,
                rests=self._look,
                network=Network(self.clock, pool.network_bytes_per_s) if pool.network_bytes_per_s < math.inf else None,
                shares_ram=pool.shares_ram,
                disk_bytes_per_s=pool.disk_bytes_per_s,
                measured=self._measured,
            )
            for demand in demands
        ]
        if now_s < self._up_s:
            self.clock.at(self._up_s, self._ready)

    def _ready(self, now_s: float) -> None:
        self._up_s = now_s
        held, self._held = self._held, []
        for number, due_s in held:
            pod = self._route(number)
            # What was held had been due before the pod was up, and says so.
            pod.wait(number, due_s, self._served(number, due_s, "pod"))
        if self.policy.hot_set:
            pool_is_small = self.pool.cores < SPARE_CORES
            shares: dict[int, list[Warmth]] = defaultdict(list)
            for warmth in self._hot_set(now_s):
                shares[self._ranks[self._numbers[warmth.name]][0]].append(warmth)
            for place, pod in enumerate(self._pods):
                if pool_is_small and not pod.is_idle:
                    pod.on_first(lambda at_s, pod=pod, hot=shares[place]: pod.preload(hot, self._numbers, at_s))  # type: ignore[misc]
                else:
                    pod.preload(shares[place], self._numbers, now_s)

    def _hot_set(self, now_s: float) -> list[Warmth]:
        """As the controller publishes it: rates of what was asked, its loads as they were last, and sizes."""
        lines, self._told = slice(self._told, self._arrived), self._arrived
        columns = (self.arrivals.model, self.arrivals.due_s, self.arrivals.count)
        for number, due_s, count in zip(*(column[lines].tolist() for column in columns), strict=True):
            self._heard.note(self.refs[number], due_s, count)
        found = []
        for key, fast, slow in self._heard.rates(now_s):
            assert isinstance(key, ModelRef), f"noted here: {key!r}"
            number = self._numbers[key.name]
            load_s, size_bytes = self._measured.get(number, 0.0), self.models[number].size_bytes
            ago_s = tuple(int(now_s - moment_s) for moment_s in self._heard.visits(key))
            found.append(Warmth(key.name, 1, fast, slow, load_s, size_bytes, ago_s))
        if self._foresight is not None:
            known = self._foresight.next_s
            found.sort(key=lambda one: known.get(self.refs[self._numbers[one.name]], math.inf))
            return found[:MAX_MODELS]
        return ordered(found)[:MAX_MODELS]

    def _look(self, now_s: float) -> None:
        """A request ended: if it was the last one, the pods may go after a while."""
        if self._held or not all(pod.is_idle for pod in self._pods) or self._quiet_s < math.inf or not self._pods:
            return
        self._quiet_s = now_s
        if self.policy.retention == "always":
            return
        going_s = now_s + self._kept_s(now_s)
        pods = self._pods
        self.clock.at(going_s, lambda at_s: self._go(now_s, pods, at_s))

    def _go(self, quiet_s: float, pods: list[Pod], now_s: float) -> None:
        if self._pods is pods and self._quiet_s == quiet_s:
            self._end(now_s)

    def _end(self, now_s: float) -> None:
        self.record.lives.append(Life(self._born_s, now_s, [pod.tally for pod in self._pods]))
        self._pods, self._up_s = [], math.inf

    def _kept_s(self, now_s: float) -> float:
        pool = self.pool
        cold_s = pool.start_s + self.record.mean_load_s(self.models)
        match self.policy.retention:
            case "break-even":
                longest_s = max(pool.longest_s, pool.window_s)
                return keep_s(
                    self._gaps_s, cold_start_s=cold_s, weight=pool.weight, longest_s=longest_s, shortest_s=pool.window_s
                )
            case "known":
                line = self._line + 1
                if self._line < 0 or line >= len(self.arrivals):
                    return pool.window_s
                gap_s = float(self.arrivals.due_s[line]) - now_s
                return gap_s + TINY_S if gap_s <= pool.window_s + cold_s * pool.weight else pool.window_s
            case _:
                return pool.window_s


TINY_S: Final = 1e-6


def _draw(model: str, pod: int) -> bytes:
    return hashlib.blake2b(f"{model}/{pod}".encode(), digest_size=8).digest()
