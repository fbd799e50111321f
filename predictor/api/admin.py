"""FastAPI's routes: the admin port, and the rare ones of the inference port. Imported late, in a thread (asgi.py).

The models describe the answers for /docs. Large answers are encoded by msgspec and returned as they are: validating
10,000 models' residency a second time would hold the event loop for 50 ms.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from predictor.api import declared
from predictor.api.pod import Pod
from predictor.api.residency import residency
from predictor.errors import HearthError, UnknownModel
from predictor.model import ModelSpec
from predictor.refusals import tell_errors
from predictor.report import Why
from predictor.telemetry import METRICS
from predictor.wishes import Wish

MAX_NAMES: Final = 10_000
LOOKUPS: Final = 16
"""Models of one order that are looked up in the model store at a time."""
_SAMPLES: Final = {"gauge": ("",), "counter": ("",), "histogram": ("_bucket", "_count", "_sum")}
_GAUGES: Final = [metric.name for metric in METRICS if metric.kind == "gauge"]
_OTHERS: Final = [metric.name + suffix for metric in METRICS if metric.kind != "gauge" for suffix in _SAMPLES[metric.kind]]


class Copy(BaseModel):
    """A model's weights in one place."""

    tier: str = Field(examples=["disk", "ram", "device"])
    device: int = Field(description="Which device; -1 in RAM, -2 on disk.")
    state: str = Field(examples=["filling", "ready", "draining"])
    bytes: int
    leases: int = Field(description="What keeps the copy from being dropped: requests, or transfers that read it.")


class Model(BaseModel):
    """One model that has a copy somewhere."""

    name: str
    version: int
    format: str
    copies: list[Copy]
    rate_per_s: float = Field(description="Decayed request rate.")
    loads: int
    load_s: float | None = Field(description="Seconds its last load took, from S3 to ready; null before the first.")
    last_used_s_ago: float | None = Field(description="Null where nobody asked for it yet.")
    failure: str = Field(description="Why its last load failed; empty if it did not.")
    tenant: str
    weights_bytes: int = Field(description="The model's files.")
    held_bytes: int = Field(description="What a device copy holds; weights that it shares with RAM count there.")
    activation_bytes: int = Field(description="What its largest computation takes beside that.")
    memory_source: str = Field(
        description="measured, stored (by an earlier pod) or assumed; empty where nobody asked for it yet."
    )
    pinned: bool
    quarantine: str = Field(description="Why it has a worker of its own, and is not loaded now; empty: it is with the others.")


class TierRoom(BaseModel):
    """One tier's room."""

    tier: str
    device: int
    budget_bytes: int
    reserved_bytes: int = Field(description="Taken, also by copies on their way; with the headroom never above the budget.")
    ready_bytes: int
    headroom_bytes: int = Field(description="Kept free on a device for the largest computation of any model there.")


class WarmUpReport(BaseModel):
    """How far the pod is with the hot set, and with what it was ordered since. Fields that say nothing are left out."""

    state: str = Field(default="off", examples=["off", "reading", "loading", "paused", "done"])
    source: str = Field(default="", description="Where the hot set was found: mounted, or the state prefix.")
    wanted: int = 0
    loaded: int = 0
    skipped: int = Field(default=0, description="Found no room, and nothing that is worth much less.")
    failed: int = 0
    trouble: str = Field(default="", description="Why there is no hot set, or why demand cannot be kept.")


class ResidencyReport(BaseModel):
    """What is where in this pod now."""

    pod: str
    up_s: float
    tiers: list[TierRoom]
    models: list[Model]
    waiting: int = Field(description="Requests that wait for a model.")
    in_flight: int = Field(description="Requests inside the pod.")
    loads: int
    drops: int
    alarms: list[str] = Field(description="What an operator should know: thrashing, a disk that cannot be written.")
    warm_up: WarmUpReport


class Names(BaseModel):
    """Models, by name."""

    models: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        max_length=MAX_NAMES, examples=[["resnet", "bert"]]
    )


class Preloading(BaseModel):
    """What became of an order to load."""

    accepted: list[str] = Field(description="Will be loaded as far as there is room, in the order given.")
    unknown: list[str] = Field(description="No such model in the model store.")
    refused: dict[str, str] = Field(
        default_factory=dict, description="Cannot be loaded, and why; left out where that is nothing."
    )


