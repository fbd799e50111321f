"""A GPU without one: what engine/cuda.py asks of CUDA, on CPU tensors, punishing what the real thing would punish."""

from __future__ import annotations

import weakref

import torch

from predictor.engine.cuda import ALIGNED_BYTES


class FakeCuda:
    """One device of ``size_bytes``.

    unpinned  copies from memory that was not registered
    chunks    length of every copy
    """

    def __init__(self, size_bytes: int = 64 << 20, *, refusal: str = "") -> None:
        self.device = torch.device("cpu")
        self.size_bytes = size_bytes
        self.refusal = refusal
        self.limit_bytes = size_bytes
        self.allocated_bytes = 0
        self.highest_bytes = 0
        self.unpinned = 0
        self.chunks: list[int] = []
        self.registered: list[tuple[int, int]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def describe(self) -> tuple[str, int]:
        return "Fake", self.size_bytes

    def empty(self, size_bytes: int) -> torch.Tensor:
        if self.allocated_bytes + size_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size_bytes} bytes")
        memory = torch.full((size_bytes + ALIGNED_BYTES,), 0xA5, dtype=torch.uint8)  # what was there before is garbage
        begin = -memory.data_ptr() % ALIGNED_BYTES
        storage = memory.untyped_storage()
        self.allocated_bytes += size_bytes
        self.highest_bytes = max(self.highest_bytes, self.allocated_bytes)
        weakref.finalize(storage, self._freed, size_bytes)
        _keep(memory, storage)
        return memory[begin : begin + size_bytes]

    def copy_async(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.shape == source.shape, (target.shape, source.shape)
        first, last = source.data_ptr(), source.data_ptr() + len(source)
        self.unpinned += not any(begin <= first and last <= end for begin, end in self.registered)
        self.chunks.append(len(source))
        self._copies.append((target, source))

    def wait_for_copies(self) -> None:
        for target, source in self._copies:
            target.copy_(source)
        self._copies.clear()

    def synchronize(self) -> None:
        self.wait_for_copies()

    def register(self, pool: torch.Tensor) -> str:
        if not self.refusal:
            self.registered.append((pool.data_ptr(), pool.data_ptr() + len(pool)))
        return self.refusal

    def used_bytes(self) -> tuple[int, int]:
        return self.allocated_bytes, 0

    def reset_peak(self) -> None:
        self.highest_bytes = self.allocated_bytes

    def peak_bytes(self) -> int:
        return self.highest_bytes

    def empty_cache(self) -> None:
        pass

    def cap(self, limit_bytes: int) -> None:
        self.limit_bytes = min(limit_bytes, self.size_bytes)

    def _freed(self, size_bytes: int) -> None:
        self.allocated_bytes -= size_bytes


def _keep(memory: torch.Tensor, storage: torch.UntypedStorage) -> None:
    """Torch makes a storage's Python object anew each time unless somebody holds it: then finalisers follow the memory."""
    assert memory.untyped_storage() is storage
