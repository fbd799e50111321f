"""A file on its way: where it goes, how much of it came, and whether it is what hearth.json says.

Part checksums are verified by the thread that fetched the part. A SHA-256 is one chain over the whole file: whichever thread
brings the part that comes next takes everything along that is there by then, while the other threads go on fetching.

What stays out: how a part is fetched (s3_objects.py), which part is next (s3_transfers.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from predictor import checksums
from predictor.errors import InvalidModel
from predictor.model import FileSpec
from predictor.tiers.s3_http import Halt
from predictor.tiers.scattered import Scattered

STEP_BYTES = 16 << 20
"""A digest looks that often whether anybody still wants it: 10 ms of SHA-256."""


class Arriving:
    """One file of a fetch. Its methods are called by the threads that fetch its parts."""

    def __init__(self, spec: FileSpec, memory: Scattered, bucket: str) -> None:
        assert memory.size_bytes == spec.size_bytes, f"{spec.key}: {spec.size_bytes} bytes, memory for {memory.size_bytes}"
        self.spec = spec
        self.memory = memory
        self.where = f"s3://{bucket}/{spec.key}"
        self._lock = threading.Lock()
        self._came_bytes = 0
        self._waiting: dict[int, int] = {}  # parts that came and are not digested: where they begin and end
        self._digest = hashlib.sha256(usedforsecurity=False) if spec.sha256 and spec.checksums is None else None
        self._digested = 0
        self._digesting = False

    @property
    def came_bytes(self) -> int:
        """How many of its bytes are there."""
        return self._came_bytes

    def note(self, count: int) -> None:
        """Bytes came; or less than none, where some have to come again."""
        with self._lock:
            self._came_bytes += count

    @contextmanager
    def windows(self, begin: int, end: int) -> Iterator[Sequence[memoryview]]:
        """The memory of bytes ``begin`` to ``end``. No reference to it outlives the block."""
        windows = self.memory.windows(begin, end)
        try:
            yield windows
        finally:
            for window in windows:
                window.release()

    def differing(self, begin: int, end: int) -> tuple[int, str] | None:
        """The first part of the manifest's within bytes ``begin`` to ``end`` that is not as it should be; None: none.

        Which part it is, and what checksum it has.
        """
        said = self.spec.checksums
        if said is None:
            return None
        for start in range(begin, end, said.part_bytes):
            with self.windows(start, min(start + said.part_bytes, end)) as windows:
                found = checksums.of_part(windows)
            if found != said.parts[start // said.part_bytes]:
                return start // said.part_bytes, found
        return None

    def digest(self, begin: int, end: int, halt: Halt) -> None:
        """Bytes ``begin`` to ``end`` are there. InvalidModel: they were the last, and the file is not what it should be.

        halt  stopped: the rest need not be digested
        """
        if self._digest is None:
            return
        with self._lock:
            self._waiting[begin] = end
            if self._digesting:
                return
            self._digesting = True
        while (next_end := self._take()) and not halt.stopped:
            for start in range(self._digested, next_end, STEP_BYTES):
                if halt.stopped:
                    return
                with self.windows(start, min(start + STEP_BYTES, next_end)) as windows:
                    for window in windows:
                        self._digest.update(window)
            self._digested = next_end
        self.check_digest()

    def check_digest(self) -> None:
        """InvalidModel: the file is there, and is not what it should be."""
        if self._digest is None or self._digested < self.spec.size_bytes:
            return
        if (found := self._digest.hexdigest()) != self.spec.sha256.lower():
            raise checksums.wrong_whole(self.where, self.spec.sha256, found)

    def _take(self) -> int:
        """Where the part ends that comes next; 0: it is not there yet."""
        with self._lock:
            end = self._waiting.pop(self._digested, 0)
            self._digesting = end > 0
            return end


def verify(file: FileSpec, memory: Scattered, bucket: str) -> None:
    """Hold a whole file that did not just come from S3 against its manifest. InvalidModel: it differs. Blocking."""
    arriving = Arriving(file, memory, bucket)
    said = file.checksums
    if said is not None and (wrong := arriving.differing(0, file.size_bytes)) is not None:
        raise InvalidModel(f"{checksums.wrong_part(arriving.where, said, *wrong)}: publish the version again")
    arriving.digest(0, file.size_bytes, Halt())


class Part(NamedTuple):
    """Bytes ``start`` to ``end`` (not included) of a file, never empty."""

    file: Arriving
    start: int
    end: int


def parts(files: Sequence[Arriving], part_bytes: int) -> Iterator[Part]:
    """Cut files into ranges of about ``part_bytes``. Empty files need no part: their range would be unsatisfiable.

    Where the manifest has part checksums, a range is as many whole parts of it as fit, at least one: what one thread
    fetched, that thread can verify.
    """
    for file in files:
        said = file.spec.checksums
        step = part_bytes if said is None else max(1, part_bytes // said.part_bytes) * said.part_bytes
        for start in range(0, file.spec.size_bytes, step):
            yield Part(file, start, min(start + step, file.spec.size_bytes))