class Pinned(BaseModel):
    """Every model that is pinned now."""

    pinned: list[str]


class Cleared(BaseModel):
    """What was in quarantine, and is not any more."""

    cleared: list[str]


class Unloaded(BaseModel):
    """What was dropped; models without a copy are not in it."""

    unloaded: list[str]


class EventReport(BaseModel):
    """Something that happened to one version of a model; fields that say nothing are left out."""

    at_s: float = Field(description="Seconds since the epoch.")
    what: str = Field(examples=["loaded", "preloaded", "failed", "stopped", "dropped", "pushed out"])
    place: str = Field(examples=["ram", "device 0"])
    version: int
    seconds: float = Field(default=0.0, description="What a load took.")
    cause: str = Field(
        default="", description="Of a drop: room, order or lost; of a failure: its message; of a pre-load: who wanted it."
    )
    other: str = Field(default="", description="Who needed the room, or who was pushed out.")
    value: float = Field(default=0.0, description="Seconds of waiting the dropped copy saved per second and byte.")
    rate_per_s: float = Field(default=0.0, description="How often the dropped model was asked for.")
    other_rate_per_s: float = Field(default=0.0, description="How often the one that needed the room was.")


class WhyReport(BaseModel):
    """What happened to a model, oldest first."""

    model: str
    events: list[EventReport]


class TimelineReport(BaseModel):
    """When this pod did what for the first time, in seconds since it was executed."""

    stages: dict[str, float] = Field(examples=[{"listening": 0.08, "asked": 0.31, "fetched": 0.52}])
    up_s: float


class Indexed(BaseModel):
    """One model of the repository index."""

    name: str
    version: str = ""
    state: str = Field(examples=["READY", "LOADING", "UNAVAILABLE"])
    reason: str = Field(description="`standby`: a request loads it.")


class Problem(BaseModel):
    """Every answer that is not a success."""

    error: str


