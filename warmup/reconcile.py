"""Makes the cluster, and the running pods, what the namespace's InferenceServices ask for. Level-triggered.

Three queues: a model's pass finds out what should be declared, a pool's pass writes it and gives it to pods, and a status
pass tells the InferenceService, never before the catalogue has it. Each pass starts from what is known at its moment,
so any of them may fail, be repeated, or be cut short by the process's end. What stays out: every decision (view.py,
credentials.py, rollout.py, shards.py, status.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from predictor.report import Happened
from predictor.telemetry import Telemetry
from warmup import rollout, status, view
from warmup.announce import Announcer
from warmup.books import Books
from warmup.findings import Findings
from warmup.history import History, Noted
from warmup.kube import PODS, Kube, KubeError, NotFound, Object
from warmup.pods import Listener, PodRef, Pods
from warmup.pools import Wishes
from warmup.rollout import Checked
from warmup.secrets import ByName
from warmup.status import Occurrence
from warmup.statuses import State, Statuses, Tracked
from warmup.summary import Summary
from warmup.view import Invalid, Model, Pool, Stranger
from warmup.work import Work
from warmup.world import REFRESHED, World

log = logging.getLogger(__name__)

EVERYTHING: Final = "all pools"
MODEL_PASSES: Final = 8
POOL_PASSES: Final = 4
STATUS_PASSES: Final = 8
UNKNOWN_RUNTIME_AFTER_S: Final = 10.0
"""A pool may be applied after its models."""

TOLD: Final = math.inf
"""Instead of the moment at which it is to be told."""

REFRESH_AGAIN_S: Final = 5.0
"""The kubelet may have looked at a Secret's old contents when it was told to look."""

POOL_AGAIN_S: Final = 30.0
"""A pool's pass without a reason: no watch tells of Secrets that were deleted."""


@dataclass(frozen=True)
class Parts:
    """What the controller works with."""

    kube: Kube
    world: World
    pods: Pods
    by_name: ByName
    findings: Findings
    announcer: Announcer
    history: History
    telemetry: Telemetry
    may_write: Callable[[], bool]
    summary: Summary
    statuses: Statuses


@dataclass(frozen=True)
class Pauses:
    """In seconds; see settings.py. ``unknown_s``: see UNKNOWN_RUNTIME_AFTER_S."""

    flush_s: float = 0.2
    secret_refresh_s: float = 30.0
    unknown_s: float = UNKNOWN_RUNTIME_AFTER_S


