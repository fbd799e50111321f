"""The first 0.1 seconds of ``hearth serve``: bind the sockets, start the workers, then import everything else.

Standard library only. A client that comes early waits in the listen queue instead of being refused, and torch (2 s of
importing, in the worker processes) is on its way before the front has imported its own libraries (0.5 s).
Also the console command's entry: whatever is not ``serve`` is cli.py's.
"""

from __future__ import annotations

import atexit
import gc
import os
import socket
import sys
import time
from typing import Final, NamedTuple

from predictor.boundary import Boundary
from predictor.flags import ServeParser, environment
from predictor.workers.spawn import Spawned, Starter, cpu_quota, shut
from predictor.workers.zygote import Zygote, starter

BACKLOG: Final = 1024

FIRST: Final = "pool"
"""What the workers are called that serve every model which has none of its own."""


class Booted(NamedTuple):
    """What the front finds done when it starts.

    kind         what to compute on: ``cpu`` or ``cuda``
    cores        what all processes of the pod have together
    threads      for each worker's computations
    workers      one per device; torch is being imported by now
    starter      what starts their successors, and others
    listening_s  moment of CLOCK_BOOTTIME
    output       what the zygote prints: a pipe's end to read; -1: there is none
    """

    inference: socket.socket
    admin: socket.socket
    kind: str
    cores: int
    threads: int
    workers: tuple[Spawned, ...]
    starter: Starter
    listening_s: float
    output: int = -1


def main() -> int:
    """The ``hearth`` command."""
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2:])
    from predictor.cli import main as command  # noqa: PLC0415 (rich and friends are no part of a pod's start)

    return command(sys.argv[1:])


def serve(arguments: list[str]) -> int:
    """Boot a pod and run it until SIGTERM. Returns the exit status."""
    os.environ.update(environment(ServeParser().parse_args(arguments)))
    try:
        booted = boot()
    except OSError as error:
        print(f"hearth serve: {error.strerror or error}", file=sys.stderr)  # noqa: T201 (no log is set up yet)
        return 1
    gc.disable()  # what is imported stays: nothing to collect until that is over (engine/__main__.py has the figures)
    from predictor.__main__ import run  # noqa: PLC0415 (everything heavy hangs on this import)

    gc.freeze()
    gc.enable()

    return run(booted)


def boot() -> Booted:
    """Bind, listen, start workers. OSError: an address cannot be bound."""
    host = os.environ.get("HEARTH_HOST") or "127.0.0.1"
    inference = _listen(host, "HEARTH_PORT", 8080)
    admin = _listen(host, "HEARTH_ADMIN_PORT", 8082)
    listening_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    count = max(1, _number("HEARTH_DEVICE_COUNT", 1))
    cores = cpu_quota()
    threads = max(1, cores // count)
    kind = _kind(os.environ.get("HEARTH_DEVICE", "auto"))
    output, output_theirs = os.pipe() if kind == "cpu" else (-1, -1)
    zygote = Zygote(threads, output=output_theirs) if kind == "cpu" else None
    if zygote is not None:
        atexit.register(zygote.close)
    start = starter(zygote)
    workers = tuple(start(device, kind, threads, FIRST) for device in range(count))
    if Boundary.from_environment().mode != "off":
        shut()
    return Booted(inference, admin, kind, cores, threads, workers, start, listening_s, output)


def _kind(wanted: str) -> str:
    """``cuda`` where it is asked for, or where nobody says otherwise and the container was given a GPU."""
    return "cuda" if wanted == "cuda" or (wanted == "auto" and os.path.exists("/dev/nvidia0")) else "cpu"  # noqa: PTH110 (pathlib takes 3 ms)


def _listen(host: str, variable: str, default: int) -> socket.socket:
    port = _number(variable, default)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port} ({error}); choose another with {variable} or its flag") from error
    listener.listen(BACKLOG)
    listener.settimeout(0)  # what asyncio asks of a socket it is handed
    return listener


def _number(variable: str, default: int) -> int:
    """The setting as a number. What is no number is settings.py's to complain about, with everything else that is wrong."""
    try:
        return int(os.environ.get(variable, default))
    except ValueError:
        return default


if __name__ == "__main__":
    sys.exit(main())