def admin_app(pod: Pod) -> FastAPI:
    """The admin port's application."""
    app = _application("Hearth admin", "What is where in this pod, orders to load and unload, and its metrics.")

    @app.get("/hearth/v1/residency", response_model=ResidencyReport)
    async def read_residency() -> Response:
        """Which models are in which tier, and how much room there is."""
        report = residency(
            pod.cache,
            pod=pod.name,
            up_s=pod.timeline.up_s,
            in_flight=pod.in_flight,
            degraded=pod.disk_degraded(),
            warm_up=pod.warm_up(),
        )
        return Response(msgspec.json.encode(report), media_type="application/json")

    _take_orders(app, pod)
    declared.add_routes(app, pod)

    @app.get("/hearth/v1/timeline")
    async def read_timeline() -> TimelineReport:
        """The stages of this pod's cold start."""
        return TimelineReport(stages=pod.timeline.stages, up_s=pod.timeline.up_s)

    @app.get("/hearth/v1/catalogue", response_model=Names)
    async def read_catalogue() -> Response:
        """Every model that can be asked for, resident or not."""
        return Response(msgspec.json.encode({"models": await pod.catalogue.names()}), media_type="application/json")

    @app.get("/hearth/v1/why/{name}", response_model=WhyReport)
    async def read_why(name: str) -> Response:
        """What happened to a model: loads, drops and failures, with the numbers of the moment. Loads nothing."""
        report = Why(name, pod.cache.chronicle.why(name))
        if not report.events and name not in await pod.catalogue.names():
            raise UnknownModel(f"there is no model {name!r}, and none was here before")
        return Response(msgspec.json.encode(report), media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Prometheus metrics."""
        # Gauges read the books, which only the event loop may; the text of the rest is made in a thread, because a few
        # hundred models' histograms take 0.1 s.
        registry = pod.telemetry.registry
        gauges = generate_latest(registry.restricted_registry(_GAUGES))
        others = await asyncio.to_thread(lambda: generate_latest(registry.restricted_registry(_OTHERS)))
        return Response(gauges + others, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return app


def _take_orders(app: FastAPI, pod: Pod) -> None:
    """The routes that change what is where."""

    @app.post("/hearth/v1/preload", status_code=HTTPStatus.ACCEPTED, response_model_exclude_defaults=True)
    async def preload(order: Names) -> Preloading:
        """Load models in the background, first named first. Drops only what is worth much less, never delays a request."""
        return await _preload(pod, order.models)

    @app.post("/hearth/v1/pin")
    async def pin(order: Names) -> Pinned:
        """Never drop these models for others from now on. Loads nothing: that is preload's."""
        for name in order.models:
            pod.cache.pin(name)
        return Pinned(pinned=sorted(pod.cache.ledger.pins))

    @app.post("/hearth/v1/unpin")
    async def unpin(order: Names) -> Pinned:
        """Let these models be dropped for others again."""
        for name in order.models:
            pod.cache.unpin(name)
        return Pinned(pinned=sorted(pod.cache.ledger.pins))

    @app.post("/hearth/v1/clear")
    async def clear(order: Names) -> Cleared:
        """Take models out of quarantine: they may be loaded at once, beside others. Loads nothing: that is preload's."""
        return Cleared(cleared=[name for name in dict.fromkeys(order.models) if pod.cache.infirmary.clear(name)])

    @app.post("/hearth/v1/unload")
    async def unload(order: Names) -> Unloaded:
        """Drop models from devices and RAM as soon as the requests that use them end. What is on disk stays."""
        names = list(dict.fromkeys(order.models))
        dropped = await asyncio.gather(*map(pod.cache.unload, names))
        return Unloaded(unloaded=[name for name, was_there in zip(names, dropped, strict=True) if was_there])


def inference_app(pod: Pod) -> FastAPI:
    """The rare routes of the inference port."""
    app = _application("Hearth", "V2 inference is answered beside this application: see the Open Inference Protocol.")

    @app.post("/v2/repository/index", response_model=list[Indexed])
    async def read_index() -> Response:
        """Every model with its state. A model that a request would load is UNAVAILABLE for the reason `standby`."""
        return Response(msgspec.json.encode(await _index(pod)), media_type="application/json")

    return app


async def _preload(pod: Pod, names: list[str]) -> Preloading:
    result = Preloading(accepted=[], unknown=[])
    gate = asyncio.Semaphore(LOOKUPS)

    async def looked_up(name: str) -> ModelSpec | HearthError:
        try:
            async with gate:
                return pod.catalogue.known(name, None) or await pod.catalogue.resolve(name, None)
        except HearthError as error:
            return error

    names = list(dict.fromkeys(names))
    for name, found in zip(names, await asyncio.gather(*map(looked_up, names)), strict=True):
        try:
            if isinstance(found, HearthError):
                raise found
            pod.cache.preload(found, Wish("hearth load"))
            result.accepted.append(name)
        except UnknownModel:
            result.unknown.append(name)
        except HearthError as error:
            result.refused[name] = error.message
    return result


async def _index(pod: Pod) -> list[dict[str, str]]:
    names = await pod.catalogue.names()
    resident: dict[str, list[Any]] = {name: [] for name in names}
    for model in residency(pod.cache, pod=pod.name, up_s=0.0, in_flight=0).models:
        resident.setdefault(model.name, []).append(model)
    index = []
    for name, models in sorted(resident.items()):
        if not models:
            known = pod.catalogue.known(name, None)
            failure = pod.cache.history(known.ref).failure if known else None
            version, reason = (str(known.ref.version) if known else "", failure.message if failure else "standby")
            index.append({"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason})
        for model in models:
            ready = any(copy.tier == "device" and copy.state == "ready" for copy in model.copies)
            state, reason = ("READY", "") if ready else ("UNAVAILABLE", model.quarantine or model.failure or "standby")
            if not ready and any(copy.state == "filling" for copy in model.copies):
                state, reason = "LOADING", ""
            index.append({"name": name, "version": str(model.version), "state": state, "reason": reason})
    return index


# ---- the shape of an application ---------------------------------------------------------------------------------


def _application(title: str, description: str) -> FastAPI:
    app = FastAPI(title=title, description=description, redoc_url=None, responses={"4XX": {"model": Problem}})
    tell_errors(app, whose="the server's")
    return app
