"""What a controller remembers of one pool's demand: what running pods told last, and what those that ended left.

Pure: the moment is an argument. What a pod tells is all that it noted since it began, so that its last word replaces the one
before and nothing is counted twice. The whole is one document, written in one piece: whoever leads next starts from what the
last one wrote, and asks the pods that still run. What stays out: asking, writing (hotsets.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Final

import msgspec

from predictor.heat import MAX_MODELS, Heat, HotSet, Warmth
from predictor.policy.demand import HALF_LIVES_S
from predictor.policy.hotset import merged

FORMAT: Final = 1

RESTART_S: Final = 5.0
"""A container that began so much later than the one before is another one. One that lived for less had no demand."""

GONE_S: Final = 600.0
"""A pod that nobody sees any more is forgotten after so long: until then it could be one that a watch lost for a moment,
and what it tells would count twice."""

MAX_GONE: Final = 16
"""Of those; with more, the one that is gone for longest goes first."""

MAX_LINES: Final = 200_000
"""Of all running pods together, 60 MB; then of each the most asked."""

LEAST_LINES: Final = 50
MAX_DELETED: Final = 1_000
DELETED_S: Final = 7 * 86_400.0
"""After a week without a request a rate is less than a hundredth: what a deleted model left is nothing any more."""

MAX_RATE: Final = 1e6
"""Per second; a pod that tells more is broken, and would be the only one to count."""

DIFFERS: Final = 0.1
"""Share by which a rate has to be another for a hot set to be one."""

TOP: Final = 256
"""Models whose order matters: those behind them are loaded minutes after a pod came up, if there is room at all."""

_DECAYS: Final = tuple(math.log(2) / half_life_s for half_life_s in HALF_LIVES_S)


class Life(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pod, from its container's start on.

    began_s  moment of that, seconds since the epoch by the controller's clock
    gone_s   moment since which nobody sees it; 0: it is there
    """

    heat: Heat
    began_s: float
    gone_s: float = 0.0


class Memory(msgspec.Struct, frozen=True):
    """The document.

    ended    what pods left that are forgotten by now, added up
    deleted  names of models that were declared and are not any more → when that was seen
    """

    pool: str
    at_s: float
    ended: Heat
    lives: tuple[Life, ...] = ()
    deleted: dict[str, float] = {}
    format: Annotated[int, msgspec.Meta(ge=1)] = FORMAT


def encode(document: Memory) -> bytes:
    """JSON."""
    return msgspec.json.encode(document)


def decode(raw: bytes) -> Memory:
    """Raises ValueError: it is no such document, or of a newer format."""
    found = msgspec.json.decode(raw, type=Memory)
    if found.format > FORMAT:
        raise ValueError(f"it has format {found.format}, and this release reads {FORMAT} at most")
    return found


