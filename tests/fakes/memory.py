"""A model store in memory, for tests in virtual time: no thread, no socket, a clock of its own, faults and delays to order.

The contract suite holds it against the real store on the fake S3 and on moto.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from predictor.errors import HearthError, InvalidModel, ObjectChanged
from predictor.model import FileSpec
from predictor.tiers.s3_arriving import verify
from predictor.tiers.scattered import Scattered
from predictor.tiers.store import Listing, ObjectInfo


class MemoryStore:
    """Objects in a dictionary. ``clock`` is S3's: seconds of the epoch.

    fails   errors that the next listings and writes raise, in order
    list_s  how long a listing takes
    """

    def __init__(self, clock: Callable[[], float] = lambda: 1_000_000.0) -> None:
        self.clock = clock
        self.fails: list[HearthError] = []
        self.list_s = 0.0
        self.listed: Counter[str] = Counter()
        self.was_read: Counter[str] = Counter()
        self.confirmed = 0
        self.running = 0
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}

    def put(self, key: str, data: bytes = b"", *, modified_s: float | None = None) -> None:
        """Write an object."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        when_s = self.clock() if modified_s is None else modified_s
        self._objects[key] = (data, ObjectInfo(key, etag, len(data), when_s))

    def delete(self, prefix: str) -> None:
        """Delete every object that begins so."""
        self._objects = {key: stored for key, stored in self._objects.items() if not key.startswith(prefix)}

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        self.listed[prefix] += 1
        self.running += 1
        try:
            await asyncio.sleep(self.list_s)
        finally:
            self.running -= 1
        if self.fails:
            raise self.fails.pop(0)
        found = [entry for key, (_, entry) in sorted(self._objects.items()) if key.startswith(prefix)]
        below = [(entry, entry.key.removeprefix(prefix).partition("/")) for entry in found]
        if not folders:
            return Listing(tuple(found), (), self.clock())
        level = {f"{prefix}{head}/": None for _, (head, slash, _) in below if slash}
        return Listing(tuple(entry for entry, (_, slash, _) in below if not slash), tuple(level), self.clock())

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        self.was_read[key] += 1
        data = self._current(key, etag)
        if len(data) > limit_bytes:
            raise InvalidModel(f"{key} is longer than {limit_bytes} bytes")
        return data

    async def write(self, key: str, body: bytes) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.put(key, body)

    async def remove(self, key: str) -> None:
        self._objects.pop(key, None)

    def text(self, key: str) -> bytes | None:
        """An object's contents; None: there is none."""
        return self._objects[key][0] if key in self._objects else None

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        background()
        for file, memory in files:
            data = self._current(file.key, file.etag) if file.size_bytes else b""
            start = 0
            for window in memory.windows(0, file.size_bytes):
                with window:
                    window[:] = data[start : start + len(window)]
                    start += len(window)
            verify(file, memory, "memory")

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        self.confirmed += 1
        for file in files:
            if len(self._current(file.key, file.etag)) != file.size_bytes:
                raise ObjectChanged(f"{file.key} has another size")

    async def close(self) -> None:
        return

    def _current(self, key: str, etag: str) -> bytes:
        data, entry = self._objects.get(key, (b"", None))
        if entry is None or etag not in {"", entry.etag}:
            raise ObjectChanged(f"{key} was overwritten or deleted")
        return data
