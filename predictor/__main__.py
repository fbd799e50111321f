"""Builds the objects of a predictor pod, joins them, and runs them until SIGTERM. No logic of its own."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import uvloop
from pydantic import ValidationError

from predictor.api.http import HttpServer
from predictor.api.pod import Pod, PodState
from predictor.boot import Booted, boot
from predictor.cache import Cache
from predictor.catalogue import Catalogue
from predictor.errors import HearthError
from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger
from predictor.settings import Settings
from predictor.telemetry import Telemetry, Timeline
from predictor.tiers.budgets import budgets
from predictor.tiers.device import WorkerDevice, footprint
from predictor.tiers.ram import SharedMemory
from predictor.tiers.store import S3Store
from predictor.wire import Hello
from predictor.workers.worker import Worker

log = logging.getLogger("hearth")


def run(booted: Booted) -> int:
    """Run a booted pod. Returns the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0])
            print(f"hearth serve: --{name.replace('_', '-')} (HEARTH_{name.upper()}): {fault['msg']}", file=sys.stderr)  # noqa: T201
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.device == "cuda":
        log.error("HEARTH_DEVICE=cuda: this version computes on the CPU only; set HEARTH_DEVICE=auto or cpu")
        return 2
    if settings.device == "auto" and Path("/dev/nvidia0").exists():
        log.warning("a GPU is present, but this version computes on the CPU only")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, booted))


class Parts(NamedTuple):
    """Everything that has an end."""

    pod: Pod
    store: S3Store
    ram: SharedMemory
    catalogue: Catalogue
    workers: tuple[Worker, ...]


def _build(settings: Settings, booted: Booted) -> Parts:
    """Make the parts and tell them of each other. Needs the running loop."""
    loop = asyncio.get_running_loop()
    telemetry, timeline = Telemetry(), Timeline()
    timeline.mark("listening", booted.listening_s)
    store = S3Store.from_environment(
        settings,
        on_request=lambda operation, status: telemetry.counter("hearth_store_requests_total", operation, status).inc(),
        on_bytes=telemetry.counter("hearth_fetched_bytes_total").inc,
        on_first_ask=functools.partial(_soon, loop, timeline),
    )
    ram = SharedMemory(store)
    catalogue = Catalogue.from_settings(settings, store)
    ledger = Ledger(budgets(settings), Demand())

    def imported(hello: Hello) -> None:
        timeline.mark("imported", hello.imported_s)

    def lost(device: int) -> None:
        cache.device_lost(device)

    def died(device: int, reason: str) -> None:
        log.warning("worker of device %d ended: %s", device, reason)
        telemetry.counter("hearth_worker_deaths_total", str(device)).inc()

    workers = tuple(
        Worker(
            device=device,
            kind="cpu",
            threads=booted.threads,
            build_timeout_s=settings.build_timeout_s,
            execute_timeout_s=settings.execute_timeout_s,
            on_ready=imported,
            on_lost=functools.partial(lost, device),
            on_death=functools.partial(died, device),
            first=spawned,
        )
        for device, spawned in enumerate(booted.workers)
    )
    cache = Cache(
        ledger,
        ram,
        [WorkerDevice(worker, ram, copy=settings.cpu_copy) for worker in workers],
        functools.partial(footprint, copy=settings.cpu_copy),
        telemetry,
        timeline,
        max_waiting=settings.max_waiting,
    )
    pod = Pod(
        settings=settings,
        name=settings.pod or os.environ.get("HOSTNAME") or socket.gethostname(),
        catalogue=catalogue,
        cache=cache,
        telemetry=telemetry,
        timeline=timeline,
        device_failure=lambda: "; ".join(worker.failure for worker in workers if worker.failure),
    )
    _watch(telemetry, cache)
    return Parts(pod, store, ram, catalogue, workers)


async def _serve(settings: Settings, booted: Booted) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        parts = _build(settings, booted)
    except HearthError as error:  # what the AWS variables say makes no sense
        log.error("%s", error)  # noqa: TRY400 (the sentence tells; the traceback does not)
        return 2
    pod = parts.pod
    preloading = asyncio.create_task(_preload(settings.preload, parts.catalogue, pod.cache), name="preload")
    for worker in parts.workers:
        await worker.start()
    inference, admin = HttpServer.inference(pod), HttpServer.admin(pod)
    await inference.start(booted.inference)
    await admin.start(booted.admin)
    pod.state = PodState.SERVING
    log.info(
        "serving %s on http://%s:%d, admin port %d; budgets: %s",
        settings.models,
        *booted.inference.getsockname()[:2],
        booted.admin.getsockname()[1],
        ", ".join(f"{place} {size_bytes / 1e6:.0f} MB" for place, size_bytes in pod.cache.ledger.budgets.items()),
    )
    await stopping.wait()
    log.info("draining: %d requests in flight, at most %.0f s", pod.in_flight, settings.drain_timeout_s)
    pod.state = PodState.DRAINING
    preloading.cancel()
    await inference.drain(settings.drain_timeout_s)
    await admin.drain(1.0)
    await asyncio.gather(*(worker.stop(5.0) for worker in parts.workers))
    await pod.cache.close()
    await parts.catalogue.close()
    await parts.store.close()
    parts.ram.close()
    return 0


async def _preload(names: tuple[str, ...], catalogue: Catalogue, cache: Cache) -> None:
    """Queue the models an operator or controller wants at start, most wanted first."""
    for name in names:
        try:
            cache.preload(await catalogue.resolve(name, None))
        except HearthError as error:
            log.warning("pre-load of %s: %s", name, error)


def _soon(loop: asyncio.AbstractEventLoop, timeline: Timeline) -> None:
    """The store asks from its threads; the timeline is the loop's."""
    loop.call_soon_threadsafe(timeline.mark, "asked")


def _watch(telemetry: Telemetry, cache: Cache) -> None:
    """Let the gauges read the books whenever somebody scrapes them."""
    telemetry.gauge("hearth_waiting_requests").set_function(lambda: cache.waiting)
    ledger = cache.ledger
    for place, budget in ledger.budgets.items():
        labels = (place.tier.value, str(place.device) if place.device >= 0 else "")
        telemetry.gauge("hearth_budget_bytes", *labels).set(budget)
        telemetry.gauge("hearth_reserved_bytes", *labels).set_function(functools.partial(ledger.used_bytes, place))
        telemetry.gauge("hearth_resident_bytes", *labels).set_function(functools.partial(ledger.ready_bytes, place))


if __name__ == "__main__":
    sys.exit(run(boot()))
