"""The front's side of the zygote: the process that has imported everything and forks workers when it is asked.

A worker that is forked is our child all the same (engine/zygote.py says how). What stays out: what the zygote does.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from predictor.boundary import Boundary
from predictor.workers import scratch
from predictor.workers.spawn import LOST, Child, Ends, Spawned, Starter, adopt, bury, execute, spawn

REQUEST: Final = struct.Struct("<II")
"""Device and threads; then the folder the worker may write to, a zero byte, and its name. engine/zygote.py reads it."""

NAME_LENGTH: Final = 200
"""Characters of a worker's name that lists of processes can show. A domain is called after its model and revision, of whatever
length, and a request is one message."""

BACKOFF_S: Final = (0.1, 10.0)
"""First and longest pause before a zygote is replaced whose predecessor died young, too; doubled by every further one.
Meanwhile forks fail, and whoever asked for them (workers/worker.py) waits and asks again."""

YOUNG_S: Final = 10.0


class Zygote:
    """One per pod that computes on the host's processor.

    threads  what its libraries are told at import; every worker has a number of its own
    output   what it prints to, a pipe's end: a log that nobody reads shall not stop it; -1: to standard error, as we do
    """

    def __init__(self, threads: int, *, output: int = -1, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = threads
        self._output = output
        self._clock = clock
        self._process = Child(status=LOST)
        self._requests: socket.socket | None = None
        self._died_young = 0
        self._started_s = 0.0
        self._died_s: float | None = None
        self._closed = False
        self._start()
        self._adopted_before = adopt(orphans=True)

    @property
    def pid(self) -> int:
        """Of the zygote that lives, or lived last."""
        return self._process.pid

    def fork(self, device: int, threads: int, *, name: str) -> Spawned:
        """Ask for a worker of ``device`` with ``threads`` threads; returns at once, and what is asked for comes or ends.

        OSError: this process may open no more descriptors.

        name  what it is called in the list of processes, as far as that has room
        """
        report, report_theirs = os.pipe()
        try:
            ends = Ends.make()
        except OSError:
            os.close(report)
            os.close(report_theirs)
            raise
        folder = scratch.make()
        process = Child(report=report, scratch=folder)
        request = REQUEST.pack(device, threads) + os.fsencode(folder) + b"\0" + name[:NAME_LENGTH].encode()
        try:
            self._ensure()
            process.maker = self._process
            if self._requests is not None:
                socket.send_fds(self._requests, [request], [*ends.theirs, report_theirs])
        except OSError as error:  # gone this very moment, or more requests than a socket holds: the worker's end tells
            print(f"hearth: the zygote takes no request: {error}", file=sys.stderr)  # noqa: T201 (no log is set up at boot)
        finally:
            os.close(report_theirs)
            ends.close_theirs()
        return ends.spawned(process, folder)

    def close(self) -> None:
        """End it; its workers live on."""
        self._closed = True
        self._drop()
        self._process.kill()
        self._process.wait()
        adopt(orphans=self._adopted_before)

    def _ensure(self) -> None:
        """Have a zygote, unless the last ones died too fast."""
        bury()
        if self._closed or self._process.poll() is None:
            return
        self._drop()
        if self._died_s is None:
            self._died_s = self._clock()
            self._died_young = self._died_young + 1 if self._died_s - self._started_s < YOUNG_S else 0
        pause_s = min(BACKOFF_S[0] * 2 ** min(self._died_young - 2, 16), BACKOFF_S[1]) if self._died_young > 1 else 0.0
        if self._clock() - self._died_s >= pause_s:
            self._start()

    def _start(self) -> None:
        self._started_s, self._died_s = self._clock(), None
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        requests.setblocking(False)  # noqa: FBT003 (the socket module's own signature)
        try:
            arguments = [
                "-m",
                "predictor.engine.zygote",
                str(os.getpid()),
                str(theirs.fileno()),
                Boundary.from_environment().told(),
            ]
            self._process = Child(execute(arguments, (theirs.fileno(),), self._threads, output=self._output))
            self._requests = requests
        except OSError as error:
            requests.close()
            print(f"hearth: no zygote could be started: {error}", file=sys.stderr)  # noqa: T201 (as above)
        finally:
            theirs.close()

    def _drop(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None


def starter(zygote: Zygote | None) -> Starter:
    """How workers are started: forked for the processor, processes of their own for CUDA, whose state no fork may share.

    zygote  None: there is none, every worker is a process of its own
    """

    def start(device: int, kind: str, threads: int, name: str) -> Spawned:
        if kind == "cpu" and zygote is not None:
            return zygote.fork(device, threads, name=name)
        return spawn(device, kind, threads)

    return start
