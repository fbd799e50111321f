"""Collects what the pools' pods noted, keeps it, and publishes what pods that come up begin with.

A pass each second for a pool that has pods: asks those whose turn it is, and those that end once more, for their demand;
writes the pool's memory (ConfigMap hearth-POOL-demand, this controller's alone) and its hot set (hearth-POOL-hotset, which
its pods mount). Only who leads does any of it, beginning with what the cluster has. What stays out: what is remembered and
what is hot (memory.py), and what running pods are ordered (ordering.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from predictor import heat
from predictor.errors import HearthError
from predictor.heat import HOTSET_FILE, MAX_MODELS, Heat, HotSet, Warmth
from predictor.telemetry import Telemetry
from warmup import memory
from warmup.books import Cluster
from warmup.kept import MAX_DOCUMENT_BYTES, Kept
from warmup.memory import Memory, PoolDemand, differ, hot_set
from warmup.ordering import Ordering
from warmup.pods import Followed, PodRef, Pods
from warmup.view import Pool
from warmup.work import Work

log = logging.getLogger(__name__)

HEAT_PATH: Final = "/hearth/v1/heat"
DEMAND_FILE: Final = "demand.json.gz"

QUIETER: Final = 5
"""Times fewer passes over a pool without pods: one that comes up has nothing to tell for longer."""

ENDING_S: Final = 2.0
"""How often a pod that ends is asked: which of the answers is its last one, nobody knows before."""

PUBLISH_EACH_S: Final = 30.0
KEEP_EACH_S: Final = 60.0
PASSES: Final = 4
ASKED_AT_ONCE: Final = 8
LEAST_LINES: Final = 16
FAREWELL_S: Final = 3.0

_OK: Final = 200


@dataclass(slots=True)
class Shown:
    """A published hot set, for people. ``at_s``: moment of its rates, seconds since the epoch."""

    models: int
    size_bytes: int
    at_s: float


@dataclass(slots=True)
class _Of:
    """What is known of one pool.

    asked_s   when a pod was asked last, by the loop's clock
    ending    pods that counted no more at the last pass
    counting  pods that do
    """

    demand: PoolDemand
    kept: Kept[Memory]
    published: Kept[HotSet]
    hot: HotSet | None = None
    kept_version: int = 0
    hot_version: int = -1
    asked_s: dict[PodRef, float] = field(default_factory=dict)
    ending: frozenset[PodRef] = frozenset()
    models: list[Warmth] = field(default_factory=list)
    models_at_s: float = 0.0
    models_version: int = -1
    counting: int = 0
    shown: Shown | None = None

    async def warmth(self, now_s: float) -> list[Warmth]:
        """By value; of a moment up to ``PUBLISH_EACH_S`` ago, where nothing was told since. The pool's pass alone may ask.

        In a thread: adding up 12,000 lines of three pods takes 0.4 s, and nothing else writes here meanwhile.
        """
        if self.models_version != self.demand.version or now_s - self.models_at_s >= PUBLISH_EACH_S:
            version = self.demand.version
            self.models = await asyncio.to_thread(self.demand.models, now_s)
            self.models_version, self.models_at_s = version, float(int(now_s))
        return self.models


class HotSets:
    """Of all pools of a namespace.

    pools      name → pool, as known now
    declared   names of the models that are declared to a pool; None: that is not known yet
    may_act    whether this controller is the one that writes, and has read what the cluster has
    ordering   gives running pods their orders; None: nobody does
    heat_s     how often each running pod is asked for its demand
    pass_s     between two passes over a pool that has pods
    clock      seconds since the epoch
    count      called with kind and outcome of every write
    """

    def __init__(
        self,
        kube: Cluster,
        pods: Pods,
        *,
        pools: Callable[[], Mapping[str, Pool]],
        declared: Callable[[str], Collection[str] | None],
        may_act: Callable[[], bool],
        ordering: Ordering | None,
        telemetry: Telemetry,
        clock: Callable[[], float],
        count: Callable[[str, str], None],
        heat_s: float = 30.0,
        pass_s: float = 1.0,
    ) -> None:
        self._kube = kube
        self._pods = pods
        self._pools = pools
        self._declared = declared
        self._may_act = may_act
        self._ordering = ordering
        self._telemetry = telemetry
        self._clock = clock
        self._count = count
        self._heat_s = heat_s
        self._pass_s = pass_s
        self._of: dict[str, _Of] = {}
        self._led = False
        self._work = Work("hot set", self._pass, workers=PASSES, on_done=self._done)

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each for ever."""
        return [self._work.run(), self._look()]

    def shown(self) -> dict[str, Shown]:
        """By pool: what is published. Empty while this controller does not act."""
        return {name: of.shown for name, of in self._of.items() if of.shown is not None}

    async def close(self) -> None:
        """Write down what is not yet, in a few seconds or not at all; no pass may run any more."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                for of in self._of.values():
                    if self._may_act():
                        await self._keep(of, at_once=True)
                        await self._publish(of, at_once=True)
        except (HearthError, TimeoutError) as error:
            log.warning("demand of the last %g s is not written down: %s", KEEP_EACH_S, str(error) or "no answer in time")

    # ---- passes -----------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Have a pass for every pool, soon after it is seen first."""
        while True:
            acts = self._may_act()
            if not acts or not self._led:
                self._of.clear()  # whoever leads starts from what the cluster has
                self._work.clear()
            self._led = acts
            for name in self._pools() if acts else ():
                if name not in self._of:
                    self._work.add(name)
            await asyncio.sleep(self._pass_s)

    async def _pass(self, name: str) -> float | None:
        pool = self._pools().get(name)
        if pool is None or not self._may_act():
            self._of.pop(name, None)
            if self._ordering is not None:
                self._ordering.forget(name)
            return None
        of = self._of.get(name)
        if of is None or of.kept.pool.owner.uid != pool.owner.uid:
            of = await self._begin(pool, of)
            if not self._may_act():
                return None
            self._of[name] = of
        of.kept.pool = of.published.pool = pool
        pods = self._pods.of(name)
        await self._collect(of, pods)
        self._see(of, self._pods.of(name))
        declared = self._declared(name)
        if declared is not None:
            of.demand.declare(declared, self._clock())
        # The next pod comes up from what stands there then: what the last one still tells is written when it tells it.
        await self._publish(of, at_once=not of.counting)
        await self._keep(of, at_once=not of.counting)
        if self._ordering is not None:
            await self._ordering.look(name, await of.warmth(self._clock()), of.models_at_s, of.demand.heats())
        return self._pass_s if pods else QUIETER * self._pass_s

    async def _begin(self, pool: Pool, before: _Of | None) -> _Of:
        """From what the cluster has; ``before``: of a pool that was deleted and made again, whose demand goes on."""
        kept: Kept[Memory] = Kept(
            self._kube, pool, "demand", key=DEMAND_FILE, read=memory.decode, pause_s=KEEP_EACH_S, count=self._count
        )
        published: Kept[HotSet] = Kept(
            self._kube, pool, "hotset", key=HOTSET_FILE, read=_hot_set, pause_s=PUBLISH_EACH_S, count=self._count
        )
        remembered, hot = await kept.load(), await published.load()
        if remembered is None and hot is not None and not self._pods.of(pool.name):
            # Its memory is lost, and what was made of it is not. With a pod that runs, its part would count twice.
            remembered = Memory(pool.name, hot.at_s, Heat("", hot.at_s, hot.models))
        if before is not None:
            before.demand.version += 1  # it has to be written once more
            return _Of(before.demand, kept, published)
        of = _Of(PoolDemand(pool.name, remembered), kept, published, hot)
        if hot is not None:
            of.shown = Shown(len(hot.models), len(heat.encode(hot)), hot.at_s)
        return of

    async def _collect(self, of: _Of, pods: Collection[Followed]) -> None:
        """Ask those whose turn it is. What one does not answer changes nothing."""
        now_s = asyncio.get_running_loop().time()
        of.asked_s = {pod.ref: of.asked_s[pod.ref] for pod in pods if pod.ref in of.asked_s}
        gate = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(pod: Followed) -> None:
            async with gate:
                await self._ask(of, pod)

        due = []
        for pod in pods:
            pause_s = self._heat_s if pod.counts else min(ENDING_S, self._heat_s)
            is_new = not pod.counts and pod.ref not in of.ending
            if pod.state == "answering" and (is_new or now_s - of.asked_s.get(pod.ref, -self._heat_s) >= pause_s):
                of.asked_s[pod.ref] = now_s
                due.append(ask(pod))
        of.ending = frozenset(pod.ref for pod in pods if not pod.counts)
        if due:
            await asyncio.gather(*due)

    async def _ask(self, of: _Of, pod: Followed) -> None:
        answer = await self._pods.exchange(pod.ref, "GET", HEAT_PATH, operation="heat")
        if answer is None or answer[0] != _OK or pod.report is None or pod not in self._pods.of(pod.ref.pool):
            return
        try:
            told = heat.decode(answer[1], Heat)
        except (ValueError, RecursionError) as error:
            log.warning("pod %s: %s: %s", pod.ref.name, HEAT_PATH, str(error)[:500])
            return
        now_s = self._clock()
        of.demand.told(pod.ref.name, told, now_s - pod.report.up_s, now_s)

    def _see(self, of: _Of, pods: Collection[Followed]) -> None:
        of.counting = sum(pod.counts for pod in pods)
        of.demand.see({pod.ref.name for pod in pods}, self._clock())

    # ---- writing ----------------------------------------------------------------------------------------------

    async def _publish(self, of: _Of, *, at_once: bool) -> None:
        if of.hot_version == of.demand.version or (of.published.due_s > 0 and not at_once):
            return
        now_s, version = self._clock(), of.demand.version
        models = await of.warmth(now_s)
        hot = await asyncio.to_thread(hot_set, of.published.pool.name, models, of.models_at_s)
        if of.hot is None and not (hot.models or of.published.trouble):
            return
        if of.hot is not None and not differ(of.hot, hot, share=0.01 if at_once else memory.DIFFERS):
            of.hot_version = version
            return
        hot, document = await asyncio.to_thread(_fitting, hot)
        if await of.published.write(document, self._may_act, at_once=at_once):
            of.hot, of.hot_version = hot, version
            of.shown = Shown(len(hot.models), len(document), hot.at_s)

    async def _keep(self, of: _Of, *, at_once: bool) -> None:
        if of.kept_version == of.demand.version or (of.kept.due_s > 0 and not at_once):
            return
        version, lines = of.demand.version, MAX_MODELS
        while True:
            document = await asyncio.to_thread(_document, of.demand, self._clock(), lines)
            try:
                if await of.kept.write(document, self._may_act, at_once=at_once):
                    of.kept_version = version
            except ValueError:  # names that are long and nothing like each other
                if lines <= LEAST_LINES:
                    raise
                lines //= 2
            else:
                return

    def _done(self, _: str, outcome: str, seconds: float) -> None:
        self._telemetry.counter("hearth_controller_passes_total", "hot set", outcome).inc()
        self._telemetry.histogram("hearth_controller_pass_seconds", "hot set").observe(seconds)


def _fitting(hot: HotSet) -> tuple[HotSet, bytes]:
    """As much of it as one object takes: where names are long, the least valuable are left out."""
    document = heat.encode(hot)
    while len(document) > MAX_DOCUMENT_BYTES:
        hot = msgspec.structs.replace(hot, models=hot.models[: len(hot.models) * MAX_DOCUMENT_BYTES // len(document) - 1])
        document = heat.encode(hot)
    return hot, document


def _document(demand: PoolDemand, now_s: float, lines: int) -> bytes:
    return memory.encode(demand.memory(now_s, lines))


def _hot_set(raw: bytes) -> HotSet:
    return heat.decode(raw, HotSet)
