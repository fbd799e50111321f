"""The memory of the RAM tier: one pool of slabs, made once, handed from model to model.

One memfd as large as the budget, which the front maps once for writing and workers map for reading. What a fresh page
costs (the kernel clears it: more CPU than receiving into it) is paid once, in the background, and not by every load.
What stays out: which slabs (extents.py), whose bytes (ram.py), how a worker maps them (engine/mapping.py).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from predictor.model import PAGE_BYTES
from predictor.tiers.extents import Extents, FreeSlabs, slab_bytes
from predictor.tiers.scattered import Scattered

log = logging.getLogger(__name__)

AHEAD_BYTES: Final = 256 << 20
"""Touched memory kept ready beyond what is in use, where the machine has other users."""

STEP_BYTES: Final = 2 << 20
"""Touched by one system call, a millisecond: for so long closing the pool, or a thread that maps memory, may wait."""

NICEST: Final = 19
MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14: give pages, as if each were written to, without changing what they hold. Python has no name for it."""

F_SEAL_FUTURE_WRITE: Final = 0x10
"""Linux 5.1: nobody gets to write any more, except through mappings that are there already. No name in Python, either."""


def populate(address: int, size_bytes: int) -> int:
    """Have the kernel give pages to mapped memory. Returns 0 or the number of the error. Other threads run meanwhile."""
    import ctypes  # noqa: PLC0415 (no part of a pod's start)

    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return ctypes.get_errno() if madvise(address, size_bytes, MADV_POPULATE_WRITE) else 0


class Arena:
    """The memory of one model: a run of ``size_bytes`` bytes that may lie apart in the pool.

    extents     where in the pool, in order; whole slabs, so together they may be longer than ``size_bytes``
    image       all of the memory, until ``close``
    descriptor  of the memory where it is in no pool (arenas.py), for reading only; -1: it is the pool's

    It holds what the last model left there.
    """

    def __init__(
        self,
        size_bytes: int,
        extents: Extents,
        image: Scattered,
        give_back: Callable[[Extents], None],
        *,
        descriptor: int = -1,
    ) -> None:
        self.size_bytes = size_bytes
        self.descriptor = descriptor
        self.extents = extents
        self.image = image
        self._give_back = give_back
        self._open = True

    def window(self, offset_bytes: int, size_bytes: int) -> Scattered:
        """Writable memory of a part; the caller releases it before ``close``."""
        return self.image.part(offset_bytes, offset_bytes + size_bytes)

    def close(self) -> None:
        """Give the slabs back; the next model may write there at once. Idempotent.

        So whoever closes must know that nobody computes on these bytes any more: every worker that was handed the
        extents has answered that it unloaded the model, or its process has ended and was waited for (workers/worker.py
        answers no sooner). A worker that still maps them would see another model's bytes.
        """
        if self._open:
            self._open = False
            self.image.release()
            self._give_back(self.extents)


