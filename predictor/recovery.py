"""What follows from a worker's death: who is to blame, who goes into quarantine, and who comes back from RAM at once.

Nothing is fetched for that: the weights of the dead worker's models are in RAM still. What stays out: noticing a death
(workers/), the rules of quarantine (policy/quarantine.py), loading (cache.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from predictor import human
from predictor.cache import Cache
from predictor.errors import HearthError
from predictor.model import ModelRef
from predictor.policy.eviction import value
from predictor.policy.residency import Place, State
from predictor.telemetry import Telemetry
from predictor.wishes import Wish
from predictor.workers.death import Death

log = logging.getLogger(__name__)


class Recovery:
    """Told by workers/domains.py. ``cache`` is set before anything can die: workers are made before it."""

    cache: Cache

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def lost(self, device: int, refs: tuple[ModelRef, ...]) -> None:
        """See domains.Watcher."""
        self.cache.device_lost(device, refs)

    def died(self, device: int, death: Death, refs: tuple[ModelRef, ...]) -> None:
        """See domains.Watcher."""
        log.warning("worker %s of device %d ended: %s%s", death.name, device, death.reason, _whose(death, refs))
        self._telemetry.counter("hearth_worker_deaths_total", str(device)).inc()
        infirmary, now_s = self.cache.infirmary, self.cache.clock()
        if death.culprit is not None:
            self._telemetry.counter("hearth_model_deaths_total", death.culprit.name, death.cause).inc()
            pause_s = infirmary.quarantine.died(death.culprit, death.reason, now_s)
            self.cache.chronicle.note(death.culprit, "died", Place(device), cause=f"{death.reason}; {_pause(pause_s)}")
            self._leave(death.culprit)
        for ref in death.suspects:
            infirmary.quarantine.suspected(ref, death.reason, now_s)
            self.cache.chronicle.note(ref, "suspected", Place(device), cause=death.reason)
            self._leave(ref)
        self._bring_back([ref for ref in refs if ref != death.culprit], now_s)

    def recovered(self, ref: ModelRef) -> None:
        """A model left the quarantine by itself."""
        log.info("model %s left the quarantine", ref)
        self.cache.chronicle.note(ref, "recovered", Place(0), cause="it answered well for long enough")

    def carries(self, ref: ModelRef) -> None:
        """See domains.Watcher; also: what the model takes has changed for another reason."""
        spec = self.cache.spec(ref)
        if spec is not None:
            self.cache.rebook(spec)

    def vacate(self, device: int, groups: Sequence[tuple[ModelRef, ...]]) -> bool:
        """See domains.Watcher: the least valuable, as when bytes are short. What is pinned or on its way stays."""
        books, now_s = self.cache.ledger.books, self.cache.clock()
        least: tuple[float, tuple[ModelRef, ...]] | None = None
        for refs in groups:
            copies = [books.at(ref, Place(device)) for ref in refs]
            if any(copy is not None and copy.state is State.DRAINING for copy in copies):
                return True  # one is being emptied already
            ready = [copy for copy in copies if copy is not None and copy.state is State.READY]
            if len(ready) < len(refs) or any(ref.name in self.cache.ledger.pins for ref in refs):
                continue
            worth = sum(value(self.cache.ledger.demand.rate(copy.ref, now_s), copy.load_s, copy.size_bytes) for copy in ready)
            if least is None or worth < least[0]:
                least = worth, refs
        if least is not None:
            self.cache.device_lost(device, least[1], kind="worker")
        return least is not None

    def _leave(self, ref: ModelRef) -> None:
        """No worker that it shares with others may go on with it, on whichever device."""
        for place in self.cache.ledger.books.devices:
            self.cache.device_lost(place.device, (ref,), kind="sick")

    def _bring_back(self, refs: list[ModelRef], now_s: float) -> None:
        """The most valuable first, behind every request."""
        ledger = self.cache.ledger

        def worth(ref: ModelRef) -> float:
            return ledger.demand.rate(ref, now_s)

        for ref in sorted(refs, key=worth, reverse=True):
            spec = self.cache.spec(ref)
            if spec is not None:
                with contextlib.suppress(HearthError):  # the next request tells what stands in its way
                    self.cache.preload(spec, Wish("its worker ended"))


def _whose(death: Death, refs: Sequence[ModelRef]) -> str:
    if death.culprit is not None:
        return f" (model {death.culprit})"
    if death.suspects:
        return f" (model {' or '.join(map(str, death.suspects))})"
    return f" (nobody was inside; in it: {human.few(refs)})" if refs else ""


def _pause(pause_s: float) -> str:
    return f"its next load waits {human.span(pause_s)}" if pause_s else "it may be loaded at once"
