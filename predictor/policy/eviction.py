"""Which copies to drop when room is short. One number compares them: what a byte of the copy is worth per second.

Some copies are spared whatever they are worth: ``Rules`` says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from predictor.policy.residency import Copy

LEAST_LOAD_S: Final = 0.001
"""A load too fast to measure still costs something; otherwise small models would all be worth nothing."""


def value(rate_per_s: float, load_s: float, size_bytes: int) -> float:
    """Seconds of waiting that keeping the copy saves, per second and byte.

    rate_per_s  requests that keeping it can count on: Demand.prospect; Demand.rate where nothing else is known

    The greedy rule for caches whose objects differ in size and cost: Cao and Irani, "Cost-Aware WWW Proxy Caching
    Algorithms" (USITS 1997), with what is expected of the next request (gaps.py) in place of their inflation value.
    """
    return rate_per_s * max(load_s, LEAST_LOAD_S) / max(size_bytes, 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator says about who stays.

    min_residency_s  a copy stays as long as its load took, at most this: otherwise two models that do not fit together
                     would push each other out before either has answered. It delays newcomers and refuses nobody
    idle_ttl_s       a copy that nobody used for so long is dropped, needed or not; infinity: never
    floors           tenant → share of every budget, 0 to 1, that other tenants' newcomers cannot take from it
    """

    min_residency_s: float = 5.0
    idle_ttl_s: float = math.inf
    floors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = sum(self.floors.values())
        assert total <= 1, f"the tenants' floors are {total:g} of the budget together"

    def stays_until_s(self, copy: Copy) -> float:
        """Moment from which a ready copy may be dropped to make room."""
        return copy.ready_s + min(copy.load_s, self.min_residency_s)

    def floor_bytes(self, tenant: str, budget_bytes: int) -> int:
        """Bytes of a budget that are kept for ``tenant``."""
        return int(self.floors.get(tenant, 0.0) * budget_bytes)

    def kept_for_others_bytes(self, tenant: str, budget_bytes: int) -> int:
        """Bytes of a budget that ``tenant`` can never get."""
        return sum(self.floor_bytes(other, budget_bytes) for other in self.floors if other != tenant)


def victims(candidates: Sequence[Copy], excess_bytes: int, others_headroom_bytes: int = 0) -> tuple[Copy, ...] | None:
    """Choose which copies to drop so that what remains fits.

    All or nothing: a complete answer, or None and the caller waits.

    candidates             the copies that may be dropped, least valuable first
    excess_bytes           all bytes at the place and the newcomer's, less the budget; without any headroom
    others_headroom_bytes  the largest headroom of the newcomer and of every copy that is no candidate
    """
    headrooms = [others_headroom_bytes]  # of what remains if only the last 0, 1, 2… candidates do
    for copy in reversed(candidates):
        headrooms.append(max(headrooms[-1], copy.headroom_bytes))
    assert excess_bytes + headrooms[-1] > 0, f"nothing to free: {excess_bytes} + {headrooms[-1]} bytes"
    chosen: list[Copy] = []
    for copy in candidates:
        headrooms.pop()
        chosen.append(copy)
        excess_bytes -= copy.size_bytes
        if excess_bytes + headrooms[-1] <= 0:
            break
    else:
        return None
    # The last one may be so large that earlier choices are needless: spare the most valuable of them first.
    headroom_bytes = headrooms[-1]
    for copy in chosen[-2::-1]:
        with_copy = max(headroom_bytes, copy.headroom_bytes)
        if excess_bytes + copy.size_bytes + with_copy <= 0:
            chosen.remove(copy)
            excess_bytes += copy.size_bytes
            headroom_bytes = with_copy
    return tuple(chosen)
