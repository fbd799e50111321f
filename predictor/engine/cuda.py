"""A CUDA device: one arena of device memory per model, filled by asynchronous copies from the pool of weights.

Everything CUDA itself is behind ``Runtime``, so that the logic here runs on machines without a GPU against a fake
(tests/fakes/cuda.py). Unverified on a GPU so far: ``CudaRuntime``.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

import torch

from predictor.engine import memory, safetensors
from predictor.engine.device import Files, host_files
from predictor.engine.mapping import Extents, Mapped
from predictor.wire import Load

log = logging.getLogger(__name__)

T = TypeVar("T")

ALIGNED_BYTES: Final = 512
"""Where a tensor may begin: what torch's own allocator aligns to, so that vectorised kernels find what they expect."""

CHUNK_BYTES: Final = 64 << 20
"""One copy's length: a kernel of another model gets its turn on the bus in between (64 MiB: 3 ms of PCIe 4)."""

WEIGHTS: Final = ".safetensors"

HOST_REGISTER_PORTABLE: Final = 1
HOST_REGISTER_READ_ONLY: Final = 8


class Runtime(Protocol):
    """What is asked of CUDA, for one device.

    device  as torch names it
    """

    device: torch.device

    def describe(self) -> tuple[str, int]:
        """Name and bytes of all its memory."""

    def empty(self, size_bytes: int) -> torch.Tensor:
        """Uninitialised one-dimensional uint8 on the device, aligned to ALIGNED_BYTES. Raises torch.OutOfMemoryError."""

    def copy_async(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy host to device, on a stream beside the computing one. Both must live until ``wait_for_copies``."""

    def wait_for_copies(self) -> None:
        """Return when every copy so far is done; what computes meanwhile is not waited for."""

    def synchronize(self) -> None:
        """Return when everything so far is done."""

    def register(self, pool: torch.Tensor) -> str:
        """Pin host memory that is mapped read-only. Returns why not, empty if it worked."""

    def used_bytes(self) -> tuple[int, int]:
        """Of torch's allocator: allocated by tensors now; and what the device has in use outside that allocator."""

    def reset_peak(self) -> None:
        """Make ``peak_bytes`` what is allocated now."""

    def peak_bytes(self) -> int:
        """Most bytes of tensors since ``reset_peak``."""

    def empty_cache(self) -> None:
        """Give memory that no tensor uses back to the device."""

    def cap(self, limit_bytes: int) -> None:
        """Let torch's allocator fail beyond this."""


class CudaDevice:
    """One GPU.

    The pool is pinned once per worker, in the background: that takes about 0.3 s per GB. A load that comes before copies
    from pageable memory, which is slower and right; so does a load whose weights are in no pool.
    """

    def __init__(self, index: int, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or CudaRuntime(index)
        self._pinning: threading.Thread | None = None
        self._pinned = False
        self.name, self.memory_bytes = self._runtime.describe()

    def check(self) -> None:
        """One small product."""
        ones = torch.ones(8, 8, device=self._runtime.device)
        assert (ones @ ones).sum().item() == 512.0, "a product of ones is wrong"  # noqa: PLR2004 (8 · 8 · 8)

    def place(self, load: Load, mapped: Mapped) -> Files:
        """Copy the tensors of the safetensors files; other files stay on the host. Returns when the copies are done.

        Raises LoadFailed for a broken file, torch.OutOfMemoryError.
        """
        if mapped.pool is not None:
            self._pin(mapped.pool)
        source = mapped.contiguous
        host = host_files(load, source)
        found = {path: safetensors.spans(data, path) for path, data in host.items() if path.endswith(WEIGHTS)}
        offsets = {file.path: file.offset_bytes for file in load.files}
        arena_bytes = 0
        placed: list[tuple[str, str, safetensors.Span, int]] = []
        for path, spans in found.items():
            for name, span in spans.items():
                placed.append((path, name, span, arena_bytes))
                arena_bytes += -(-(span.end - span.begin) // ALIGNED_BYTES) * ALIGNED_BYTES
        arena = self._runtime.empty(arena_bytes)
        assert arena.data_ptr() % ALIGNED_BYTES == 0, f"the device's arena begins at {arena.data_ptr():#x}"
        tensors: dict[str, dict[str, torch.Tensor]] = {path: {} for path in found}
        try:
            for path, name, span, begin in placed:
                target = arena[begin : begin + span.end - span.begin]
                self._copy(target, mapped, offsets[path] + span.begin)
                tensors[path][name] = _shaped(target, span)
        finally:
            self._runtime.wait_for_copies()  # also on the way out: the front may hand the arena to another model then
        return Files(host, tensors=tensors, device=self._runtime.device, own_bytes=arena_bytes)

    def measured(self, compute: Callable[[], T]) -> tuple[T, int]:
        """By torch's allocator, plus what stayed allocated beside it (workspaces of cuBLAS and cuDNN, ONNX Runtime)."""
        self._runtime.synchronize()
        self._runtime.reset_peak()
        tensors_before, beside_before = self._runtime.used_bytes()
        result = compute()
        self._runtime.synchronize()
        _, beside = self._runtime.used_bytes()
        return result, max(self._runtime.peak_bytes() - tensors_before, 0) + max(beside - beside_before, 0)

    def allocated_bytes(self) -> int:
        """Tensors, and what the device has in use beside them."""
        return sum(self._runtime.used_bytes())

    def give_back(self) -> None:
        """Collect, and empty the allocator's cache."""
        gc.collect()
        self._runtime.empty_cache()
        memory.trim()

    def cap(self, limit_bytes: int) -> None:
        """By torch's own limit for this process; it is no difference but the whole."""
        self._runtime.cap(limit_bytes)

    def wait_until_pinned(self) -> bool:
        """Wait for the pinning that the first ``place`` began; whether it worked."""
        if self._pinning is not None:
            self._pinning.join()
        return self._pinned

    def _pin(self, pool: Callable[[], torch.Tensor]) -> None:
        if self._pinning is None:
            whole = pool()  # here: mapping it is not made for two threads
            self._pinning = threading.Thread(target=self._register, args=(whole,), name="pin", daemon=True)
            self._pinning.start()

    def _register(self, pool: torch.Tensor) -> None:
        refusal = self._runtime.register(pool)
        if refusal:
            log.warning("%d bytes of weights could not be pinned, so loading copies more slowly: %s", len(pool), refusal)
        self._pinned = not refusal

    def _copy(self, target: torch.Tensor, mapped: Mapped, begin: int) -> None:
        """``len(target)`` bytes from ``begin`` of the model's arena."""
        # Only the pool's own addresses are pinned; the arena shows the same pages at others.
        if self._pinned and mapped.pool is not None:
            whole, ranges = mapped.pool(), pieces(mapped.extents, begin, begin + len(target))
        else:
            whole, ranges = mapped.contiguous, iter([(begin, begin + len(target))])
        done = 0
        for first, last in ranges:
            for chunk in range(first, last, CHUNK_BYTES):
                size = min(CHUNK_BYTES, last - chunk)
                self._runtime.copy_async(target[done : done + size], whole[chunk : chunk + size])
                done += size
        assert done == len(target), f"{done} of {len(target)} bytes lie in {mapped.extents}"


def pieces(extents: Extents, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where bytes ``begin`` to ``end`` of an arena lie in the pool: begin and end of each piece, in order."""
    at = 0
    for offset, length in extents:
        first, last = max(begin, at), min(end, at + length)
        if first < last:
            yield offset + first - at, offset + last - at
        at += length


def _shaped(flat: torch.Tensor, span: safetensors.Span) -> torch.Tensor:
    if not len(flat):
        return torch.empty(span.shape, dtype=span.dtype, device=flat.device)
    return flat.view(span.dtype).view(span.shape)


class CudaRuntime:
    """CUDA through torch."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def describe(self) -> tuple[str, int]:
        """As the driver tells."""
        found = torch.cuda.get_device_properties(self.device)
        return str(found.name), int(found.total_memory)

    def empty(self, size_bytes: int) -> torch.Tensor:
        """From torch's caching allocator."""
        torch.cuda.set_device(self.device)  # per thread: the building one comes here before it runs a model's code
        arena = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        # What was freed on the computing stream may still be read there: the copies wait for that.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        arena.record_stream(self._stream)
        return arena

    def copy_async(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """On the side stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def wait_for_copies(self) -> None:
        """The side stream."""
        self._stream.synchronize()

    def synchronize(self) -> None:
        """Every stream of the device."""
        torch.cuda.synchronize(self.device)

    def register(self, pool: torch.Tensor) -> str:
        """cudaHostRegister; read-only memory needs its flag, which not every device and driver know."""
        if not len(pool):
            return ""
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = cudart.cudaHostRegister(pool.data_ptr(), len(pool), HOST_REGISTER_PORTABLE | HOST_REGISTER_READ_ONLY)
        return "" if int(error) == 0 else f"cudaHostRegister: error {int(error)}"

    def used_bytes(self) -> tuple[int, int]:
        """The second figure counts other processes on the device too: differences of it are ours where we are alone."""
        free, total = torch.cuda.mem_get_info(self.device)
        return torch.cuda.memory_allocated(self.device), total - free - torch.cuda.memory_reserved(self.device)

    def reset_peak(self) -> None:
        """As torch's allocator tells."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """As torch's allocator tells."""
        return torch.cuda.max_memory_allocated(self.device)

    def empty_cache(self) -> None:
        """The allocator's cache."""
        torch.cuda.empty_cache()

    def cap(self, limit_bytes: int) -> None:
        """As a fraction of the device's memory."""
        _, total = self.describe()
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total, 1.0), self.device)
