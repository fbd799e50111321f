"""Builds the objects of a predictor pod, joins them, and runs them until SIGTERM. No logic of its own."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import uvloop
from pydantic import ValidationError

from predictor import log_stream
from predictor.api.http import HttpServer
from predictor.api.pod import ModelCatalogue, Pod, PodState, safe
from predictor.api.state import release
from predictor.boot import Booted, boot
from predictor.cache import Cache
from predictor.catalogue import Catalogue
from predictor.crew import PASSAGE_SHARE, Crew
from predictor.declarations import Declarations
from predictor.descriptors import TooFewDescriptors
from predictor.errors import HearthError
from predictor.health import go_on
from predictor.hops import Hops
from predictor.infirmary import Infirmary
from predictor.keeping import Keeping
from predictor.model import Tier
from predictor.passage import Passage
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Place
from predictor.profiles import Profiles
from predictor.recovery import Recovery
from predictor.rollout import Rollout
from predictor.settings import Settings
from predictor.supervision import Supervision, within_descriptors
from predictor.telemetry import Batches, Telemetry, Timeline
from predictor.tiers.arenas import SeparateArenas
from predictor.tiers.budgets import NoBudget, budgets, memory_limit
from predictor.tiers.device import Placement, WorkerDevice
from predictor.tiers.disk import Disk
from predictor.tiers.ram import SharedMemory
from predictor.tiers.slabs import AHEAD_BYTES, SlabPool
from predictor.tiers.store import Stores
from predictor.wakeup import WakeUp
from predictor.wishes import Wish
from predictor.workers.builds import Builds
from predictor.workers.dispatch import Dispatcher
from predictor.workers.domains import POOL, Domains
from predictor.workers.memory_watch import MemoryKills, left_bytes
from predictor.workers.output import Output

log = logging.getLogger("hearth")

RESCAN_S: Final = 60.0

HUNG_S: Final = 1.0
"""How long a worker may take to end when the grace period is over: one that computes nothing takes 10 ms."""

TOUCH_AFTER_S: Final = 10.0
"""When the RAM pool's memory begins to be touched ahead of its use: a cold start needs the CPU for itself."""


