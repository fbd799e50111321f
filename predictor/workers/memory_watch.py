"""Watches what the container has in use, and ends the fattest worker before the kernel ends the container.

Counted as Kubernetes does: page cache that can be dropped is no danger. What stays out: which worker and when to look
(policy/pressure.py), what a death means to its models (domains.py, quarantine).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from predictor import human
from predictor.policy.pressure import LOOK_S, Holder, Usage, fattest, is_short, pause_s

log = logging.getLogger(__name__)

OUT_OF_MEMORY: Final = "out of memory"
"""The cause that is told of such a death."""

SETTLE_S: Final = 1.0
"""How long after ending a worker no other one is ended: the kernel takes its memory back within that."""

COMPLAIN_S: Final = 60.0

CLAIM_S: Final = 5.0
"""How long a kill by the kernel explains a death: the front learns of one within milliseconds, and counts once a second."""


class Cgroup(NamedTuple):
    """Where one version of cgroups tells memory. ``usage`` has page cache in it, ``cache`` is the line of how much of it.

    kills  where the kernel counts processes that it killed for memory, in the line KILLS
    """

    usage: str
    stat: str
    cache: str
    kills: str


VERSIONS: Final = (
    Cgroup("memory.current", "memory.stat", "inactive_file", "memory.events"),
    Cgroup("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file", "memory/memory.oom_control"),
)

KILLS: Final = "oom_kill"


class Candidate(NamedTuple):
    """A worker that may be ended.

    end      do so; the reason and the cause are for people and for metrics
    scratch  the folder that it may write to; "": it has none
    models   which are in it, in words
    """

    name: str
    pid: int
    end: Callable[[str, str], object]
    scratch: str = ""
    models: str = ""


def working_set(root: Path = Path("/")) -> int | None:
    """Bytes that the container uses and the kernel cannot simply drop; None: no cgroup tells.

    root  holds /sys/fs/cgroup, version 2 or 1
    """
    for version in VERSIONS:
        folder = root / "sys/fs/cgroup"
        with contextlib.suppress(OSError, ValueError):
            used = int((folder / version.usage).read_text())
            lines = (line.split() for line in (folder / version.stat).read_text().splitlines())
            cache = next((int(value) for name, value in lines if name == version.cache), 0)
            return max(used - cache, 0)
    return None


def left_bytes(limit_bytes: int | None, share: float, root: Path = Path("/")) -> int | None:
    """What the container may yet use of ``share`` of its limit; None: it has none, or no cgroup tells."""
    used = working_set(root) if limit_bytes is not None else None
    return None if limit_bytes is None or used is None else max(int(share * limit_bytes) - used, 0)


def kernel_kills(root: Path = Path("/")) -> int | None:
    """Processes of the container that the kernel ever killed because memory ran out; None: no cgroup tells."""
    for version in VERSIONS:
        with contextlib.suppress(OSError, ValueError):
            lines = (line.split() for line in (root / "sys/fs/cgroup" / version.kills).read_text().splitlines())
            return next((int(count) for name, count in lines if name == KILLS), None)
    return None


class MemoryKills:
    """Whom the kernel killed because memory ran out. It counts, and does not say who that was: whoever died of SIGKILL then."""

    def __init__(self, root: Path = Path("/"), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._seen = kernel_kills(root)
        self._unclaimed: deque[float] = deque(maxlen=64)

    def look(self) -> None:
        """Count, now and then: a kill that nobody claims in time was no worker's."""
        count, now_s = kernel_kills(self._root), self._clock()
        if count is not None:
            if self._seen is not None:
                self._unclaimed.extend([now_s] * min(count - self._seen, 64))
            self._seen = count
        while self._unclaimed and self._unclaimed[0] < now_s - CLAIM_S:
            self._unclaimed.popleft()

    def claim(self) -> bool:
        """Whether whoever died just now was killed so."""
        self.look()
        if self._unclaimed:
            self._unclaimed.popleft()
            return True
        return False


def own_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """What would be free without the process and those of its session.

    Their resident pages that are no file's and no shared memory's. Those that a fork still shares with its zygote are
    counted, for all workers alike.
    """
    return sum(_resident(folder) for folder in _session(pid, proc))


def _session(pid: int, proc: Path) -> Iterable[Path]:
    """The process, and what it started: a worker leads a session of its own."""
    yield proc / str(pid)
    with contextlib.suppress(OSError):
        for folder in proc.iterdir():
            if folder.name.isdigit() and folder.name != str(pid):
                with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                    if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == pid:
                        yield folder


def _resident(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        _, resident, shared, *_ = map(int, (folder / "statm").read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0


class MemoryWatch:
    """Looks for as long as ``watch`` runs.

    limit_bytes  of the container
    share        of it that may be in use
    candidates   the workers there are
    on_end       a worker was ended
    """

    def __init__(
        self,
        limit_bytes: int,
        share: float,
        candidates: Callable[[], Iterable[Candidate]],
        on_end: Callable[[], object],
        *,
        root: Path = Path("/"),
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.used_bytes = 0
        self._limit_bytes = limit_bytes
        self._share = share
        self._candidates = candidates
        self._on_end = on_end
        self._root = root
        self._proc = proc
        self._clock = clock
        self._before: tuple[Usage, float] | None = None
        self._ended_s = self._complained_s = float("-inf")

    async def watch(self) -> None:
        """Look again and again; ends when no cgroup tells."""
        while True:
            wait_s = self.look()
            if wait_s is None and self._before is not None:  # no descriptor was left, for example
                wait_s = LOOK_S[1]
            if wait_s is None:
                log.warning("no cgroup tells how much memory is in use: a model that takes all of it ends this pod")
                return
            await asyncio.sleep(wait_s)

    def look(self) -> float | None:
        """Once. Returns the seconds until the next time."""
        used = working_set(self._root)
        if used is None:
            return None
        now_s, usage = self._clock(), Usage(used, self._limit_bytes)
        self.used_bytes = used
        before, self._before = self._before, (usage, now_s)
        if is_short(usage, self._share) and now_s - self._ended_s >= SETTLE_S:
            self._relieve(usage, now_s)
        if before is None:
            return LOOK_S[0]
        return pause_s(usage, before[0], now_s - before[1], self._share)

    def _relieve(self, usage: Usage, now_s: float) -> None:
        candidates = {candidate.name: candidate for candidate in self._candidates() if candidate.pid}
        holders = [Holder(name, own_bytes(candidate.pid, self._proc)) for name, candidate in candidates.items()]
        chosen = fattest(holders)
        told = f"{human.size(usage.used_bytes)} of {human.size(usage.limit_bytes)} are in use"
        if chosen is None:
            if now_s - self._complained_s >= COMPLAIN_S:
                self._complained_s = now_s
                log.error("memory is short, and no worker holds it: %s (HEARTH_MEMORY_SHARE)", told)
            return
        self._ended_s = now_s
        log.error("memory is short: %s; worker %s has %s of its own and is ended", told, *_told(chosen))
        candidates[chosen.name].end(
            f"out of memory: {told}, and of all workers it held most, {human.size(chosen.own_bytes)}", OUT_OF_MEMORY
        )
        self._on_end()


def _told(holder: Holder) -> tuple[str, str]:
    return holder.name, human.size(holder.own_bytes)