class SlabPool:
    """All memory of the RAM tier.

    budget_bytes  the pool takes as many whole slabs as go into it
    ahead_bytes   how much memory beyond the highest slab in use is kept touched; as much as is in use where that is more
    populate      gives pages to memory, see ``populate`` above

    size_bytes     what it takes, and what models can have
    slab_bytes     what a model takes is a multiple of it
    touched_bytes  so much from the pool's beginning has pages
    reader         a descriptor of the pool that can only be mapped for reading, by whomever it is sent to
    """

    def __init__(
        self, budget_bytes: int, *, ahead_bytes: int = AHEAD_BYTES, populate: Callable[[int, int], int] = populate
    ) -> None:
        self.slab_bytes = slab_bytes(budget_bytes)
        self._free = FreeSlabs(budget_bytes // self.slab_bytes, self.slab_bytes)
        self.size_bytes = self._free.free_bytes
        self.touched_bytes = 0
        self._ahead_bytes = ahead_bytes
        self._populate = populate
        self._handed_out_bytes = 0  # everything above was never given to anybody
        self._closing = False
        self._changed = threading.Condition()
        self._touching: threading.Thread | None = None
        # A memfd needs no name to clean up after a crash and is no subject to the size of /dev/shm, which is 64 MiB in a
        # container by default.
        descriptor = os.memfd_create("hearth:weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size_bytes)
            self._mapping = mmap.mmap(descriptor, self.size_bytes) if self.size_bytes else None
            seal(descriptor)
            self.reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)

    @property
    def used_bytes(self) -> int:
        """Bytes of all slabs that arenas have."""
        return self.size_bytes - self._free.free_bytes

    def take(self, size_bytes: int) -> Arena:
        """An arena of ``size_bytes``. However scattered the free slabs are, their bytes are all that counts.

        MemoryError: fewer are free. The books (policy/ledger.py) do not let that happen.
        """
        with self._changed:
            extents = self._free.take(size_bytes)
            self._handed_out_bytes = max(self._handed_out_bytes, self._free.highest_bytes)
            self._changed.notify()
        return Arena(size_bytes, extents, self._image(extents, size_bytes), self._give_back)

    def touch_from_now_on(self) -> None:
        """Begin to touch memory ahead of its use, in a thread that takes only the CPU time nobody else wants. Idempotent."""
        if self._touching is None and self._mapping is not None:
            self._touching = threading.Thread(target=self._touch, args=(self._mapping,), name="hearth-touch", daemon=True)
            self._touching.start()

    def close(self) -> None:
        """Give everything back to the system, as soon as no worker maps it any more. Arenas are closed before."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._touching is not None:
            self._touching.join()
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def _image(self, extents: Extents, size_bytes: int) -> Scattered:
        if self._mapping is None:
            return Scattered(())
        pieces: list[memoryview] = []
        left_bytes = size_bytes
        with memoryview(self._mapping) as whole:
            for offset, length in extents:
                pieces.append(whole[offset : offset + min(length, left_bytes)])
                left_bytes -= len(pieces[-1])
        return Scattered(pieces)

    def _give_back(self, extents: Extents) -> None:
        with self._changed:
            self._free.give_back(extents)

    def _goal_bytes(self) -> int:
        return min(self.size_bytes, self._free.highest_bytes + max(self._ahead_bytes, self.used_bytes))

    # ---- the touching thread ---------------------------------------------------------------------------------

    def _touch(self, mapping: mmap.mmap) -> None:
        import ctypes  # noqa: PLC0415 (no part of a pod's start)

        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICEST)  # Linux: of this thread alone
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        asks = True
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self.touched_bytes < self._goal_bytes())
                if self._closing:
                    return
                begin = self.touched_bytes
                end = min(begin + STEP_BYTES, self._goal_bytes())
                if not asks:
                    self._write(mapping, begin, end)
            if asks:
                error = self._populate(address + begin, end - begin)
                if error == errno.EINVAL:
                    asks = False  # a kernel before 5.14
                    continue
                if error:
                    log.warning("memory of the RAM tier cannot be touched ahead (%s): loads will be slower", os.strerror(error))
                    return
            self.touched_bytes = end

    def _write(self, mapping: mmap.mmap, begin: int, end: int) -> None:
        """Write one byte a page; nobody is handed memory meanwhile, and what somebody had may hold a model."""
        begin = max(begin, self._handed_out_bytes)
        if begin < end:
            mapping[begin:end:PAGE_BYTES] = bytes(len(range(begin, end, PAGE_BYTES)))


def seal(descriptor: int) -> bool:
    """Forbid for ever that a memfd changes its size or is written through anything but the mappings it has now.

    Read-only descriptors alone do not stop model code: it runs as our user, who may open /proc/self/fd/N for writing.
    False, and a warning: the kernel cannot; what is left is that descriptor.
    """
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        log.warning("this kernel cannot seal the weights against hostile model code (%s)", error.strerror)
        return False
    return True
