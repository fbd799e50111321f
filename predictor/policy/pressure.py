"""When the container's memory runs out: which worker has to end before the kernel ends the container, and when to look next.

On cgroup v2 an out-of-memory kill takes every process of the container (memory.oom.group, which Kubernetes sets), on v1 any
of them: the front, too, and with it every model. One worker less costs a second.

Pure: what was read is an argument. Who reads and ends is workers/memory_watch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

LOOK_S: Final = (0.02, 0.5)
"""Shortest and longest pause between two looks. One look costs 60 µs: 0.3 % of a core at the shortest."""

LOOKS_AHEAD: Final = 4
"""So many looks before the limit is reached, if memory goes on growing as it did."""

WORTH_BYTES: Final = 32 << 20
"""Ending a worker that has less to itself would not help: a worker without a model has 15 to 300 MB."""


class Usage(NamedTuple):
    """What the container has in use, page cache that can be dropped not counted, and may have."""

    used_bytes: int
    limit_bytes: int


class Holder(NamedTuple):
    """A worker. ``own_bytes``: what would be free without it."""

    name: str
    own_bytes: int


def is_short(usage: Usage, share: float) -> bool:
    """Whether more than ``share`` of the limit is in use."""
    assert 0 < share <= 1, f"a share of {share}"
    return usage.used_bytes > share * usage.limit_bytes


def fattest(holders: Sequence[Holder]) -> Holder | None:
    """Who has to end. None: nobody holds enough for that to help, so whoever does is not a worker."""
    worth = [holder for holder in holders if holder.own_bytes >= WORTH_BYTES]
    return max(worth, key=lambda holder: holder.own_bytes, default=None)


def has_room(left_bytes: int | None, promised: Sequence[int], wanted_bytes: int) -> bool:
    """Whether one more build may begin beside those that began a moment ago. One always may: it is in the budgets.

    left_bytes    what may yet be used; None: there is no limit
    promised      what those others may take, none of which is taken to be in use already: rather too much
    wanted_bytes  what this one may
    """
    return not promised or left_bytes is None or sum(promised) + wanted_bytes <= left_bytes


def pause_s(usage: Usage, before: Usage | None, since_s: float, share: float) -> float:
    """Seconds until the next look.

    before   what was read ``since_s`` seconds ago; None: nothing was
    """
    shortest_s, longest_s = LOOK_S
    if before is None or since_s <= 0:
        return longest_s
    left_bytes = share * usage.limit_bytes - usage.used_bytes
    growth = (usage.used_bytes - before.used_bytes) / since_s
    if left_bytes <= 0:
        return shortest_s
    if growth <= 0:
        return longest_s
    return min(max(left_bytes / growth / LOOKS_AHEAD, shortest_s), longest_s)
