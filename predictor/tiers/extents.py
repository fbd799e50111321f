"""Which slabs of the pool are free. Pure: offsets in, offsets out.

What stays out: the memory itself (slabs.py).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from predictor.model import PAGE_BYTES

Extents = tuple[tuple[int, int], ...]
"""Runs of memory, lowest first: where each begins in the pool and how long it is, in bytes."""

MAX_SLABS: Final = 1 << 14
"""Every slab may have to be mapped by itself, and the kernel gives a process 65,530 mappings (vm.max_map_count)."""


def slab_bytes(budget_bytes: int) -> int:
    """How large the slabs of a pool of ``budget_bytes`` are: a power of two, at least a page, at most MAX_SLABS of them."""
    per_slab = -(-budget_bytes // MAX_SLABS)
    return max(PAGE_BYTES, 1 << max(per_slab - 1, 0).bit_length())


class FreeSlabs:
    """The free runs of a pool of ``count`` slabs of ``slab_bytes`` each.

    Any free slabs will do for a model, so what does not fit in one run is cut: only free bytes count.
    """

    def __init__(self, count: int, slab_bytes: int) -> None:
        assert count >= 0, f"{count} slabs"
        self._count = count
        self._slab_bytes = slab_bytes
        # In slabs: begin and end of every free run, lowest first; two of them never touch.
        self._runs: list[tuple[int, int]] = [(0, count)] if count else []
        self._free = count

    @property
    def free_bytes(self) -> int:
        """Bytes of all free slabs."""
        return self._free * self._slab_bytes

    @property
    def highest_bytes(self) -> int:
        """Where the highest slab in use ends; 0: none is."""
        if self._runs and self._runs[-1][1] == self._count:
            return self._runs[-1][0] * self._slab_bytes
        return self._count * self._slab_bytes

    def take(self, size_bytes: int) -> Extents:
        """Whole slabs for ``size_bytes``: the lowest single run that fits, else as few runs as possible.

        Low first, because what was in use before has its pages already. MemoryError: fewer bytes are free.
        """
        assert size_bytes >= 0, f"{size_bytes} bytes"
        count = -(-size_bytes // self._slab_bytes)
        if count > self._free:
            raise MemoryError(f"{size_bytes} bytes are {count} slabs of {self._slab_bytes}, {self._free} are free")
        taken = self._choose(count) if count else []
        for run in taken:
            self._cut(run)
        return tuple((begin * self._slab_bytes, (end - begin) * self._slab_bytes) for begin, end in taken)

    def give_back(self, extents: Extents) -> None:
        """Make what ``take`` returned free again."""
        for offset_bytes, size_bytes in extents:
            begin, end = offset_bytes // self._slab_bytes, (offset_bytes + size_bytes) // self._slab_bytes
            at = bisect_left(self._runs, (begin, end))
            before, after = self._runs[max(at - 1, 0) : at], self._runs[at : at + 1]
            assert 0 <= begin < end <= self._count, f"slabs {begin} to {end} of {self._count}"
            assert not before or before[0][1] <= begin, f"slabs {begin} to {end} given back, {before[0]} are free"
            assert not after or end <= after[0][0], f"slabs {begin} to {end} given back, {after[0]} are free"
            self._free += end - begin
            if before and before[0][1] == begin:
                at, begin = at - 1, before[0][0]
            else:
                before = []
            if after and after[0][0] == end:
                end = after[0][1]
            else:
                after = []
            self._runs[at : at + len(before) + len(after)] = [(begin, end)]

    def _choose(self, count: int) -> list[tuple[int, int]]:
        """Parts of free runs, lowest first, that make ``count`` slabs together."""
        chosen: list[tuple[int, int]] = []
        # The longest whole runs first, until one run can hold the rest: no choice needs fewer runs than that.
        for run in sorted(self._runs, key=lambda run: (run[0] - run[1], run[0])):
            if run[1] - run[0] >= count:
                break
            chosen.append(run)
            count -= run[1] - run[0]
        whole = set(chosen)
        begin = next(begin for begin, end in self._runs if end - begin >= count and (begin, end) not in whole)
        return sorted([*chosen, (begin, begin + count)])

    def _cut(self, taken: tuple[int, int]) -> None:
        """Take the beginning of a free run, or all of it."""
        begin, end = taken
        at = bisect_left(self._runs, (begin, begin))
        free_begin, free_end = self._runs[at]
        assert free_begin == begin, f"slabs {begin} to {end} taken from the middle of {self._runs[at]}"
        self._runs[at : at + 1] = [(end, free_end)] if end < free_end else []
        self._free -= end - begin
