"""Who wanted what ahead of requests, and what became of it: pre-loads from the moment they are queued until they ended.

What stays out: when they begin and what they may push out (policy/preloads.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from predictor.chronicle import Chronicle
from predictor.model import ModelRef, Tier
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Place, State
from predictor.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Wish:
    """One model at one tier.

    why    who wants it, for people: ``the hot set``, ``order 7: asked on pod a``
    ended  told what became of it: ``loaded`` (a request that came first may have done it), ``ram`` (it found no room on a
           device), ``skipped`` (no room, and nothing colder in its place) or ``failed``; None: nobody wants to know
    """

    why: str
    tier: Tier = Tier.DEVICE
    ended: Callable[[str], None] | None = None


class Wishes:
    """Those that have not ended, one for each model: the last."""

    def __init__(self, ledger: Ledger, chronicle: Chronicle, telemetry: Telemetry) -> None:
        self._ledger = ledger
        self._chronicle = chronicle
        self._telemetry = telemetry
        self._open: dict[ModelRef, Wish] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ref: ModelRef, wish: Wish) -> None:
        """It is about to be queued. One for the same model before it ends as things are."""
        if ref in self._open:
            self._end(ref)
        self._open[ref] = wish

    def why(self, ref: ModelRef, place: Place) -> str:
        """Who wanted the transfer into ``place`` that is under way; "": somebody waits for it, or it goes to disk."""
        wish = self._open.get(ref)
        return wish.why if wish is not None and place.device >= RAM.device and self._ledger.is_background(ref, place) else ""

    def settle(self) -> None:
        """After the ledger decided: those end that are not in its queue any more."""
        for ref in [ref for ref in self._open if ref not in self._ledger.preloads]:
            self._end(ref)

    def _end(self, ref: ModelRef) -> None:
        wish = self._open.pop(ref)
        outcome = self._outcome(ref, wish)
        self._telemetry.counter("hearth_preloads_total", outcome).inc()
        if wish.ended is not None:
            wish.ended(outcome)

    def _outcome(self, ref: ModelRef, wish: Wish) -> str:
        books = self._ledger.books
        if books.above(ref) or self._ledger.is_awaited(ref):
            return "loaded"
        copy, history = books.at(ref, RAM), self._chronicle.get(ref)
        in_ram = copy is not None and copy.state is not State.DRAINING
        if in_ram and wish.tier is Tier.RAM:
            return "loaded"
        if history is not None and history.failure is not None:
            return "failed"
        return "ram" if in_ram else "skipped"
