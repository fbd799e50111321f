"""Which copies to drop when room is short. One number compares them: what a byte of the copy is worth per second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from predictor.policy.residency import Copy

LEAST_LOAD_S: Final = 0.001
"""A load too fast to measure still costs something; otherwise small models would all be worth nothing."""


def value(rate_per_s: float, load_s: float, size_bytes: int) -> float:
    """Seconds of waiting that keeping the copy saves, per second and byte.

    The greedy rule for caches whose objects differ in size and cost: Cao and Irani, "Cost-Aware WWW Proxy Caching
    Algorithms" (USITS 1997), with a decayed request rate in place of their inflation value.
    """
    return rate_per_s * max(load_s, LEAST_LOAD_S) / max(size_bytes, 1)


def victims(residents: Sequence[Copy], need_bytes: int) -> tuple[Copy, ...] | None:
    """Choose which copies to drop so that ``need_bytes`` more become free.

    All or nothing: a complete answer, or None and the caller waits.

    residents   the copies that may be dropped, least valuable first
    need_bytes  what is missing, > 0; not the size of the newcomer
    """
    assert need_bytes > 0, f"nothing to free: need_bytes={need_bytes}"
    chosen: list[Copy] = []
    missing = need_bytes
    for copy in residents:
        if copy.size_bytes == 0:
            continue
        chosen.append(copy)
        missing -= copy.size_bytes
        if missing <= 0:
            break
    else:
        return None
    # The last one may be so large that earlier choices are needless: spare the most valuable of them first.
    for copy in chosen[-2::-1]:
        if copy.size_bytes <= -missing:
            chosen.remove(copy)
            missing += copy.size_bytes
    return tuple(chosen)
