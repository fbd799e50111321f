"""The admin port's routes for a controller: what this pod knows and does, and what is declared to it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from predictor import declared, heat
from predictor.api import state
from predictor.api.pod import Pod
from predictor.declarations import MODEL_FILES
from predictor.declared import ModelShard
from predictor.errors import MalformedRequest

MAX_SHARDS: Final = 2 * len(MODEL_FILES)


class _Shard(msgspec.Struct):
    file: str
    document: msgspec.Raw


class _Shards(msgspec.Struct):
    shards: Annotated[list[_Shard], msgspec.Meta(max_length=MAX_SHARDS)]


class Known(BaseModel):
    """What this pod goes by now."""

    serials: dict[str, int] = Field(
        description="File name of a shard → its serial.", examples=[{"models-03.json": 1763733600000}]
    )


class HeatReport(BaseModel):
    """What one pod noted since it began."""

    pod: str
    at_s: float = Field(description="Moment that the rates are of, seconds since the epoch.")
    models: list[list[Any]] = Field(
        description="Name, version, requests per second on both time scales, seconds of a load from the model store, bytes, "
        "seconds before at_s at which the latest visits began."
    )
    final: bool
    absorbed: list[str]
    release: str
    format: int


class Ordered(BaseModel):
    """What was taken."""

    ordered: int = Field(description="Highest number of an order that this pod has taken.")


class StateReport(BaseModel):
    """What a controller asks every second. Fields that say nothing may be left out inside the lists."""

    pod: str
    release: str
    state: str = Field(examples=["starting", "serving", "draining"])
    unready: str = Field(description="Why it should get no requests; empty: it should.")
    up_s: float
    serials: dict[str, int] = Field(description="Shard of models → serial of what the pod goes by.")
    scopes: dict[str, int] = Field(description="Shard of credentials → the same.")
    declared: list[dict[str, Any]] = Field(description="Declared models that were asked for here, and how their places fare.")
    asked: int = Field(description="Inference requests since it began, but those that no model could be asked (400, 404).")
    asked_s_ago: float | None = Field(description="Since the latest of them; null: none came yet.")
    running: int = Field(description="Requests inside the pod now, waiting ones included.")
    warm_up: dict[str, Any] = Field(description="How far it is with the hot set: see residency.")
    ordered: int = Field(description="Highest number of an order that it has taken.")
    happened: list[dict[str, Any]] = Field(description="Events after `since`, oldest first, as far as the journal reaches.")


def add_routes(app: FastAPI, pod: Pod) -> None:
    """Add them to the admin application."""

    @app.get("/hearth/v1/state", response_model=StateReport)
    async def read_state(
        since: Annotated[int, Query(ge=0, description="The last event that is known already.")] = 0,
    ) -> Response:
        """How this pod fares, which declarations it knows, and what happened. Loads nothing."""
        return Response(msgspec.json.encode(state.report(pod, since)), media_type="application/json")

    @app.get("/hearth/v1/heat", response_model=HeatReport)
    async def read_heat() -> Response:
        """How much each model was asked for in this pod, without what it was told by others: several pods' add up."""
        return Response(heat.encode(await state.own_heat(pod)), media_type="application/json")

    @app.put("/hearth/v1/orders", response_model=Ordered)
    async def order(request: Request) -> Ordered:
        """Load these models behind every request; orders that are known already change nothing.

        The body: `{"orders": [{"number": 7, "name": "resnet", "tier": "device", "why": "...", "until_s": 1763733600}]}`.
        """
        return Ordered(ordered=state.take(pod, await request.body()))

    @app.put("/hearth/v1/declarations", response_model=Known)
    async def declare(request: Request) -> Known:
        """Go by these shards of declared models, where they are newer than what is known.

        The body: `{"shards": [{"file": "models-03.json", "document": {...}}]}`; a document is what the ConfigMap holds.
        """
        if pod.declarations is None:
            raise MalformedRequest("this pod takes no declarations")
        try:
            told = msgspec.json.decode(await request.body(), type=_Shards)
            shards = {shard.file: declared.decode(bytes(shard.document), ModelShard) for shard in told.shards}
        except ValueError as error:
            raise MalformedRequest(f"the declarations cannot be read: {error}") from None
        unknown = shards.keys() - set(MODEL_FILES)
        if unknown:
            raise MalformedRequest(f"no shard is called {min(unknown)[:64]!a}: they are {MODEL_FILES[0]} to {MODEL_FILES[-1]}")
        pod.declarations.take(shards)
        return Known(serials=pod.declarations.serials)
