"""Memory that lies apart and is counted as one run of bytes: a model's arena, or one file of it, in slabs of the pool.

What stays out: which slabs (slabs.py), what fills them (s3_objects.py, disk.py).
"""

from __future__ import annotations

from collections.abc import Sequence


class Scattered:
    """Writable pieces of memory, in order. Whoever made it calls ``release``; windows are their taker's to release."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = tuple(pieces)
        self.size_bytes = sum(len(piece) for piece in self._pieces)

    def windows(self, begin: int, end: int) -> list[memoryview]:
        """The memory of bytes ``begin`` to ``end`` (not included), in order; pieces that lie apart stay apart."""
        assert 0 <= begin <= end <= self.size_bytes, f"bytes {begin} to {end} of {self.size_bytes}"
        found: list[memoryview] = []
        start = 0
        for piece in self._pieces:
            stop = start + len(piece)
            if stop > begin and start < end:
                found.append(piece[max(begin - start, 0) : min(end - start, len(piece))])
            start = stop
        return found

    def part(self, begin: int, end: int) -> Scattered:
        """Bytes ``begin`` to ``end`` as a run of their own, to be released by itself."""
        return Scattered(self.windows(begin, end))

    def release(self) -> None:
        """Let go of the memory, so that it can be unmapped or handed to another model."""
        for piece in self._pieces:
            piece.release()
