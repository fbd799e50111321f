"""How many files and sockets this process may have open, and what that allows.

Linux gives 1,024 unless told otherwise, for programs that use select(2), and lets every process raise that itself.
"""

from __future__ import annotations

import resource
from typing import Final

ENOUGH: Final = 1 << 20
"""Where no hard limit is set there may be a billion: some libraries visit each of them."""

SPARE: Final = 128
"""Listening sockets, event loop, log, pools of weights and passages, files that are open for a moment."""

PER_WORKER: Final = 8
"""Two sockets, its page, its passage, its output, its process, and room for what it has on the way."""

PER_PART: Final = 2
"""A connection to the model store, and a file."""


class TooFewDescriptors(Exception):
    """Not even a handful of clients could be served; the message says what to raise."""


def raise_limit() -> int:
    """Let this process open as many as it may. Returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else ENOUGH


def connections(limit: int, wanted: int, *, workers: int, parts: int, ports: int = 2) -> int:
    """How many clients per port may be connected: ``wanted``, or what ``limit`` descriptors leave. Raises TooFewDescriptors.

    workers  processes at most
    parts    ranged GETs at a time
    """
    taken = SPARE + PER_WORKER * workers + PER_PART * parts
    possible = (limit - taken) // ports
    if possible < 1:
        raise TooFewDescriptors(
            f"this process may open {limit} files and sockets, and needs {taken} before its first client: raise the hard limit "
            f"(ulimit -Hn, LimitNOFILE=)"
        )
    return min(wanted, possible)
