"""A pod's HTTP servers, on sockets that boot.py has bound: accepting, timeouts, draining.

What stays out: one client's connection (connection.py), what its requests mean (rest.py, admin.py).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Self

from predictor.api.connection import Connection, Service
from predictor.api.inflate import Inflating
from predictor.api.message import Answering, Request
from predictor.api.reader import Limits, Load
from predictor.api.rest import AdminRoutes, InferenceRoutes
from predictor.passage import Passage

if TYPE_CHECKING:
    from predictor.api.pod import Pod

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
MAX_SWEEP_S: Final = 1.0


class HttpServer:
    """One listening port. ``handler`` answers its requests; ``load`` counts what is inside; ``passage``: for large bodies."""

    def __init__(
        self, handler: Callable[[Request], Answering], limits: Limits, load: Load, passage: Passage | None = None
    ) -> None:
        self._inflating = Inflating(handler, limits, load)
        self._service = Service(self._inflating, limits, load, passage)
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    @classmethod
    def inference(cls, pod: Pod) -> Self:
        """The port that clients use."""
        return cls(InferenceRoutes(pod), Limits.of(pod.settings), pod.load, pod.passage)

    @classmethod
    def admin(cls, pod: Pod) -> Self:
        """The port that operators, controllers and Prometheus use. Its requests do not count as the pod's load."""
        return cls(AdminRoutes(pod), Limits.of(pod.settings), Load())

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._service.connections)

    async def start(self, listening: socket.socket) -> None:
        """Accept on ``listening``, which is bound and listens already; it is this server's from here on."""
        loop = asyncio.get_running_loop()
        self._sweep()
        self._server = await loop.create_server(lambda: Connection(self._service), sock=listening, backlog=BACKLOG)

    async def drain(self, timeout_s: float) -> None:
        """Accept nobody any more, finish what is under way, and end what is not finished after ``timeout_s``."""
        service = self._service
        service.draining = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(service.connections):
            connection.drain()
        try:
            if service.connections:
                async with asyncio.timeout(timeout_s):
                    await service.emptied.wait()
        except TimeoutError:
            log.warning("%d connections did not finish within %.0f s and are cut", self.connections, timeout_s)
            for connection in tuple(service.connections):
                connection.abort()
            await asyncio.sleep(0)  # their connection_lost, which cancels what was done for them, is called in the next tick
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._inflating.close()

    def _sweep(self) -> None:
        """Every second: renew the Date header, close who is late, probe who may be gone.

        One pass over at most ``max_connections`` costs less than a timer per connection, which each request would
        have to cancel and set again (0.4 ms per 4,096 connections, once a second).
        """
        service = self._service
        service.date = b"Date: %b\r\n" % formatdate(usegmt=True).encode("ascii")
        now_s = time.monotonic()
        for connection in tuple(service.connections):
            if connection.deadline_s <= now_s:
                connection.expire()
            elif connection.half_closed:
                connection.probe()
        interval_s = min(MAX_SWEEP_S, service.limits.idle_timeout_s / 4)
        self._sweeping = asyncio.get_running_loop().call_later(interval_s, self._sweep)