class Controller(Listener):
    """Of one namespace. ``attach`` the parts, then ``run``; ``lead`` and ``follow`` as the Lease comes and goes."""

    def __init__(
        self, state: State, pauses: Pauses, *, clock: Callable[[], float] = time.time, max_models: int = 50_000
    ) -> None:
        self.state = state
        self.parts: Parts
        self.leading = False
        self.viewed = False
        """Whether the pools of ``state`` are those of the cluster: before, none of them is no pool."""
        self.on_happened: Callable[[PodRef, Collection[Happened]], None] = lambda _ref, _events: None
        """Who else is told what happened in pods: who measures their starts."""
        self.models_work = Work("model", self._model_pass, workers=MODEL_PASSES, on_done=self._done)
        self.pools_work = Work("pool", self._pool_pass, workers=POOL_PASSES, on_done=self._done)
        self.status_work = Work("status", self._status_pass, workers=STATUS_PASSES, on_done=self._done)
        self.view_work = Work("view", self._view_pass, workers=1, on_done=self._done)
        self._pauses = pauses
        self._clock = clock
        self._max_models = max_models
        self._strangers: dict[str, float] = {}
        self._refreshed_s: dict[str, float] = {}
        self._remarks: dict[str, str] = {}
        self._synced = False

    def attach(self, parts: Parts) -> None:
        """They need this object to be made, and it needs them."""
        self.parts = parts

    # ---- coming and going -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self.models_work, self.pools_work, self.status_work, self.view_work):
                group.create_task(work.run(), name=f"{work.kind} work")
            group.create_task(self._refresh_secrets(), name="refresh secrets")
            await self.parts.world.until_synced()
            self._synced = True
            self.view_work.add(EVERYTHING)
            self.pods_changed()

    def lead(self, leads: bool) -> None:  # noqa: FBT001 - leader.py calls back with it
        """The Lease was won or lost. Whoever wins it starts from what the cluster has, not from memory."""
        self.leading = leads
        log.info("this controller %s", "writes" if leads else "only watches")
        self.state.books.clear()
        self.state.tracked.clear()
        self.parts.findings.clear()
        for work in (self.models_work, self.pools_work, self.status_work):
            work.clear()
        if leads:
            for pool in self.state.pools:
                self.pools_work.add(pool)
            for name in self.parts.world.models():
                self.models_work.add(name)

    async def _refresh_secrets(self) -> None:
        while True:
            await asyncio.sleep(self._pauses.secret_refresh_s)
            if self.leading:
                try:
                    await self.parts.by_name.refresh()
                except KubeError as error:
                    log.warning("Secrets in use cannot be read again: %s", error.message)

    # ---- what changed -----------------------------------------------------------------------------------------

    def model_changed(self, name: str) -> None:
        """See world.Hearer."""
        self.models_work.add(name)

    def pools_changed(self) -> None:
        """See world.Hearer."""
        self.view_work.add(EVERYTHING, 0.05)

    def pods_changed(self) -> None:
        """See world.Hearer."""
        if self._synced:
            self.parts.pods.follow(self.parts.world.pod_refs(), self.parts.world.ending())

    def config_map_changed(self, pool: str, name: str, version: str) -> None:
        """See world.Hearer."""
        books = self.state.books.get(pool)
        if books is not None and books.seen(name, version):
            self.pools_work.add(pool, self._pauses.flush_s)

    def checked(self, name: str) -> None:
        """A look at a model's location has ended."""
        self.models_work.add(name)

    def models_changed(self, models: Collection[str]) -> None:
        """See pods.Listener."""
        for name in models:
            if name in self.state.tracked:
                self.models_work.add(name)

    def pod_changed(self, pool: str) -> None:
        """See pods.Listener."""
        self.pools_work.add(pool)

    def happened(self, ref: PodRef, events: Iterable[Happened]) -> None:
        """See pods.Listener."""
        events = list(events)
        self.on_happened(ref, events)
        for told in events:
            self.parts.history.note(told.model, Noted(told.event.at_s, told.event.what, source=ref.name, event=told.event))

    # ---- pools ------------------------------------------------------------------------------------------------

    async def _view_pass(self, _: str) -> float | None:
        if not self._synced:
            return None
        before, self.state.pools = self.state.pools, self.parts.world.pools()
        self.parts.summary.pools = self.state.pools
        self.viewed = True
        again: set[str] = set()
        for name in before.keys() | self.state.pools.keys():
            old, new = before.get(name), self.state.pools.get(name)
            if old == new:
                continue
            self.pools_work.add(name)
            if _as_models_see_it(old) != _as_models_see_it(new):
                again.add(name)
        default = {
            name for name in again for pool in (before.get(name), self.state.pools.get(name)) if pool and pool.is_default
        }
        if again or not before:
            for name in self.parts.world.models():
                runtime = _runtime(self.parts.world.inference_services.objects[name])
                if runtime in again or (not runtime and default) or name in self._strangers or not before:
                    self.models_work.add(name)
        return None

    async def _pool_pass(self, name: str) -> float | None:
        parts = self.parts
        pool = self.state.pools.get(name)
        if pool is None:
            self.state.books.pop(name, None)
            parts.pods.forget(name)
            return None
        if not parts.may_write():
            return None
        books = self.state.books.get(name)
        if books is None or books.pool.owner.uid != pool.owner.uid:
            books = Books(parts.kube, pool, clock=self._clock, count=parts.announcer.count)
            await books.load()
            self.state.books[name] = books
            for model in {*books.names, *parts.world.models()}:
                self.models_work.add(model)
        books.pool = pool
        if asyncio.get_running_loop().time() - books.secrets_read_s >= self._pauses.secret_refresh_s:
            await books.reread_secrets()
        books.keep_scopes(tracked.scope for tracked in self.state.tracked.values() if tracked.model.pool == name)
        try:
            await books.flush(parts.may_write)
        finally:
            parts.pods.declare(name, books.documents())
            for model in books.news():
                tracked = self.state.tracked.get(model)
                if tracked is not None:
                    tracked.written_s = asyncio.get_running_loop().time()
                self.models_work.add(model)
        again_s = await self._refresh_mounts(name, books)
        await self._remark(pool)
        return again_s if books.is_clean else self._pauses.flush_s

    async def _refresh_mounts(self, pool: str, books: Books) -> float:
        """Have the kubelet look at mounted Secrets of pods that go by older credentials. Seconds until the next pass."""
        wanted = books.scopes_serials
        now_s = asyncio.get_running_loop().time()
        again_s = POOL_AGAIN_S
        for pod in self.parts.pods.of(pool):
            has = pod.report.scopes if pod.report is not None else {}
            if not pod.counts or all(has.get(file, 0) >= serial for file, serial in wanted.items()):
                self._refreshed_s.pop(pod.ref.name, None)
                continue
            again_s = min(again_s, REFRESH_AGAIN_S)
            if now_s - self._refreshed_s.get(pod.ref.name, -REFRESH_AGAIN_S) < REFRESH_AGAIN_S or not self.parts.may_write():
                continue
            self._refreshed_s[pod.ref.name] = now_s
            with contextlib.suppress(NotFound):
                mark = {"metadata": {"annotations": {REFRESHED: f"{max(wanted.values())}.{int(self._clock())}"}}}
                await self.parts.kube.patch(PODS, pod.ref.name, mark)
                self.parts.announcer.count("pods", "ok")
        return again_s

    async def _remark(self, pool: Pool) -> None:
        """What a pool's owner should know becomes an Event, once."""
        if pool.remark and self._remarks.get(pool.name) != pool.remark:
            self._remarks[pool.name] = pool.remark
            await self.announce(pool.name, Occurrence("Warning", "PoolRemark", pool.remark), pool.remark)

    async def announce(self, pool: str, occurrence: Occurrence, cause: str) -> None:
        """An Event about a pool's object; see Announcer.record."""
        known = self.state.pools.get(pool)
        if known is None or not await self.parts.announcer.allowed():
            return
        owner = known.owner
        about = {"apiVersion": owner.api_version, "kind": owner.kind, "metadata": {"name": owner.name, "uid": owner.uid}}
        await self.parts.announcer.record(about, occurrence, cause)

    # ---- models -----------------------------------------------------------------------------------------------

    async def _model_pass(self, name: str) -> float | None:
        parts = self.parts
        if not (parts.may_write() and self._synced):
            return None
        found = parts.world.inference_services.objects.get(name)
        whose = None if found is None else self._whose(found)
        if isinstance(whose, Model):
            self._strangers.pop(name, None)
            return await self._model(whose)
        tracked = self.state.tracked.get(name)
        if isinstance(whose, Stranger) and found is not None:
            if tracked is not None and _runtime(found) in ("", tracked.model.pool):
                await parts.statuses.orphan(found, tracked.model.pool)
            self._drop(name)
            return await self._stranger(name, found, whose)
        self._drop(name)
        self._strangers.pop(name, None)
        return None

    def _whose(self, found: Object) -> Model | Stranger | None:
        latest, runtimes = self.parts.announcer.latest(found), self.parts.world.serving_runtimes.objects.keys()
        return view.model(latest, self.state.pools, runtimes, annotation=self.parts.findings.annotation)

    async def _model(self, model: Model) -> float | None:
        name, pool = model.name, model.pool
        for other, others in self.state.books.items():
            if other != pool and others.declare(name, None):
                self.pools_work.add(other, self._pauses.flush_s)
        books = self.state.books.get(pool)
        if books is None:
            self.pools_work.add(pool)
            return None  # that pass adds every model again
        if name not in self.state.tracked and len(self.state.tracked) >= self._max_models:
            log.warning("model %s is left out: there are %d already (HEARTH_CONTROLLER_MAX_MODELS)", name, self._max_models)
            return POOL_AGAIN_S
        seen = await self.parts.findings.of(model, self.state.pools[pool], books)
        if self.state.books.get(pool) is books and self.parts.may_write():  # else a later pass begins from what is then
            self._decide(model, books, seen.finding)
            if seen.variables is not None and books.resolve(seen.scope, seen.variables):
                self.pools_work.add(pool, self._pauses.flush_s)
            self._track(model, seen.finding, seen.scope)
            self.status_work.add(name)
        # What lacks lies outside the InferenceService, and perhaps outside of what is watched.
        return POOL_AGAIN_S if isinstance(seen.finding, Invalid) and seen.finding.passing else None

    def _decide(self, model: Model, books: Books, finding: Checked | Invalid) -> None:
        """What is declared follows; nothing else happens here."""
        told, _ = self.parts.statuses.told(model, books)
        loaded = status.proven(told)
        old = books.get(model.name)
        checked = finding if isinstance(finding, Checked) else None
        declared = rollout.settled(old, loaded) if checked is None else rollout.next_declared(old, checked, loaded)
        if not books.declare(model.name, declared):
            return
        self.pools_work.add(model.pool, self._pauses.flush_s)
        if declared is not None:
            beside = f" beside number {declared.stable.number}, {declared.stable.uri}" if declared.stable is not None else ""
            text = f"number {declared.target.number}, {declared.target.uri}, for {declared.percent} %{beside}"
            self.parts.history.own(model.name, "declared", text, self._clock())

    async def _status_pass(self, name: str) -> float | None:
        return await self.parts.statuses.look(name)

    def _track(self, model: Model, finding: Checked | Invalid, scope: str) -> None:
        before = self.state.tracked.get(model.name)
        now_s = asyncio.get_running_loop().time()
        if before is None:
            self.state.tracked[model.name] = Tracked(model, finding, scope, now_s)
            return
        if before.finding != finding and (text := getattr(finding, "message", "")):
            self.parts.history.own(model.name, "checked", text, self._clock())
        fresh = before.model.generation != model.generation
        self.state.tracked[model.name] = Tracked(model, finding, scope, now_s if fresh else before.since_s, before.written_s)

    def _drop(self, name: str) -> None:
        """No model of ours any more."""
        self.parts.findings.forget(name)
        self.parts.announcer.forget(name)
        if self.state.tracked.pop(name, None) is not None:
            self.parts.history.own(name, "deleted", "its InferenceService is gone, or is not this pool's", self._clock())
        for pool, books in self.state.books.items():
            if books.declare(name, None):
                self.pools_work.add(pool, self._pauses.flush_s)

    async def _stranger(self, name: str, found: Object, whose: Stranger) -> float | None:
        """Leave it alone; tell once who names a runtime that nobody has."""
        now_s = asyncio.get_running_loop().time()
        due_s = self._strangers.setdefault(name, now_s + self._pauses.unknown_s)
        if not whose.unknown_runtime or due_s == TOLD:
            return None
        if now_s < due_s:
            return due_s - now_s
        if await self.parts.announcer.allowed():
            self._strangers[name] = TOLD
            text = f"no pool and no ServingRuntime of this namespace is called {whose.unknown_runtime}"
            await self.parts.announcer.record(found, Occurrence("Warning", "UnknownRuntime", text), whose.unknown_runtime)
        return None

    # ---- counting ---------------------------------------------------------------------------------------------

    def _done(self, kind: str, outcome: str, seconds: float) -> None:
        telemetry = self.parts.telemetry
        telemetry.counter("hearth_controller_passes_total", kind, outcome).inc()
        telemetry.histogram("hearth_controller_pass_seconds", kind).observe(seconds)


def _as_models_see_it(pool: Pool | None) -> Pool | None:
    """Without what no model's status or credentials depend on."""
    return None if pool is None else dataclasses.replace(pool, revision="", wishes=Wishes(), remark="")


def _runtime(found: Object) -> str:
    return str((((found.get("spec") or {}).get("predictor") or {}).get("model") or {}).get("runtime") or "")
