"""Which running pod should load which model before anybody asks it there: the wishes that become Orders.

Pure: the moment is an argument. Two reasons: a model is asked on one pod of a pool and cold on another, or it will be asked
soon, by its rhythm or by a calendar. A pod that comes up loads the hot set by itself, and gets none of these until it has.
An order is a wish: the pod's own ledger decides what makes way, and every request goes first.

What a copy is worth is policy/eviction.py's value, here as there. A newcomer pushes nobody out who is worth half as much:
without such a gap two models of about the same value would push each other out at every look.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from predictor.heat import Warmth
from predictor.policy.demand import HALF_LIVES_S
from predictor.policy.eviction import value

Key = tuple[str, int]
"""Name and version."""

LEAST_REQUESTS: Final = 1.5
"""Decayed count, half-life 30 min: one request alone is no reason to load a model everywhere, two are."""

WORTH_MORE: Final = 2.0
"""So many times the value of what it pushes out."""

MARGIN_S: Final = 10.0
"""A model that is due is loaded so long before, beside the seconds that its load takes."""

ASKED_FOR_S: Final = 600.0
"""How long an order means something whose reason is demand."""

LATE_S: Final = 120.0
"""How long after the moment it was for an order still means something, whose reason is a rhythm."""

AGAIN_S: Final = 600.0
"""What a pod was ordered and has not is left alone for so long: it had its reasons, or dropped it since."""

MAX_WISHES: Final = 16
"""Of one pod at one look. Loads are one after the other, and 30 s later there is another look."""


@dataclass(frozen=True, slots=True)
class Held:
    """A copy on a device. ``stays``: it is pinned, in use or on its way, and cannot be pushed out."""

    device: int
    size_bytes: int
    stays: bool = False


@dataclass(frozen=True, slots=True)
class PodView:
    """A running pod, as placement needs it.

    room_bytes  device → bytes that are free there, headroom for computing left out
    held        what is on its devices, or on its way there
    asked       what clients asked of this very pod
    failed      what it could not load: asking again is its own business
    ordered     key → moment at which it was ordered last
    is_busy     it still loads its hot set, or what it was ordered: it gets nothing more now, but what it was asked counts
    """

    name: str
    room_bytes: Mapping[int, int]
    held: Mapping[Key, Held] = field(default_factory=dict)
    asked: frozenset[Key] = frozenset()
    failed: frozenset[Key] = frozenset()
    ordered: Mapping[Key, float] = field(default_factory=dict)
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class Appointment:
    """A model that will be asked.

    version  0: whichever is served
    at_s     when; it is worth having until ``until_s``
    reason   ``rhythm`` or ``calendar``
    why      for people: "asked every 60 min", "hearth.dev/warm-at: 55 8 * * 1-5"
    """

    name: str
    version: int
    at_s: float
    until_s: float
    reason: str
    why: str


@dataclass(frozen=True, slots=True)
class Wish:
    """An order without its number, for one pod. ``reason``: as an appointment's, or ``demand``."""

    pod: str
    name: str
    version: int
    reason: str
    why: str
    until_s: float


def orders(
    pods: Sequence[PodView], warmth: Mapping[Key, Warmth], appointments: Iterable[Appointment], *, now_s: float
) -> tuple[Wish, ...]:
    """What to order now, what is due soonest first, then what is worth most.

    pods          of one pool, all that take requests
    warmth        the pool's, of this moment: rates are not decayed here
    appointments  of the pool; those that are not near yet are passed over
    """
    sizes_bytes: dict[Key, int] = {}
    for key, held in (each for pod in pods for each in pod.held.items()):
        sizes_bytes[key] = max(held.size_bytes, sizes_bytes.get(key, 0))
    due = near(appointments, warmth, now_s)
    asked = _asked(pods, warmth, sizes_bytes)
    found: list[Wish] = []
    for pod in pods:
        if not pod.is_busy:
            found += _Room(pod, warmth, sizes_bytes, now_s=now_s).wishes(due, asked)
    return tuple(found)


def near(appointments: Iterable[Appointment], warmth: Mapping[Key, Warmth], now_s: float) -> list[Appointment]:
    """Those for which it is time to begin, and not too late, the soonest first."""
    found = []
    for one in appointments:
        # Of a version that is not told, the slowest one counts.
        load_s = max((warmth[key].load_s for key in _meant(warmth, (one.name, one.version))), default=0.0)
        if one.at_s - load_s - MARGIN_S <= now_s < one.until_s:
            found.append(one)
    return sorted(found, key=lambda one: (one.at_s, one.name, one.version, one.why))


