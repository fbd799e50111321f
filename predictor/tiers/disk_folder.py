"""The disk tier's folder: its lock, what lies in it, and how a copy comes to be whole in it or leaves. Blocking.

Every step of a publish leaves a folder that ``sweep`` puts right, whenever the process or the machine stops:

    image under a temporary name, on the disk  →  sidecar under a temporary name, on the disk  →  old sidecar gone
    →  image renamed  →  sidecar renamed  →  folder on the disk

What stays out: the bytes of an image (disk_image.py), who waits for whom (disk.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from predictor.model import PAGE_BYTES
from predictor.tiers.disk_files import (
    IMAGE,
    LOCK,
    MAX_SIDECAR_BYTES,
    OURS,
    PARTIAL,
    SIDECAR,
    DiskFault,
    Fault,
    Kept,
    Sidecar,
    charged_bytes,
    decode,
    digest,
    encode,
)

log = logging.getLogger(__name__)

NAMED: Final = 5
"""Leftovers that a log line names; the others are counted."""

# Never through a symlink, never waiting for whoever writes into a pipe, never inherited by a worker process.
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class InUse(OSError):
    """Another process holds the folder's lock."""


class Folder:
    """An open and locked folder. ``read_only`` says why it cannot be written, "" when it can."""

    def __init__(self, path: Path) -> None:
        """Create the folder where it is missing, and lock it. Raises OSError, InUse among them."""
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self.read_only = self._take_lock()
            self.block_bytes = max(os.fstatvfs(self.descriptor).f_frsize, PAGE_BYTES)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have it."""
        for descriptor in (self.descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._lock = -1

    def sweep(self) -> list[Kept]:
        """Remove what no whole copy is made of, and return the whole ones. Nothing may be written meanwhile. Raises OSError."""
        with os.scandir(self.descriptor) as entries:
            names = sorted(entry.name for entry in entries if OURS.fullmatch(entry.name))
        kept: list[Kept] = []
        whole: set[str] = set()
        reasons: dict[str, str] = {}
        for name in names:
            if name.endswith(SIDECAR):
                stem = name.removesuffix(SIDECAR)
                try:
                    kept.append(self._whole(stem))
                except (DiskFault, OSError) as fault:
                    reasons[stem] = str(fault)
                else:
                    whole |= {stem + SIDECAR, stem + IMAGE}
        removed = []
        for name in names:
            if name not in whole:
                with contextlib.suppress(OSError):  # a volume that is read-only keeps its leftovers
                    os.unlink(name, dir_fd=self.descriptor)
                    removed.append(f"{name} ({reasons.get(name.partition('.')[0], 'never finished')})")
        if removed:
            more = f" and {len(removed) - NAMED} more" if len(removed) > NAMED else ""
            log.info("removed from the disk tier %s: %s%s", self.path, ", ".join(removed[:NAMED]), more)
        return kept

    def sidecar(self, name: str) -> tuple[Sidecar, int]:
        """The sidecar of this digest and its size. Raises DiskFault, and OSError when the volume fails."""
        try:
            with self.open(name + SIDECAR, os.O_RDONLY) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
                text = file.read(MAX_SIDECAR_BYTES + 1)
            sidecar = decode(text)
        except ValueError as error:
            raise DiskFault(Fault.DAMAGED, f"{name}{SIDECAR} cannot be read: {error}") from None
        if digest(sidecar.ref) != name:
            raise DiskFault(Fault.DAMAGED, f"{name}{SIDECAR} is of another model: {sidecar.ref.key}")
        return sidecar, len(text)

    @contextmanager
    def open_image(self, name: str, sidecar: Sidecar) -> Iterator[int]:
        """A descriptor for reading an image of the right size. Raises as ``sidecar``."""
        with self.open(name + IMAGE, os.O_RDONLY) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes != sidecar.image_bytes:
                raise DiskFault(Fault.DAMAGED, f"{name}{IMAGE} has {size_bytes} bytes instead of {sidecar.image_bytes}")
            yield descriptor

    @contextmanager
    def open(self, name: str, flags: int) -> Iterator[int]:
        """A descriptor of a regular file. DiskFault: there is none of this name; also raises OSError."""
        try:
            descriptor = os.open(name, flags | _FLAGS, 0o600, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno == errno.ENOENT and not flags & os.O_CREAT:
                raise DiskFault(Fault.MISSING, f"there is no {name}") from None
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a symlink, a pipe, a folder
                raise DiskFault(Fault.DAMAGED, f"{name} is no regular file") from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DiskFault(Fault.DAMAGED, f"{name} is no regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def new_image(self, name: str) -> Iterator[int]:
        """A descriptor of a new, empty image under its temporary name."""
        self._unlink(name + IMAGE + PARTIAL)
        with self.open(name + IMAGE + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            yield descriptor

    def publish(self, name: str, sidecar: Sidecar) -> None:
        """Make a copy of the image that was written under its temporary name, in place of an older one. Raises OSError."""
        self._unlink(name + SIDECAR + PARTIAL)
        with self.open(name + SIDECAR + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            rest = memoryview(encode(sidecar))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        self._unlink(name + SIDECAR)  # or it would speak for an image that is not its own
        for suffix in (IMAGE, SIDECAR):
            os.rename(name + suffix + PARTIAL, name + suffix, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        os.fsync(self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a copy, whole or not; nothing happens where there is none. The sidecar goes first. Raises OSError."""
        failed: OSError | None = None
        for suffix in (SIDECAR, SIDECAR + PARTIAL, IMAGE, IMAGE + PARTIAL):
            try:
                self._unlink(name + suffix)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def _take_lock(self) -> str:
        # Open for reading: that is enough for flock, and an operator can still remount the volume read-only.
        self._lock = os.open(LOCK, _FLAGS | os.O_CREAT | os.O_RDONLY, 0o600, dir_fd=self.descriptor)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(errno.EBUSY, "another process uses it") from None
        if os.fstatvfs(self.descriptor).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)  # what lies there can still be read
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return ""

    def _whole(self, name: str) -> Kept:
        sidecar, sidecar_bytes = self.sidecar(name)
        with self.open_image(name, sidecar):
            size_bytes = charged_bytes(sidecar.image_bytes, sidecar_bytes, self.block_bytes)
            return Kept(sidecar.ref, size_bytes, float(sidecar.written_s))
