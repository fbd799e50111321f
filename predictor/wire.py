"""What crosses between the front and a worker process: message bodies and how they are framed.

A frame is ``<header length: u32><body length: u64><header><body>``, little endian. The header is one message
of this file in MessagePack; the body holds the tensors' bytes one after another in the order the header names
them. Tensors of more than INLINE_BYTES lie in shared memory instead (passage.py), and the header says where. File
descriptors travel beside the frames, on a socket of their own (``send_pool``): a byte stream has no place for them that
survives coalescing.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

FRAME: Final = struct.Struct("<IQ")
POOL: Final = struct.Struct("<QQQ")
ARENA: Final = struct.Struct("<QQ")
INLINE_BYTES: Final = 64 << 10
"""Up to so many bytes of tensors travel in the frame: cheaper there than finding, mapping and freeing shared memory."""
MAX_HEADER_BYTES: Final = 16 << 20
"""A header this long is a broken peer, not a message (the longest real one, a schema, is a few KiB)."""

LOST_DEVICE_STATUS: Final = 4
"""A worker's exit status when its device computes nothing any more (3: engine/confine.py)."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a frame's body. BYTES tensors are V2's: each element a u32 length, then its bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


class Field(msgspec.Struct, frozen=True, array_like=True):
    """One input or output of a schema; -1 in ``shape`` accepts any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class File(msgspec.Struct, frozen=True, array_like=True):
    """Where one of the model's files lies in its arena."""

    path: str
    offset_bytes: int
    size_bytes: int


class Load(msgspec.Struct, frozen=True, tag=True):
    """Build this model from its arena. Answered by Loaded or Failed.

    arena_bytes        how long the arena is
    extents            where it lies in the pool: offset and size in bytes, in order; whole slabs, so possibly longer
    apart              it is memory of its own, whose descriptor came on the control socket before this (``send_arena``)
    copy               give the device copy bytes of its own, so that the arena may go while the model stays
    max_batch_size     rows that one Run may have at most, as the model's spec says; 0 or 1: no batching
    probe              run the model on zeros once it is built, and tell in Loaded what that took
    probe_limit_bytes  do not try a full batch that would take more, by what one row took; 0: no limit
    """

    id: int
    model: str
    format: str
    files: tuple[File, ...]
    arena_bytes: int
    copy: bool
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    parameters_json: str
    extents: tuple[tuple[int, int], ...] = ()
    max_batch_size: int = 0
    probe: bool = False
    probe_limit_bytes: int = 0
    apart: bool = False


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Forget this model and give its memory back. Answered by Unloaded, also when the model was not there."""

    id: int
    model: str


class Run(msgspec.Struct, frozen=True, tag=True):
    """Compute. ``outputs`` names the outputs wanted; empty: all. Answered by Ran or Failed.

    measure  tell in Ran what it took
    pieces   where the inputs' bytes lie in the front's passage, offset and size, in the body's order: they are the front's
             to reuse as soon as it has the answer. Empty: the bytes are in the frame
    """

    id: int
    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    measure: bool = False
    pieces: tuple[tuple[int, int], ...] = ()


class Free(msgspec.Struct, frozen=True, tag=True):
    """The front is done with the answers that began at these offsets of the worker's passage. Not answered."""

    offsets: tuple[int, ...]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A worker's first word, once its runtimes are imported and its device answers a first computation.

    imported_s    moment torch was imported, seconds of CLOCK_BOOTTIME
    runtimes      name → version, for example torch → 2.9.0; also of those that are installed and not imported yet
    device_name   what the device calls itself, for example NVIDIA L4
    memory_bytes  all memory of the device; 0 for the host's processor, whose memory is the container's
    """

    pid: int
    imported_s: float
    runtimes: dict[str, str]
    device_name: str = ""
    memory_bytes: int = 0


class Peak(msgspec.Struct, frozen=True, array_like=True):
    """What one computation took at its highest moment, beside the weights.

    elements  of all inputs together: the sum of their shapes' products; of BYTES inputs the bytes
    """

    elements: int
    bytes: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model can run. The schema is the manifest's, else what the file itself tells.

    device_s    seconds spent moving bytes to the device
    build_s     seconds spent building the module or session
    held_bytes  what the model holds beside the shared arena: its device copy, buffers, the module's own objects
    peaks       what computing took, smallest first; empty: not asked for, or could not be measured
    """

    id: int
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    device_s: float
    build_s: float
    held_bytes: int = -1
    peaks: tuple[Peak, ...] = ()


class Unloaded(msgspec.Struct, frozen=True, tag=True):
    """The model is gone from this worker."""

    id: int


