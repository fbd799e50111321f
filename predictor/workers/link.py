"""The front's end of the socket to one worker process: requests out, answers matched by id.

What stays out: the process itself (worker.py), what the messages mean to a model (engine/).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

import msgspec

from predictor import errors
from predictor.errors import HearthError, ModelFailed
from predictor.wire import Failed, Frames, FromWorker, Hello, Ran, ToWorker, encode_head, from_worker_decoder

Buffer = bytes | bytearray | memoryview
Reply: TypeAlias = "tuple[FromWorker, memoryview] | HearthError"
"""What a worker answered, with the bytes that came with it; or what went wrong."""

JOINED_BYTES: Final = 64 << 10
"""Up to this size one copy into one write is cheaper than a vectored write."""


class Pending(NamedTuple):
    """A request that the worker has not answered yet."""

    answer: Callable[[Reply], None]
    sent_s: float
    computes: bool


class Link(asyncio.Protocol):
    """One connection's life.

    closed  the socket is
    ended   the process behind it was waited for: whatever it had mapped, it does not any more
    """

    def __init__(self, on_hello: Callable[[Hello], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_hello = on_hello
        self._frames = Frames()
        self._ids = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self.pending: dict[int, Pending] = {}
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.answered_s = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class to ask for

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (the process's end tells more)
        """Called by the loop: the worker is gone, or we are."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Called by the loop with whatever the worker wrote."""
        try:
            replies = [(from_worker_decoder.decode(header), body) for header, body in self._frames.feed(data)]
        except (ValueError, msgspec.MsgspecError):
            self.abort()  # not our protocol any more: a worker that writes garbage is a dead worker
            return
        for message, body in replies:
            self._answer(message, body)

    def next_id(self) -> int:
        """An id no message of this link had."""
        return next(self._ids)

    def send(
        self, message: ToWorker, body: Sequence[Buffer] = (), *, answer: Callable[[Reply], None], computes: bool = False
    ) -> None:
        """Write the message; ``answer`` is called with what the worker replies, or with what ended it; not before this returns.

        computes  the worker handles it on its computing thread, in order
        """
        self.pending[message.id] = Pending(answer, self._loop.time(), computes)
        # A transport that closes raises on write under uvloop; who waits is told when the link's end is handled.
        if self._transport is None or self._transport.is_closing():
            return
        body_bytes = sum(map(len, body))
        head = encode_head(message, body_bytes)
        if body_bytes <= JOINED_BYTES:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.writelines((head, *body))

    async def ask(self, message: ToWorker, *, computes: bool = False) -> FromWorker:
        """Write the message and wait for the reply. Raises what went wrong."""
        reply: asyncio.Future[FromWorker] = self._loop.create_future()

        def answered(outcome: Reply) -> None:
            if reply.done():  # whoever asked went away
                return
            if isinstance(outcome, HearthError):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome[0])

        self.send(message, answer=answered, computes=computes)
        return await reply

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, why: Callable[[int, Pending], HearthError]) -> None:
        """Give every request that was not answered the error that ``why`` makes of it."""
        pending, self.pending = self.pending, {}
        for number, request in pending.items():
            request.answer(why(number, request))

    def _answer(self, message: FromWorker, body: memoryview) -> None:
        if isinstance(message, Hello):
            self._on_hello(message)
            return
        request = self.pending.pop(message.id, None)
        if request is None:
            return
        if request.computes or isinstance(message, Ran):
            self.answered_s = self._loop.time()
        request.answer(_error(message) if isinstance(message, Failed) else (message, body))


def _error(failed: Failed) -> HearthError:
    kind = getattr(errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, HearthError):
        return kind(failed.message)
    return ModelFailed(failed.message)