def run(booted: Booted) -> int:
    """Run a booted pod. Returns the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors():
            if not fault["loc"]:  # of several settings together
                print(f"hearth serve: {fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)  # noqa: T201
                continue
            name = str(fault["loc"][0])
            print(f"hearth serve: --{name.replace('_', '-')} (HEARTH_{name.upper()}): {fault['msg']}", file=sys.stderr)  # noqa: T201
        return 2
    log_stream.install()
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if booted.kind == "cuda":
        log.warning("computing on CUDA devices has not been verified on a GPU yet; HEARTH_DEVICE=cpu computes on the CPU")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, booted))


class Parts(NamedTuple):
    """Everything that has an end."""

    pod: Pod
    stores: Stores
    ram: SharedMemory
    disk: Disk | None
    profiles: Profiles
    catalogue: Catalogue
    rollout: Rollout
    declarations: Declarations
    keeping: Keeping
    wakeup: WakeUp
    domains: tuple[Domains, ...]
    supervision: Supervision


def _build(settings: Settings, booted: Booted) -> Parts:
    """Make the parts and tell them of each other. Needs the running loop."""
    loop = asyncio.get_running_loop()
    telemetry, timeline = Telemetry(), Timeline()
    timeline.mark("listening", booted.listening_s)
    stores = Stores.from_environment(
        settings,
        on_request=lambda operation, status: telemetry.counter("hearth_store_requests_total", operation, status).inc(),
        on_bytes=telemetry.counter("hearth_fetched_bytes_total").inc,
        on_first_ask=functools.partial(_soon, loop, timeline),
    )
    root = Path(settings.system_root)
    bytes_of, limit_bytes = budgets(settings, booted.kind, root=root), memory_limit(root)
    # Memory that the container was given is nobody else's: all of it may be touched before it is needed.
    ahead_bytes = AHEAD_BYTES if limit_bytes is None else bytes_of[RAM]
    pool = SlabPool(bytes_of[RAM], ahead_bytes=ahead_bytes) if settings.isolation == POOL else SeparateArenas(bytes_of[RAM])
    ram = SharedMemory(lambda spec: stores.at(spec.bucket, spec.scope), pool)
    catalogue = Catalogue.from_settings(settings, stores)
    passage = Passage(PASSAGE_SHARE * settings.max_body_bytes_in_flight, "requests")
    rules = Rules(settings.min_residency_s, settings.idle_ttl_s or math.inf, settings.tenant_floors)
    ledger = Ledger({**bytes_of, RAM: pool.size_bytes}, Demand(), rules)
    disk = _disk(settings, telemetry)
    copies = settings.cpu_copy or booted.kind == "cuda"
    infirmary, recovery = Infirmary(settings.quarantine_backoff_s, settings.poison_ttl_s), Recovery(telemetry)
    infirmary.on_recovered = recovery.recovered
    kills = MemoryKills(root)
    crew = Crew(
        settings,
        infirmary,
        recovery,
        kind=booted.kind,
        threads=booted.threads,
        starter=booted.starter,
        pool=pool,
        passage=passage,
        on_ready=lambda hello: timeline.mark("imported", hello.imported_s),
        memory_killed=kills.claim,
    )
    domains = tuple(crew.domains(device, bytes_of[Place(device)], spawned) for device, spawned in enumerate(booted.workers))
    placement = Placement(copies, pool.slab_bytes, disk.disk_bytes if disk is not None else None, crew.apart)
    profiles = _profiles(settings, booted.kind, placement, bytes_of)
    dispatchers = _dispatchers(settings, telemetry, crew, shares_core=booted.kind == "cpu" and booted.cores == 1)
    builds = Builds(functools.partial(left_bytes, limit_bytes, settings.memory_share, root))
    telemetry.gauge("hearth_builds_waiting").set_function(lambda: builds.waiting)
    devices = [
        WorkerDevice(domain, dispatcher, ram, copy=copies, budget_bytes=bytes_of[Place(domain.device)], builds=builds)
        for domain, dispatcher in zip(domains, dispatchers, strict=True)
    ]
    cache = Cache(
        ledger,
        Hops(ram, devices, disk),
        profiles,
        telemetry,
        timeline,
        max_waiting=settings.max_waiting,
        max_queued=settings.max_queued_per_model,
        infirmary=infirmary,
    )
    recovery.cache = cache
    rollout, declarations = _declared(settings, catalogue, cache, stores)
    keeping, wakeup = _warm(settings, rollout, cache, stores, cores=booted.cores)
    supervision = Supervision(settings, telemetry, limit_bytes=limit_bytes, devices=domains, kills=kills)
    pod = Pod(
        settings=settings,
        name=keeping.pod,
        catalogue=rollout,
        declarations=declarations,
        wakeup=wakeup,
        cache=cache,
        telemetry=telemetry,
        timeline=timeline,
        passage=passage,
        device_failure=supervision.device_failure,
        hopeless=supervision.hopeless,
        disk_degraded=lambda: disk.degraded if disk is not None else "",
    )
    _watch(telemetry, pod, pool, dispatchers)
    return Parts(pod, stores, ram, disk, profiles, catalogue, rollout, declarations, keeping, wakeup, domains, supervision)


def _warm(settings: Settings, rollout: Rollout, cache: Cache, stores: Stores, *, cores: int) -> tuple[Keeping, WakeUp]:
    """What outlives the pod, and what is loaded for that."""
    keeping = Keeping(
        remembered=cache.remembered,
        pod=safe(settings.pod or os.environ.get("HOSTNAME") or socket.gethostname()),
        release=release,
        folder=Path(settings.declared_path) if settings.declared_path else None,
        store=stores.at(settings.state_bucket) if settings.state else None,
        prefix=settings.state_prefix,
    )
    loads = settings.wake_up == "hot-set"
    return keeping, WakeUp(cache, rollout, keeping.read, cores, loads, lambda: keeping.trouble)


def _declared(settings: Settings, catalogue: Catalogue, cache: Cache, stores: Stores) -> tuple[Rollout, Declarations]:
    """What a controller declares, and what follows from it."""
    rollout = Rollout(
        catalogue,
        cache,
        stores,
        settings.namespace,
        settings.trust == "code",
        timeout_s=settings.fetch_deadline_s + settings.build_timeout_s,
    )
    models, credentials = (Path(told) if told else None for told in (settings.declared_path, settings.credentials_path))
    return rollout, Declarations(models, credentials, rollout.declare, rollout.declare_scopes)


def _runtime(kind: str) -> str:
    """What profiles are true for, besides the model."""
    from importlib.metadata import version  # noqa: PLC0415 (25 ms that no cold start should pay)

    return f"{kind} torch {version('torch')} onnxruntime {version('onnxruntime')}"


def _profiles(settings: Settings, kind: str, placement: Placement, bytes_of: Mapping[Place, int]) -> Profiles:
    """What models take, remembered beside the disk tier where there is one."""
    return Profiles(
        placement,
        functools.partial(_runtime, kind),
        Path(settings.disk_path) / "profiles" if settings.disk_path else None,
        functools.partial(asyncio.get_running_loop().run_in_executor, None),
        device_bytes=max(size_bytes for place, size_bytes in bytes_of.items() if place.tier is Tier.DEVICE),
    )


def _dispatchers(settings: Settings, telemetry: Telemetry, crew: Crew, *, shares_core: bool) -> list[Dispatcher]:
    """One for each device; they count in the same metrics."""
    batches = Batches(telemetry)
    return [
        Dispatcher(
            domains.run,
            lane_of=domains.lane,
            starvation_s=settings.starvation_s,
            on_batch=batches,
            on_overdue=crew.overdue,
            shares_core=shares_core,
        )
        for domains in crew.all
    ]


def _disk(settings: Settings, telemetry: Telemetry) -> Disk | None:
    """The disk tier; None: it is not wanted."""
    if not settings.disk_path:
        return None
    return Disk(
        Path(settings.disk_path),
        on_written=telemetry.counter("hearth_disk_bytes_total", "written").inc,
        on_read=telemetry.counter("hearth_disk_bytes_total", "read").inc,
    )


async def _serve(settings: Settings, booted: Booted) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        parts = _build(within_descriptors(settings), booted)
    except (HearthError, NoBudget, TooFewDescriptors) as error:  # the AWS variables make no sense, or a limit has to be said
        log.error("%s", error)  # noqa: TRY400 (the sentence tells; the traceback does not)
        return 2
    pod = parts.pod
    output = Output(booted.output, "zygote")
    output.start()
    parts.declarations.read()
    watching = asyncio.create_task(parts.declarations.watch(), name="declarations")
    await _adopt(parts)
    adopting = asyncio.create_task(go_on("the disk", functools.partial(_adopt_later, parts)), name="adopt")
    for name in settings.pin:
        pod.cache.pin(name)
    wanted = dict.fromkeys((*settings.pin, *settings.preload))
    preloading = asyncio.create_task(_preload(wanted, parts.rollout, pod.cache), name="preload")
    waking = asyncio.create_task(parts.wakeup.run(), name="wake-up")
    keeping = asyncio.create_task(parts.keeping.run(), name="keep demand")
    for domains in parts.domains:
        domains.begin()
    inference, admin = HttpServer.inference(pod), HttpServer.admin(pod)
    await inference.start(booted.inference)
    await admin.start(booted.admin)
    pod.state = PodState.SERVING
    parts.supervision.start()
    log.info(
        "serving %s on http://%s:%d, admin port %d; budgets: %s",
        settings.models or "declared models",
        *booted.inference.getsockname()[:2],
        booted.admin.getsockname()[1],
        ", ".join(f"{place} {size_bytes / 1e6:.0f} MB" for place, size_bytes in pod.cache.ledger.budgets.items()),
    )
    asyncio.get_running_loop().call_later(TOUCH_AFTER_S, parts.ram.pool.touch_from_now_on)
    await stopping.wait()
    log.info("draining: %d requests in flight, at most %.0f s", pod.in_flight, settings.drain_timeout_s)
    pod.state = PodState.DRAINING
    for task in (preloading, adopting, watching, waking, keeping):
        task.cancel()
    pod.cache.drain()
    # At once: what runs was noted when it began, and the grace period may be shorter than the drain.
    leaving = asyncio.create_task(_leave(parts.keeping, keeping), name="last word")
    await inference.drain(settings.drain_timeout_s)
    await leaving
    await admin.drain(1.0)
    await asyncio.gather(*(domains.stop(HUNG_S) for domains in parts.domains))
    output.close()
    await parts.supervision.stop()
    await parts.rollout.close()
    await pod.cache.close()
    await parts.catalogue.close()
    await parts.stores.close()
    if parts.disk is not None:
        await parts.disk.close()
    parts.ram.close()
    return 0


async def _leave(keeping: Keeping, writing: asyncio.Task[None]) -> None:
    """Write demand for the last time; what was being written must not land after it."""
    await asyncio.wait({writing})
    await keeping.end()


async def _adopt(parts: Parts) -> None:
    """Take over what an earlier process left on disk: whole copies, the oldest first, and what it measured."""
    if parts.disk is None:
        return
    kept, _ = await asyncio.gather(parts.disk.scan(), asyncio.to_thread(parts.profiles.read))
    for copy in kept:
        parts.pod.cache.adopt(copy.ref, copy.size_bytes)
    if kept:
        log.info("models on disk already: %d", len(kept))


async def _adopt_later(parts: Parts) -> None:
    """Where the disk could not be had at the start, ask for it again: the pod before this one may still have ended."""
    while parts.disk is not None and not parts.disk.ready:
        await asyncio.sleep(RESCAN_S)
        await _adopt(parts)


async def _preload(names: Iterable[str], catalogue: ModelCatalogue, cache: Cache) -> None:
    """Queue the models an operator or controller wants at start, most wanted first."""
    for name in names:
        try:
            cache.preload(await catalogue.resolve(name, None), Wish("HEARTH_PRELOAD"))
        except HearthError as error:
            log.warning("pre-load of %s: %s", name, error)
        except Exception:  # a task's root: the models after it are wanted all the same
            log.exception("pre-load of %s", name)


def _soon(loop: asyncio.AbstractEventLoop, timeline: Timeline) -> None:
    """The store asks from its threads; the timeline is the loop's."""
    loop.call_soon_threadsafe(timeline.mark, "asked")


