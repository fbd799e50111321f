"""Gives running pods their orders: what placement.py wishes, numbered, sent until it is taken, and told to people.

What stays out: which pod should have which model (placement.py), when one is due (policy/rhythm.py, calendar.py).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from predictor import human
from predictor.heat import Heat, Warmth
from predictor.policy import rhythm
from predictor.policy.demand import HALF_LIVES_S
from predictor.report import MAX_ORDERS, Order, Orders, PodReport, Residency
from predictor.telemetry import Telemetry
from warmup import calendar, placement
from warmup.placement import LATE_S, MARGIN_S, Appointment, Held, Key, PodView, Wish
from warmup.pods import RESIDENCY_PATH, Followed, Pods

log = logging.getLogger(__name__)

ORDERS_PATH: Final = "/hearth/v1/orders"

LOOK_EACH_S: Final = 5.0
"""Half of the margin before a model is due."""

COMPARE_EACH_S: Final = 30.0
"""How often a pool's pods are compared with each other: demand is not told more often."""

LEAST_ASKED: Final = 0.5
"""Decayed count, half-life 30 min: who was asked once within that time was asked."""

SETTLED: Final = frozenset({"off", "done"})
"""States of a pod's warm-up in which it may be ordered more."""

_OK: Final = 200


class Taken(msgspec.Struct, frozen=True):
    """What a pod says to orders: the highest number that it has."""

    ordered: int = 0


@dataclass(slots=True)
class _Sent:
    """What one pod was ordered. ``open``: of that, what it has not taken yet."""

    moments_s: dict[Key, float] = field(default_factory=dict)
    open: list[Order] = field(default_factory=list)


@dataclass(slots=True)
class _Pool:
    """Of one pool. ``looked_s``, ``compared_s``: by the loop's clock; ``near``: appointments that were, at the last look."""

    number: int = 0
    looked_s: float = -math.inf
    compared_s: float = -math.inf
    near: frozenset[tuple[str, int, float]] = frozenset()
    rhythms: tuple[Appointment, ...] = ()
    rhythms_of: Sequence[Warmth] = ()
    remarks: dict[str, str] = field(default_factory=dict)
    pods: dict[str, _Sent] = field(default_factory=dict)


