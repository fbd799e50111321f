"""Builds the controller and runs it: ``hearth controller``, ``python -m warmup``. No decision is made here."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import ProcessCollector

from predictor.errors import HearthError
from predictor.telemetry import Telemetry
from warmup import activity, calendar
from warmup.announce import Announcer
from warmup.checks import Checker, Checks, StoreChecker
from warmup.credentials import Config
from warmup.findings import Findings
from warmup.foresight import KEPT_EACH_S, KEY, WHAT, Bounds, Foresight, Scene
from warmup.history import History, pool_key
from warmup.hotsets import HotSets
from warmup.kept import Kept
from warmup.kube import Kube, meta
from warmup.leader import Leader, Terms
from warmup.ordering import Ordering
from warmup.placement import Wish
from warmup.pods import Pods
from warmup.reconcile import Controller, Parts, Pauses
from warmup.secrets import ByName
from warmup.settings import ControllerSettings, from_arguments
from warmup.status import Occurrence
from warmup.statuses import State, Statuses, StatusPauses
from warmup.summary import Summary
from warmup.telemetry import METRICS
from warmup.warming import Warming
from warmup.watch import Pace
from warmup.work import Bucket
from warmup.world import World

log = logging.getLogger("warmup")


@dataclass(frozen=True)
class Built:
    """A whole controller; ``close`` it."""

    controller: Controller
    leader: Leader
    checks: Checks
    pods: Pods
    world: World
    summary: Summary
    telemetry: Telemetry
    warming: Warming
    foresight: Foresight
    hot_sets: HotSets

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each for ever, beside the Lease."""
        ahead = (*self.warming.jobs(), *self.foresight.jobs(), *self.hot_sets.jobs())
        return [*self.world.jobs(), *ahead, self.controller.run()]

    async def close(self) -> None:
        """Stop what runs beside the controller's own tasks."""
        await self.hot_sets.close()
        await self.foresight.close()
        await self.checks.close()
        await self.pods.close()


def build(
    settings: ControllerSettings,
    kube: Kube,
    checker: Checker | None = None,
    *,
    pace: Pace | None = None,
    terms: Terms | None = None,
) -> Built:
    """Make all the objects, inside a running loop. Asks nobody anything yet. ValueError: a setting is nonsense."""
    telemetry = Telemetry(METRICS)
    ProcessCollector(registry=telemetry.registry)  # process_resident_memory_bytes, process_cpu_seconds_total, ...
    leader = Leader(kube, settings.lease_name, settings.identity, terms=terms)
    state = State()
    pauses = Pauses(flush_s=settings.flush_s, secret_refresh_s=settings.secret_refresh_s)
    controller = Controller(state, pauses, max_models=settings.max_models)
    world = World(kube, controller, pace=pace)
    pods = Pods(
        controller,
        telemetry=telemetry,
        may_write=leader.is_leader,
        poll_s=settings.poll_s,
        timeout_s=settings.pod_timeout_s,
        port=settings.pod_port,
        max_pods=settings.max_pods,
    )
    checks = Checks(
        checker or StoreChecker(settings.namespace, settle_s=settings.settle_s, timeout_s=settings.check_timeout_s),
        controller.checked,
        telemetry=telemetry,
        concurrency=settings.check_concurrency,
        timeout_s=settings.check_timeout_s,
        retry_s=settings.check_retry_s,
        retry_max_s=settings.check_retry_max_s,
    )
    config = Config.from_json(settings.storage_config) if settings.storage_config else Config()
    by_name = ByName(kube, controller.model_changed)
    history = History(settings.history_events)
    announcer = Announcer(
        kube,
        Bucket(settings.write_rate_per_s, settings.write_burst),
        identity=settings.identity,
        may_write=leader.is_leader,
        telemetry=telemetry,
        clock=time.time,
    )
    findings = Findings(by_name, checks, config, settings.trust)
    summary = Summary(world, pods, history, telemetry)
    lasts = StatusPauses(pending_s=settings.pending_s, defer_s=settings.defer_s)
    statuses = Statuses(state, world, pods, announcer, history, pauses=lasts, clock=time.time)
    controller.attach(
        Parts(kube, world, pods, by_name, findings, announcer, history, telemetry, leader.is_leader, summary, statuses)
    )
    leader.on_change(controller.lead)
    warming = Warming(
        kube,
        pools=lambda: list(state.pools.values()),
        may_act=lambda: leader.is_leader() and controller.viewed,
        announce=lambda tell: foresight.tell(tell),  # noqa: PLW0108 (it needs this object to be made)
        clock=time.time,
        pace=pace,
    )
    foresight = _foresight(settings, controller, warming)
    warming.wishes, warming.retentions, warming.unsure = foresight.wishes, foresight.retentions, foresight.unsure
    summary.warmth, summary.outlooks = lambda: warming.states, foresight.told
    hot_sets = _hot_sets(settings, state, controller.parts)
    summary.hot_sets = hot_sets.shown
    return Built(controller, leader, checks, pods, world, summary, telemetry, warming, foresight, hot_sets)


