"""Landlock: a process gives up what it may open, for ever and for its children, and needs no privilege for it.

What is not allowed is forbidden. Source: Linux (5.13 and later), Documentation/userspace-api/landlock.rst. What stays out:
what a worker is allowed (confine.py).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

CREATE_RULESET: Final = 444
ADD_RULE: Final = 445
RESTRICT_SELF: Final = 446
"""System calls, the same on every architecture."""

VERSION: Final = 1
PATH_BENEATH: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""What there is to forbid about files, from which version on."""

OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ: Final = EXECUTE | READ_FILE | READ_DIR
USE: Final = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV | READ_DIR
OWN: Final = RIGHTS[3] & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK)
"""To read a folder and run what is in it; to use a device; to do anything but run in a folder."""

NETWORK_VERSION: Final = 4
BIND_AND_CONNECT_TCP: Final = 3
SCOPE_VERSION: Final = 6
SOCKETS_AND_SIGNALS: Final = 3

_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Which version of Landlock the kernel has; 0: none, or it is switched off."""
    found = _syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))
    return max(int(found), 0)


class Ruleset:
    """What this process will be allowed. It needs no_new_privs, or CAP_SYS_ADMIN.

    network  whether TCP stays as it is
    """

    def __init__(self, *, network: bool) -> None:
        known = version()
        self._rights = max(rights for since, rights in RIGHTS.items() if since <= known)
        tcp = BIND_AND_CONNECT_TCP if known >= NETWORK_VERSION and not network else 0
        scoped = SOCKETS_AND_SIGNALS if known >= SCOPE_VERSION else 0
        told = _Ruleset(self._rights, tcp, scoped)
        # A kernel that knows fewer fields takes the whole if the others are zero.
        self._descriptor = _checked(
            _syscall(
                ctypes.c_long(CREATE_RULESET), ctypes.byref(told), ctypes.c_size_t(ctypes.sizeof(told)), ctypes.c_uint32(0)
            )
        )

    def allow(self, path: Path, rights: int) -> int:
        """Allow ``rights`` on ``path`` and, if it is a folder, beneath. Returns a descriptor of it, the caller's.

        OSError: it cannot be had.
        """
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        told = _Beneath(rights & self._rights & (self._rights if folder else OF_FILES), descriptor)
        try:
            _checked(
                _syscall(
                    ctypes.c_long(ADD_RULE),
                    ctypes.c_int(self._descriptor),
                    ctypes.c_int(PATH_BENEATH),
                    ctypes.byref(told),
                    ctypes.c_uint32(0),
                )
            )
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def enforce(self) -> None:
        """From now on, for this thread and what it starts."""
        _checked(_syscall(ctypes.c_long(RESTRICT_SELF), ctypes.c_int(self._descriptor), ctypes.c_uint32(0)))
        os.close(self._descriptor)


def outside(paths: Iterable[Path], hidden: Iterable[Path]) -> Iterator[Path]:
    """``paths`` without what is ``hidden``: Landlock knows no exceptions, so a folder that holds one is told entry by entry.

    Symbolic links in such a folder are left out; where they lead may be allowed by itself.
    """
    shut = {Path(os.path.realpath(path)) for path in hidden}
    left = [Path(os.path.realpath(path)) for path in paths]
    while left:
        path = left.pop()
        if path in shut or not shut.isdisjoint(path.parents):
            continue
        if any(path in one.parents for one in shut):
            try:
                left += [entry for entry in path.iterdir() if not entry.is_symlink()]
            except OSError:
                continue
        else:
            yield path


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
