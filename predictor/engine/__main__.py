"""A worker process: imports torch, says Hello, then builds and runs models until the front closes the socket.

    python -m predictor.engine KIND FRONT_PID DEVICE THREADS STREAM_FD CONTROL_FD PAGE_FD BOUNDARY SCRATCH

Only the front starts it, or forks it from the zygote (zygote.py). Standard output is the front's standard error: model code
may print, our sockets are not there.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import signal
import socket
import sys

from predictor.boundary import Boundary
from predictor.engine.process import die_with

Descriptors = tuple[int, int, int]
"""Of stream, control and page."""


def main() -> None:
    """Run until the front is gone."""
    kind = sys.argv[1]
    front, index, threads, stream, control, page = (int(argument) for argument in sys.argv[2:8])
    die_with(front)
    if os.getsid(0) != os.getpid():
        os.setsid()
    # SIGTERM and Ctrl-C go to the whole group; when the front is done with us it closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Importing makes half a million objects that all stay: looking through them for garbage costs 0.15 s of 1.15.
    gc.disable()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would begin here, outside the boundary
    from predictor.engine import server  # noqa: F401, PLC0415 (imports torch: only once the front's death is ours)

    set_threads(threads)
    work(kind, index, threads, (stream, control, page), sys.argv[8], sys.argv[9])


def work(kind: str, index: int, threads: int, descriptors: Descriptors, boundary: str, scratch: str) -> None:
    """Compute until the front is gone."""
    from predictor.engine.server import serve  # noqa: PLC0415 (as above)

    stream, control, page = descriptors
    serve(
        kind,
        threads,
        index=index,
        stream=socket.socket(fileno=stream),
        control=socket.socket(fileno=control),
        page=mmap.mmap(page, mmap.PAGESIZE),
    )


def start_over(front: int, index: int, threads: int, descriptors: Descriptors, boundary: str, scratch: str) -> None:
    """Become a worker that shares nothing with a zygote. Does not return."""
    numbers = [str(number) for number in (front, index, threads, *descriptors)]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 (the os module's own signature)
    os.execv(sys.executable, [sys.executable, "-m", "predictor.engine", "cpu", *numbers, boundary, scratch])  # noqa: S606 (our own)


def set_threads(threads: int) -> None:
    """Tell the libraries that were imported by another process, or without threads, how many they have."""


def reseed() -> None:
    """Two workers of one zygote shall not draw the same numbers. Python's own generator does this by itself."""
    import numpy as np  # noqa: PLC0415 (the zygote has it)
    import torch  # noqa: PLC0415 (as above)

    random.seed()
    np.random.seed()  # noqa: NPY002 (the one that everybody shares is the one in question)
    torch.default_generator.seed()


if __name__ == "__main__":
    main()
    os._exit(0)  # a thread that still builds a model must not keep the process
