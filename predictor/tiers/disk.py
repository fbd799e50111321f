"""The disk tier: whole images of models on a local volume, so that what left RAM, or a pod that restarted, need not ask S3.

Moves bytes and keeps the files honest: what ``read`` returns is what ``write`` was given, or there is a DiskFault and the
model comes from S3. A volume that fails makes the tier degraded, never the pod. What stays out: which models are kept
(policy/ledger.py), what the files look like (disk_files.py), system calls (disk_folder.py, disk_image.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from predictor.model import PAGE_BYTES, ModelRef, ModelSpec
from predictor.tiers import disk_files
from predictor.tiers.disk_files import PART_BYTES, DiskFault, Fault, Kept, describe, difference, digest
from predictor.tiers.disk_folder import Folder
from predictor.tiers.disk_health import FULL, Health
from predictor.tiers.disk_image import Halt, ImageFile, Reading, Stopped, write_image
from predictor.tiers.scattered import Scattered

WRITES: Final = 2
"""Models written at once; more would only share the volume's bandwidth."""

READS: Final = 4
"""Models read at once, so that a small one need not wait for a large one to end."""

READ_THREADS: Final = 2
"""Per model. One: 2.1 GB/s, two: 2.3, four: 2.4 (ext4 on a virtual disk, direct I/O, checksums included)."""

T = TypeVar("T")


def _ignore(_: object) -> None:
    return


