"""A bridge from our HTTP layer to an ASGI application, for routes that are rare enough to go through a framework.

The application is imported in a thread when it is first asked for (FastAPI takes half a second, which neither a pod's start
nor the event loop may wait for); requests that come meanwhile wait for it. Answers are collected whole: no route streams.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

from predictor.api.message import Answering, Request, Response, error_response, internal_error
from predictor.api.pod import Pod

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_OURS: Final = frozenset({b"content-length", b"content-type", b"connection", b"date", b"transfer-encoding"})
"""Headers that the HTTP layer writes itself."""


class Bridge:
    """A handler that answers through the application that ``factory`` of ``module`` makes of the pod."""

    def __init__(self, module: str, factory: str, pod: Pod) -> None:
        self._module = module
        self._factory = factory
        self._pod = pod
        self._loading: asyncio.Future[Application] | None = None

    def __call__(self, request: Request) -> Answering:
        """Answer ``request``, once the application is there."""
        return self._answered(request)

    def begin(self) -> asyncio.Future[Application]:
        """Start importing, unless that has begun."""
        if self._loading is None:
            thread = ThreadPoolExecutor(1, thread_name_prefix="import")
            self._loading = asyncio.get_running_loop().run_in_executor(thread, self._load)
            thread.shutdown(wait=False)
        return self._loading

    def _load(self) -> Application:
        make = getattr(importlib.import_module(self._module), self._factory)
        return cast("Application", make(self._pod))

    async def _answered(self, request: Request) -> Response:
        # Shielded: the first client's hang-up must not cancel what the others wait for.
        application = await asyncio.shield(self.begin())
        exchange = _Exchange(request)
        try:
            await application(_scope(request), exchange.receive, exchange.send)
        except Exception as error:  # a request's root
            log.exception("%s %s failed", request.method, request.path)
            if not exchange.complete:
                return error_response(internal_error(error))
        return exchange.response()


class _Exchange:
    """One request and response, as the application sees them."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._received = False
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self.complete = False

    async def receive(self) -> Message:
        """The body, whole; then, as nobody streams, nothing ever."""
        if self._received:
            await asyncio.get_running_loop().create_future()
        self._received = True
        return {"type": "http.request", "body": bytes(self._request.body), "more_body": False}

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._pieces.append(bytes(message.get("body", b"")))
            self.complete = not message.get("more_body", False)

    def response(self) -> Response:
        """The answer, as our layer writes it."""
        headers = {name.lower(): value for name, value in self._headers}
        lines = b"".join(
            b"%b: %b\r\n" % (name, value)
            for name, value in self._headers
            if name.lower() not in _OURS and not {*b"\r\n"} & {*name, *value}
        )
        status = HTTPStatus(self._status)
        return Response(
            status.value, self._pieces, headers=lines, content_type=headers.get(b"content-type", b"application/octet-stream")
        )


def _scope(request: Request) -> MutableMapping[str, Any]:
    """ASGI's description of the request."""
    path = request.path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "headers": list(request.headers.items()),
        "client": None,
        "server": None,
        "state": {},
    }
