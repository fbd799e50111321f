"""What happened to each model, for `hearth why` when no pod runs: the pods' events and the controller's own. Bounded.

Belongs to one event loop. Lost with the controller: what a running pod remembers is told again after a restart.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import msgspec

from predictor.report import Event

EVENTS_PER_MODEL: Final = 64
MAX_TEXT_CHARS: Final = 1024


def pool_key(pool: str) -> str:
    """Under which a pool's own history is kept, beside the models': no model's name has a colon."""
    return f"pool:{pool}"


class Noted(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of one model.

    at_s    moment, seconds since the epoch
    what    of a pod: see report.Event; of the controller: ``declared``, ``checked``, ``status``, ``deleted``, ``warmed``
    detail  of the controller's: in words
    source  the pod's name; "": the controller
    event   of a pod: all that it told
    """

    at_s: float
    what: str
    detail: str = ""
    source: str = ""
    event: Event | None = None


class History:
    """The latest events of the models that something happened to last."""

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self._of: OrderedDict[str, deque[Noted]] = OrderedDict()
        self._count = 0

    def note(self, model: str, noted: Noted) -> None:
        """Keep it; the oldest of this model, or the model that was quiet for longest, makes way."""
        kept = self._of.setdefault(model, deque())
        self._of.move_to_end(model)
        kept.append(noted)
        self._count += 1
        if len(kept) > EVENTS_PER_MODEL:
            kept.popleft()
            self._count -= 1
        while self._count > self._max_events:
            _, gone = self._of.popitem(last=False)
            self._count -= len(gone)

    def own(self, model: str, what: str, detail: str, at_s: float) -> None:
        """Keep what the controller itself did or found."""
        self.note(model, Noted(at_s, what, detail[:MAX_TEXT_CHARS]))

    def of(self, model: str) -> tuple[Noted, ...]:
        """What is kept of this model, oldest first."""
        return tuple(sorted(self._of.get(model, ()), key=lambda noted: noted.at_s))