def _hot_sets(settings: ControllerSettings, state: State, parts: Parts) -> HotSets:
    def calendars(pool: str) -> dict[str, tuple[str, str]]:
        found = parts.world.inference_services.objects
        names = [name for name, tracked in state.tracked.items() if tracked.model.pool == pool and name in found]
        return {
            name: (lines, meta(found[name], calendar.WARM_TIMEZONE))
            for name in names
            if (lines := meta(found[name], calendar.WARM_AT))
        }

    def declared(pool: str) -> set[str] | None:
        books = state.books.get(pool)
        return books.names if books is not None else None

    def tell(pool: str, pod: str, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            parts.history.own(wish.name, "ordered", f"on pod {pod}: {wish.why}", time.time())
        others = f" and {len(wishes) - 1} others" if len(wishes) > 1 else ""
        text = f"pod {pod} is to load {wishes[0].name}{others} ahead: {wishes[0].why}"
        parts.history.own(pool_key(pool), "ordered", text, time.time())

    async def remark(model: str, text: str) -> None:
        parts.history.own(model, "calendar", text, time.time())
        found = parts.world.inference_services.objects.get(model)
        if found is not None and await parts.announcer.allowed():
            await parts.announcer.record(found, Occurrence("Warning", "CalendarUnreadable", text), text)

    ordering = Ordering(
        parts.pods,
        calendars=calendars,
        tell=tell,
        remark=remark,
        telemetry=parts.telemetry,
        clock=time.time,
    )
    return HotSets(
        parts.kube,
        parts.pods,
        pools=lambda: state.pools,
        declared=declared,
        may_act=lambda: parts.may_write() and parts.world.synced,
        ordering=ordering if settings.orders else None,
        telemetry=parts.telemetry,
        clock=time.time,
        count=parts.announcer.count,
        heat_s=settings.heat_s,
        pass_s=settings.poll_s,
    )


def _foresight(settings: ControllerSettings, controller: Controller, warming: Warming) -> Foresight:
    parts = controller.parts
    foresight = Foresight(
        Scene(
            pools=lambda: controller.state.pools,
            pods=parts.pods.of,
            revision=warming.revision,
            created_s=parts.world.created_s,
        ),
        may_act=lambda: parts.may_write() and controller.viewed and warming.synced,
        remember=lambda pool: Kept(
            parts.kube, pool, WHAT, key=KEY, read=activity.decode, pause_s=KEPT_EACH_S, count=parts.announcer.count
        ),
        announce=lambda tell: controller.announce(tell.pool, Occurrence(tell.type, tell.reason, tell.message), tell.cause),
        history=parts.history,
        telemetry=parts.telemetry,
        clock=time.time,
        bounds=Bounds(weight=settings.cold_start_weight, longest_s=settings.longest_keep_s),
    )
    controller.on_happened = foresight.happened
    return foresight


async def serve(settings: ControllerSettings) -> int:
    """Run until SIGTERM or SIGINT. The value is the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with await Kube.connect(settings.namespace) as kube:
        built = build(settings, kube)
        jobs = [asyncio.create_task(job) for job in (*built.jobs(), _answer(settings, built))]
        lease = asyncio.create_task(built.leader.run(), name="lease")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait([*jobs, lease, stopped], return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        try:
            async with asyncio.timeout(settings.stop_timeout_s):
                await _end(jobs)
                await built.close()
                await _end([lease])  # last: who waits for it must not write while this one still does
        except TimeoutError:
            log.warning("stopped after %g s, in the middle of something: whoever leads next goes on", settings.stop_timeout_s)
        for ended in done - {stopped}:
            ended.result()  # nothing else ends by itself
        stopped.cancel()
    return 0


async def _answer(settings: ControllerSettings, built: Built) -> None:
    from warmup import api  # noqa: PLC0415 (0.4 s, which the watches need not wait for)

    works = (built.controller.models_work, built.controller.pools_work, built.controller.status_work)
    desk = api.Desk(
        built.summary,
        built.pods,
        built.telemetry,
        is_synced=lambda: built.world.synced,
        is_leader=built.leader.is_leader,
        troubles=built.world.troubles,
        waiting=lambda: sum(work.pressing() for work in works),
    )
    await api.serve(desk, settings.host, settings.port)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(arguments: Sequence[str]) -> int:
    """``hearth controller``. 1: it did not work, 2: it was asked wrongly."""
    try:
        settings = from_arguments(arguments)
    except ValueError as error:
        print(f"hearth controller: {error}", file=sys.stderr)  # noqa: T201 - a command prints
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        return asyncio.run(serve(settings))
    except (HearthError, OSError) as error:
        print(f"hearth controller: {error}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
