"""What a device is to the engine: where a model's files are made readable for building, and what its memory does.

A CPU maps the front's shared memory, or copies it. A GPU (cuda.py) copies into an arena of its own behind the same call.
"""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch

from predictor.engine import memory, safetensors
from predictor.engine.mapping import Mapped
from predictor.engine.told import words
from predictor.wire import Load

# Inputs are views of what came over the socket, and torch warns once per view that writing to it would be undefined.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

T = TypeVar("T")

log = logging.getLogger(__name__)

DEVICE_ERRORS: Final = ("CUDA error", "CUDA failure", "CUBLAS_STATUS_", "CUDNN_STATUS_")
"""What torch, ONNX Runtime and the libraries say when it is the device that failed."""

HOST: Final = torch.device("cpu")

STACK_BYTES: Final = 8 << 20
"""A thread's address space for its stack, as the C library reserves it."""


class Files:
    """A model's files: their bytes on the host, and the tensors of safetensors files where the model computes.

    device     where that is
    own_bytes  of the device's memory that the tensors take beside the shared arena, exactly
    """

    def __init__(
        self,
        host: dict[str, torch.Tensor],
        *,
        tensors: dict[str, dict[str, torch.Tensor]] | None = None,
        device: torch.device = HOST,
        own_bytes: int = 0,
    ) -> None:
        self.device = device
        self.own_bytes = own_bytes
        self._host = host
        self._tensors = tensors

    def __contains__(self, path: str) -> bool:
        return path in self._host

    def __getitem__(self, path: str) -> torch.Tensor:
        """The file's bytes on the host, one-dimensional uint8."""
        return self._host[path]

    def __iter__(self) -> Iterator[str]:
        """Paths inside the model's folder."""
        return iter(self._host)

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        """The tensors of a safetensors file on ``device``, by name. Raises LoadFailed."""
        return self._tensors[path] if self._tensors is not None else safetensors.read(self._host[path], path)


class Device(Protocol):
    """One device of a worker.

    name          what it calls itself
    memory_bytes  all it has; 0: the host's, which the container's limit rules
    """

    name: str
    memory_bytes: int

    def check(self) -> None:
        """Compute something. Raises what the runtime raises when the device does not work."""

    def place(self, load: Load, mapped: Mapped) -> Files:
        """Make the arena's files readable. They live as long as a view of them. Raises LoadFailed, or for lack of memory."""

    def measured(self, compute: Callable[[], T]) -> tuple[T, int]:
        """The result of ``compute`` and the most bytes it took meanwhile; memory.NOT_MEASURED where nothing tells."""

    def allocated_bytes(self) -> int:
        """What is allocated now; a difference of two calls is what was added between them."""

    def give_back(self) -> None:
        """Return what is free in caches, after something was dropped or did not fit."""

    def cap(self, limit_bytes: int) -> None:
        """From now on let allocations beyond ``limit_bytes`` more than now fail, instead of ending this process or others."""


def is_lost(device: Device, error: BaseException) -> bool:
    """Whether the device computes nothing any more after ``error``.

    After some errors of CUDA (an illegal address, a failed assertion in a kernel) every later call of the process fails,
    whoever makes it; after others none does. Nothing but trying tells.
    """
    if not any(told in words(error) for told in DEVICE_ERRORS):
        return False
    try:
        device.check()
    except Exception as broken:  # noqa: BLE001 (whatever a runtime raises)
        log.critical("%s computes nothing any more after %s: %s", device.name, type(error).__name__, broken)
        return True
    return False


class CpuDevice:
    """The host's processor."""

    memory_bytes = 0

    def __init__(self) -> None:
        self.name = _processor()

    def check(self) -> None:
        """One small product."""
        ones = torch.ones(8, 8)
        assert (ones @ ones).sum().item() == 512.0, "a product of ones is wrong"  # noqa: PLR2004 (8 · 8 · 8)

    def place(self, load: Load, mapped: Mapped) -> Files:
        """Views of the shared arena, or with ``load.copy`` one allocation of our own for all files.

        ONNX Runtime copies what it needs by itself, and looks at the files never again.
        """
        copied = load.copy and load.format != "onnx"
        arena = mapped.contiguous.clone() if copied else mapped.contiguous
        return Files(host_files(load, arena), own_bytes=len(arena) if copied else 0)

    def measured(self, compute: Callable[[], T]) -> tuple[T, int]:
        """By the kernel's count of this process's pages."""
        return memory.measured(compute)

    def allocated_bytes(self) -> int:
        """By malloc's and the interpreter's own counts."""
        return memory.allocated_bytes()

    def give_back(self) -> None:
        """Collect, and trim malloc."""
        memory.give_back()

    def cap(self, limit_bytes: int) -> None:
        """By RLIMIT_DATA, with room for the thread pools' stacks: OpenMP ends the process when it cannot start a thread."""
        teams = 2  # each of the worker's threads that computes has one
        memory.cap(limit_bytes + teams * torch.get_num_threads() * STACK_BYTES)


def host_files(load: Load, arena: torch.Tensor) -> dict[str, torch.Tensor]:
    """Path → its bytes in ``arena``."""
    return {file.path: arena[file.offset_bytes : file.offset_bytes + file.size_bytes] for file in load.files}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return told or platform.machine()