def _asked(
    pods: Sequence[PodView], warmth: Mapping[Key, Warmth], sizes_bytes: Mapping[Key, int]
) -> list[tuple[float, Key, frozenset[str]]]:
    """Value, key and the pods that were asked, of what deserves to be elsewhere too, the most valuable first."""
    if len(pods) < 2:  # noqa: PLR2004 - there is no other pod
        return []
    found = []
    for key, told in warmth.items():
        where = frozenset(pod.name for pod in pods if key in pod.asked)
        size_bytes = sizes_bytes.get(key) or told.size_bytes
        if where and size_bytes > 0 and told.fast * HALF_LIVES_S[0] / math.log(2) >= LEAST_REQUESTS:
            found.append((_value(told, size_bytes), key, where))
    return sorted(found, key=lambda one: (-one[0], one[1]))


def _value(told: Warmth, size_bytes: int) -> float:
    return value((told.fast + told.slow) / 2, told.load_s, size_bytes)


class _Room:
    """One pod's devices, as they would be with what was wished so far."""

    def __init__(self, pod: PodView, warmth: Mapping[Key, Warmth], sizes_bytes: Mapping[Key, int], *, now_s: float) -> None:
        self._pod = pod
        self._warmth = warmth
        self._sizes_bytes = sizes_bytes
        self._now_s = now_s
        self._free_bytes = dict(pod.room_bytes)
        self._may_go = sorted(
            (
                (_value(warmth[key], held.size_bytes) if key in warmth else 0.0, key, held)
                for key, held in pod.held.items()
                if not held.stays
            ),
            key=lambda each: each[:2],
        )

    def wishes(self, due: Sequence[Appointment], asked: Sequence[tuple[float, Key, frozenset[str]]]) -> list[Wish]:
        """What this pod is to load."""
        pod = self._pod
        found: dict[str, Wish] = {}
        for one in due:
            # Worth more than what waits for chance: it only has to fit at all.
            if one.name not in found and self._may((one.name, one.version)) and self._takes((one.name, one.version), math.inf):
                found[one.name] = Wish(pod.name, one.name, one.version, one.reason, one.why, one.until_s)
        for worth, key, where in asked:
            others = sorted(where - {pod.name})
            if others and key[0] not in found and self._may(key) and self._takes(key, worth):
                shown = ", ".join(others[:3]) + (" and others" if len(others) > 3 else "")  # noqa: PLR2004
                why = f"asked on {shown}, cold on {pod.name}"
                found[key[0]] = Wish(pod.name, *key, "demand", why, self._now_s + ASKED_FOR_S)
        return list(found.values())[:MAX_WISHES]

    def _may(self, key: Key) -> bool:
        """Neither there, nor failed, nor ordered a moment ago."""
        pod = self._pod
        return not (_has(pod.held, key) or _has(pod.failed, key) or self._now_s - pod.ordered.get(key, -math.inf) < AGAIN_S)

    def _takes(self, key: Key, worth: float) -> bool:
        """Take the bytes on the device that loses least by it. Whether one has them; what is not known, has room."""
        size_bytes = self._size_bytes(key)
        if not size_bytes:
            return True
        plans = [(*plan, device) for device in sorted(self._free_bytes) if (plan := self._plan(device, size_bytes, worth))]
        if not plans:
            return False
        _, victims, device = min(plans, key=lambda plan: plan[0])
        self._free_bytes[device] += sum(held.size_bytes for _, key, held in self._may_go if key in victims) - size_bytes
        if victims:
            self._may_go = [each for each in self._may_go if each[1] not in victims]
        return True

    def _plan(self, device: int, size_bytes: int, worth: float) -> tuple[float, set[Key]] | None:
        """What is lost there, per second, and which copies would go; None: it cannot be."""
        free_bytes, lost, victims = self._free_bytes[device], 0.0, set[Key]()
        for copy_worth, key, held in self._may_go:
            if free_bytes >= size_bytes or copy_worth * WORTH_MORE > worth:
                break
            if held.device == device:
                free_bytes += held.size_bytes
                lost += copy_worth * held.size_bytes
                victims.add(key)
        return (lost, victims) if free_bytes >= size_bytes else None

    def _size_bytes(self, key: Key) -> int:
        """On a device, as some pod measured it; else of its weights; of several versions the largest. 0: not known."""
        sizes_bytes, warmth = self._sizes_bytes, self._warmth
        held = max((sizes_bytes[each] for each in _meant(sizes_bytes, key)), default=0)
        return held or max((warmth[each].size_bytes for each in _meant(warmth, key)), default=0)


def _meant(keys: Collection[Key], key: Key) -> Iterator[Key]:
    """Those that a key means: version 0 means every one."""
    name, version = key
    if version:
        return iter((key,) if key in keys else ())
    return (other for other in keys if other[0] == name)


def _has(keys: Collection[Key], key: Key) -> bool:
    return next(_meant(keys, key), None) is not None
