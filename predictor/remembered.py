"""Demand that outlives a pod: what this pod was told of earlier ones and of others, kept apart from what it notes itself.

Documents name a model by name and version, the ledger's demand also by its contents (ModelRef.revision), which nobody knows
until the model was looked up. So what was told waits here until the model is first admitted, and costs a request nothing.

What is told to others must add up over pods: it is all that was noted less what was told, which decays alike. What stays out:
where the documents lie (keeping.py).
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from predictor.heat import MAX_MODELS, Heat, Warmth
from predictor.model import ModelRef
from predictor.policy.demand import Demand
from predictor.policy.hotset import Key

MEASURED: Final = 100_000
"""Models whose load and size are remembered."""

STEP: Final = 2_000
"""Models whose rates are reckoned at a time: 1.5 ms, then requests have their turn."""

LEAST_RATE: Final = 1e-9
"""What is asked less is nothing: a single request is that after 13 days."""


class Told(NamedTuple):
    """What somebody else noted of a model, as it was at ``at_s`` of this process's clock.

    own  that pod has ended and nobody else tells it any more: this one does from now on
    """

    fast: float
    slow: float
    at_s: float
    visits: tuple[float, ...]
    own: bool


class Remembered:
    """Belongs to one event loop.

    demand      the ledger's
    clock       seconds, the one that demand goes by
    wall_clock  seconds since the epoch, the one that documents go by
    broken      models that could not be built: nobody is told to load them unasked
    """

    def __init__(
        self,
        demand: Demand,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        broken: Callable[[ModelRef], bool] = lambda _: False,
    ) -> None:
        self.demand = demand
        self._clock = clock
        self._wall_clock = wall_clock
        self._broken = broken
        self._waiting: dict[Key, list[Told]] = {}
        self._borrowed = Demand(2 * MAX_MODELS)
        self._measured: dict[Key, tuple[float, int]] = {}

    def restore(self, models: Iterable[Warmth], at_s: float, *, own: bool) -> None:
        """Take over what was told: rates of ``at_s``, seconds since the epoch. ``own``: see Told."""
        at_s = min(at_s, self._wall_clock()) - self._ahead_s
        for one in models:
            visits = tuple(at_s - ago_s for ago_s in one.visits)
            self._waiting.setdefault((one.name, one.version), []).append(Told(one.fast, one.slow, at_s, visits, own))
            if one.load_s or one.size_bytes:
                self._measured[one.name, one.version] = one.load_s, one.size_bytes

    def claim(self, ref: ModelRef, key: Key | None = None) -> None:
        """A model was looked up: what was told of it counts from now on.

        key  what it was told under; None: its own name and version
        """
        key = key or (ref.name, ref.version)
        for told in self._waiting.pop(key, ()):
            self.demand.add(ref, told.fast, told.slow, told.at_s, told.visits)
            if not told.own:
                self._borrowed.add((ref.name, ref.version), told.fast, told.slow, told.at_s)

    def measured(self, ref: ModelRef, load_s: float, size_bytes: int) -> None:
        """A whole load from the model store took ``load_s``; its weights have ``size_bytes``."""
        key = (ref.name, ref.version)
        self._measured.pop(key, None)
        if len(self._measured) >= MEASURED:
            del self._measured[next(iter(self._measured))]
        self._measured[key] = load_s, size_bytes

    async def own(self, limit: int = MAX_MODELS) -> tuple[tuple[Warmth, ...], float]:
        """What this pod noted itself: the models asked most, the first first, and the moment of their rates on the wall clock.

        Visits may be others': told twice, they count once.
        """
        now_s, at_s = self._clock(), self._wall_clock()
        rates: dict[Key, tuple[float, float]] = {}
        refs: dict[Key, ModelRef] = {}
        for number, ref in enumerate(self.demand.keys()):
            assert isinstance(ref, ModelRef), f"demand of {ref!r}"
            if not self._broken(ref):
                _add(rates, (ref.name, ref.version), *self.demand.at(ref, now_s))
                refs[ref.name, ref.version] = ref
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)
        for key, fast, slow in self._borrowed.rates(now_s):
            assert isinstance(key, tuple), f"borrowed demand of {key!r}"
            _add(rates, key, -fast, -slow)
        early = Demand(2 * MAX_MODELS)
        for key, waiting in self._waiting.items():
            for told in waiting:
                if told.own:
                    early.add(key, told.fast, told.slow, told.at_s, told.visits)
            _add(rates, key, *early.at(key, now_s))
        most = await asyncio.to_thread(_most, rates, limit)
        models = []
        for key, fast, slow in most:
            visits = self.demand.visits(refs[key]) if key in refs else early.visits(key)
            ago_s = tuple(max(0, int(now_s - moment_s)) for moment_s in visits)
            models.append(Warmth(*key, fast, slow, *self._measured.get(key, (0.0, 0)), ago_s))
        return tuple(models), at_s

    async def heat(self, pod: str, release: str, *, final: bool = False, absorbed: tuple[str, ...] = ()) -> Heat:
        """The same as a document."""
        models, at_s = await self.own()
        return Heat(pod, at_s, models, final, absorbed, release)

    @property
    def _ahead_s(self) -> float:
        """What the wall clock is ahead of the clock now."""
        return self._wall_clock() - self._clock()


def _add(rates: dict[Key, tuple[float, float]], key: Key, fast: float, slow: float) -> None:
    known = rates.get(key, (0.0, 0.0))
    rates[key] = known[0] + fast, known[1] + slow


def _most(rates: dict[Key, tuple[float, float]], limit: int) -> list[tuple[Key, float, float]]:
    """In a thread: 30 ms for 100,000."""
    found = ((key, max(0.0, fast), max(0.0, slow)) for key, (fast, slow) in rates.items())
    asked = (one for one in found if one[1] + one[2] >= LEAST_RATE)
    return heapq.nlargest(limit, asked, key=lambda one: one[1] + one[2])
