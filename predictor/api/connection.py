"""One client's connection: requests in, answers out, in order; timeouts, back-pressure, and clients that go away.

One request of a connection is handled at a time. What a pipelining client sends meanwhile stays unparsed, at most
READ_AHEAD_BYTES plus one read of it, before the socket is not read any more. Nothing here raises into the event loop.

What stays out: parsing and its limits (reader.py), what a request means (rest.py), accepting (http.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

from predictor.api.message import Answering, Buffer, Cancellable, Request, Response, error_response, internal_error
from predictor.api.polling import Polling
from predictor.api.reader import Limits, Load, RequestReader
from predictor.errors import HearthError, RequestTimedOut
from predictor.passage import Passage

log = logging.getLogger(__name__)

READ_AHEAD_BYTES: Final = 64 << 10
READ_BYTES: Final = 256 << 10
"""Read at once, as uvloop does for protocols that bring no buffer."""
JOINED_BYTES: Final = 64 << 10
"""Answers up to this size are joined and sent with one write; larger ones are handed over in pieces, uncopied."""
LINGER_S: Final = 10.0
"""How long a refused client that still sends is listened to (and ignored): closing at once would reset the connection
and with it, on the client's side, the refusal that it has not read yet."""
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Every byte moved buys time at this rate, on top of the idle timeout: a large body over a slow line is no attack."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"


