"""Starts a worker process, and what is known of one from outside. Standard library only: the boot does this first of all.

What stays out: forking workers instead of starting them (zygote.py), talking to one and starting its successor (worker.py).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from predictor.boundary import Boundary
from predictor.workers import scratch

KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "VIRTUAL_ENV")
KEPT_PREFIXES: Final = ("LC_", "LD_", "PYTHON", "CUDA", "NVIDIA", "COV_CORE")
"""What a worker's environment keeps of the front's. Credentials are not in it: model code runs there."""

PID_BYTES: Final = 8
"""What a forked worker's process id is told in, little-endian."""

PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37

MADE_S: Final = 10.0
"""How long a process that is to be killed may take to be made, before its maker is taken to be stuck and is killed, too. A
zygote forks in 30 ms, once it has imported everything, which takes seconds."""

LOST: Final = 255
"""The exit status of a process that was never made, or whose end somebody else saw."""


class Process(Protocol):
    """A worker process, as far as whoever watches over it is concerned.

    pid  0 until it is known: a fork may have been asked for and not be done
    """

    @property
    def pid(self) -> int:
        """See above."""

    def poll(self) -> int | None:
        """None: it runs, or is being made. Else how it ended: an exit status, or minus the signal that killed it."""

    def kill(self) -> None:
        """SIGKILL, also when the process is yet to be made. Never raises."""

    def wait(self) -> int:
        """``poll`` when there is an answer. Blocks."""


class Spawned(NamedTuple):
    """A worker process on its way up.

    stream   frames of wire.py
    control  the descriptor of the weights, once
    page     sixteen bytes shared with the worker: the ids of the requests that it computes and that it builds right now, 0 for
             none. It outlives the worker, and so tells which requests were inside when it died
    output   what it prints: a pipe's end to read, and the receiver's to close; -1: it has none
    scratch  the folder that it may write to; "": it has none
    """

    process: Process
    stream: socket.socket
    control: socket.socket
    page: mmap.mmap
    output: int = -1
    scratch: str = ""

    def abandon(self) -> None:
        """Kill a process that nobody listens to yet, and close what is ours of it; its end is the caller's to see."""
        self.process.kill()
        self.stream.close()
        self.control.close()
        self.page.close()
        if self.output >= 0:
            os.close(self.output)


Starter: TypeAlias = Callable[[int, str, int, str], Spawned]
"""(device, kind, threads, name) → a worker on its way up. Returns at once, and what fails ends by itself. OSError: there are no
descriptors for it."""


class Child:
    """A process that is our child, or will be.

    pid      0: ``report`` tells it
    report   where PID_BYTES come from when the process was forked; it ends when the child is ours, and this object closes it
    maker    who was asked to fork it; None: nobody
    scratch  the folder that it may write to, removed when it is dead; "": none

    Every worker leads a process group: what it started and left behind dies with it.
    """

    def __init__(self, pid: int = 0, *, report: int = -1, scratch: str = "", status: int | None = None) -> None:
        self.pid = pid
        self.maker: Child | None = None
        self._report = report
        self._scratch = scratch
        self._status = status
        self._told = b""
        self._condemned = False
        self._lock = threading.Lock()  # poll() on the loop, wait() in a thread
        _known.add(self)

    def poll(self) -> int | None:
        """See Process."""
        with self._lock:
            if self._status is None and (self._report < 0 or self._hear()):
                self._look()
            return self._status

    def kill(self) -> None:
        """See Process."""
        with self._lock:
            first, self._condemned = not self._condemned, True
            if self._status is None and self._report >= 0:
                self._hear()
            if self._status is None and self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            elif self._status is None and first:  # nobody may ever ask for it again
                threading.Thread(target=self.wait, name="hearth-kill", daemon=True).start()

    def wait(self) -> int:
        """See Process."""
        while (status := self.poll()) is None:
            if (report := self._report) >= 0:
                if not _readable(report, MADE_S if self._condemned else None) and self.maker is not None:
                    self.maker.kill()  # what it was asked for ends with it, so this, too
            else:
                try:
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                except ChildProcessError:
                    time.sleep(0.001)  # between two parents
        return status

    def hear(self) -> None:
        """Learn the pid if it is told by now."""
        with self._lock:
            if self._status is None and self._report >= 0:
                self._hear()

    def _hear(self) -> bool:
        """Whether the process is ours by now; a pid that comes is learned, and an end without one is the process's."""
        while _readable(self._report, 0):
            told = os.read(self._report, PID_BYTES)
            self._told += told
            if len(self._told) == PID_BYTES and not self.pid:
                self.pid = int.from_bytes(self._told, "little")
                if self._condemned:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)
            if not told:
                os.close(self._report)
                self._report = -1
                if not self.pid:
                    self._end(LOST)
                return bool(self.pid)
        return False

    def _look(self) -> None:
        try:
            # Look first: as long as the pid is not given back, the group of that number is nobody else's.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            if not Path(f"/proc/{self.pid}").exists():
                self._end(LOST)
            return
        bury(self.pid)
        self._end(os.waitstatus_to_exitcode(status))

    def _end(self, status: int) -> None:
        self._status = status
        if self._scratch:
            scratch.remove(self._scratch)


