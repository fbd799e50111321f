"""The worker's sight of the weights: the front's pool of slabs, of which each model's lie side by side in the address space.

Everything is mapped read-only: a write is a segmentation fault, in the one process that such a model can hurt.
What stays out: what is in the slabs (pytorch.py, onnx.py), where a device wants the bytes (device.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import weakref
from collections.abc import Callable
from typing import Final

import torch

from predictor.errors import LoadFailed
from predictor.wire import receive_arena, receive_pool

Extents = tuple[tuple[int, int], ...]

PROT_NONE: Final = 0
MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000
MAP_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap64 if hasattr(_libc, "mmap64") else _libc.mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_mmap.restype = ctypes.c_void_p
_munmap: Final = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Mapped:
    """One model's bytes.

    contiguous  all of them, one-dimensional uint8; unmapped when the last view of it is gone
    extents     where they are in the pool: offset and size in bytes, in order; whole slabs
    pool        the whole pool as one tensor, mapped when first asked for, and the same one ever after; None: the bytes are
                in no pool, but in memory of this model's own
    """

    def __init__(self, contiguous: torch.Tensor, extents: Extents, pool: Callable[[], torch.Tensor] | None) -> None:
        self.contiguous = contiguous
        self.extents = extents
        self.pool = pool


class Weights:
    """The front's pool. ``descriptor`` is its memfd, which this object owns from now on; -1: every model's comes by itself.

    limit_bytes, passage, passage_bytes  see wire.Pool
    """

    def __init__(self, descriptor: int, size_bytes: int, *, limit_bytes: int = 0) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        self.passage = -1
        self.passage_bytes = 0
        self._descriptor = descriptor
        self._whole: torch.Tensor | None = None

    @classmethod
    def receive(cls, control: socket.socket) -> Weights:
        """Wait until the front sends it. EOFError: the front is gone."""
        pool = receive_pool(control)
        weights = cls(pool.descriptor, pool.size_bytes, limit_bytes=pool.limit_bytes)
        weights.passage, weights.passage_bytes = pool.passage, pool.passage_bytes
        return weights

    def map(self, extents: Extents, size_bytes: int) -> Mapped:
        """Map ``size_bytes`` bytes that lie in ``extents``. LoadFailed: the kernel does not let us."""
        return Mapped(self._map(extents, size_bytes), extents, self.whole)

    @staticmethod
    def map_apart(control: socket.socket, number: int, size_bytes: int) -> Mapped:
        """Wait for the memory that comes with Load ``number`` and map it. EOFError: the front is gone. LoadFailed."""
        descriptor, whole_bytes = receive_arena(control, number)
        apart = Weights(descriptor, whole_bytes)
        try:
            return Mapped(apart.map(((0, whole_bytes),), size_bytes).contiguous, ((0, whole_bytes),), None)
        finally:
            apart.close()

    def whole(self) -> torch.Tensor:
        """The whole pool, for a device that copies from it."""
        if self._whole is None:
            self._whole = self._map(((0, self.size_bytes),), self.size_bytes)
        return self._whole

    def close(self) -> None:
        """Let go of the pool; what is mapped stays mapped."""
        self._whole = None
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _map(self, extents: Extents, size_bytes: int) -> torch.Tensor:
        if size_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        assert sum(length for _, length in extents) >= size_bytes, f"{size_bytes} bytes do not lie in {extents}"
        assert all(offset + length <= self.size_bytes for offset, length in extents), f"{extents} of {self.size_bytes} bytes"
        # First the room for all, then the pieces over it, each at its place.
        address = _at(None, size_bytes, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, (-1, 0))
        try:
            mapped_bytes = 0
            for offset, length in extents:
                piece_bytes = min(length, size_bytes - mapped_bytes)
                _at(
                    address + mapped_bytes, piece_bytes, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, (self._descriptor, offset)
                )
                mapped_bytes += piece_bytes
        except BaseException:
            _munmap(address, size_bytes)
            raise
        memory = (ctypes.c_uint8 * size_bytes).from_address(address)
        # The tensor and every view of it hold ``memory`` through the buffer protocol.
        weakref.finalize(memory, _munmap, address, size_bytes).atexit = False
        return torch.frombuffer(memory, dtype=torch.uint8)


def _at(address: int | None, size_bytes: int, protection: int, flags: int, source: tuple[int, int]) -> int:
    """Map ``source``: a descriptor and the offset in it."""
    found: int | None = _mmap(address, size_bytes, protection, flags, *source)
    if found is None or found == MAP_FAILED:
        raise LoadFailed(f"{size_bytes} bytes of weights cannot be mapped: {os.strerror(ctypes.get_errno())}")
    return found
