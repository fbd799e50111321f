"""The zygote: imports what every worker of a CPU pod needs, computes nothing, and forks workers when the front asks.

    python -m predictor.engine.zygote FRONT_PID REQUESTS_FD BOUNDARY

A worker costs what it changes: 6 MB and 30 ms instead of 340 MB and 1.2 s. Two forks make it: the one in between ends at once,
so the worker is an orphan, and orphans are the front's children (PR_SET_CHILD_SUBREAPER): it sees their end, its end is
theirs, and the zygote's is nobody's. What stays out: what a worker does (server.py), who asks (workers/zygote.py).
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Final, NamedTuple

from predictor.engine.process import die_with, name_process

REQUEST: Final = struct.Struct("<II")
DESCRIPTORS: Final = 4
REQUEST_BYTES: Final = 8192

REST_AFTER_S: Final = 3.0
"""What only some models need is imported when nobody asked for so long: a first worker loads its first models just then."""

ADOPTION_S: Final = 10.0
"""Longest wait of a worker for its process in between to end, which takes 5 ms."""


class Request(NamedTuple):
    """One worker to fork. See workers/zygote.py for the message."""

    device: int
    threads: int
    scratch: str
    name: str
    stream: int
    control: int
    page: int
    report: int


def main() -> None:
    """Fork until the front is gone."""
    front, requests = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    die_with(front)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.disable()  # see __main__.py
    # numpy's OpenBLAS starts its threads when it is imported; workers set their number themselves.
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from predictor.engine import server  # noqa: F401, PLC0415 (imports torch: only once the front's death is ours)

    os.environ["OPENBLAS_NUM_THREADS"] = threads
    gc.freeze()  # a child's collections shall not write to what it shares with us
    name_process("hearth-zygote")
    complete = False
    while True:
        if not select.select([requests], [], [], None if complete else REST_AFTER_S)[0]:
            _import_rest()
            complete = True
            continue
        request = _receive(requests)
        if request is None:
            return
        _fork(request, front, requests)


def _import_rest() -> None:
    from predictor.engine import onnx, pytorch  # noqa: F401, PLC0415 (see REST_AFTER_S)

    onnx.warm_up()
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)


def _receive(requests: socket.socket) -> Request | None:
    """The next request. None: the front is gone, or done with us."""
    told, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not told:
        return None
    assert len(descriptors) == DESCRIPTORS, f"{len(descriptors)} descriptors came with a request"
    device, threads = REQUEST.unpack_from(told)
    scratch, _, name = told[REQUEST.size :].partition(b"\0")
    return Request(device, threads, os.fsdecode(scratch), name.decode(), *descriptors)


def _fork(request: Request, front: int, requests: socket.socket) -> None:
    alone = len(os.listdir("/proc/self/task")) == 1
    try:
        between = os.fork()
        if not between:
            _between(request, front, requests, alone=alone)
        os.waitpid(between, 0)
    except OSError as error:
        print(f"hearth: a worker could not be forked: {error}", file=sys.stderr)  # noqa: T201 (a process without a log)
    finally:
        # The last to close it: now the worker is the front's child, or will never be.
        for descriptor in request[4:]:
            os.close(descriptor)


def _between(request: Request, front: int, requests: socket.socket, *, alone: bool) -> None:
    """The process between zygote and worker. Does not return."""
    status = 1
    try:
        requests.close()
        pid = os.fork()
        if pid:
            os.write(request.report, pid.to_bytes(8, "little"))
        else:
            _live(request, front, alone=alone)
        status = 0
    except BaseException:  # noqa: BLE001 (the root of a process)
        traceback.print_exc()
    finally:
        os._exit(status)


def _live(request: Request, front: int, *, alone: bool) -> None:
    """The worker, until its front is done with it."""
    os.close(request.report)
    os.setsid()
    give_up_s = time.monotonic() + ADOPTION_S
    while os.getppid() != front:
        if time.monotonic() > give_up_s:
            return
        time.sleep(0.0005)
    die_with(front)
    name_process(f"hearth-worker {request.name}")
    from predictor.engine import __main__ as worker  # noqa: PLC0415 (imports nothing that is not here by now)

    descriptors = (request.stream, request.control, request.page)
    if not alone:
        # A library started a thread here: it may have held any lock when we forked, so nothing is safe but to start over.
        worker.start_over(front, request.device, request.threads, descriptors, sys.argv[3], request.scratch)
    worker.reseed()
    worker.set_threads(request.threads)
    worker.work("cpu", request.device, request.threads, descriptors, sys.argv[3], request.scratch)


if __name__ == "__main__":
    main()
    os._exit(0)
