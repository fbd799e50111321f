"""The RAM tier: each model's files in an arena of the pool, filled from the model store, mapped read-only by workers.

What stays out: when to fetch and what to drop (policy/ledger.py), how bytes come from S3 (store.py), the memory (slabs.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from predictor.model import FileSpec, ModelRef, ModelSpec, page_aligned
from predictor.tiers.arenas import SeparateArenas
from predictor.tiers.scattered import Scattered
from predictor.tiers.slabs import Arena, SlabPool
from predictor.tiers.store import ModelStore

Files = Sequence[tuple[FileSpec, Scattered]]


class RamTier(Protocol):
    """What the cache asks of the RAM tier; the real one and the tests' fake keep the same contract."""

    async def fetch(
        self, spec: ModelSpec, background: Callable[[], bool], read: Callable[[Scattered], Awaitable[bool]]
    ) -> None:
        """Bring every file of ``spec`` into an arena of its own. All or nothing.

        background  asked at part boundaries: True lets fetches that somebody waits for go first
        read        fills the arena from elsewhere; False: it could not, the model store is to be asked
        """

    def image(self, ref: ModelRef) -> Scattered:
        """The arena of a model that was fetched and not dropped since: to be read, and released by the RAM tier."""

    async def drop(self, ref: ModelRef) -> None:
        """Forget the arena, which no device computes on any more (``DeviceTier.drop`` returned). Idempotent."""


class SharedMemory:
    """The real RAM tier. It owns ``pool``.

    store_of  where a model is read from
    """

    def __init__(self, store_of: Callable[[ModelSpec], ModelStore], pool: SlabPool | SeparateArenas) -> None:
        self.pool = pool
        self._store_of = store_of
        self._arenas: dict[ModelRef, Arena] = {}

    def arena(self, ref: ModelRef) -> Arena:
        """The arena of a model that was fetched and not dropped since."""
        return self._arenas[ref]

    def image(self, ref: ModelRef) -> Scattered:
        """See RamTier."""
        return self._arenas[ref].image

    async def fetch(
        self, spec: ModelSpec, background: Callable[[], bool], read: Callable[[Scattered], Awaitable[bool]]
    ) -> None:
        """See RamTier. The store verifies what the manifest tells checksums of.

        Raises the store's errors, and InvalidModel when a checksum differs. Nothing is kept then.
        """
        assert spec.ref not in self._arenas, f"{spec.ref} is fetched twice"
        arena = self.pool.take(spec.arena_bytes)
        files: list[tuple[FileSpec, Scattered]] = []
        try:
            for file, placed in zip(spec.files, spec.layout(), strict=True):
                files.append((file, arena.window(placed.offset_bytes, placed.size_bytes)))
                _clear(arena, placed.offset_bytes + placed.size_bytes)
            if not await read(arena.image):
                store = self._store_of(spec)
                await store.fetch(files, background=background)
                if not all(file.is_provable for file in spec.files):  # else their contents are proven, whatever S3 lists by now
                    await store.confirm(spec.files)
        except BaseException:
            _release(files)
            arena.close()
            raise
        _release(files)
        self._arenas[spec.ref] = arena

    async def drop(self, ref: ModelRef) -> None:
        """Give the arena back, if there is one: see RamTier for when, and Arena.close for why."""
        arena = self._arenas.pop(ref, None)
        if arena is not None:
            arena.close()

    def close(self) -> None:
        """Drop everything, at the end of the process."""
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()
        self.pool.close()


def _clear(arena: Arena, offset_bytes: int) -> None:
    """Zero what is left of a file's last page.

    Another model's bytes may be there. Views of a file end where it ends, but model code can look past the end of a view,
    and what it finds there must not depend on who had the memory before.
    """
    rest = arena.window(offset_bytes, page_aligned(offset_bytes) - offset_bytes)
    for window in rest.windows(0, rest.size_bytes):
        window[:] = bytes(len(window))
        window.release()
    rest.release()


def _release(files: Files) -> None:
    for _, scattered in files:
        scattered.release()
