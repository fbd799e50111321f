"""The memory of the RAM tier where workers may not see each other's models: a memfd for every model, instead of one pool.

A worker is handed the descriptors of its own models and no others. What that costs: every load gets fresh pages (0.35 to
0.6 CPU-s per GB, slabs.py says why the pool has none of that), and a GPU's copies come from memory that is not pinned.
What stays out: whose bytes (ram.py), how a worker maps them (engine/mapping.py).
"""

from __future__ import annotations

import mmap
import os
import threading

from predictor.model import PAGE_BYTES
from predictor.tiers.extents import Extents
from predictor.tiers.scattered import Scattered
from predictor.tiers.slabs import Arena, seal


class SeparateArenas:
    """What SlabPool is to those who take memory, with every arena by itself.

    budget_bytes   that much may be taken at once, in whole pages

    size_bytes     what models can have
    slab_bytes     what a model takes is a multiple of it
    touched_bytes  so much has pages, or will have: what is taken
    reader         none: there is nothing that all workers may see
    """

    reader = -1

    def __init__(self, budget_bytes: int) -> None:
        self.slab_bytes = PAGE_BYTES
        self.size_bytes = budget_bytes // PAGE_BYTES * PAGE_BYTES
        self.used_bytes = 0
        self._counting = threading.Lock()

    @property
    def touched_bytes(self) -> int:
        """See the class."""
        return self.used_bytes

    def take(self, size_bytes: int) -> Arena:
        """An arena of ``size_bytes``. MemoryError: fewer are free. The books (policy/ledger.py) do not let that happen."""
        whole_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
        with self._counting:
            if self.used_bytes + whole_bytes > self.size_bytes:
                raise MemoryError(f"{whole_bytes} bytes are wanted, {self.size_bytes - self.used_bytes} are free")
            self.used_bytes += whole_bytes
        if not whole_bytes:
            return Arena(0, (), Scattered(()), lambda _: None)
        descriptor = os.memfd_create("hearth:arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, whole_bytes)
            mapping = mmap.mmap(descriptor, whole_bytes)
            seal(descriptor)
            reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._give_back(whole_bytes)
            raise
        finally:
            os.close(descriptor)

        def end(_: Extents) -> None:
            mapping.close()
            os.close(reader)
            self._give_back(whole_bytes)

        image = Scattered((memoryview(mapping)[:size_bytes],))
        return Arena(size_bytes, ((0, whole_bytes),), image, end, descriptor=reader)

    def touch_from_now_on(self) -> None:
        """Nothing: pages that belong to a model come with its load."""

    def close(self) -> None:
        """Nothing: arenas are closed before, and there is nothing else."""

    def _give_back(self, size_bytes: int) -> None:
        with self._counting:
            self.used_bytes -= size_bytes
