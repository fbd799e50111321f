"""The demo's child processes: started with a log, ended on every way out, together with whatever they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, Self

END_TIMEOUT_S: Final = 10.0
LOG_LINES: Final = 20
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked this process to end; like KeyboardInterrupt, nothing on the way out may mistake it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that every child is ended."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Children:
    """Processes that end when this context does, the latest first.

    folder         where each one's log goes: ``<name>.log``
    end_timeout_s  how long each may take to end when asked; then it is killed
    """

    def __init__(self, folder: Path, *, end_timeout_s: float = END_TIMEOUT_S) -> None:
        self.folder = folder
        self._end_timeout_s = end_timeout_s
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C must not leave half of them running. Bounded: each has end_timeout_s, then SIGKILL.
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOP_SIGNALS)}
        try:
            while self._running:
                _end(self._running.pop(), self._end_timeout_s)
        finally:
            for number, handler in ignored.items():
                signal.signal(number, handler)

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, talks: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own: Ctrl-C is for the demo alone, which then ends its children in order.

        talks  its standard output is read by us, through a pipe; else it goes into the log with its errors
        """
        with self.log(name).open("wb") as log:
            child = subprocess.Popen(  # noqa: S603 (our own command lines)
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(child)
        return child

    def log(self, name: str) -> Path:
        """Where a child's standard error goes."""
        return self.folder / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The end of a child's log."""
        with suppress(FileNotFoundError):
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-LOG_LINES:])
        return ""


def _end(child: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Ask the process to end and wait; if it does not, end its whole session."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the id is still the child's own
        child.wait()


def free_port(preferred: int) -> int:
    """``preferred`` if nobody listens on it here, else one that is free now."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("this machine has no free port on 127.0.0.1")