def _churns(cache: Cache, place: Place) -> bool:
    return cache.ledger.churn[place].look(cache.clock()) is not None


def _watch(telemetry: Telemetry, pod: Pod, pool: SlabPool | SeparateArenas, dispatchers: Sequence[Dispatcher]) -> None:
    """Let the gauges read the books whenever somebody scrapes them."""
    cache = pod.cache
    telemetry.gauge("hearth_pool_touched_bytes").set_function(lambda: pool.touched_bytes)
    telemetry.gauge("hearth_disk_degraded").set_function(lambda: bool(pod.disk_degraded()))
    telemetry.gauge("hearth_quarantined").set_function(lambda: len(cache.infirmary.quarantine))
    telemetry.gauge("hearth_waiting_requests").set_function(lambda: cache.waiting)
    for device, dispatcher in enumerate(dispatchers):
        telemetry.gauge("hearth_queued_requests", str(device)).set_function(functools.partial(len, dispatcher))
    ledger = cache.ledger
    for place, budget in ledger.budgets.items():
        labels = (place.tier.value, str(place.device) if place.device >= 0 else "")
        telemetry.gauge("hearth_budget_bytes", *labels).set(budget)
        telemetry.gauge("hearth_reserved_bytes", *labels).set_function(functools.partial(ledger.used_bytes, place))
        telemetry.gauge("hearth_resident_bytes", *labels).set_function(functools.partial(ledger.books.ready_bytes, place))
        if place.tier is Tier.DEVICE:
            telemetry.gauge("hearth_headroom_bytes", *labels).set_function(functools.partial(ledger.books.headroom, place))
        if place in ledger.churn:
            telemetry.gauge("hearth_churn_alarm", *labels).set_function(functools.partial(_churns, cache, place))


if __name__ == "__main__":
    sys.exit(run(boot()))
