"""Bytes of one connection → requests, within limits. No sockets and no waiting: connection.py feeds it and acts.

llhttp (through httptools) already refuses what request smuggling lives on: Content-Length beside Transfer-Encoding,
repeated or malformed lengths, bare line feeds, folded headers, unknown versions of either. It bounds nothing, though:
header bytes, header count, body and chunk framing are counted here.

A large body of known length does not go through llhttp at all: its parser would copy every piece. What follows such a
head is so many bytes, received where the worker reads them (``room``), and after them a new parser begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from predictor.api.message import Buffer, Request
from predictor.errors import BodyTooLarge, HeadTooLarge, HearthError, MalformedRequest, MethodNotAllowed, TooManyRequests
from predictor.passage import Passage
from predictor.settings import Settings
from predictor.wire import INLINE_BYTES

MAX_HEAD_BYTES: Final = 32 << 10
"""Request line and headers. nginx takes four times 8 KiB, uvicorn 64 KiB; service meshes add one or two."""
MAX_HEADERS: Final = 100
SLICE_BYTES: Final = 8 << 10
"""Fed to the parser at once, so that what one read holds of pipelined requests (18 bytes each at the least) becomes
at most 455 of them before any is answered. A body of known length is fed whole."""
MAX_FRAMING: Final = 8
"""Bytes of chunk framing tolerated per byte of body, beyond MAX_HEAD_BYTES: a one-byte chunk needs 5 and its byte."""
ALIGNED_BYTES: Final = 64
"""Where the tensors of a large body begin: runtimes copy what is not aligned, or compute on it more slowly."""
MAX_LENGTH_DIGITS: Final = 12


@dataclass(slots=True)
class Load:
    """What is inside now, and inference requests that ever were.

    requests    from the handler's start until the answer has left
    body_bytes  received, and of answers that their clients do not take
    asked       inference requests that a model could be asked; ``asked_s``: when the latest began, on the monotonic clock
    """

    requests: int = 0
    body_bytes: int = 0
    asked: int = 0
    asked_s: float = 0.0

    def asks(self, began_s: float) -> None:
        """Count a request for a model that is there, in a form that it takes: what is refused before keeps no pod."""
        self.asked += 1
        self.asked_s = max(self.asked_s, began_s)


@dataclass(frozen=True, slots=True)
class Limits:
    """What settings.py says of the HTTP layer."""

    max_body_bytes: int
    max_body_bytes_in_flight: int
    max_connections: int
    idle_timeout_s: float
    busy_poll_s: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """As an operator set them."""
        return cls(
            settings.max_body_bytes,
            settings.max_body_bytes_in_flight,
            settings.max_connections,
            settings.idle_timeout_s,
            settings.busy_poll_us / 1e6,
        )


class RequestReader:
    """One connection's parser.

    make     an empty Request, asked for at a request's first byte
    ready    told each complete request, in the order they came
    passage  where large bodies of binary tensors are received; None: all bodies are assembled from what is fed
    """

    __slots__ = (
        "_arriving", "_in_head", "_limits", "_load", "_make", "_overhead_bytes", "_parser", "_passage", "_place", "_ready",
        "_target", "awaits_continue", "body_left_bytes", "ended",
    )  # fmt: skip

    def __init__(
        self,
        limits: Limits,
        load: Load,
        *,
        make: Callable[[float], Request],
        ready: Callable[[Request], None],
        passage: Passage | None = None,
    ) -> None:
        self._limits = limits
        self._load = load
        self._make = make
        self._ready = ready
        self._passage = passage
        self._place: memoryview | None = None  # the arriving body's, all of it
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._arriving: Request | None = None
        self._target = b""
        self._in_head = False
        self._overhead_bytes = 0
        self.body_left_bytes = 0
        self.awaits_continue = False
        self.ended = False

    @property
    def arriving(self) -> Request | None:
        """The request of which only a part came so far."""
        return self._arriving

    @property
    def take_bytes(self) -> int:
        """The most that may be fed at once."""
        return max(SLICE_BYTES, self.body_left_bytes)

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes may be received, if they belong to a large body; ``received`` tells how many came."""
        place, request = self._place, self._arriving
        return place[request.body_bytes :] if place is not None and request is not None else None

    def received(self, size_bytes: int) -> None:
        """So many bytes of the body are in ``room``. Raises as ``feed`` does."""
        request = self._arriving
        assert request is not None, "a body before its request"
        assert self._place is not None, "a body without its place"
        self._count(request, size_bytes)
        if not self.body_left_bytes:
            request.body, self._place = self._place, None
            self._parser = HttpRequestParser(self)  # the old one still waits for this body
            self._complete(request)

    def feed(self, data: Buffer) -> None:
        """Parse. Raises what the connection must be refused with; nothing may be fed after that."""
        if self._parser is None or self.ended:
            return
        room = self.room
        if room is not None:
            size_bytes = min(len(data), len(room))
            room[:size_bytes] = data[:size_bytes]
            self.received(size_bytes)
            if size_bytes < len(data):
                self.feed(memoryview(data)[size_bytes:])
            return
        self._overhead_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._decline_upgrade(memoryview(data)[upgrade.args[0] :])
        except HttpParserCallbackError as error:
            if isinstance(error.__context__, HearthError):
                raise error.__context__ from None
            raise
        except HttpParserError as error:
            if not self.ended:  # llhttp also objects to bytes after the last request of a connection
                raise MalformedRequest(f"this is not an HTTP/1.1 request: {error}") from None
        if self._arriving is not None:
            self._check_overhead(self._arriving)

    def close(self) -> None:
        """Nothing more will come: break the cycle with the parser, give the partial body's bytes back."""
        self._parser = None
        self._place = None
        if self._arriving is not None:
            self._load.body_bytes -= self._arriving.body_bytes
            self._arriving = None

    # ---- called by httptools ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """First byte of a request."""
        self._arriving = self._make(time.monotonic())
        self._target = b""
        self._in_head = True
        self._overhead_bytes = 0

    def on_url(self, piece: bytes) -> None:
        """A piece of the request's target; one that spans reads comes in several."""
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; after the head, a trailer, which nobody asked for."""
        if not self._in_head:
            return
        assert self._arriving is not None, "a header before its request"
        headers = self._arriving.headers
        name = name.lower()
        if name in headers:
            if name == b"host":
                raise MalformedRequest("the request has more than one Host header")
            value = headers[name] + b", " + value
        elif len(headers) >= MAX_HEADERS:
            raise HeadTooLarge(f"the request has more than {MAX_HEADERS} headers")
        headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is complete: what can be refused is refused before the body comes."""
        request, parser = self._arriving, self._parser
        assert request is not None, "a head before its request"
        assert parser is not None, "a head after the end"
        self._in_head = False
        request.method = parser.get_method().decode("ascii")
        if parser.should_upgrade() and request.method != "CONNECT":
            return  # comes again, see _decline_upgrade
        request.version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        request.target(self._target)
        headers = request.headers
        self._check_head(request, headers)
        self.body_left_bytes = length = int(headers.get(b"content-length", 0))
        if length > self._limits.max_body_bytes:
            raise self._too_large(f"{length} bytes")
        self.awaits_continue = (
            b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and request.version == "1.1"
        )
        if length > INLINE_BYTES and self._passage is not None and b"content-encoding" not in headers:
            self._place = _place(self._passage, length, headers.get(b"inference-header-content-length", b""))

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        request = self._arriving
        assert request is not None, "a body before its request"
        size_bytes = len(piece)
        begin = request.body_bytes
        self._overhead_bytes -= size_bytes
        self._count(request, size_bytes)
        if self._place is not None:  # what the head's slice held of it
            self._place[begin : begin + size_bytes] = piece
        elif not request.body:
            request.body = piece  # the usual case: one piece, never copied
        elif isinstance(request.body, bytearray):
            request.body += piece
        else:
            request.body = bytearray(request.body)
            request.body += piece

    def on_message_complete(self) -> None:
        """Last byte of a request."""
        request, parser = self._arriving, self._parser
        assert request is not None, "an end before its request"
        assert parser is not None, "a request after the end"
        if not parser.should_upgrade():
            self._complete(request)

    def _complete(self, request: Request) -> None:
        self._arriving = None
        self.awaits_continue = False
        self.body_left_bytes = 0
        self.ended = not request.keep_alive
        self._ready(request)

    def _count(self, request: Request, size_bytes: int) -> None:
        """Bytes of the body came."""
        self.awaits_continue = False
        self.body_left_bytes = max(0, self.body_left_bytes - size_bytes)
        request.body_bytes += size_bytes
        self._load.body_bytes += size_bytes
        if request.body_bytes > self._limits.max_body_bytes:
            raise self._too_large("longer")
        if self._load.body_bytes > self._limits.max_body_bytes_in_flight:
            raise TooManyRequests(
                f"request bodies inside this pod reach {self._limits.max_body_bytes_in_flight} bytes "
                "(HEARTH_MAX_BODY_BYTES_IN_FLIGHT): try again later",
                retry_after_s=1.0,
            )

    # ---- small print -----------------------------------------------------------------------------------------

    def _check_head(self, request: Request, headers: dict[bytes, bytes]) -> None:
        if request.version == "1.1":
            if b"host" not in headers:
                raise MalformedRequest("an HTTP/1.1 request needs a Host header")
        elif request.version != "1.0":
            raise MalformedRequest(f"this server speaks HTTP/1.1 and HTTP/1.0, not HTTP/{request.version}")
        if b"transfer-encoding" in headers and (
            headers[b"transfer-encoding"].strip().lower() != b"chunked" or request.version != "1.1"
        ):
            raise MalformedRequest("the only Transfer-Encoding understood is chunked, in HTTP/1.1")
        if request.method == "CONNECT":
            raise MethodNotAllowed("this server is no proxy: CONNECT is not possible")

    def _check_overhead(self, request: Request) -> None:
        if self._overhead_bytes <= MAX_HEAD_BYTES + MAX_FRAMING * request.body_bytes:
            return
        if self._in_head:
            raise HeadTooLarge(f"the request's line and headers exceed {MAX_HEAD_BYTES} bytes")
        raise MalformedRequest(
            f"the request's chunk framing takes {self._overhead_bytes} bytes for {request.body_bytes} bytes of body"
        )

    def _too_large(self, length: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"the request's body is {length}, this server accepts {self._limits.max_body_bytes} bytes (HEARTH_MAX_BODY_BYTES)"
        )

    def _decline_upgrade(self, rest: memoryview) -> None:
        """Read the same head again as one that asks for no other protocol, and go on with what follows it.

        Java's HttpClient offers h2c on every first request, bodies included; a server that does not switch answers
        in HTTP/1.1. httptools stops at such a head and would take the body for bytes of the other protocol.
        """
        request = self._arriving
        assert request is not None, "an upgrade without a request"
        lines = [b"%b: %b\r\n" % header for header in request.headers.items() if header[0] != b"upgrade"]
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method.encode("ascii"), self._target, b"".join(lines))
        self._parser = HttpRequestParser(self)
        self.feed(head)
        if rest:
            self.feed(rest)


def _place(passage: Passage, length: int, json_length: bytes) -> memoryview | None:
    """Room for a body whose tensors follow ``json_length`` bytes of JSON; None: it has none, or there is no room."""
    if not json_length.isdigit() or len(json_length) > MAX_LENGTH_DIGITS:
        return None
    begin = -int(json_length) % ALIGNED_BYTES
    place = passage.take(begin + length)
    return place[begin:] if place is not None else None
