"""What a worker prints, on its way to the pod's log: so much of it, and no faster, whatever a model does.

A worker's standard output and error are a pipe that the front reads. What is too much is thrown away, and how much that was
is logged. A model that prints without end is slowed down by its own printing; it fills no disk, and neither the front nor
any other worker waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from predictor import log_stream

log = logging.getLogger(__name__)

BURST_BYTES: Final = 1 << 20
RATE_BYTES_PER_S: Final = 64 << 10
READ_BYTES: Final = 64 << 10

PIPE_BYTES: Final = 1 << 20
"""What fits in without anybody reading, if the system grants it: with 64 KiB, a flood would be slowed down to 6 MB/s."""

PAUSE_S: Final = 0.01
TURN_BYTES: Final = 4 << 20
"""Thrown away at a time, uncopied (splice): 0.1 ms of the loop every 10 ms, and 400 MB/s."""

COMPLAIN_S: Final = 5.0


class Output:
    """Reads a worker's pipe until ``close``.

    descriptor  the pipe's end to read; this object's from here on. -1: there is none
    name        of the worker, for the log
    write       where to, without waiting; returns how much of it went. None: into the log
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        write: Callable[[bytes], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped_bytes = 0
        self._descriptor = descriptor
        self._name = name
        self._write = write or log_stream.relay
        self._clock = clock
        self._left_bytes = float(BURST_BYTES)
        self._looked_s = clock()
        self._flooding = False
        self._untold_bytes = 0
        self._told_s = float("-inf")
        self._resuming: asyncio.TimerHandle | None = None
        self._nowhere = -1

    def start(self) -> None:
        """Begin to read, in the running loop. OSError: there is no descriptor left, and nothing is read."""
        if self._descriptor < 0:
            return
        os.set_blocking(self._descriptor, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._listen()

    def close(self) -> None:
        """The worker is dead: pass on its last words, and stop."""
        if self._nowhere < 0:
            return
        if self._resuming is None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        else:
            self._resuming.cancel()
        for _ in range(PIPE_BYTES // READ_BYTES):  # what it left behind may hold the pipe open, and go on
            if not self._pass_on():
                break
        self._complain(at_once=True)
        os.close(self._descriptor)
        os.close(self._nowhere)
        self._nowhere = -1

    def _listen(self) -> None:
        self._resuming = None
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        allowed = self._allowed()
        # Once it was too much, nothing passes for a second: the pipe is emptied in great steps then.
        self._flooding = allowed < (READ_BYTES if self._flooding else 1)
        if not (self._throw_away() if self._flooding else self._pass_on()):
            self._pause(COMPLAIN_S)  # it closed its output, and lives on
        else:  # byte by byte, each with a turn of the loop, one worker could have most of it
            self._pause(PAUSE_S)

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._descriptor)
        self._resuming = loop.call_later(seconds, self._listen)

    def _allowed(self) -> int:
        now_s = self._clock()
        self._left_bytes = min(self._left_bytes + (now_s - self._looked_s) * RATE_BYTES_PER_S, BURST_BYTES)
        self._looked_s = now_s
        return int(self._left_bytes)

    def _pass_on(self) -> bool:
        """One read. False: there is nothing, now or for ever."""
        try:
            found = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        passed = self._write(found[: max(self._allowed(), 0)])
        self._left_bytes -= len(found)  # also what the log had no room for: else a flood would never be called one
        self._lose(len(found) - passed)
        return bool(found)

    def _throw_away(self) -> bool:
        thrown = 0
        with contextlib.suppress(BlockingIOError):
            while thrown < TURN_BYTES and (more := os.splice(self._descriptor, self._nowhere, PIPE_BYTES)):
                thrown += more
        self._lose(thrown)
        return thrown > 0

    def _lose(self, size_bytes: int) -> None:
        if size_bytes:
            self.dropped_bytes += size_bytes
            self._untold_bytes += size_bytes
            self._complain(at_once=False)

    def _complain(self, *, at_once: bool) -> None:
        now_s = self._clock()
        if self._untold_bytes and (at_once or now_s - self._told_s >= COMPLAIN_S):
            log.warning("worker %s prints too much: %d bytes of output were dropped", self._name, self._untold_bytes)
            self._untold_bytes, self._told_s = 0, now_s
