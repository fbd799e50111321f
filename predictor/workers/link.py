"""The front's end of the socket to one worker process: requests out, answers matched by id.

What stays out: the process itself (worker.py), what the messages mean to a model (engine/).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

import msgspec

from predictor import errors
from predictor.errors import HearthError, ModelFailed
from predictor.model import ModelRef
from predictor.passage import Buffer, Extent, Passage, sealed_bytes, window
from predictor.wire import (
    INLINE_BYTES,
    Asking,
    Failed,
    Frames,
    Free,
    FromWorker,
    Hello,
    Load,
    Loaded,
    Ran,
    Run,
    ToWorker,
    Unload,
    Unloaded,
    encode_head,
    from_worker_decoder,
    receive_passage,
)

Reply: TypeAlias = "tuple[FromWorker, memoryview] | HearthError"
"""What a worker answered, with the bytes that came with it; or what went wrong."""

JOINED_BYTES: Final = 64 << 10
"""Up to this size one copy into one write is cheaper than a vectored write."""


DUE: Final[dict[type[Asking], type[FromWorker]]] = {Load: Loaded, Run: Ran, Unload: Unloaded}


class Pending(NamedTuple):
    """A request that the worker has not answered yet.

    kind   what it is answered with, unless it fails
    about  the model that is computed or built; None: it is neither
    body   what the worker may still read: shared memory is free again when nobody holds it any more, and whoever asked
           may be gone long before the worker is done
    """

    answer: Callable[[Reply], None]
    sent_s: float
    computes: bool
    kind: type[FromWorker]
    about: ModelRef | None = None
    body: Sequence[Buffer] = ()


class _Garbled(Exception):
    """What a worker of ours would not write. Nobody else raises it: a mistake of the front's is not to be taken for that."""