class Ran(msgspec.Struct, frozen=True, tag=True):
    """The outputs follow in the body. ``compute_s`` is the time inside the model.

    peak_bytes  what it took beside the weights; -1: not asked for, or a build beside it blurred the measurement
    place       where the outputs' bytes lie in the worker's passage, offset and size, until a Free names that offset.
                None: they are in the frame
    """

    id: int
    outputs: tuple[Tensor, ...]
    compute_s: float
    peak_bytes: int = -1
    place: tuple[int, int] | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What was asked did not happen. ``kind`` is a class name of errors.py, ``message`` its text."""

    id: int
    kind: str
    message: str


ToWorker = Load | Unload | Run | Free
Asking = Load | Unload | Run
"""What is answered."""
FromWorker = Hello | Loaded | Unloaded | Ran | Failed

_encoder: Final = msgspec.msgpack.Encoder()
to_worker_decoder: Final = msgspec.msgpack.Decoder(ToWorker)
from_worker_decoder: Final = msgspec.msgpack.Decoder(FromWorker)


def encode_head(message: ToWorker | FromWorker, body_bytes: int = 0) -> bytes:
    """The frame's start: lengths and header. ``body_bytes`` of tensors must follow it."""
    header = _encoder.encode(message)
    return FRAME.pack(len(header), body_bytes) + header


class Frames:
    """Cuts a byte stream into frames. A frame that comes in many pieces is joined once, when its last piece is here.

    max_body_bytes  what the other side sends at most; None: it is trusted
    """

    def __init__(self, max_body_bytes: int | None = None) -> None:
        self._max_body_bytes = max_body_bytes
        self._pieces: list[bytes | memoryview] = []
        self._held_bytes = 0
        self._needed_bytes = FRAME.size

    def feed(self, data: bytes) -> Iterator[tuple[memoryview, memoryview]]:
        """Header and body of every frame that ``data`` completes; valid for as long as somebody holds them.

        Raises ValueError for a header longer than MAX_HEADER_BYTES, or a body longer than was agreed: the stream cannot be
        trusted any more.
        """
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._held_bytes < self._needed_bytes:
            return
        whole = memoryview(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        begin = 0
        while True:
            left = len(whole) - begin
            self._needed_bytes = FRAME.size
            if left < FRAME.size:
                break
            header_bytes, body_bytes = FRAME.unpack_from(whole, begin)
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} are sent")
            if self._max_body_bytes is not None and body_bytes > self._max_body_bytes:
                raise ValueError(f"a body of {body_bytes} bytes, at most {self._max_body_bytes} are sent")
            self._needed_bytes += header_bytes + body_bytes
            if left < self._needed_bytes:
                break
            body = begin + FRAME.size + header_bytes
            yield whole[begin + FRAME.size : body], whole[body : body + body_bytes]
            begin = body + body_bytes
        self._pieces = [whole[begin:]] if left else []
        self._held_bytes = left


class Pool(NamedTuple):
    """All weights, what a worker may allocate beside them, and where large requests come from.

    descriptor   can only be mapped for reading; -1: every model's weights come by themselves, and size_bytes is 0
    limit_bytes  more than this for all models together is not allocated; 0: no limit
    passage      the front's, for reading only; -1: there is none, and passage_bytes is 0
    """

    size_bytes: int
    limit_bytes: int
    descriptor: int
    passage_bytes: int = 0
    passage: int = -1


def send_pool(control: socket.socket, pool: Pool) -> None:
    """Hand the descriptors to a worker, once, before its first Load. OSError: the worker is gone."""
    descriptors = [descriptor for descriptor in (pool.descriptor, pool.passage) if descriptor >= 0]
    socket.send_fds(control, [POOL.pack(pool.size_bytes, pool.limit_bytes, pool.passage_bytes)], descriptors)


def receive_pool(control: socket.socket) -> Pool:
    """What the front sent; the caller owns the descriptors. EOFError: the front is gone."""
    message, descriptors, _flags, _address = socket.recv_fds(control, POOL.size, 2)
    if not message:
        raise EOFError("the front closed the control socket")
    size_bytes, limit_bytes, passage_bytes = POOL.unpack(message)
    passage = descriptors.pop() if passage_bytes else -1
    return Pool(size_bytes, limit_bytes, descriptors[0] if descriptors else -1, passage_bytes, passage)


def send_arena(control: socket.socket, number: int, size_bytes: int, descriptor: int) -> None:
    """Hand one model's memory to a worker, before the Load ``number`` that is about it; never waits.

    OSError: the worker is gone, or so busy building that it has not looked at hundreds that were sent before.
    """
    socket.send_fds(control, [ARENA.pack(number, size_bytes)], [descriptor], socket.MSG_DONTWAIT)


def receive_arena(control: socket.socket, number: int) -> tuple[int, int]:
    """The descriptor that came with Load ``number``, the caller's from now on, and its size. EOFError: the front is gone."""
    message, descriptors, _flags, _address = socket.recv_fds(control, ARENA.size, 1)
    if not message:
        raise EOFError("the front closed the control socket")
    told, size_bytes = ARENA.unpack(message)
    assert told == number, f"the memory of load {told} came with load {number}"
    return descriptors[0], size_bytes


def send_passage(control: socket.socket, descriptor: int) -> None:
    """Hand the worker's own passage to the front, once, before the first Ran that lies in it. OSError: the front is gone."""
    socket.send_fds(control, [b"p"], [descriptor])


def receive_passage(control: socket.socket) -> int:
    """What the worker sent, which is there already; the caller owns the descriptor. ValueError: it sent none."""
    try:
        _, descriptors, _flags, _address = socket.recv_fds(control, 1, 1, socket.MSG_DONTWAIT)
    except OSError as error:
        raise ValueError(f"an answer in a passage that never came: {error}") from None
    if not descriptors:
        raise ValueError("an answer in a passage that never came")
    return descriptors[0]
