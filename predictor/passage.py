"""Shared memory through which large tensors pass between two processes: one takes and writes, the other reads.

A memfd of fixed size, far larger than what is usually in it: pages appear when they are written. What is taken is free
again when nobody holds a view of it any more: transports and futures do not say when they are done with a buffer, but
they all drop it. Whoever finds no room here sends the bytes over the socket instead.

What stays out: when bytes are worth it (wire.py's INLINE_BYTES), who tells the other side where they lie (link.py, engine/).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from predictor.model import PAGE_BYTES

Buffer = bytes | bytearray | memoryview
Extent = tuple[int, int]
"""Where bytes lie in a passage: offset and size."""

STEPS: Final = 8
"""Sizes are rounded up to so many steps per power of two: at most 1/8 is wasted (of the address space, not of pages),
and what comes back fits what is asked for next."""

WARM_SHARE: Final = 8
"""One part in so many of a passage, its lowest, keeps its pages when they are free: fresh ones cost 0.4 CPU-s per GB."""

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Nobody can cut the memory from under another process, which would end that with SIGBUS. Writing is not sealed, as the
weights' pool has it: the kernel then refuses to take pages back, too (shmem_fallocate, EPERM)."""


def rounded(size_bytes: int) -> int:
    """What is taken for ``size_bytes``: whole pages, at most an eighth more than asked for."""
    step = 1 << max((size_bytes - 1).bit_length() - STEPS.bit_length(), 0)
    return -(-size_bytes // max(step, PAGE_BYTES)) * max(step, PAGE_BYTES)


class FreeExtents:
    """Which of ``size_bytes`` bytes are free. First fit: low memory is in use more often, and has its pages. Pure."""

    def __init__(self, size_bytes: int) -> None:
        self._runs: list[tuple[int, int]] = [(0, size_bytes)] if size_bytes else []  # begin and end; no two touch

    def take(self, size_bytes: int) -> int | None:
        """The offset of so many bytes in one run; None: there is no such run."""
        for at, (begin, end) in enumerate(self._runs):
            if end - begin >= size_bytes:
                self._runs[at : at + 1] = [(begin + size_bytes, end)] if end - begin > size_bytes else []
                return begin
        return None

    def give_back(self, begin: int, size_bytes: int) -> None:
        """Make what ``take`` gave free again."""
        end = begin + size_bytes
        at = bisect_left(self._runs, (begin, end))
        after = self._runs[at] if at < len(self._runs) else (end + 1, end + 1)
        before = self._runs[at - 1] if at else (-1, -1)
        assert before[1] <= begin < end <= after[0], f"{begin} to {end} given back between {before} and {after}"
        if after[0] == end:
            end = after[1]
            del self._runs[at]
        if before[1] == begin:
            begin = before[0]
            del self._runs[at - 1]
        insort(self._runs, (begin, end))


class Passage:
    """The writer's side. Taken from by one thread; views may end in any.

    size_bytes  all that can be taken at once: whole pages, at least one
    reader      a descriptor that can only be read through
    """

    def __init__(self, size_bytes: int, name: str) -> None:
        self.size_bytes = max(-(-size_bytes // PAGE_BYTES), 1) * PAGE_BYTES
        self.used_bytes = 0
        self._free = FreeExtents(self.size_bytes)
        self._warm_bytes = self.size_bytes // WARM_SHARE
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._ended: deque[int] = deque()  # bounded by _live
        self._tidying = False
        self._thread = threading.get_ident()
        descriptor = os.memfd_create(f"hearth:{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
            self._memory = mmap.mmap(descriptor, self.size_bytes)
            self.reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)
        self._address = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._memory))

    def take(self, size_bytes: int) -> memoryview | None:
        """So many writable bytes, theirs who hold the view or a slice of it. None: there is no room for them."""
        assert size_bytes > 0, f"{size_bytes} bytes"
        self._tidying = True
        self._tidy()
        whole_bytes = rounded(size_bytes)
        offset = self._free.take(whole_bytes)
        if offset is None:
            self._tidying = False
            return None
        # The array's only purpose is to be what views refer to: a memoryview's slices do not keep the memoryview.
        owner = (ctypes.c_ubyte * whole_bytes).from_buffer(self._memory, offset)
        self._live[offset] = whole_bytes, weakref.ref(owner, lambda _, offset=offset: self._end(offset))  # type: ignore[misc]
        self.used_bytes += whole_bytes
        self._tidying = False
        return memoryview(owner).cast("B")[:size_bytes]

    def find(self, piece: Buffer) -> Extent | None:
        """Where ``piece`` lies; None: not in here."""
        if not isinstance(piece, memoryview) or piece.readonly or not piece:
            return None
        offset = ctypes.addressof(ctypes.c_ubyte.from_buffer(piece)) - self._address
        return (offset, piece.nbytes) if 0 <= offset < self.size_bytes else None

    def put(self, pieces: Sequence[Buffer]) -> tuple[Extent, memoryview] | None:
        """Copy ``pieces`` in, one after another: where they lie, for as long as the view is held. None: no room."""
        size_bytes = sum(memoryview(piece).nbytes for piece in pieces)
        place = self.take(size_bytes)
        if place is None:
            return None
        begin = 0
        for piece in pieces:
            end = begin + memoryview(piece).nbytes
            place[begin:end] = piece
            begin = end
        extent = self.find(place)
        assert extent is not None, "a place outside its passage"
        return extent, place

    def close(self) -> None:
        """Hand it to nobody any more; the memory goes with the last view and the last process that maps it."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def _end(self, offset: int) -> None:
        """A view's owner is gone: called in whatever thread dropped it, or ran the garbage collector."""
        self._ended.append(offset)
        if not self._tidying and threading.get_ident() == self._thread:
            self._tidying = True
            self._tidy()
            self._tidying = False

    def _tidy(self) -> None:
        while self._ended:
            offset = self._ended.popleft()
            size_bytes, _ = self._live.pop(offset)
            self.used_bytes -= size_bytes
            self._free.give_back(offset, size_bytes)
            cold = max(offset, self._warm_bytes // PAGE_BYTES * PAGE_BYTES)
            if cold < offset + size_bytes:
                self._memory.madvise(mmap.MADV_REMOVE, cold, offset + size_bytes - cold)


class Window(mmap.mmap):
    """A mapping of a part of another process's passage. mmap.mmap itself takes no attributes, and no weak references."""


def sealed_bytes(descriptor: int) -> int:
    """How long a passage is that another process made. ValueError: it could cut it short, and end who reads it."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise ValueError("shared memory that is not sealed")
    return os.fstat(descriptor).st_size


def window(descriptor: int, extent: Extent, *, writable: bool = False) -> tuple[Window, memoryview]:
    """Map ``extent``: a mapping that ends with the last view of it, and the view.

    writable  what is written stays here: the page is copied then, the passage keeps its bytes
    """
    offset, size_bytes = extent
    begin = offset // PAGE_BYTES * PAGE_BYTES
    flags = mmap.MAP_PRIVATE if writable else mmap.MAP_SHARED
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    mapping = Window(descriptor, offset - begin + size_bytes, flags=flags, prot=protection, offset=begin)
    return mapping, memoryview(mapping)[offset - begin : offset - begin + size_bytes]
