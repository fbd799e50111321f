"""A filter of system calls, as a small BPF program: what no model has to call fails with EPERM, for ever and for children too.

It forbids what reaches other processes of the same user (Landlock does not know all of it, and older kernels have no
Landlock), sockets, and what kernels were most often broken into through. Everything else is allowed: a list of what is
allowed would break with the next version of torch. Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
from typing import Final, NamedTuple

PR_SET_SECCOMP: Final = 22
MODE_FILTER: Final = 2

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW: Final = 0x7FFF0000
FAIL: Final = 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Where a filter finds them in what it is shown; arguments take eight bytes each, the lower half first."""

X32: Final = 0x40000000
"""x86-64 has a second set of numbers from here on."""

AF_UNIX: Final = 1
TIOCSTI: Final = 0x5412
NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET: what unshare is forbidden for, clone makes as well."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36

MACHINES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""What the kernel calls the architecture, and which column of the tables below holds its numbers."""

FORBIDDEN: Final = {
    "other processes": (
        (101, 117), (310, 270), (311, 271), (312, 272),  # ptrace, process_vm_readv, process_vm_writev, kcmp
        (434, 434), (438, 438), (424, 424), (256, 238), (279, 239),  # pidfds, migrate_pages, move_pages
    ),
    "leaving the process group": ((112, 157), (109, 154)),  # setsid, setpgid: what a worker leaves behind is found by it
    "the kernel's own": (
        (246, 104), (320, 294), (175, 105), (313, 273), (176, 106),  # kexec_load, kexec_file_load, modules
        (169, 142), (170, 161), (171, 162), (167, 224), (168, 225),  # reboot, host and domain name, swap
        (163, 89), (103, 116), (179, 60), (172, -1), (173, -1), (154, -1),  # acct, syslog, quotactl, iopl, ioperm, modify_ldt
        (227, 112), (164, 170), (159, 171), (305, 266),  # clocks
    ),
    "mounts and namespaces": (
        (165, 40), (166, 39), (155, 41), (161, 51), (272, 97), (308, 268),  # mount, umount2, pivot_root, chroot, unshare, setns
        (428, 428), (429, 429), (430, 430), (431, 431), (432, 432), (433, 433), (442, 442),  # the newer mount interface
        (303, 264), (304, 265),  # files by handle, past the folders that lead to them
    ),
    "what outlives its process": (  # System V's memory, semaphores and queues, and POSIX's queues: nobody would remove them
        (29, 194), (64, 190), (68, 186), (240, 180),
    ),
    "broken into most often": (
        (321, 280), (298, 241), (323, 282), (248, 217), (249, 218), (250, 219),  # bpf, perf_event_open, userfaultfd, keys
        (425, 425), (426, 426), (427, 427),  # io_uring, which also makes calls that no filter sees
    ),
}  # fmt: skip
"""By number on x86-64 and on arm64; -1: there is no such call."""

KILL, TKILL, TGKILL, QUEUE, TGQUEUE = (62, 129), (200, 130), (234, 131), (129, 138), (297, 240)
PRLIMIT, SETPRIORITY, SETSCHEDULER, SETPARAM, SETATTR = (302, 261), (141, 140), (144, 119), (142, 118), (314, 274)
PRCTL, SOCKET, IOCTL, CLONE, CLONE3 = (157, 167), (41, 198), (16, 29), (56, 220), (435, 435)


class Filter(NamedTuple):
    """What to forbid beside FORBIDDEN.

    network   sockets stay as they are
    local     if not: those of the machine itself (AF_UNIX) do, which CUDA uses
    signals   signals to other processes stay as they are: something else forbids them where they are not due
    """

    network: bool
    local: bool
    signals: bool

    def program(self, pid: int, machine: str) -> bytes:
        """The filter for process ``pid``. KeyError: no such ``machine`` is known."""
        architecture, column = MACHINES[machine]
        code = [
            (LOAD, 0, 0, ARCHITECTURE), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, FAIL | errno.EPERM),
            (LOAD, 0, 0, NUMBER), (JUMP_AT_LEAST, 0, 1, X32), (RETURN, 0, 0, FAIL | errno.ENOSYS),
        ]  # fmt: skip
        for numbers in (both[column] for group in FORBIDDEN.values() for both in group if both[column] >= 0):
            code += [(JUMP_EQUAL, 0, 1, numbers), (RETURN, 0, 0, FAIL | errno.EPERM)]
        ours = (0, pid)
        code += _only(PRLIMIT[column], 0, ours) + _only(SETPRIORITY[column], 1, ours)
        for call in (SETSCHEDULER, SETPARAM, SETATTR):
            code += _only(call[column], 0, ours)
        if not self.signals:
            for call in (KILL, TGKILL, QUEUE, TGQUEUE):
                code += _only(call[column], 0, ours)
            code += _only(TKILL[column], 0, (pid,))
        if not self.network:
            code += _only(SOCKET[column], 0, (AF_UNIX,) if self.local else (), errno.EACCES)
        code += _never(PRCTL[column], 0, (PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER)) + _deadly(PRCTL[column])
        code += _never(IOCTL[column], 1, (TIOCSTI,))
        code += _if(CLONE[column], 0, [(JUMP_ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, FAIL | errno.EPERM)])
        # Its flags lie in memory, where no filter sees them: the C library goes back to clone where there is none.
        code += [(JUMP_EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
        code.append((RETURN, 0, 0, ALLOW))
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

    def enforce(self) -> None:
        """From now on, for this thread and what it starts; needs no_new_privs. OSError: the kernel or the machine cannot."""
        try:
            program = self.program(os.getpid(), platform.machine())
        except KeyError:
            raise OSError(errno.ENOSYS, f"no numbers of system calls for {platform.machine()}") from None
        buffer = ctypes.create_string_buffer(program, len(program))
        told = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(MODE_FILTER), ctypes.create_string_buffer(told, len(told)), 0, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


Code = list[tuple[int, int, int, int]]


def _only(number: int, argument: int, allowed: tuple[int, ...], error: int = errno.EPERM) -> Code:
    """``number`` fails unless its argument is one of ``allowed``."""
    checks: Code = [(JUMP_EQUAL, len(allowed) - at, 0, value) for at, value in enumerate(allowed)]
    return _if(number, argument, [*checks, (RETURN, 0, 0, FAIL | error)])


def _never(number: int, argument: int, forbidden: tuple[int, ...]) -> Code:
    """``number`` fails if its argument is one of ``forbidden``."""
    checks: Code = []
    for value in forbidden:
        checks += [(JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, FAIL | errno.EPERM)]
    return _if(number, argument, checks)


def _deadly(number: int) -> Code:
    """Who dies with its parent may say so, as forks do (process.py), but not take it back."""
    second = ARGUMENTS + 8
    kill: Code = [(LOAD, 0, 0, second), (JUMP_EQUAL, 1, 0, signal.SIGKILL), (RETURN, 0, 0, FAIL | errno.EPERM)]
    return _if(number, 0, [(JUMP_EQUAL, 0, len(kill), PR_SET_PDEATHSIG), *kill])


def _if(number: int, argument: int, then: Code) -> Code:
    """``then`` with the lower half of the argument, for one call; the number is loaded again behind it."""
    body: Code = [(LOAD, 0, 0, ARGUMENTS + 8 * argument), *then, (LOAD, 0, 0, NUMBER)]
    return [(JUMP_EQUAL, 0, len(body), number), *body]