class Service:
    """What the connections of one server share.

    handler   answers a request; a HearthError or anything else it raises becomes an answer, too
    passage   where large bodies are received; None: anywhere
    scratch   what all connections read into: what is in it is used up, or copied, before the next one reads
    date      the Date header's line, renewed every second by the server
    """

    def __init__(
        self, handler: Callable[[Request], Answering], limits: Limits, load: Load, passage: Passage | None = None
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.load = load
        self.passage = passage
        self.scratch = memoryview(bytearray(READ_BYTES))
        self.connections: set[Connection] = set()
        self.draining = False
        self.date = b""
        self.emptied = asyncio.Event()
        self.polling = Polling(load, limits.busy_poll_s)


class Connection(asyncio.BufferedProtocol):
    """See the module. ``deadline_s``: moment of CLOCK_MONOTONIC from which the server calls ``expire``."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(service.limits, service.load, make=self._make, ready=self._ready, passage=service.passage)
        self._scratch = service.scratch
        self._room: memoryview | None = None  # what the transport reads into, if not the scratch
        self._unread: Buffer = b""
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._work: Cancellable | None = None
        self._proceeding = False
        self._reading = True
        self._deaf = False  # no further request is taken from this client
        self._blocked = False  # it does not take its answers
        self._unflushed_bytes = 0  # of an answer that counts as inside until it has left
        self._eof = False
        self.deadline_s = time.monotonic() + service.limits.idle_timeout_s

    # ---- called by the transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast("asyncio.Transport", transport)
        connections = self._service.connections
        if len(connections) >= self._service.limits.max_connections:
            self._deaf = True
            self._transport.abort()
        else:
            connections.add(self)
            self._service.emptied.clear()

    def connection_lost(self, _: Exception | None) -> None:
        """The client is gone: whatever is done for it stops."""
        self._transport = self._room = None
        service = self._service
        service.connections.discard(self)
        if not service.connections:
            service.emptied.set()
        self._reader.close()
        self._forget_queue()
        if self._current is not None:
            service.load.requests -= 1
            service.load.body_bytes -= self._current.body_bytes
            if self._current.host is not None:
                self._current.host.leave(self._current)
            self._current = None
        self._flushed()
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (the transport's wish: it gets more)
        """Where to receive: a large body at its own place, if nothing that came before it is still unread."""
        if self._reader.body_left_bytes and not (self._unread or self._queue or self._current or self._blocked or self._deaf):
            self._room = self._reader.room
            if self._room is not None:
                return self._room
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        in_place, self._room = self._room is not None, None
        if self._deaf:
            return
        if in_place:
            self._feed(self._reader.received, nbytes, nbytes)
            self._proceed()
        elif self._unread:
            self._unread = b"".join((self._unread, self._scratch[:nbytes]))
            self._proceed()
        else:
            self._unread = self._scratch[:nbytes]
            self._proceed()
            if self._unread:
                self._unread = bytes(self._unread)

    def eof_received(self) -> bool:
        """The client will send no more; it may still read. True keeps the connection open for its answer."""
        self._eof = True
        if self._current is None and not self._blocked:
            return False
        self.probe()
        return True

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than we give it."""
        self._blocked = True

    def resume_writing(self) -> None:
        """It took most of it."""
        self._blocked = False
        self._flushed()
        if self._current is None and not self._deaf:
            self.deadline_s = time.monotonic() + self._service.limits.idle_timeout_s
        self._proceed()

    # ---- called by the server --------------------------------------------------------------------------------

    @property
    def half_closed(self) -> bool:
        """The client sends no more but waits for an answer, or it is gone: ``probe`` finds out."""
        return self._eof and self._current is not None

    def probe(self) -> None:
        """Find out whether a client that ended its side is gone, as hundreds of held requests' clients may be.

        A closed socket and a half-closed one look the same to us: both sent FIN. An interim answer, which every
        HTTP/1.1 client must skip (RFC 9110, 15.2), is acknowledged by the one and reset by the other.
        """
        if self._current is not None and self._current.version == "1.1":
            self._write((_CONTINUE,))

    def expire(self) -> None:
        """The client was idle, or sent or took too little, for too long."""
        if self._transport is None:
            return
        if self._blocked or self._deaf:
            self._transport.abort()
        elif self._reader.arriving is not None:
            self._refuse(RequestTimedOut("the request did not arrive in time (HEARTH_IDLE_TIMEOUT_S)"))
            self._proceed()
        else:
            self._transport.close()

    def drain(self) -> None:
        """Close if nothing is under way; else the next answer will say that it is the last."""
        if self._transport is not None and not (self._current or self._queue or self._unread or self._reader.arriving):
            self._deaf = True
            self._transport.close()

    def abort(self) -> None:
        """End now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # ---- requests --------------------------------------------------------------------------------------------

    def _make(self, began_s: float) -> Request:
        if self._current is None:
            self.deadline_s = began_s + self._service.limits.idle_timeout_s
        return Request(self._answer, self._run, began_s)

    def _ready(self, request: Request) -> None:
        self._queue.append(request)

    def _proceed(self) -> None:
        """Take up what waits, in order: requests that are read, then bytes that are not.

        One slice of bytes per tick of the loop: a read full of pipelined requests would hold it for 0.2 s.
        """
        if self._proceeding:
            return
        self._proceeding = True
        fed = False
        while self._current is None and not self._blocked and self._transport is not None:
            if self._queue:
                self._begin(self._queue.popleft())
            elif self._unread and fed:
                self._loop.call_soon(self._proceed)
                break
            elif self._unread:
                fed = True
                self._read()
            else:
                if self._reader.awaits_continue:
                    self._reader.awaits_continue = False
                    self._write((_CONTINUE,))
                elif self._eof and not self._deaf:
                    self._deaf = True
                    self._transport.close()
                break
        self._proceeding = False
        self._regulate()

    def _read(self) -> None:
        data, take_bytes = self._unread, self._reader.take_bytes
        if len(data) > take_bytes:
            view = memoryview(data)
            data, self._unread = view[:take_bytes], view[take_bytes:]
        else:
            self._unread = b""
        self._feed(self._reader.feed, data, len(data))

    def _feed(self, feed: Callable[[Any], None], arg: Buffer | int, size_bytes: int) -> None:
        self.deadline_s += size_bytes / SLOWEST_BYTES_PER_S
        try:
            feed(arg)
        except HearthError as error:
            # The traceback's frames, the transport's among them, name the place where the body was received.
            self._refuse(error.with_traceback(None))
        except Exception as error:  # a connection's root: the parser's own callbacks failed
            log.exception("reading a request failed")
            self._refuse(internal_error(error))

    def _refuse(self, error: HearthError) -> None:
        """Answer what cannot be read after what could be, and close."""
        request = self._reader.arriving or Request(self._answer, self._run, time.monotonic())
        self._reader.close()
        request.body, request.body_bytes, request.keep_alive, request.refusal = b"", 0, False, error
        self._unread = b""
        self._deaf = True
        self._queue.append(request)

    def _regulate(self) -> None:
        reading = len(self._unread) < READ_AHEAD_BYTES
        transport = self._transport
        if reading == self._reading or transport is None or transport.is_closing() or self._eof:
            return
        self._reading = reading
        if reading:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _begin(self, request: Request) -> None:
        self._current = request
        self._service.load.requests += 1
        self.deadline_s = math.inf
        try:
            answering = error_response(request.refusal) if request.refusal else self._service.handler(request)
        except Exception as error:  # noqa: BLE001 (a request's root; _failed logs it)
            answering = _failed(request, error)
        self._go_on(request, answering)

    def _go_on(self, request: Request, answering: Answering) -> None:
        if isinstance(answering, Response):
            self._answer(request, answering)
        elif asyncio.iscoroutine(answering):
            self._run(request, answering)
        elif request is self._current:
            self._work = answering

    def _run(self, request: Request, answering: Coroutine[Any, Any, Answering]) -> Cancellable:
        task = self._loop.create_task(answering)
        task.add_done_callback(partial(self._ran, request))
        if request is self._current:
            self._work = task
        else:
            task.cancel()
        return task

    def _ran(self, request: Request, task: asyncio.Task[Answering]) -> None:
        if task.cancelled():
            if request is self._current:  # not by us: the loop is being shut down
                self.abort()
        elif (error := task.exception()) is not None:
            self._answer(request, _failed(request, error))
        else:
            self._go_on(request, task.result())

    # ---- answers ---------------------------------------------------------------------------------------------

    def _answer(self, request: Request, response: Response) -> None:
        if request is not self._current:
            return
        service = self._service
        keep = request.keep_alive and not (service.draining and not self._queue)
        lines = service.date
        if not keep:
            lines += _CLOSE
        elif request.version == "1.0":
            lines += _KEEP_ALIVE
        head = response.head(lines)
        self._write((head,) if request.method == "HEAD" else (head, *response.body))
        self._current = None
        self._work = None
        service.load.body_bytes -= request.body_bytes
        if request.host is not None:
            request.host.leave(request)
        self.deadline_s = time.monotonic() + service.limits.idle_timeout_s
        if self._blocked:
            self._unflushed_bytes = max(response.size_bytes, 1)
            service.load.body_bytes += self._unflushed_bytes
            self.deadline_s += response.size_bytes / SLOWEST_BYTES_PER_S
        else:
            service.load.requests -= 1
            service.polling.answered(self._loop)
        if not keep:
            self._end(linger=request.refusal is not None)
        elif not self._proceeding and (self._unread or self._queue or self._eof):
            self._proceed()

    def _flushed(self) -> None:
        """The last answer has left, or will never."""
        if self._unflushed_bytes:
            self._service.load.requests -= 1
            self._service.load.body_bytes -= self._unflushed_bytes
            self._unflushed_bytes = 0

    def _end(self, *, linger: bool) -> None:
        """Close once the answer has left. ``linger``: the client may not have finished sending."""
        transport = self._transport
        self._deaf = True
        self._forget_queue()
        if transport is None or transport.is_closing():
            return
        if linger and not self._eof:
            self.deadline_s = min(self.deadline_s, time.monotonic() + LINGER_S)
            self._regulate()
            try:
                transport.write_eof()
            except OSError:  # asyncio's shuts down the socket at once; the client may have reset it a moment ago
                transport.abort()
        else:
            transport.close()

    def _forget_queue(self) -> None:
        self._service.load.body_bytes -= sum(request.body_bytes for request in self._queue)
        self._queue.clear()
        self._unread = b""

    def _write(self, pieces: tuple[Buffer, ...]) -> None:
        """Send, if there is still somebody: uvloop's transports raise when they are closed."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if sum(map(len, pieces)) <= JOINED_BYTES:
            transport.write(b"".join(pieces))
        else:
            transport.writelines(pieces)


def _failed(request: Request, error: BaseException) -> Response:
    """What an exception of the handler comes to."""
    if isinstance(error, HearthError):
        return error_response(error)
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return error_response(internal_error(error))
