"""The bytes of one image, from memory to a file and back, past the page cache. Blocking; the threads are disk.py's.

Direct I/O, because the bytes lie in RAM already: a second copy of them in the page cache would be charged to the pod. It is
switched on after the file is open (fcntl), as open(2) with O_DIRECT may create the file and refuse all the same. Where the
mount or the memory's alignment does not allow it, the same calls go through the page cache and every part is thrown out of
it at once. What stays out: names and renames (disk_folder.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final

import xxhash

from predictor.model import Placed, page_aligned
from predictor.tiers.disk_files import DiskFault, Fault, Sidecar
from predictor.tiers.scattered import Scattered

MAX_WINDOWS: Final = 1024
"""IOV_MAX of Linux: more pieces of memory take more than one call."""

NAMED: Final = 3
"""A part's files that an error names."""

_REFUSES_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class Stopped(Exception):
    """Whoever wanted this was cancelled, or the tier is closed."""


class Halt:
    """Tells a thread that nobody waits for it any more. Heard between parts."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def stop(self) -> None:
        """From any thread, any number of times."""
        self._stopped.set()

    def check(self) -> None:
        """Raise Stopped if so."""
        if self._stopped.is_set():
            raise Stopped


class ImageFile:
    """An open image. Closing the descriptor is for whoever opened it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.direct = self._switch(direct=True)

    def write(self, windows: Sequence[memoryview], offset_bytes: int) -> None:
        """Write all of ``windows``, which are released. Raises OSError."""
        try:
            size_bytes = self._move(os.pwritev, windows, offset_bytes)
        except EOFError:
            raise OSError(errno.EIO, "the volume takes no more bytes") from None
        if not self.direct:  # Pages must be clean to be thrown out. 1.3 GB/s; 0.36 and a full page cache without
            os.fdatasync(self.descriptor)
            self._forget(offset_bytes, size_bytes)

    def read(self, windows: Sequence[memoryview], offset_bytes: int) -> None:
        """Fill all of ``windows``, which are released. Raises OSError, and EOFError where the file ends early."""
        size_bytes = self._move(os.preadv, windows, offset_bytes)
        if not self.direct:
            self._forget(offset_bytes, size_bytes)

    def _move(self, call: Callable[[int, list[memoryview], int], int], windows: Sequence[memoryview], offset: int) -> int:
        rest = [window for window in windows if len(window)]
        start = offset
        try:
            while rest:
                count = self._call(call, rest[:MAX_WINDOWS], offset)
                if count == 0:
                    raise EOFError(offset)
                offset += count
                _advance(rest, count)
        finally:  # an error's traceback refers to them for as long as somebody looks at it
            for window in rest:
                window.release()
        return offset - start

    def _call(self, call: Callable[[int, list[memoryview], int], int], windows: list[memoryview], offset: int) -> int:
        was_direct = self.direct  # another thread may switch it off meanwhile
        try:
            return call(self.descriptor, windows, offset)
        except OSError as error:
            if not was_direct or error.errno not in _REFUSES_DIRECT:
                raise
        self.direct = self._switch(direct=False)
        return call(self.descriptor, windows, offset)

    def _switch(self, *, direct: bool) -> bool:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError as error:
            if not direct or error.errno not in _REFUSES_DIRECT:
                raise
            return False
        return direct

    def _forget(self, offset_bytes: int, size_bytes: int) -> None:
        with contextlib.suppress(OSError):  # advice
            os.posix_fadvise(self.descriptor, offset_bytes, size_bytes, os.POSIX_FADV_DONTNEED)


def write_image(
    file: ImageFile, image: Scattered, part_bytes: int, halt: Halt, on_bytes: Callable[[int], None]
) -> tuple[str, ...]:
    """Write all of the image, part after part, and make it durable. Returns the parts' checksums. Raises OSError, Stopped.

    One thread: two that write one file made 2.9 GB/s of 2.6 (ext4, 16 MiB parts), and two models may be written at once.
    Space is not reserved beforehand, which made no difference.
    """
    checksums = []
    for begin in range(0, image.size_bytes, part_bytes):
        halt.check()
        end = min(begin + part_bytes, image.size_bytes)
        checksums.append(checksum(image, begin, end))
        file.write(image.windows(begin, end), begin)
        on_bytes(end - begin)
    os.fdatasync(file.descriptor)
    return tuple(checksums)


class Reading:
    """One image on its way into memory: ``threads`` of them take the next part that nobody took yet."""

    def __init__(self, file: ImageFile, image: Scattered, sidecar: Sidecar, layout: Sequence[Placed]) -> None:
        self._file = file
        self._image = image
        self._part_bytes = sidecar.part_bytes
        self._checksums = sidecar.xxh3_64
        self._layout = layout
        self._next = itertools.count()  # one step of it cannot be interrupted by another thread

    def run(self, threads: Executor, count: int, halt: Halt, on_bytes: Callable[[int], None]) -> None:
        """Read and verify everything in this thread and ``count - 1`` others; the first error stops all.

        Raises OSError, DiskFault and Stopped, when no thread reads any more.
        """
        ours = Halt()
        others = [threads.submit(self._lane, ours, halt, on_bytes) for _ in range(min(count, len(self._checksums)) - 1)]
        errors: list[BaseException] = []
        try:
            self._lane(ours, halt, on_bytes)
        except BaseException as error:  # noqa: BLE001 - raised below, after the others ended
            errors.append(error)
        # Asking for its error waits for a thread's end.
        errors += [fault for other in others if (fault := other.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])

    def _lane(self, ours: Halt, halt: Halt, on_bytes: Callable[[int], None]) -> None:
        try:
            for part in self._parts():
                ours.check()
                halt.check()
                on_bytes(self._read(part))
        except BaseException:
            ours.stop()
            raise

    def _parts(self) -> Iterator[int]:
        return itertools.takewhile(lambda part: part < len(self._checksums), self._next)

    def _read(self, part: int) -> int:
        begin = part * self._part_bytes
        end = min(begin + self._part_bytes, self._image.size_bytes)
        try:
            self._file.read(self._image.windows(begin, end), begin)
        except EOFError:
            raise DiskFault(Fault.DAMAGED, f"it ends within {self._place(part, begin, end)}") from None
        found = checksum(self._image, begin, end)
        if found != self._checksums[part]:
            was = self._checksums[part]
            raise DiskFault(Fault.DAMAGED, f"{self._place(part, begin, end)}: xxh3_64 is {found}, was {was}")
        return end - begin

    def _place(self, part: int, begin: int, end: int) -> str:
        files = [
            placed.path
            for placed in self._layout
            if placed.offset_bytes < end and placed.offset_bytes + page_aligned(placed.size_bytes) > begin
        ]
        return f"part {part} (bytes {begin} to {end}: {', '.join(files[:NAMED])}{', ...' if len(files) > NAMED else ''})"


def checksum(image: Scattered, begin: int, end: int) -> str:
    """XXH3, 64 bits: found every flipped bit of a part and runs at memory speed (24 GB/s here; SHA-256: 1.3 GB/s)."""
    state = xxhash.xxh3_64()
    for window in image.windows(begin, end):
        with window:
            state.update(window)
    return state.hexdigest()


def _advance(windows: list[memoryview], count: int) -> None:
    """Take ``count`` bytes off the front."""
    done = 0
    while done < len(windows) and count >= len(windows[done]):
        count -= len(windows[done])
        windows[done].release()
        done += 1
    del windows[:done]
    if count:
        with windows[0]:
            windows[0] = windows[0][count:]
