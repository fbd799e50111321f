"""A worker process: imports torch, says Hello, then builds and runs models until the front closes the socket.

    python -m predictor.engine KIND FRONT_PID DEVICE THREADS STREAM_FD CONTROL_FD PAGE_FD OUTPUT_FD BOUNDARY SCRATCH

Only the front starts it, or forks it from the zygote (zygote.py). Standard output and error are a pipe to the front
(workers/output.py): model code may print, our sockets are not there.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from predictor.boundary import Boundary
from predictor.engine import confine
from predictor.engine.process import die_with, expendable, part_from_forks


class Start(NamedTuple):
    """What a worker is told: whose it is, what it computes on, its descriptors, and its bounds.

    boundary  as boundary.Boundary tells it
    scratch   the one folder it may write to; "": there is none
    """

    front: int
    device: int
    threads: int
    stream: int
    control: int
    page: int
    output: int
    boundary: str
    scratch: str

    def arguments(self) -> list[str]:
        """As a command takes it."""
        return [str(value) for value in self]

    @classmethod
    def parse(cls, arguments: list[str]) -> Start:
        """What ``arguments`` made."""
        front, device, threads, stream, control, page, output = (int(argument) for argument in arguments[:7])
        return cls(front, device, threads, stream, control, page, output, *arguments[7:])


def main() -> None:
    """Run until the front is gone."""
    kind, start = sys.argv[1], Start.parse(sys.argv[2:])
    die_with(start.front)
    print_to(start.output)
    if os.getsid(0) != os.getpid():  # else a zygote's child started over
        os.setsid()
    ignore_signals()
    confine.complain(Boundary.heard(start.boundary))
    # Importing makes half a million objects that all stay: looking through them for garbage costs 0.15 s of 1.15.
    gc.disable()
    import_alone()
    work(kind, start)


def print_to(output: int) -> None:
    """Make the descriptor ``output`` standard output and error."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def ignore_signals() -> None:
    """SIGTERM and Ctrl-C may go to everybody; when the front is done with us it closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def import_alone() -> None:
    """Import torch and what else every worker needs, without a second thread: it would not be confined, nor forked.

    Only numpy's OpenBLAS starts some when it is imported; ``set_threads`` gives them to it later.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from predictor.engine import server  # noqa: F401, PLC0415 (only once the front's death is ours)


def work(kind: str, start: Start) -> None:
    """Compute until the front is gone."""
    from predictor.engine import memory, server  # noqa: PLC0415 (as above)

    expendable()
    part_from_forks(start.stream, start.control)
    memory.open_counter()
    confine.settle(start.scratch)
    confine.confine(Boundary.heard(start.boundary), start.scratch, kind=kind)
    set_threads(start.threads)
    server.serve(
        kind,
        start.threads,
        index=start.device,
        stream=socket.socket(fileno=start.stream),
        control=socket.socket(fileno=start.control),
        page=mmap.mmap(start.page, mmap.PAGESIZE),
    )


def start_over(start: Start) -> None:
    """Become a worker that shares nothing with the zygote that forked it. Does not return."""
    for descriptor in (start.stream, start.control, start.page, start.output):
        os.set_inheritable(descriptor, True)  # noqa: FBT003 (the os module's own signature)
    os.execv(sys.executable, [sys.executable, "-m", "predictor.engine", "cpu", *start.arguments()])  # noqa: S606 (our own)


def set_threads(threads: int) -> None:
    """Tell the libraries how many they have; torch is told by the server."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    if threads > 1:
        with Path("/proc/self/maps").open() as maps:
            paths = {line.split()[-1] for line in maps if "openblas" in line}
        for library in map(ctypes.CDLL, paths):
            for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads"):
                if hasattr(library, name):
                    getattr(library, name)(threads)


def reseed() -> None:
    """Two workers of one zygote shall not draw the same numbers. Python's own generator does this by itself."""
    import torch  # noqa: PLC0415 (the zygote has it)

    torch.default_generator.seed()
    if "numpy.random" in sys.modules:  # else it is seeded when somebody imports it, which takes 5 MB
        sys.modules["numpy.random"].seed()


if __name__ == "__main__":
    main()
    os._exit(0)  # a thread that still builds a model must not keep the process
