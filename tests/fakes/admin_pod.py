"""A running pod's admin port, as the controller asks it: tells a state, takes declarations, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from aiohttp import web

from predictor.declared import Declared, ModelShard
from predictor.heat import Heat, encode
from predictor.report import (
    DeclaredReport,
    Event,
    Happened,
    LocationReport,
    Order,
    Orders,
    PodReport,
    Residency,
    WarmUp,
)


@dataclass
class AdminPod:
    """Use as an async context manager.

    loads        told of every location that is declared; "": stands by
    only         of these models; empty: of all
    misbehaves   ``hang``, ``garbage``, ``huge``, ``older`` (404) or a status; "": not at all
    on_request   called at each request, with the path
    heat         what it noted; None: it is of a release that tells none (404)
    residency    what is where in it; None: nothing
    refuses      orders, as a release before them does (404)
    """

    name: str = "pod-1"
    loads: str = ""
    failure: str = ""
    permanent: bool = False
    misbehaves: str = ""
    takes: bool = True
    began_s: float | None = None
    shards: dict[str, ModelShard] = field(default_factory=dict)
    scopes: dict[str, int] = field(default_factory=dict)
    journal: list[Happened] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    on_request: Callable[[str], None] = lambda _: None
    state: str = "serving"
    only: set[str] = field(default_factory=set)
    heat: Heat | None = None
    residency: Residency | None = None
    warm_up: WarmUp = field(default_factory=WarmUp)
    ordered: int = 0
    orders: list[Order] = field(default_factory=list)
    refuses: bool = False

    async def __aenter__(self) -> Self:
        self._released = asyncio.Event()
        self._news = asyncio.Condition()
        self.began_s = asyncio.get_running_loop().time()
        application = web.Application(client_max_size=64 << 20)
        application.router.add_get("/hearth/v1/state", self._state)
        application.router.add_get("/hearth/v1/residency", self._residency)
        application.router.add_put("/hearth/v1/declarations", self._declarations)
        application.router.add_get("/hearth/v1/heat", self._heat)
        application.router.add_put("/hearth/v1/orders", self._orders)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._released.set()
        await self._runner.cleanup()

    @property
    def models(self) -> dict[str, Declared]:
        """All that is declared to it."""
        return {name: model for shard in self.shards.values() for name, model in shard.models.items()}

    def happen(self, model: str, what: str) -> None:
        """Something happens to a model."""
        self.journal.append(Happened(len(self.journal) + 1, model, Event(1.0, what, "device 0", 1)))

    def restart(self) -> None:
        """The container ends and starts again: it forgets what was sent."""
        self.began_s = asyncio.get_running_loop().time()
        self.journal.clear()
        self.shards.clear()
        self.ordered = 0

    async def until_asked(self, times: int, path: str = "/hearth/v1/state") -> None:
        """Return once it was asked so often from now on."""
        before = self.requests.count(path)
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: self.requests.count(path) >= before + times)

    async def _arrived(self, request: web.Request) -> web.StreamResponse | None:
        async with self._news:
            self.requests.append(request.path)
            self._news.notify_all()
        self.on_request(request.path)
        if self.misbehaves == "hang":
            await self._released.wait()
        if self.misbehaves == "garbage":
            return web.Response(text='{"pod": [1, 2')
        if self.misbehaves == "huge":
            return await _endless(request)
        if self.misbehaves:
            return web.Response(status=404 if self.misbehaves == "older" else int(self.misbehaves))
        return None

    async def _state(self, request: web.Request) -> web.StreamResponse:
        wrong = await self._arrived(request)
        if wrong is not None:
            return wrong
        since = int(request.query.get("since", "0"))
        declared = tuple(
            DeclaredReport(
                name,
                tuple(
                    LocationReport(location.number, self.loads, 1, self.failure, self.permanent)
                    for location in (model.target, model.stable)
                    if location is not None
                ),
            )
            for name, model in self.models.items()
            if self.loads and name in (self.only or {name})
        )
        assert self.began_s is not None
        report = PodReport(
            self.name,
            state=self.state,
            up_s=asyncio.get_running_loop().time() - self.began_s,
            serials={file: shard.serial for file, shard in self.shards.items()},
            scopes=self.scopes,
            declared=declared,
            happened=tuple(itertools.islice((each for each in self.journal if each.number > since), 100)),
            warm_up=self.warm_up,
            ordered=self.ordered,
        )
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")

    async def _residency(self, request: web.Request) -> web.StreamResponse:
        wrong = await self._arrived(request)
        found = self.residency or Residency((), (), self.name)
        return wrong or web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _heat(self, request: web.Request) -> web.StreamResponse:
        wrong = await self._arrived(request)
        if wrong is not None or self.heat is None:
            return wrong or web.Response(status=404)
        return web.Response(body=encode(self.heat), content_type="application/json")

    async def _orders(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wrong = await self._arrived(request)
        if wrong is not None or self.refuses:
            return wrong or web.Response(status=404)
        given = msgspec.json.decode(body, type=Orders).orders
        if self.takes:
            self.orders += [order for order in given if order.number > self.ordered]
            self.ordered = max([self.ordered, *(order.number for order in given)])
        return web.json_response({"ordered": self.ordered})

    async def _declarations(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = msgspec.json.decode(await request.read())
        wrong = await self._arrived(request)
        if wrong is not None:
            return wrong
        for each in body["shards"]:
            shard = msgspec.convert(each["document"], ModelShard)
            if self.takes and shard.serial > self.shards.get(each["file"], ModelShard(0)).serial:
                self.shards[each["file"]] = shard
        return web.json_response({"serials": {file: shard.serial for file, shard in self.shards.items()}})


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    async for block in _blocks():
        await response.write(block)
    return response


async def _blocks() -> AsyncIterator[bytes]:
    while True:
        yield b" " * (1 << 20)
