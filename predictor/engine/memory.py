"""The host's memory as the worker measures it: what a computation takes, what a model holds, a cap, giving back.

What stays out: a GPU's memory (cuda.py), which computations are measured (probe.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import torch

from predictor.engine.told import words

T = TypeVar("T")

GRAIN_BYTES: Final = 64 << 10
"""Peaks are rounded up to this. The kernel counts pages per processor and adds up late, so a figure is right to about
±256 KiB: four grains."""

BLOCK_BYTES: Final = 100
"""A small Python object's mean size. The interpreter takes those from mappings of its own, which mallinfo2 does not see."""

NOT_MEASURED: Final = -1

TOLD: Final = (
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory: you tried to allocate",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "std::bad_alloc",
    "bad allocation",
    "Failed to allocate memory for requested buffer",  # ONNX Runtime's arena
    "Cannot allocate memory",
)
"""What runtimes say when memory is short and they have no exception class of its own for it."""

_libc: Final = ctypes.CDLL(None)

_counter: list[int] = []
"""The descriptor that ``open_counter`` opened."""


class _Mallinfo(ctypes.Structure):
    """Struct mallinfo2 of glibc 2.33, in its order."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised for, is a lack of memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        # Not only RuntimeError: ONNX Runtime's exceptions share no base class.
        if not isinstance(error, (TypeError, KeyError)) and any(told in words(error) for told in TOLD):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause
    return False


def give_back() -> None:
    """Collect what holds itself in cycles, as modules do, and return free pages: glibc keeps them until told otherwise."""
    gc.collect()
    trim()


def trim() -> None:
    """Return free pages to the kernel."""
    if sys.platform == "linux":
        _libc.malloc_trim(0)


def measured(compute: Callable[[], T]) -> tuple[T, int]:
    """Run ``compute``; beside its result the most memory that the process took meanwhile beyond what it had before, in bytes.

    Pages of files and of shared memory, such as weights that were not looked at before, are not counted.
    Rounded up to GRAIN_BYTES; NOT_MEASURED where /proc tells nothing.
    """
    trim()  # else the computation would take pages that are free and already counted
    reset = _reset_peak()
    before = _status()
    highest_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    result = compute()
    after = _status()
    if not before or not after:
        return result, NOT_MEASURED
    highest = after["VmHWM"] if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if not reset and highest <= highest_before:
        return result, NOT_MEASURED  # the peak is below an earlier one, which cannot be forgotten here
    shared = sum(max(after[name] - before[name], 0) for name in ("RssFile", "RssShmem"))
    return result, rounded(max(highest - before["VmRSS"] - shared, 0))


def rounded(size_bytes: int) -> int:
    """Up to whole GRAIN_BYTES."""
    return -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES


def allocated_bytes() -> int:
    """What this process has allocated now, of all its threads, used or not; differences of it mean something."""
    counted = 0
    if hasattr(_libc, "mallinfo2"):
        _libc.mallinfo2.restype = _Mallinfo
        told = _libc.mallinfo2()
        counted = int(told.uordblks) + int(told.hblkhd)
    return counted + sys.getallocatedblocks() * BLOCK_BYTES


def cap(limit_bytes: int) -> None:
    """Let this process allocate ``limit_bytes`` more than it has, and then fail: RLIMIT_DATA, from VmData of this moment.

    It counts writable private address space, whether touched or not: thread stacks (8 MiB each) are in it, weights and
    undrawn parameters (skeleton.py), which are shared mappings, are not.
    """
    now = _status().get("VmData")
    if now is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = now + limit_bytes
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def open_counter() -> None:
    """Open what resets the kernel's count of the peak, before this process gives up the right to (confine.py)."""
    with contextlib.suppress(OSError):
        _counter.append(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))


def _reset_peak() -> bool:
    """Make VmHWM the present size. False: the kernel or a sandbox refuses."""
    if not _counter:
        open_counter()
    try:
        return bool(_counter) and os.pwrite(_counter[0], b"5", 0) > 0
    except OSError:
        return False


def _status() -> dict[str, int]:
    """The sizes that /proc/self/status tells, in bytes; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) << 10 for name, value in pairs}