class Ordering:
    """Of all pools.

    calendars  of a pool's models: name → its lines and their time zone, as its annotations have them
    tell       called with pool, pod and what it is ordered now for the first time
    remark     called with a model and what is wrong with its calendar, once
    clock      seconds since the epoch
    """

    def __init__(
        self,
        pods: Pods,
        *,
        calendars: Callable[[str], Mapping[str, tuple[str, str]]],
        tell: Callable[[str, str, Sequence[Wish]], None],
        remark: Callable[[str, str], Awaitable[None]],
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._pods = pods
        self._calendars = calendars
        self._tell = tell
        self._remark = remark
        self._telemetry = telemetry
        self._clock = clock
        self._of: dict[str, _Pool] = {}

    def forget(self, pool: str) -> None:
        """It is gone, or another controller gives its orders."""
        self._of.pop(pool, None)

    async def look(self, pool: str, models: Sequence[Warmth], at_s: float, heats: Mapping[str, Heat]) -> None:
        """Order what should be ordered now, and once more what was not taken.

        models  of the pool, as they were at ``at_s``
        heats   pod → what clients asked of it
        """
        of = self._of.setdefault(pool, _Pool())
        loop_s = asyncio.get_running_loop().time()
        if loop_s - of.looked_s < LOOK_EACH_S:
            return
        of.looked_s = loop_s
        pods = [pod for pod in self._pods.of(pool) if pod.counts]
        of.pods = {pod.ref.name: of.pods.get(pod.ref.name) or _Sent() for pod in pods}
        now_s = self._clock()
        warmth = {(one.name, one.version): one for one in models}
        if pods and of.rhythms_of is not models:
            of.rhythms_of, of.rhythms = models, await asyncio.to_thread(rhythms, models, at_s, now_s)
        calendars = self._calendars(pool)
        await self._tell_wrong(of, calendars)
        dates = await asyncio.to_thread(_dates, calendars, models, now_s)
        due = placement.near([*of.rhythms, *dates], warmth, now_s) if pods else []
        before, of.near = of.near, frozenset((one.name, one.version, one.until_s) for one in due)
        is_time = loop_s - of.compared_s >= COMPARE_EACH_S
        if of.near - before or (is_time and (due or len(pods) > 1)):
            of.compared_s = loop_s
            views = await self._views(of, pods, heats, now_s)
            wishes = await asyncio.to_thread(placement.orders, views, warmth, due, now_s=now_s)
            self._number(pool, of, wishes, now_s)
        for pod in pods:
            await self._send(of.pods[pod.ref.name], pod, now_s)

    async def _tell_wrong(self, of: _Pool, calendars: Mapping[str, tuple[str, str]]) -> None:
        """A calendar that cannot be read would never be missed before the moment it was for."""
        before, of.remarks = of.remarks, {}
        for name, told in calendars.items():
            if text := "; ".join(_read(*told).remarks):
                of.remarks[name] = text
                if before.get(name) != text:
                    await self._remark(name, text)

    # ---- where ------------------------------------------------------------------------------------------------

    async def _views(self, of: _Pool, pods: Collection[Followed], heats: Mapping[str, Heat], now_s: float) -> list[PodView]:
        """Of the pods that tell what is where in them."""
        answers = await asyncio.gather(
            *(self._pods.exchange(pod.ref, "GET", RESIDENCY_PATH, operation="residency") for pod in pods)
        )
        views = []
        for pod, answer in zip(pods, answers, strict=True):
            if answer is None or answer[0] != _OK or pod.report is None:
                continue
            try:
                residency = msgspec.json.decode(answer[1], type=Residency)
            except (ValueError, RecursionError) as error:
                log.warning("pod %s: %s: %s", pod.ref.name, RESIDENCY_PATH, str(error)[:500])
                continue
            moments_s = of.pods[pod.ref.name].moments_s
            views.append(view(pod.ref.name, pod.report, residency, _asked(heats.get(pod.ref.name), now_s), moments_s))
        return views

    # ---- sending ----------------------------------------------------------------------------------------------

    def _number(self, pool: str, of: _Pool, wishes: Iterable[Wish], now_s: float) -> None:
        """Numbers grow over all of a pool's pods, and over controllers: the clock begins, and what pods took before counts."""
        highest = max((report.ordered for report in self._pods.reports(pool)), default=0)
        told: dict[str, list[Wish]] = {}
        for wish in wishes:
            sent = of.pods[wish.pod]
            if len(sent.open) >= MAX_ORDERS:
                continue
            of.number = max(of.number + 1, int(now_s * 1000), highest + 1)
            sent.open.append(Order(of.number, wish.name, wish.version, why=wish.why, until_s=wish.until_s))
            sent.moments_s = {key: at_s for key, at_s in sent.moments_s.items() if now_s - at_s < placement.AGAIN_S}
            sent.moments_s[wish.name, wish.version] = now_s
            self._telemetry.counter("hearth_controller_orders_total", pool, wish.reason).inc()
            told.setdefault(wish.pod, []).append(wish)
        for pod, given in told.items():
            log.info("pool %s: pod %s is ordered %d models, %s first: %s", pool, pod, len(given), given[0].name, given[0].why)
            self._tell(pool, pod, given)

    async def _send(self, sent: _Sent, pod: Followed, now_s: float) -> None:
        """What is not taken, and still means something."""
        has = pod.report.ordered if pod.report is not None else 0
        sent.open = [order for order in sent.open if order.number > has and order.until_s > now_s]
        if not sent.open:
            return
        body = msgspec.json.encode(Orders(tuple(sent.open)))
        answer = await self._pods.exchange(pod.ref, "PUT", ORDERS_PATH, body, operation="orders")
        if answer is None:
            return  # it is sent again at the next look
        if answer[0] != _OK:
            log.warning("pod %s takes no orders: HTTP %d", pod.ref.name, answer[0])
            sent.open.clear()  # of a release before them, or not in its right mind: in ten minutes it may be another
            return
        try:
            taken = msgspec.json.decode(answer[1], type=Taken).ordered
        except (ValueError, RecursionError):
            taken = 0
        sent.open = [order for order in sent.open if order.number > taken]


def rhythms(models: Iterable[Warmth], at_s: float, now_s: float) -> tuple[Appointment, ...]:
    """The next visits of those that are asked in a rhythm. 4,000 models with eight visits each take 0.15 s."""
    found = []
    for one in models:
        due = rhythm.due([at_s - ago_s for ago_s in one.visits], now_s)
        if due is not None:
            why = f"asked every {human.span(due.period_s)}"
            until_s = due.at_s + max(LATE_S, rhythm.SPREAD * due.period_s)
            found.append(Appointment(one.name, one.version, due.at_s, until_s, "rhythm", why))
    return tuple(found)


def _dates(calendars: Mapping[str, tuple[str, str]], models: Iterable[Warmth], now_s: float) -> list[Appointment]:
    """Of models' calendars, those for which it is time to begin. 0.1 s for 1,000 of them, with two entries each."""
    found = []
    loads_s: dict[str, float] = {}
    for one in models:
        if one.name in calendars:
            loads_s[one.name] = max(one.load_s, loads_s.get(one.name, 0.0))
    for name, told in calendars.items():
        # Of an entry's windows the latest is told, which must not be one that is still far ahead.
        for window in calendar.open_at(_read(*told), now_s, ahead_s=loads_s.get(name, 0.0) + MARGIN_S):
            why = f"{calendar.WARM_AT}: {window.entry.text}"
            found.append(Appointment(name, 0, window.begins_s, window.until_s, "calendar", why))
    return found


def view(name: str, report: PodReport, residency: Residency, asked: frozenset[Key], ordered: Mapping[Key, float]) -> PodView:
    """A pod as placement needs it, from what it tells."""
    room_bytes = {
        tier.device: tier.budget_bytes - tier.reserved_bytes - tier.headroom_bytes
        for tier in residency.tiers
        if tier.tier == "device"
    }
    held = {}
    for model in residency.models:
        for copy in model.copies:
            if copy.tier == "device" and copy.state != "draining":
                stays = model.pinned or copy.leases > 0 or copy.state != "ready"
                held[model.name, model.version] = Held(copy.device, copy.bytes, stays)
    failed = frozenset((model.name, model.version) for model in residency.models if model.failure)
    return PodView(name, room_bytes, held, asked, failed, ordered, report.warm_up.state not in SETTLED)


def _asked(heat: Heat | None, now_s: float) -> frozenset[Key]:
    """What clients asked of a pod lately."""
    if heat is None:
        return frozenset()
    half_life_s = HALF_LIVES_S[0]
    left = 0.5 ** (max(0.0, now_s - heat.at_s) / half_life_s) * half_life_s / math.log(2)
    return frozenset((one.name, one.version) for one in heat.models if one.fast * left >= LEAST_ASKED)


@functools.lru_cache(maxsize=4096)
def _read(lines: str, zone: str) -> calendar.Calendar:
    return calendar.parse(lines, zone)