class PoolDemand:
    """Of one pool. Moments are seconds since the epoch.

    version  grows with everything that a document written now would tell and the one before did not
    """

    def __init__(self, pool: str, memory: Memory | None = None) -> None:
        self.version = 0
        self._pool = pool
        self._ended = memory.ended if memory is not None else Heat("", 0.0)
        self._lives = {life.heat.pod: life for life in memory.lives} if memory is not None else {}
        self._deleted = dict(memory.deleted) if memory is not None else {}
        self._declared: frozenset[str] = frozenset()

    def told(self, pod: str, heat: Heat, began_s: float, now_s: float) -> None:
        """What a running pod told. Replaces what it told before, unless its container is another one by now."""
        heat = _sane(heat, pod, now_s, max(LEAST_LINES, min(MAX_MODELS, MAX_LINES // (len(self._lives) + 1))))
        before = self._lives.get(pod)
        if before is not None and began_s > before.began_s + RESTART_S:
            self._forget(pod, now_s)
            before = None
        if before is not None and heat.at_s < before.heat.at_s:
            return  # a late answer, or a clock that was set back
        if before is None or before.gone_s or differ(before.heat, heat, share=0.01):
            self.version += 1
        # A container's start is computed anew with each answer, a little off each time: the first word counts.
        self._lives[pod] = Life(heat, before.began_s if before is not None else began_s)

    def see(self, running: Collection[str], now_s: float) -> None:
        """These pods are there; what others left is kept, without them."""
        for pod, life in list(self._lives.items()):
            if pod not in running and not life.gone_s:
                self._lives[pod] = msgspec.structs.replace(life, gone_s=now_s)
                self.version += 1
        gone = sorted((life.gone_s, pod) for pod, life in self._lives.items() if pod not in running)
        kept = len(gone) - MAX_GONE
        for number, (gone_s, pod) in enumerate(gone):
            if number < kept or now_s - gone_s >= GONE_S:
                self._forget(pod, now_s)

    def declare(self, names: Collection[str], now_s: float) -> None:
        """These models are declared to the pool now. Those that were before, and are not, count no more."""
        for name in self._declared.difference(names):
            self._deleted[name] = now_s
            self.version += 1
        for name in [name for name, at_s in self._deleted.items() if name in names or now_s - at_s >= DELETED_S]:
            del self._deleted[name]
            self.version += 1
        for name in sorted(self._deleted, key=lambda name: self._deleted[name])[: max(0, len(self._deleted) - MAX_DELETED)]:
            del self._deleted[name]
        self._declared = frozenset(names)

    def models(self, now_s: float) -> list[Warmth]:
        """What counts, of all pods there were, by value, as it is at ``now_s``; at most ``MAX_MODELS``."""
        found = merged((self._ended, *(life.heat for life in self._lives.values())), float(int(now_s)))
        return [one for one in found if one.name not in self._deleted]

    def heats(self) -> Mapping[str, Heat]:
        """What each pod that is there told last."""
        return {pod: life.heat for pod, life in self._lives.items() if not life.gone_s}

    def memory(self, now_s: float, lines: int = MAX_MODELS) -> Memory:
        """The document, with at most ``lines`` models of pods that ended, and as many of those that run together."""
        of_each = max(1, lines // max(1, len(self._lives)))
        lives = [
            msgspec.structs.replace(life, heat=_most_asked(life.heat, of_each))
            for _, life in sorted(self._lives.items(), key=lambda each: each[0])
        ]
        return Memory(self._pool, now_s, _most_asked(self._ended, lines), tuple(lives), dict(sorted(self._deleted.items())))

    def _forget(self, pod: str, now_s: float) -> None:
        """Add what it left to what all others left."""
        life = self._lives.pop(pod)
        # Whole seconds: visits are told in whole seconds before the moment, and would creep otherwise with every addition.
        at_s = float(int(now_s))
        self._ended = Heat("", at_s, tuple(merged((self._ended, life.heat), at_s)))
        self.version += 1


def hot_set(pool: str, models: Iterable[Warmth], now_s: float) -> HotSet:
    """What pods that come up begin with: without visits, which they do nothing with, and with rates of four digits."""
    lines = (
        msgspec.structs.replace(one, fast=_short(one.fast), slow=_short(one.slow), load_s=_short(one.load_s), visits=())
        for one in models
    )
    return HotSet(pool, float(int(now_s)), tuple(lines))


def differ(before: Heat | HotSet, after: Heat | HotSet, *, share: float = DIFFERS) -> bool:
    """Whether they tell other models, another order of the first ``TOP``, or rates that requests moved by ``share``.

    That time goes by changes every rate, and is no difference: who reads them knows what moment they are from.
    """
    order = [(one.name, one.version) for one in before.models[:TOP]]
    if order != [(one.name, one.version) for one in after.models[:TOP]]:
        return True
    old = {(one.name, one.version): one for one in before.models}
    if len(old) != len(after.models):
        return True
    fast, slow = (math.exp(-decay * max(0.0, after.at_s - before.at_s)) for decay in _DECAYS)
    for one in after.models:
        was = old.get((one.name, one.version))
        if was is None or (was.load_s > 0) != (one.load_s > 0) or was.size_bytes != one.size_bytes:
            return True
        if not math.isclose(was.fast * fast + was.slow * slow, one.fast + one.slow, rel_tol=share, abs_tol=1e-9):
            return True
    return False


def _sane(heat: Heat, pod: str, now_s: float, lines: int) -> Heat:
    """Under the name by which the cluster knows the pod, not of the future, and not more than can be kept."""
    models = tuple(
        msgspec.structs.replace(one, fast=min(one.fast, MAX_RATE), slow=min(one.slow, MAX_RATE))
        if max(one.fast, one.slow) > MAX_RATE
        else one
        for one in heat.models
    )
    return _most_asked(msgspec.structs.replace(heat, pod=pod, at_s=min(heat.at_s, now_s), models=models), lines)


def _most_asked(heat: Heat, lines: int) -> Heat:
    if len(heat.models) <= lines:
        return heat
    asked = sorted(heat.models, key=lambda one: (-one.fast - one.slow, one.name, one.version))[:lines]
    return msgspec.structs.replace(heat, models=tuple(asked))


def _short(number: float) -> float:
    return float(f"{number:.4g}")
