"""The controller's HTTP port: probes, metrics, and what pools and models there are. Imported late: FastAPI takes 0.4 s.

Nothing here asks the ingress or wakes a pod. Running pods are asked for their residency, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from predictor.errors import MalformedRequest
from predictor.refusals import tell_errors
from predictor.telemetry import Telemetry
from warmup.pods import Pods
from warmup.summary import Summary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Desk:
    """What the routes answer from.

    troubles   what is wrong now, in sentences; the answers may be old then
    is_leader  whether this controller writes
    waiting    passes that wait
    """

    summary: Summary
    pods: Pods
    telemetry: Telemetry
    is_synced: Callable[[], bool]
    is_leader: Callable[[], bool]
    troubles: Callable[[], list[str]]
    waiting: Callable[[], int]


def application(desk: Desk) -> FastAPI:
    """The whole port's application."""
    app = FastAPI(title="Hearth controller", description="Pools and models of one namespace.", redoc_url=None)
    tell_errors(app, whose="the controller's")
    _probes(app, desk)

    @app.get("/hearth/v1/pools")
    async def read_pools() -> Response:
        """Every pool: ready or not, its address, running pods, models by state, and until when it is kept warm."""
        return _json({"pools": desk.summary.of_pools()})

    @app.get("/hearth/v1/models")
    async def read_models(pool: str = "") -> Response:
        """Every model, or those of one pool, with its state."""
        _check_pool(desk, pool)
        return _json({"models": desk.summary.of_models(pool)})

    @app.get("/hearth/v1/models/{name}")
    async def read_model(name: str) -> Response:
        """One model: 200 while it is Ready, 503 with the reason while it is not. Monitoring may probe it: it wakes nothing."""
        model = desk.summary.of_model(name)
        if model["ready"]:
            return _json(model)
        why = model["failure"] or model["reason"] or "nothing is known of it yet"
        return _json({**model, "error": f"model {name} is not ready: {why}"}, HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/hearth/v1/residency")
    async def read_residency(pool: str = "") -> Response:
        """What is where in every running pod, as each tells now; an empty list at zero."""
        _check_pool(desk, pool)
        return _json({"pods": await desk.pods.residencies(pool)})

    @app.get("/hearth/v1/why/{name}")
    async def read_why(name: str) -> Response:
        """What happened to a model, oldest first, in pods that may be gone, and by the controller. Kept in memory.

        Of a pool: what was done ahead of its traffic and why, kept over restarts, and under ``now`` how it stands.
        """
        return _json({"model": name, "events": desk.summary.why(name), "now": desk.summary.outlook(name)})

    return app


def _probes(app: FastAPI, desk: Desk) -> None:
    @app.get("/livez")
    async def livez() -> Response:
        """200 as long as anything is answered."""
        return Response("ok\n")

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """200 once all that the cluster has was read; with ?verbose also who leads and what is wrong."""
        is_ready = desk.is_synced()
        lines = [] if is_ready else ["the cluster's objects are still being read"]
        if "verbose" in request.query_params:
            lines = [*lines, "leader" if desk.is_leader() else "follower", f"{desk.waiting()} passes wait", *desk.troubles()]
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Response("\n".join(lines or ["ok"]) + "\n", status)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        desk.summary.count()
        desk.telemetry.gauge("hearth_controller_leader").set(desk.is_leader())
        desk.telemetry.gauge("hearth_controller_waiting_passes").set(desk.waiting())
        return Response(generate_latest(desk.telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: __main__.py ends everything in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def server(desk: Desk, host: str, port: int) -> Server:
    """Ready to ``serve``; set ``should_exit`` to end it."""
    config = uvicorn.Config(
        application(desk),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=200,
        timeout_graceful_shutdown=3,
    )
    return Server(config)


async def serve(desk: Desk, host: str, port: int) -> None:
    """Answer until cancelled. OSError: the port is taken."""
    listener = _listen(host, port)
    log.info("listening on http://%s:%d", *listener.getsockname()[:2])
    made = await asyncio.to_thread(server, desk, host, port)
    try:
        await made.serve(sockets=[listener])
    except asyncio.CancelledError:
        made.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await made.shutdown()
        raise


def _listen(host: str, port: int) -> socket.socket:
    """Here and not by uvicorn, which ends the whole process where it cannot."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(f"cannot listen on {host}:{port} ({reason}): choose another with --host and --port") from error


def _check_pool(desk: Desk, pool: str) -> None:
    if pool and pool not in desk.summary.pools:
        has = ", ".join(sorted(desk.summary.pools)) or "none"
        raise UnknownPool(f"there is no pool {pool[:253]!r} in this namespace; it has: {has}")


class UnknownPool(MalformedRequest):
    """The namespace has no such pool."""

    http_status = 404


def _json(told: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(told), status, media_type="application/json")
