"""What a device is to the engine: where a model's files are made readable for building.

A CPU maps the front's shared memory, or copies it. A GPU copies into an arena of its own behind the same call.
"""

from __future__ import annotations

import mmap
import os
import warnings
from typing import Protocol

import torch

from predictor.wire import Load

# Every arena is mapped read-only, and torch warns once per view that writing to it would be undefined. Here it would be a
# segmentation fault, in the one process that such a model can hurt.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

Files = dict[str, torch.Tensor]
"""Path inside the model's folder → its bytes, one-dimensional uint8."""


class Device(Protocol):
    """One device of a worker."""

    def check(self) -> None:
        """Compute something. Raises what the runtime raises when the device does not work."""

    def place(self, load: Load, descriptor: int) -> Files:
        """Make the arena's files readable; takes ownership of ``descriptor``. They live as long as a view of them."""


class CpuDevice:
    """The host's processor."""

    def check(self) -> None:
        """One small product."""
        ones = torch.ones(8, 8)
        assert (ones @ ones).sum().item() == 512.0, "a product of ones is wrong"  # noqa: PLR2004 (8 · 8 · 8)

    def place(self, load: Load, descriptor: int) -> Files:
        """Views of the shared arena, or with ``load.copy`` one allocation of our own for all files."""
        try:
            mapped = mmap.mmap(descriptor, load.arena_bytes, prot=mmap.PROT_READ) if load.arena_bytes else b""
        finally:
            os.close(descriptor)
        arena = torch.frombuffer(mapped, dtype=torch.uint8) if load.arena_bytes else torch.empty(0, dtype=torch.uint8)
        if load.copy:
            arena = arena.clone()
        return {file.path: arena[file.offset_bytes : file.offset_bytes + file.size_bytes] for file in load.files}
