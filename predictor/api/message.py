"""A request as it was read and a response as it will be written: the two words that every part of the API shares.

What stays out: reading and writing sockets (connection.py), what a URL means (rest.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

import orjson

from predictor.errors import HearthError

Buffer = bytes | bytearray | memoryview

JSON: Final = b"application/json"
NO_HEADERS: Final[Mapping[bytes, bytes]] = {}

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value})


class Response:
    """What is answered.

    body     the body, in pieces that are sent one after another
    headers  further header lines, each with its CRLF; whoever makes them answers for what is in them
    """

    __slots__ = ("body", "content_type", "headers", "size_bytes", "status")

    def __init__(self, status: int, body: Sequence[Buffer] = (), *, headers: bytes = b"", content_type: bytes = JSON) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.content_type = content_type
        self.size_bytes = sum(map(len, body))

    def head(self, connection: bytes) -> bytes:
        """Status line and headers. ``connection``: header lines that belong to the connection, Date among them."""
        if self.status in _BODILESS:
            return b"%b%b%b\r\n" % (_STATUS_LINES[self.status], self.headers, connection)
        return b"%bContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
            _STATUS_LINES[self.status],
            self.content_type,
            self.size_bytes,
            self.headers,
            connection,
        )


class Cancellable(Protocol):
    """Something under way that can be given up: a task, or work that answers its request by itself."""

    def cancel(self) -> object:
        """Stop; called at most once, when nobody is there for the answer any more."""


Answering: TypeAlias = "Response | Coroutine[Any, Any, Answering] | Cancellable"
"""What handling a request comes to: an answer at once; a coroutine that ends in one of these; or work that will call
``request.answer`` itself, which spares the hot path a task."""


class Host(Protocol):
    """Who counts requests."""

    def leave(self, request: Request) -> None:
        """The request was answered, or its client is gone."""


class Request:
    """One request, complete.

    target     path and query as sent, percent-encoded
    headers    by lower-case name; repeated ones joined with ", "
    body       decompressed, if it came compressed
    began_s    moment of CLOCK_MONOTONIC at which its first byte was parsed
    host       who counts it, and is told when it leaves; None: nobody does
    """

    __slots__ = (
        "_run",
        "_send",
        "began_s",
        "body",
        "body_bytes",
        "headers",
        "host",
        "keep_alive",
        "method",
        "path",
        "query",
        "refusal",
        "version",
    )

    def __init__(
        self,
        send: Callable[[Request, Response], None],
        run: Callable[[Request, Coroutine[Any, Any, Answering]], Cancellable],
        began_s: float,
    ) -> None:
        self._send = send
        self._run = run
        self.began_s = began_s
        self.method = "GET"
        self.path = ""
        self.query = ""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        self.body: Buffer = b""
        self.body_bytes = 0
        self.keep_alive = False
        self.refusal: HearthError | None = None
        self.host: Host | None = None

    def answer(self, response: Response) -> None:
        """Send the answer. Does nothing if the client is gone."""
        self._send(self, response)

    def answer_later(self, answering: Coroutine[Any, Any, Answering]) -> Cancellable:
        """Go on in a task whose result is the answer; it is cancelled when the client goes."""
        return self._run(self, answering)

    def target(self, raw: bytes) -> None:
        """Split the request line's target, in origin form or (as a proxy would send it) absolute form."""
        target = raw.decode("latin-1")
        if not target.startswith("/") and "://" in target:
            _, slash, path = target.partition("://")[2].partition("/")
            target = slash + path or "/"
        self.path, _, self.query = target.partition("?")


def json_response(status: int, content: object, *, headers: bytes = b"") -> Response:
    """``content`` as JSON."""
    return Response(status, (orjson.dumps(content),), headers=headers)


def internal_error(error: BaseException) -> HearthError:
    """Our own mistake, as the client may know it: the kind only, because the text may hold anything."""
    return HearthError(f"internal error: {type(error).__name__}; the server's log tells more")


def error_response(error: HearthError, *, headers: bytes = b"") -> Response:
    """``{"error": ...}`` with the class's status, and Retry-After where a retry helps and we know when."""
    if error.retryable and error.retry_after_s is not None:
        headers += b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_s))
    # A model's own words may hold anything, lone surrogates included, which no JSON encoder takes.
    message = error.message.encode("utf-8", "replace").decode("utf-8")
    return json_response(error.http_status, {"error": message}, headers=headers)
