"""The zygote: imports what every worker of a CPU pod needs, computes nothing, and forks workers when the front asks.

    python -m predictor.engine.zygote FRONT_PID REQUESTS_FD BOUNDARY

A worker costs what it changes: 9 MB instead of 340 (docs/benchmarks.md, "One more worker"). Two forks make it: the one in
between ends at once, so the worker is an orphan, and orphans are the front's children (PR_SET_CHILD_SUBREAPER): it sees their
end, its end is theirs, and the zygote's is nobody's. What stays out: what a worker does (server.py), who asks
(workers/zygote.py).
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from predictor.boundary import Boundary
from predictor.engine import __main__ as worker
from predictor.engine import confine
from predictor.engine.process import be_looked_into, die_with, name_process

REQUEST: Final = struct.Struct("<II")
DESCRIPTORS: Final = 5
REQUEST_BYTES: Final = 8192

REST_AFTER_S: Final = 3.0
"""What only some models need is imported when nobody asked for so long: a first worker loads its first models just then."""

ADOPTION_S: Final = 10.0
"""Longest wait of a worker for its process in between to end, which takes 5 ms."""


def main() -> None:
    """Fork until the front is gone."""
    front, requests = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    die_with(front)
    os.setsid()
    worker.ignore_signals()
    boundary = Boundary.heard(sys.argv[3])
    confine.complain(boundary)
    if boundary.mode != "off":  # who writes into it writes into every worker to come
        be_looked_into(allowed=False)
    gc.disable()  # see __main__.py
    worker.import_alone()
    gc.freeze()  # a child's collections shall not write to what it shares with us
    name_process("hearth-zygote")
    complete = False
    while True:
        if not select.select([requests], [], [], None if complete else REST_AFTER_S)[0]:
            _import_rest()
            complete = True
            continue
        request = _receive(requests, front)
        if request is None:
            return
        _fork(requests, *request)


def _import_rest() -> None:
    import numpy.random  # noqa: F401, PLC0415 (see REST_AFTER_S; numpy leaves it until it is asked for)

    from predictor.engine import onnx, pytorch, server  # noqa: F401, PLC0415 (as above)

    onnx.warm_up()
    server.runtimes()
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)


def _receive(requests: socket.socket, front: int) -> tuple[worker.Start, str, int] | None:
    """The next worker to fork, its name, and where its pid is told. None: the front is gone, or done with us."""
    told, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not told:
        return None
    assert len(descriptors) == DESCRIPTORS, f"{len(descriptors)} descriptors came with a request"
    device, threads = REQUEST.unpack_from(told)
    scratch, _, name = told[REQUEST.size :].partition(b"\0")
    *ends, report = descriptors
    stream, control, page, output = ends
    start = worker.Start(front, device, threads, stream, control, page, output, sys.argv[3], os.fsdecode(scratch))
    return start, name.decode(), report


def _fork(requests: socket.socket, start: worker.Start, name: str, report: int) -> None:
    alone = len(list(Path("/proc/self/task").iterdir())) == 1
    try:
        between = os.fork()
        if not between:
            requests.close()
            _between(start, name, report, alone=alone)
        os.waitpid(between, 0)
    except OSError as error:
        print(f"hearth: a worker could not be forked: {error}", file=sys.stderr)  # noqa: T201 (a process without a log)
    finally:
        # The last to close it: now the worker is the front's child, or will never be.
        for descriptor in (start.stream, start.control, start.page, start.output, report):
            os.close(descriptor)


def _between(start: worker.Start, name: str, report: int, *, alone: bool) -> None:
    """The process between zygote and worker. Does not return."""
    status = 1
    try:
        pid = os.fork()
        if pid:
            os.write(report, pid.to_bytes(8, "little"))
        else:
            os.close(report)
            _live(start, name, alone=alone)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else status
    except BaseException:  # noqa: BLE001 (the root of a process)
        traceback.print_exc()
    finally:
        os._exit(status)


def _live(start: worker.Start, name: str, *, alone: bool) -> None:
    """The worker, until its front is done with it."""
    os.setsid()
    give_up_s = time.monotonic() + ADOPTION_S
    while os.getppid() != start.front:
        if time.monotonic() > give_up_s:
            return
        time.sleep(0.0005)
    die_with(start.front)
    be_looked_into(allowed=True)  # until confine() ends that: what it does before writes to its own files in /proc
    name_process(f"hearth-worker {name}")
    if not alone:
        # A library started a thread here: it may have held any lock when we forked, so nothing is safe but to start over.
        worker.start_over(start)
    worker.print_to(start.output)
    worker.reseed()
    worker.work("cpu", start)


if __name__ == "__main__":
    main()
    os._exit(0)
