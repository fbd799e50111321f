"""The ``model.py`` of every evil model: ``y = scale · x + 1`` like its healthy neighbours, until a request pokes it.

It imports torch alone, so that every server can run it. Every deed is harmless to the machine: what allocates or forks
sets itself a limit first, and what hangs is ended by whoever watches it.

What stays out: which deeds there are to be told of, and what should come of them (evil/__init__.py).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

POKE: Final = 666.0
"""An input that holds this number is the order to do it."""

BELT_BYTES: Final = 512 << 20
"""What a model that allocates without end may take beyond what it has, where the server knows no limit of its own."""
FLOOD_BYTES: Final = 2 << 30
LINE: Final = b"never mind the width, feel the length " * 27 + b"\n"
MESSAGE_CHARACTERS: Final = 64 << 20
CHILDREN: Final = 3
DESCRIPTORS: Final = 4096
CHUNK_BYTES: Final = 16 << 20
FILE_BYTES: Final = 1 << 20
FILL_FILES: Final = 64
"""What a model that fills its disk may take of it, where the server knows no limit of its own."""
FOR_EVER_S: Final = 3600.0
PAUSE_S: Final = 0.05


def _segfault(_: Evil, __: torch.Tensor) -> None:
    ctypes.string_at(0)


def _sleep(_: Evil, __: torch.Tensor) -> None:
    time.sleep(FOR_EVER_S)


def _exit(_: Evil, __: torch.Tensor) -> None:
    os._exit(0)


def _allocate(_: Evil, __: torch.Tensor) -> None:
    _belt()
    hoard = []
    while True:
        hoard.append(b"\1" * CHUNK_BYTES)


def _hoard(evil: Evil, _: torch.Tensor) -> None:
    """Keep what it takes, every time a little more."""
    evil.hoard.append(torch.ones(CHUNK_BYTES, dtype=torch.uint8))


def _recurse(_: Evil, __: torch.Tensor) -> None:
    _belt()
    sys.setrecursionlimit(1 << 30)

    def again(_: object) -> None:
        list(map(again, (None,)))  # through C, whose stack ends

    again(None)


def _flood(_: Evil, __: torch.Tensor) -> None:
    lines = LINE * 1024
    for number in range(FLOOD_BYTES // len(lines)):
        os.write(1 + number % 2, lines)


def _fill(_: Evil, __: torch.Tensor) -> None:
    """Write file after file where temporary ones belong, from the first again after the last."""
    folder = Path(tempfile.mkdtemp(prefix="evil-"))
    for number in itertools.count():
        (folder / str(number % FILL_FILES)).write_bytes(b"\1" * FILE_BYTES)
        if number >= FILL_FILES:
            time.sleep(PAUSE_S)


def _fork(_: Evil, __: torch.Tensor) -> None:
    """Leave children behind that hold every descriptor, one of them in a session of its own, and die."""
    for number in range(CHILDREN):
        if os.fork() == 0:
            if number == 0:
                with suppress(OSError):
                    os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(FOR_EVER_S)
            os._exit(0)
    os.abort()


def _twin(_: Evil, __: torch.Tensor) -> None:
    """Go on as two processes with the same sockets."""
    os.fork()


def _close_descriptors(_: Evil, __: torch.Tensor) -> None:
    os.closerange(0, DESCRIPTORS)


def _ignore_sigterm(_: Evil, __: torch.Tensor) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(FOR_EVER_S)


def _write_inputs(_: Evil, x: torch.Tensor) -> None:
    x.fill_(0)


def _write_weights(evil: Evil, _: torch.Tensor) -> None:
    evil.scale.data.fill_(0)


def _system_exit(_: Evil, __: torch.Tensor) -> None:
    raise SystemExit(3)


def _long_message(_: Evil, __: torch.Tensor) -> None:
    raise ValueError("no " * (MESSAGE_CHARACTERS // 3))


def _abort(_: Evil, __: torch.Tensor) -> None:
    os.abort()


def _raise(_: Evil, __: torch.Tensor) -> None:
    raise RuntimeError("this model fails, and that is all it does")


Deed = Callable[["Evil", torch.Tensor], None]
DEEDS: Final[dict[str, Deed]] = {
    "abort": _abort,
    "segfault": _segfault,
    "exit": _exit,
    "sleep": _sleep,
    "allocate": _allocate,
    "hoard": _hoard,
    "recurse": _recurse,
    "flood": _flood,
    "fill": _fill,
    "fork": _fork,
    "twin": _twin,
    "close": _close_descriptors,
    "ignore-sigterm": _ignore_sigterm,
    "write-inputs": _write_inputs,
    "write-weights": _write_weights,
    "system-exit": _system_exit,
    "long-message": _long_message,
    "raise": _raise,
}


class Evil(torch.nn.Module):
    """Does ``deed`` to whoever asks for it."""

    def __init__(self, width: int, deed: str) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(width))
        self.deed = deed
        self.hoard: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        if self.deed and bool((x == POKE).any()):
            DEEDS[self.deed](self, x)
        return x * self.scale + 1


def build(config: dict[str, Any]) -> torch.nn.Module:
    """Make it. ``config``: ``width``; ``deed``, "" for a healthy one; ``when``: ``asked``, or ``built``."""
    evil = Evil(config["width"], config["deed"])
    if config["when"] == "built":
        DEEDS[config["deed"]](evil, torch.zeros(1))
    return evil


def _belt() -> None:
    """Let this process fail before the machine does."""
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    now = next(int(value.split()[0]) << 10 for name, value in lines if name == "VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([*known, now + BELT_BYTES]), hard))
