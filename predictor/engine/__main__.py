"""A worker process: imports torch, says Hello, then builds and runs models until the front closes the socket.

    python -m predictor.engine KIND FRONT_PID DEVICE THREADS STREAM_FD CONTROL_FD PAGE_FD

Only the front starts it. Standard output is the front's standard error: model code may print, our sockets are not there.
LIMIT_BYTES is how much models may allocate together before an allocation fails; 0: as much as there is.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import socket
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Run until the front is gone."""
    kind = sys.argv[1]
    front, index, threads, stream, control, page = (int(argument) for argument in sys.argv[2:8])
    _die_with(front)
    # SIGTERM and Ctrl-C go to the whole group; when the front is done with us it closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Importing makes half a million objects that all stay: looking through them for garbage costs 0.15 s of 1.15.
    gc.disable()
    from predictor.engine.server import serve  # noqa: PLC0415 (imports torch: only once the front's death is ours)

    serve(
        kind,
        threads,
        index=index,
        stream=socket.socket(fileno=stream),
        control=socket.socket(fileno=control),
        page=mmap.mmap(page, mmap.PAGESIZE),
    )


def _die_with(front: int) -> None:
    """Have the kernel kill this process when the front dies, and end at once if it died already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front:
        sys.exit(0)


if __name__ == "__main__":
    main()
    os._exit(0)  # a thread that still builds a model must not keep the process
