"""What the front says to standard error: a thread writes it, so that nobody waits for whoever reads the log, or does not.

A pipe that nobody reads is full after 64 KiB, and the next write to it blocks, on the event loop as anywhere. Instead of
that, what does not fit is dropped and counted, and how much that was is written where it is missing. What stays out: how
much a worker may print (workers/output.py), what is worth a line.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import queue
import select
import stat
import sys
import threading
import time
from typing import Final, TextIO, cast

log = logging.getLogger(__name__)

MAX_PIECES: Final = 1024
"""What may wait to be written: 130 kB of common lines. Workers' output has half of it, 2 MiB at most."""

PIECE_BYTES: Final = select.PIPE_BUF
"""What can be written to takes that many at once (pipe(7)); more might block."""

LINE_BYTES: Final = 64 << 10
"""Of one write; the rest of a longer one is cut off."""

BATCH_PIECES: Final = 256
"""Written at a time if so many wait: beside a busy loop the thread gets its turn every 5 ms, however little it does with it."""

POLL_S: Final = 0.1
CLOSE_TIMEOUT_S: Final = 2.0


class LogStream(io.TextIOBase):
    """A text stream in front of a descriptor. Any thread may write, and none of them waits.

    dropped  writes that did not fit
    """

    def __init__(self, descriptor: int, *, max_pieces: int = MAX_PIECES) -> None:
        super().__init__()
        self.dropped = 0
        self.descriptor, self._ours = _without_waiting(descriptor)
        self._may_block = not self._ours and not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._max_pieces = max_pieces
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._dropping = False
        self._told = 0
        self._give_up_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="hearth-log", daemon=True)
        self._thread.start()

    # ---- whoever has something to say --------------------------------------------------------------------------

    def write(self, text: str, /) -> int:
        """Have it written, unless too much waits for that already."""
        if self._full(self._max_pieces):
            self.dropped += 1
            if not self._dropping:
                self._dropping = True
                self._queue.put(b"")  # the thread shall look, even if it has emptied the queue meanwhile
        else:
            self._queue.put(text.encode(errors="backslashreplace")[:LINE_BYTES])
        return len(text)

    def relay(self, found: bytes) -> int:
        """The same for what others print, as far as lines of our own are left room. Returns how many bytes that is."""
        for start in range(0, len(found), PIECE_BYTES):
            if self._full(self._max_pieces // 2):
                return start
            self._queue.put(found[start : start + PIECE_BYTES])
        return len(found)

    def settle(self, timeout_s: float) -> None:
        """Wait until everything so far is written."""
        written = threading.Event()
        self._queue.put(written)
        if self._give_up_s is None:
            written.wait(timeout_s)

    def finish(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Write what waits, for as long as that may take; what comes later is dropped."""
        if self._give_up_s is None:
            self._give_up_s = time.monotonic() + timeout_s
            self._queue.put(None)
            self._thread.join(timeout_s + 2 * POLL_S)
            if self._ours and not self._thread.is_alive():
                os.close(self.descriptor)

    def fileno(self) -> int:
        """Where it goes."""
        return self.descriptor

    def writable(self) -> bool:
        """It is."""
        return True

    def _full(self, pieces: int) -> bool:
        return self._dropping or self._give_up_s is not None or self._queue.qsize() >= pieces

    # ---- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last: bytes | threading.Event | None = b""
        while last is not None:
            pieces = [last := self._queue.get()]
            while isinstance(last, bytes) and len(pieces) < BATCH_PIECES and not self._queue.empty():
                pieces.append(last := self._queue.get())
            self._write(b"".join(piece for piece in pieces if isinstance(piece, bytes)))
            if isinstance(last, threading.Event):
                last.set()
            if self._dropping and self._queue.qsize() <= self._max_pieces // 2:
                self._queue.put(self._notice())  # behind what waits, before what comes
                self._dropping = False
        self._write(self._notice())

    def _notice(self) -> bytes:
        missing, self._told = self.dropped - self._told, self.dropped
        if not missing:
            return b""
        told = "%d lines are missing here: nobody read this log fast enough"
        record = logging.LogRecord(log.name, logging.WARNING, __file__, 0, told, (missing,), None)
        formatter = next((handler.formatter for handler in logging.root.handlers if handler.formatter), logging.Formatter())
        return f"{formatter.format(record)}\n".encode()

    def _write(self, batch: bytes) -> None:
        ready, written = select.poll(), 0
        ready.register(self.descriptor, select.POLLOUT)
        step = PIECE_BYTES if self._may_block else len(batch)
        while written < len(batch) and (self._give_up_s is None or time.monotonic() < self._give_up_s):
            if self._may_block and not ready.poll(POLL_S * 1e3):
                continue
            try:
                written += os.write(self.descriptor, batch[written : written + step])
            except BlockingIOError:
                ready.poll(POLL_S * 1e3)
            except OSError:  # nobody will ever read it
                return


def _without_waiting(descriptor: int) -> tuple[int, bool]:
    """A descriptor of the same pipe or terminal that never blocks, or ``descriptor`` itself; and whether it is a new one.

    O_NONBLOCK belongs to an open file, which we share with the shell and with our own children: hence another one. A file
    never blocks, and a socket that can be written to takes PIECE_BYTES of its only writer.
    """
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), True
    return descriptor, False


def install() -> LogStream | None:
    """Make it this process's ``sys.stderr``, until that ends. None: there is no standard error."""
    if sys.__stderr__ is None:
        return None
    stream = LogStream(sys.__stderr__.fileno())
    sys.stderr = cast("TextIO", stream)
    atexit.register(stream.finish)
    return stream


def relay(found: bytes) -> int:
    """See LogStream; without one, all of it goes to ``sys.stderr``."""
    stream = installed()
    if stream is not None:
        return stream.relay(found)
    if sys.stderr is not None:
        sys.stderr.write(found.decode(errors="backslashreplace"))
    return len(found)


def settle(timeout_s: float) -> None:
    """See LogStream."""
    stream = installed()
    if stream is not None:
        stream.settle(timeout_s)


def descriptor() -> int:
    """For what is written by no Python, faulthandler's stacks: where that does not wait either, if possible."""
    stream = installed()
    if stream is not None:
        return stream.descriptor
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2


def installed() -> LogStream | None:
    """What ``install`` made; None: it has not been called."""
    stream: object = sys.stderr
    return stream if isinstance(stream, LogStream) else None