class Disk:
    """A folder of images. All methods belong to one event loop.

    on_degraded  called on the event loop when ``degraded`` changes, with what it is now
    on_written   bytes of images that were written, part by part; from threads
    on_read      bytes of images that were read and verified, part by part; from threads
    retry_s      how long writes are refused after one failed
    clock        seconds
    wall_clock   seconds since the epoch, for the sidecars
    part_bytes   what one checksum covers
    """

    def __init__(
        self,
        path: Path,
        *,
        on_degraded: Callable[[str], None] = _ignore,
        on_written: Callable[[int], None] = _ignore,
        on_read: Callable[[int], None] = _ignore,
        retry_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        part_bytes: int = PART_BYTES,
    ) -> None:
        assert part_bytes > 0, f"parts of {part_bytes} bytes"
        assert part_bytes % PAGE_BYTES == 0, f"parts of {part_bytes} bytes"
        self._path = path
        self._on_written = on_written
        self._on_read = on_read
        self._wall_clock = wall_clock
        self._part_bytes = part_bytes
        self._health = Health(path, on_degraded, retry_s, clock)
        self._folder: Folder | None = None
        self._closed = False
        self._busy: set[ModelRef] = set()
        self._halts: set[Halt] = set()
        self._scanning = False
        self._writes = asyncio.Semaphore(WRITES)
        self._reads = asyncio.Semaphore(READS)
        # Whatever comes to a pool was bounded before: no model waits for a thread, but behind the two semaphores.
        self._writers = ThreadPoolExecutor(WRITES, thread_name_prefix="hearth-disk-write")
        self._readers = ThreadPoolExecutor(READS, thread_name_prefix="hearth-disk-read")
        self._more_readers = ThreadPoolExecutor(READS * (READ_THREADS - 1), thread_name_prefix="hearth-disk-part")
        self._files = ThreadPoolExecutor(1, thread_name_prefix="hearth-disk-files")

    @property
    def degraded(self) -> str:
        """Why nothing is written at present, as a sentence; "" while all is well."""
        return self._health.why

    @property
    def ready(self) -> bool:
        """A ``scan`` opened the folder: copies can be read."""
        return self._folder is not None

    def disk_bytes(self, spec: ModelSpec) -> int:
        """What a copy of the model takes of the volume; exact once ``scan`` saw how long its blocks are."""
        block_bytes = PAGE_BYTES if self._folder is None else self._folder.block_bytes
        return disk_files.disk_bytes(spec, self._part_bytes, block_bytes)

    async def scan(self) -> Sequence[Kept]:
        """Open the folder, remove what is left of interrupted writes, and tell which whole copies there are.

        Whole means: a sidecar of this format, and an image as long as it says. The contents are verified when
        they are read, part by part and at line rate: reading 100 GB at start would take minutes.

        Never raises: where the folder cannot be had, the tier is degraded and has no copies. It may be called again then,
        for example when the pod before this one ended and let go of the lock.
        """
        assert self._folder is None, f"{self._path} was scanned already"
        if self._closed or self._scanning:
            return ()
        self._scanning = True
        try:
            folder, kept = await self._call(self._files, self._open_and_sweep, undo=lambda opened: opened[0].close())
        except OSError as error:
            self._health.failed(error)
            return ()
        finally:
            self._scanning = False
        if self._closed:  # it ended at the very moment
            folder.close()
            return ()
        self._folder = folder
        if folder.read_only:
            self._health.failed(OSError(errno.EROFS, folder.read_only))
        else:
            self._health.succeeded()
        return kept

    async def write(self, spec: ModelSpec, image: Scattered) -> None:
        """Write the model's image. All or nothing, also when cancelled; an older copy of the same model is replaced.

        The gaps between files are written as they are. At most WRITES run at once, the others wait.

        Raises DiskFault: FULL, IO, or REFUSED (at once, for ``retry_s`` after a write failed).
        """
        assert image.size_bytes == spec.arena_bytes, f"{spec.ref}: image of {image.size_bytes}, arena of {spec.arena_bytes}"
        assert spec.ref not in self._busy, f"{spec.ref} is written or dropped already"
        self._busy.add(spec.ref)
        try:
            async with self._writes:
                folder = self._writable()
                try:
                    await self._call(
                        self._writers,
                        lambda halt: self._write(folder, spec, image, halt),
                        undo=lambda _: folder.remove(digest(spec.ref)),
                    )
                except OSError as error:
                    self._health.failed(error)
                    kind = Fault.FULL if error.errno in FULL else Fault.IO
                    raise DiskFault(kind, f"{spec.ref} was not written to {self._path}: {error.strerror}") from error
                self._health.succeeded()
        finally:
            self._busy.discard(spec.ref)

    async def read(self, spec: ModelSpec, image: Scattered) -> None:
        """Fill the image from the model's copy and verify every part. At most READS run at once, the others wait.

        Raises DiskFault: DAMAGED or MISSING (drop the copy), IO, or REFUSED; what the image holds then means nothing.
        """
        assert image.size_bytes == spec.arena_bytes, f"{spec.ref}: image of {image.size_bytes}, arena of {spec.arena_bytes}"
        async with self._reads:
            folder = self._open()
            try:
                await self._call(self._readers, lambda halt: self._read(folder, spec, image, halt))
            except OSError as error:
                raise DiskFault(Fault.IO, f"{spec.ref} cannot be read from {self._path}: {error.strerror}") from error
            except DiskFault as fault:
                raise DiskFault(fault.kind, f"the copy of {spec.ref} in {self._path} is {fault.kind.value}: {fault}") from None

    async def drop(self, ref: ModelRef) -> None:
        """Delete the model's copy, if there is one. Who reads it at the moment may end. DiskFault (IO): it is still there."""
        assert ref not in self._busy, f"{ref} is written or dropped already"
        folder = self._folder
        if folder is None or self._closed:
            return
        self._busy.add(ref)
        try:
            await self._call(self._files, lambda _: folder.remove(digest(ref)))
        except OSError as error:
            raise DiskFault(Fault.IO, f"{ref} cannot be deleted from {self._path}: {error.strerror}") from error
        finally:
            self._busy.discard(ref)

    async def close(self) -> None:
        """Stop what runs, which raises DiskFault (REFUSED), and let another process have the folder."""
        self._closed = True
        for halt in self._halts:
            halt.stop()
        for threads in (self._writers, self._readers, self._more_readers, self._files):
            await asyncio.to_thread(threads.shutdown)
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _open(self) -> Folder:
        if self._folder is None or self._closed:
            why = "this pod is stopping" if self._closed else self.degraded or "nobody scanned it yet"
            raise DiskFault(Fault.REFUSED, f"the disk tier {self._path} is not open: {why}")
        return self._folder

    def _writable(self) -> Folder:
        folder = self._open()
        if self._health.waits:
            raise DiskFault(Fault.REFUSED, self.degraded)
        return folder

    def _open_and_sweep(self, _: Halt) -> tuple[Folder, Sequence[Kept]]:
        folder = Folder(self._path)
        try:
            return folder, folder.sweep()
        except BaseException:
            folder.close()
            raise

    def _write(self, folder: Folder, spec: ModelSpec, image: Scattered, halt: Halt) -> None:
        name = digest(spec.ref)
        try:
            with folder.new_image(name) as descriptor:
                checksums = write_image(ImageFile(descriptor), image, self._part_bytes, halt, self._on_written)
            halt.check()
            folder.publish(name, describe(spec, self._part_bytes, checksums, self._wall_clock()))
            halt.check()
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more; the next scan removes what is left
                folder.remove(name)
            raise

    def _read(self, folder: Folder, spec: ModelSpec, image: Scattered, halt: Halt) -> None:
        name = digest(spec.ref)
        sidecar, _ = folder.sidecar(name)
        if differs := difference(sidecar, spec):
            raise DiskFault(Fault.DAMAGED, f"its sidecar is of another model: {differs}")
        with folder.open_image(name, sidecar) as descriptor:
            reading = Reading(ImageFile(descriptor), image, sidecar, spec.layout())
            reading.run(self._more_readers, READ_THREADS, halt, self._on_read)

    async def _call(self, threads: ThreadPoolExecutor, job: Callable[[Halt], T], undo: Callable[[T], None] | None = None) -> T:
        """Run ``job`` in a thread and wait until it ended, whatever happens; when cancelled, ``undo`` what it did."""
        halt = Halt()
        self._halts.add(halt)
        running = asyncio.get_running_loop().run_in_executor(threads, job, halt)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:  # the thread still uses the memory
                cancelled = error
                halt.stop()
        self._halts.discard(halt)
        if cancelled is not None:
            if running.exception() is None and undo is not None and not self._closed:  # it ended before it heard
                with contextlib.suppress(OSError):
                    await self._call(self._files, lambda _: undo(running.result()))
            raise cancelled
        try:
            return running.result()
        except Stopped:
            raise DiskFault(Fault.REFUSED, f"the disk tier {self._path} is not open: this pod is stopping") from None
