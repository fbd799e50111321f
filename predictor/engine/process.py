"""What Linux is asked about the process itself: whose death is ours, and what it is called."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15

ARGUMENTS: Final = 45
"""Which of the fields of /proc/self/stat behind the command's name is the address of the arguments; the next is their end."""

EXPENDABLE: Final = 100
"""What is added to a worker's badness, in thousandths of all memory."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def die_with(front: int) -> None:
    """Have the kernel kill this process when the front dies, its parent, and end at once if it died already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front:
        sys.exit(0)


def part_from_forks(*sockets: int) -> None:
    """Have what this process forks die when it does, and find nothing but an end where ``sockets`` are.

    Else it would hold them open, so that nobody noticed our death, and one that returned into our loop would read and
    answer our messages. This is for forks of Python's; subprocess closes descriptors for the programs that it starts, which
    die with our process group.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def hook() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for descriptor in sockets:
            os.dup2(nothing, descriptor, inheritable=False)

    os.register_at_fork(after_in_child=hook)


def be_looked_into(*, allowed: bool) -> None:
    """Whether other processes of our user may read and write this one's memory, where no Landlock keeps them from that.

    While they may not, its files in /proc belong to root, and only root opens them for writing.
    """
    _libc.prctl(PR_SET_DUMPABLE, int(allowed), 0, 0, 0)


def name_process(name: str) -> None:
    """Have lists of processes show ``name`` instead of the command."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(fields[ARGUMENTS]), int(fields[ARGUMENTS + 1])
        # Over the arguments the kernel gave us, in their place.
        ctypes.memmove(begin, name.encode()[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def expendable() -> None:
    """Have the kernel, when memory is short, end a worker before the front that would start it again."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(min(int(path.read_text()) + EXPENDABLE, 1000)))
