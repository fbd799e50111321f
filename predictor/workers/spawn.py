"""Starts a worker process. Standard library only: the boot does this before it imports anything else.

What stays out: talking to the process and starting it again (worker.py).
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "VIRTUAL_ENV")
KEPT_PREFIXES: Final = ("LC_", "LD_", "PYTHON", "CUDA", "NVIDIA", "COV_CORE")
"""What a worker's environment keeps of the front's. Credentials are not in it: model code runs there."""


class Spawned(NamedTuple):
    """A worker process on its way up.

    stream   frames of wire.py
    control  the descriptor of the weights, once
    page     eight bytes shared with the worker: the id of the request that it computes right now, 0 for none. It
             outlives the worker, and so tells which request was inside when it died
    """

    process: subprocess.Popen[bytes]
    stream: socket.socket
    control: socket.socket
    page: mmap.mmap


def spawn(device: int, kind: str, threads: int) -> Spawned:
    """Start the worker of ``device``, which computes with ``threads`` threads. Its standard output goes to our stderr."""
    stream, stream_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = os.memfd_create("hearth:running", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    theirs = (stream_theirs.fileno(), control_theirs.fileno(), descriptor)
    numbers = [str(number) for number in (os.getpid(), device, threads, *theirs)]
    try:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", "predictor.engine", kind, *numbers],
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
            pass_fds=theirs,
        )
        return Spawned(process, stream, control, mmap.mmap(descriptor, mmap.PAGESIZE))
    finally:
        stream_theirs.close()
        control_theirs.close()
        os.close(descriptor)


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


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    # Libraries size their pools when they are imported, from the host's cores unless told otherwise.
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return kept | pools