class Link(asyncio.Protocol):
    """One connection's life.

    closed  the socket is
    ended   the process behind it was waited for: whatever it had mapped, it does not any more
    fault   what it wrote that is not our protocol, after which it is closed; "": nothing

    passage  where large requests lie; None: all bytes travel in frames
    control  the socket on which the worker sends the descriptor of its own passage, where large answers lie
    """

    def __init__(
        self, on_hello: Callable[[Hello], None], passage: Passage | None = None, control: socket.socket | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_hello = on_hello
        self._passage = passage
        self._answers = Answers(control, self._free) if control is not None else None
        self._frames = Frames(passage.size_bytes if passage is not None else None)
        self._ids = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self.pending: dict[int, Pending] = {}
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.answered_s = self._loop.time()
        self.fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class to ask for

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (the process's end tells more)
        """Called by the loop: the worker is gone, or we are."""
        self._transport = self._passage = None
        if self._answers is not None:
            self._answers.close()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Called by the loop with whatever the worker wrote."""
        try:
            replies = [(from_worker_decoder.decode(header), body) for header, body in self._frames.feed(data)]
        except (ValueError, msgspec.MsgspecError) as error:
            self._distrust(error)
            return
        try:
            for message, body in replies:
                self._answer(message, body)
        except _Garbled as error:
            self._distrust(error)

    def _distrust(self, error: Exception) -> None:
        """Not our protocol any more: a worker that writes garbage is a dead worker."""
        self.fault = f"it wrote what is no answer: {error}"
        self.abort()

    def next_id(self) -> int:
        """An id no message of this link had."""
        return next(self._ids)

    def send(
        self,
        message: Asking,
        body: Sequence[Buffer] = (),
        *,
        answer: Callable[[Reply], None],
        computes: bool = False,
        about: ModelRef | None = None,
    ) -> None:
        """Write the message; ``answer`` is called with what the worker replies, or with what ended it; not before this returns.

        computes  the worker handles it on its computing thread, in order
        about     see Pending
        """
        body_bytes = sum(map(len, body))
        if body_bytes > INLINE_BYTES and isinstance(message, Run) and self._passage is not None:
            shared = _shared(self._passage, body)
            if shared is not None:
                pieces, held = shared
                self.pending[message.id] = Pending(answer, self._loop.time(), computes, Ran, about, held)
                self._write(msgspec.structs.replace(message, pieces=pieces))
                return
        self.pending[message.id] = Pending(answer, self._loop.time(), computes, DUE[type(message)], about)
        self._write(message, body, body_bytes)

    async def ask(self, message: Asking, *, computes: bool = False, about: ModelRef | None = None) -> FromWorker:
        """Write the message and wait for the reply. Raises what went wrong."""
        reply: asyncio.Future[FromWorker] = self._loop.create_future()

        def answered(outcome: Reply) -> None:
            if reply.done():  # whoever asked went away
                return
            if isinstance(outcome, HearthError):
                reply.set_exception(outcome)
            else:
                reply.set_result(outcome[0])

        self.send(message, answer=answered, computes=computes, about=about)
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

    def _write(self, message: ToWorker, body: Sequence[Buffer] = (), body_bytes: int = 0) -> None:
        # A transport that closes raises on write under uvloop; who waits is failed when the link's end is handled.
        if self._transport is None or self._transport.is_closing():
            return
        head = encode_head(message, body_bytes)
        if not body:
            self._transport.write(head)
        elif body_bytes <= JOINED_BYTES:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.writelines((head, *body))

    def _free(self, offsets: tuple[int, ...]) -> None:
        self._write(Free(offsets))

    def _answer(self, message: FromWorker, body: memoryview) -> None:
        if isinstance(message, Hello):
            self._on_hello(message)
            return
        request, kind = self.pending.get(message.id), type(message)
        if request is not None and kind is not request.kind and kind is not Failed:
            raise _Garbled(f"{kind.__name__} where {request.kind.__name__} is due")
        if isinstance(message, Ran) and message.place is not None:
            body = self._opened(message.place)  # also when nobody wants it any more: dropped, it is freed there
        if request is None:
            return
        del self.pending[message.id]
        if request.computes or isinstance(message, Ran):
            self.answered_s = self._loop.time()
        request.answer(_error(message) if isinstance(message, Failed) else (message, body))

    def _opened(self, place: Extent) -> memoryview:
        if self._answers is None:
            raise _Garbled("an answer in a passage that nobody asked for")
        try:
            return self._answers.open(place)
        except (ValueError, OSError) as error:
            raise _Garbled(str(error)) from None


class Answers:
    """The worker's passage, seen from the front: every answer is a mapping of its own, and freed when that is gone.

    control  where its descriptor comes from, before the first answer that lies in it
    free     tells the worker; called in the loop, once for all that was dropped meanwhile
    """

    def __init__(self, control: socket.socket, free: Callable[[tuple[int, ...]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._control = control
        self._free = free
        self._descriptor = -1
        self._size_bytes = 0
        self._held: dict[int, weakref.ref[object]] = {}
        self._dropped: deque[int] = deque()  # bounded by _held

    def open(self, extent: Extent) -> memoryview:
        """The answer at ``extent``. ValueError: there is nothing that a worker of ours would send."""
        if self._descriptor < 0:
            self._descriptor = receive_passage(self._control)
            self._size_bytes = sealed_bytes(self._descriptor)
        offset, size_bytes = extent
        if not (offset >= 0 and 0 < size_bytes <= self._size_bytes - offset) or offset in self._held:
            raise ValueError(f"an answer at {extent} of {self._size_bytes} bytes")
        mapping, view = window(self._descriptor, extent)
        self._held[offset] = weakref.ref(mapping, lambda _: self._drop(offset))
        return view

    def close(self) -> None:
        """The worker is gone. What is open stays readable until it is dropped."""
        self._free = lambda _: None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _drop(self, offset: int) -> None:
        """Nobody reads it any more: called in whatever thread let go of it, or ran the garbage collector."""
        self._dropped.append(offset)
        if len(self._dropped) == 1 and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        offsets = []
        while self._dropped:
            offsets.append(self._dropped.popleft())
            del self._held[offsets[-1]]
        if offsets:
            self._free(tuple(offsets))


def _shared(passage: Passage, body: Sequence[Buffer]) -> tuple[tuple[Extent, ...], list[Buffer]] | None:
    """Where ``body`` lies in the passage, and what has to be held meanwhile. None: there is no room for all of it.

    What is not there yet is copied there, in one place. Pieces that touch become one: the worker uses one in place, and
    joins several.
    """
    found = [passage.find(part) for part in body]
    elsewhere = [part for part, extent in zip(body, found, strict=True) if extent is None and len(part)]
    held = [part for part, extent in zip(body, found, strict=True) if extent is not None]
    begin = 0
    if elsewhere:
        put = passage.put(elsewhere)
        if put is None:
            return None
        (begin, _), place = put
        held.append(place)
    pieces: list[Extent] = []
    for part, extent in zip(body, found, strict=True):
        if not len(part):
            continue
        offset, size_bytes = extent or (begin, len(part))
        if extent is None:
            begin += size_bytes
        if pieces and sum(pieces[-1]) == offset:
            pieces[-1] = pieces[-1][0], pieces[-1][1] + size_bytes
        else:
            pieces.append((offset, size_bytes))
    return tuple(pieces), held


def _error(failed: Failed) -> HearthError:
    kind = getattr(errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, HearthError):
        return kind(failed.message)
    return ModelFailed(failed.message)