def adopt(*, orphans: bool) -> bool:
    """Whether processes that our descendants leave behind become our children. Returns what was so before."""
    import ctypes  # noqa: PLC0415 (not before a zygote is on its way)

    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)
    return bool(before.value)


def shut() -> None:
    """Let no process of our user look into this one, and no core dump hold its secrets. Debuggers need root from now on."""
    import ctypes  # noqa: PLC0415 (as above)
    import resource  # noqa: PLC0415 (as above)

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


_groups: set[int] = set()
_known: weakref.WeakSet[Child] = weakref.WeakSet()
_killed: set[int] = set()


def bury(group: int = 0) -> None:
    """Take note of the deaths in process groups whose leader is dead: their members are ours when they are orphans.

    group  one more
    """
    if group:
        _groups.add(group)
    for known in tuple(_groups):
        try:
            while os.waitpid(-known, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            _groups.discard(known)


def end_orphans() -> None:
    """Kill what dead workers left behind in sessions of its own, and take note of all deaths.

    Who is ours, in another session than ours, and neither a worker nor in the session of one, was a worker's.
    """
    bury()
    found: set[int] = set()
    with contextlib.suppress(OSError):  # a thread that ended meanwhile, or no descriptor is left: then the next time
        for thread in Path("/proc/self/task").iterdir():  # each lists its own
            found |= set(map(int, (thread / "children").read_text().split()))
    # After the list: whoever is in it, and was forked for us, has told its pid before it became our child.
    for child in tuple(_known):
        child.hear()
    ours = {child.pid for child in _known}
    for pid in found - ours:
        with contextlib.suppress(OSError):
            if os.getsid(pid) not in ours | {os.getsid(0)}:
                _killed.add(pid)
                os.kill(pid, signal.SIGKILL)
    for pid in tuple(_killed):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                _killed.discard(pid)
        except ChildProcessError:
            _killed.discard(pid)


class Ends(NamedTuple):
    """A worker's sockets, page and output: ours, and its own as descriptors."""

    stream: socket.socket
    control: socket.socket
    page: mmap.mmap
    output: int
    theirs: tuple[int, int, int, int]

    @classmethod
    def make(cls) -> Ends:
        """Make them. OSError: there are no more descriptors to be had."""
        stream, stream_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = os.memfd_create("hearth:running", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        try:
            page = mmap.mmap(descriptor, mmap.PAGESIZE)
            output, output_theirs = os.pipe()
        except OSError:
            os.close(descriptor)
            raise
        return cls(stream, control, page, output, (stream_theirs.detach(), control_theirs.detach(), descriptor, output_theirs))

    def spawned(self, process: Process, folder: str) -> Spawned:
        """Ours, of this process."""
        return Spawned(process, self.stream, self.control, self.page, self.output, folder)

    def close_theirs(self) -> None:
        """They have them."""
        for descriptor in self.theirs:
            os.close(descriptor)


def spawn(device: int, kind: str, threads: int) -> Spawned:
    """Start the worker of ``device``, which computes with ``threads`` threads."""
    ends = Ends.make()
    folder = scratch.make()
    numbers = [str(number) for number in (os.getpid(), device, threads, *ends.theirs)]
    try:
        arguments = ["-m", "predictor.engine", kind, *numbers, Boundary.from_environment().told(), folder]
        process = Child(execute(arguments, ends.theirs, threads, output=ends.theirs[3]), scratch=folder)
    except OSError as error:
        print(f"hearth: no worker could be started: {error}", file=sys.stderr)  # noqa: T201 (no log is set up at boot)
        process = Child(scratch=folder, status=LOST)
    finally:
        ends.close_theirs()
    return ends.spawned(process, folder)


def execute(arguments: list[str], kept: tuple[int, ...], threads: int, *, output: int = -1) -> int:
    """Start our interpreter with ``arguments``, the descriptors ``kept`` and a scrubbed environment. Returns its pid.

    OSError: the system has no room for it.

    output  where it prints; -1: where we do
    """
    if output < 0:
        output = sys.__stderr__.fileno() if sys.__stderr__ else 2
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
        *((os.POSIX_SPAWN_DUP2, descriptor, descriptor) for descriptor in kept),  # onto itself: inherited from now on
    ]
    return os.posix_spawn(sys.executable, [sys.executable, *arguments], environment(threads), file_actions=actions)


def _readable(descriptor: int, timeout_s: float | None) -> bool:
    poll = select.poll()  # select.select knows no descriptors above 1023, and a front has more
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1e3))


def cpu_quota(root: Path = Path("/")) -> int:
    """How many threads computing at once get a core: the container's CPU quota, rounded up, at most the allowed cores.

    root  holds /sys/fs/cgroup, version 2 or 1
    """
    cores = len(os.sched_getaffinity(0))
    cgroup = root / "sys/fs/cgroup"
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cores
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max" or -1: no quota
        return cores
    return max(1, min(cores, -(-int(quota) // int(period))))


def environment(threads: int) -> dict[str, str]:
    """A worker's environment."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    # Libraries size their pools when they are imported, from the host's cores unless told otherwise.
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # ONNX Runtime 1.31 tells its maker what it runs, from a thread of its own that begins with the import.
    return kept | pools | {"ORT_DISABLE_TELEMETRY": "1"}
