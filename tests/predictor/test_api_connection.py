"""What a connection does when its transport misbehaves in ways that real sockets only do once in a while."""

from __future__ import annotations

import asyncio
from typing import Any

from predictor.api.connection import Connection, Service
from predictor.api.message import Answering, Request, Response
from predictor.api.reader import SLICE_BYTES, Limits, Load

LIMITS = Limits(max_body_bytes=1000, max_body_bytes_in_flight=1000, max_connections=10, idle_timeout_s=10.0)
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Remembers what is done to it; once closed it raises on writing, as uvloop's does."""

    def __init__(self, *, eof_error: OSError | None = None) -> None:
        super().__init__()
        self.written = b""
        self.closing = False
        self.aborted = False
        self._eof_error = eof_error

    def write(self, data: Any) -> None:
        if self.closing:
            raise RuntimeError("the handler is closed")
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def write_eof(self) -> None:
        if self._eof_error is not None:
            raise self._eof_error

    def pause_reading(self) -> None:
        assert not self.closing, "paused after the end"

    def resume_reading(self) -> None:
        assert not self.closing, "resumed after the end"

    @property
    def answers(self) -> int:
        return self.written.count(b"HTTP/1.1 200 OK\r\n")


class Work:
    """What a handler returns that answers later."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A connection on a fake transport, whose handler answers at once unless ``works`` is filled by it."""

    def __init__(self, *, at_once: bool = True, transport: FakeTransport | None = None) -> None:
        self.at_once = at_once
        self.requests: list[Request] = []
        self.works: list[Work] = []
        self.load = Load()
        self.service = Service(self.handle, LIMITS, self.load)
        self.transport = transport or FakeTransport()
        self.connection = Connection(self.service)
        self.connection.connection_made(self.transport)

    def receive(self, data: bytes) -> None:
        """As transports do it."""
        while data:
            buffer = self.connection.get_buffer(-1)
            size_bytes = min(len(buffer), len(data))
            buffer[:size_bytes] = data[:size_bytes]
            self.connection.buffer_updated(size_bytes)
            data = data[size_bytes:]

    def handle(self, request: Request) -> Answering:
        self.requests.append(request)
        if self.at_once:
            return Response(200)
        self.works.append(Work())
        return self.works[-1]


async def test_an_answer_that_comes_after_the_client_left_goes_nowhere() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    rig.transport.close()
    rig.connection.connection_lost(ConnectionResetError())

    rig.requests[0].answer(Response(200))

    assert rig.works[0].cancelled
    assert rig.load == Load()


async def test_an_answer_to_a_transport_that_is_closing_but_not_lost_yet_is_not_written() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    rig.transport.close()

    rig.requests[0].answer(Response(200))
    rig.connection.connection_lost(None)

    assert rig.transport.written == b""
    assert rig.load == Load()


async def test_a_second_answer_to_one_request_is_ignored() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET + GET)

    for _ in range(3):
        rig.requests[0].answer(Response(200))

    assert rig.transport.answers == 1
    assert len(rig.requests) == 2


async def test_work_begun_for_a_client_that_left_is_cancelled_at_once() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    rig.connection.connection_lost(None)
    began = asyncio.Event()

    async def work() -> Response:
        began.set()
        return Response(200)

    rig.requests[0].answer_later(work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert not began.is_set()


async def test_a_refused_client_that_resets_meanwhile_is_let_go() -> None:
    rig = Rig(transport=FakeTransport(eof_error=OSError(107, "not connected")))

    rig.receive(b"garbage\r\n\r\n")

    assert rig.transport.written.startswith(b"HTTP/1.1 400 ")
    assert rig.transport.aborted


async def test_one_tick_of_the_loop_takes_up_one_slice_of_pipelined_requests() -> None:
    rig = Rig()
    in_a_slice = SLICE_BYTES // len(GET)
    rig.receive(GET * (3 * in_a_slice))
    at_once = rig.transport.answers

    for _ in range(3):
        await asyncio.sleep(0)

    assert at_once == in_a_slice
    assert rig.transport.answers == 3 * in_a_slice


async def test_a_client_that_takes_nothing_is_given_nothing_more() -> None:
    rig = Rig()
    rig.connection.pause_writing()
    rig.receive(GET * 3)
    blocked = rig.transport.answers
    rig.connection.resume_writing()

    assert (blocked, rig.transport.answers) == (0, 3)


async def test_an_answer_that_its_client_does_not_take_counts_until_it_has_left() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    rig.connection.pause_writing()  # as the transport does while it is given more than the client takes
    rig.requests[0].answer(Response(200, (b"x" * 100_000,)))
    held = rig.load.requests, rig.load.body_bytes
    rig.connection.resume_writing()

    assert held == (1, 100_000)
    assert rig.load == Load()


async def test_an_answer_that_its_client_never_takes_counts_until_the_client_is_gone() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    rig.connection.pause_writing()
    rig.requests[0].answer(Response(200, (b"x" * 100_000,)))
    rig.connection.connection_lost(None)

    assert rig.load == Load()


async def test_a_task_that_is_cancelled_by_others_cuts_its_connection_instead_of_hanging_it() -> None:
    rig = Rig(at_once=False)
    rig.receive(GET)
    task = rig.requests[0].answer_later(asyncio.sleep(3600, Response(200)))

    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert rig.transport.aborted
