"""The RAM tier: one arena of shared memory per model, filled from the model store, mapped read-only by workers.

What stays out: when to fetch and what to drop (policy/ledger.py), how bytes come from S3 (store.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from predictor.errors import InvalidModel
from predictor.model import FileSpec, ModelRef, ModelSpec
from predictor.tiers.store import ModelStore


class Arena:
    """Anonymous shared memory that outlives every worker and vanishes with its last mapping.

    A memfd, because it needs no name to clean up after a crash and is no subject to the size of /dev/shm, which
    is 64 MiB in a container by default. The kernel gives it pages as they are written.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        assert size_bytes >= 0, f"arena of {size_bytes} bytes"
        self.size_bytes = size_bytes
        # The kernel takes at most 249 bytes of name; it is only shown in /proc.
        self.descriptor = os.memfd_create(f"hearth:{name}"[:200], os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size_bytes)
        self._mapping = mmap.mmap(self.descriptor, size_bytes) if size_bytes else None

    def view(self, offset_bytes: int, size_bytes: int) -> memoryview:
        """A writable window; release it before ``close``."""
        end = offset_bytes + size_bytes
        assert 0 <= offset_bytes <= end <= self.size_bytes, f"{offset_bytes}+{size_bytes} of {self.size_bytes}"
        if self._mapping is None:
            return memoryview(bytearray())
        with memoryview(self._mapping) as whole:
            return whole[offset_bytes : offset_bytes + size_bytes]

    @contextmanager
    def open_reader(self) -> Iterator[int]:
        """A descriptor that can only be mapped for reading, by whomever it is sent to."""
        descriptor = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give the memory back as soon as no worker maps it any more."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class RamTier(Protocol):
    """What the cache asks of the RAM tier; the real one and the tests' fake keep the same contract."""

    async def fetch(self, spec: ModelSpec, background: Callable[[], bool]) -> None:
        """Bring every file of ``spec`` into an arena of its own. All or nothing."""

    async def drop(self, ref: ModelRef) -> None:
        """Forget the arena. Idempotent."""


class SharedMemory:
    """The real RAM tier."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._arenas: dict[ModelRef, Arena] = {}

    def arena(self, ref: ModelRef) -> Arena:
        """The arena of a model that was fetched and not dropped since."""
        return self._arenas[ref]

    async def fetch(self, spec: ModelSpec, background: Callable[[], bool]) -> None:
        """Fetch all files and, where the manifest tells checksums, verify them.

        background  asked at part boundaries: True lets fetches that somebody waits for go first

        Raises the store's errors, and InvalidModel when a checksum differs. Nothing is kept then.
        """
        assert spec.ref not in self._arenas, f"{spec.ref} is fetched twice"
        arena = Arena(str(spec.ref), spec.arena_bytes)
        files = [
            (file, arena.view(placed.offset_bytes, placed.size_bytes))
            for file, placed in zip(spec.files, spec.layout(), strict=True)
        ]
        try:
            await self._store.fetch(files, background=background)
            if any(file.sha256 for file in spec.files):
                await asyncio.to_thread(_verify, spec, files)
        except BaseException:
            _release(files)
            arena.close()
            raise
        _release(files)
        self._arenas[spec.ref] = arena

    async def drop(self, ref: ModelRef) -> None:
        """Close the arena, if there is one. Workers that still map it keep the pages, so they are told first."""
        arena = self._arenas.pop(ref, None)
        if arena is not None:
            arena.close()

    def close(self) -> None:
        """Drop everything, at the end of the process."""
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()


def _release(files: list[tuple[FileSpec, memoryview]]) -> None:
    for _, view in files:
        view.release()


def _verify(spec: ModelSpec, files: list[tuple[FileSpec, memoryview]]) -> None:
    for file, view in files:
        if file.sha256 and (found := hashlib.sha256(view).hexdigest()) != file.sha256.lower():
            raise InvalidModel(
                f"s3://{spec.bucket}/{file.key} has sha256 {found}, hearth.json says {file.sha256}: publish the version again"
            )
