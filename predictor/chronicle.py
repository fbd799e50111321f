"""What is remembered of models beyond their residency: schema, failures, and what happened to them and why.

Bounded in models and in events per model. What stays out: what to make of it (why.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec

from predictor import why
from predictor.errors import HearthError, LoadFailed, Unavailable, WorkerDied
from predictor.lease import History, Schema
from predictor.model import ModelRef, ModelSpec
from predictor.policy.batching import Terms
from predictor.policy.churn import Alarm
from predictor.policy.residency import DISK, Cause, Place
from predictor.report import Event, Happened
from predictor.tiers.disk_files import DiskFault
from predictor.wire import Loaded

log = logging.getLogger(__name__)

JOURNAL: Final = 4096
"""Events of all models that are kept for a controller, which asks every second and remembers longer."""

REMEMBERED_MODELS: Final = 100_000
"""Models whose schema, last failure and load time are kept while they are not resident."""


@dataclass(slots=True)
class Chronicle:
    """Histories by model.

    wall_clock  seconds since the epoch, for what people read
    residents   models that have a copy somewhere; their histories are not forgotten
    """

    wall_clock: Callable[[], float]
    residents: Callable[[], Collection[ModelRef]]
    _histories: dict[ModelRef, History] = field(default_factory=dict)
    _journal: deque[Happened] = field(default_factory=lambda: deque(maxlen=JOURNAL))
    _happened: int = 0
    _churning: set[Place] = field(default_factory=set)

    def get(self, ref: ModelRef) -> History | None:
        """What is remembered of a model; None: nothing is."""
        return self._histories.get(ref)

    def touch(self, ref: ModelRef) -> History:
        """The model's history, made if need be, as the most recent one."""
        history = self._histories.pop(ref, None) or History()
        if len(self._histories) >= REMEMBERED_MODELS:
            resident = frozenset(self.residents())
            del self._histories[next(known for known in self._histories if known not in resident)]
        self._histories[ref] = history
        return history

    def loaded(self, ref: ModelRef, loaded: Loaded, load_s: float) -> None:
        """A worker built it, ``load_s`` after it was asked for."""
        history = self.touch(ref)
        history.schema = Schema.of(loaded)
        history.loads += 1
        history.load_s = load_s
        history.failure = None
        history.unloaded = False

    def broken(self, ref: ModelRef) -> bool:
        """Whether its last build failed or ended its worker: the same contents fail again for whoever builds them."""
        history = self._histories.get(ref)
        if history is None or isinstance(history.failure, LoadFailed):
            return history is not None
        return type(history.failure) is WorkerDied and any(event.what == "died" for event in history.events)

    def measured(self, spec: ModelSpec, limit: int, *, max_queued: int) -> None:
        """Up to ``limit`` input elements the model's memory is known now: how its requests are run follows from that."""
        history = self.touch(spec.ref)
        history.limit = limit
        inputs, outputs = spec.inputs or history.schema.inputs, spec.outputs or history.schema.outputs
        batches = all(field.shape[:1] == (-1,) for field in (*inputs, *outputs))
        history.terms = Terms(
            max_rows=spec.max_batch_size if batches else 1,
            max_elements=max(limit, 0),
            max_delay_s=spec.max_delay_s,
            weight=spec.weight,
            max_waiting=min(max_queued, spec.max_queued or max_queued),
        )

    def note(self, ref: ModelRef, what: str, place: Place, *, seconds: float = 0.0, cause: str = "") -> None:
        """Something happened to one copy."""
        self._add(ref, Event(self.wall_clock(), what, str(place), ref.version, seconds=seconds, cause=cause))

    def failed(self, ref: ModelRef, place: Place, error: BaseException) -> HearthError:
        """A transfer failed or was stopped. Returns what whoever waited for it is told."""
        if isinstance(error, asyncio.CancelledError):
            known: HearthError = Unavailable(f"the load of model {ref} was stopped", retry_after_s=1.0)
            self.note(ref, "stopped", place, cause=known.message)
            return known
        if isinstance(error, HearthError):
            # Remembered, its traceback would keep what its frames held: a worker's link, its passage, an arena.
            known = type(error)(error.message, retry_after_s=error.retry_after_s)
            log.warning("model %s could not be loaded into %s: %s: %s", ref, place, type(error).__name__, error)
        elif isinstance(error, DiskFault):  # the disk says once what is wrong with it
            known = Unavailable(str(error))
        else:
            known = LoadFailed(f"model {ref} could not be loaded into {place}: {type(error).__name__}: {error}")
            log.error("model %s could not be loaded into %s", ref, place, exc_info=error)
        self.note(ref, "failed", place, cause=known.message)
        if place != DISK:
            self.touch(ref).failure = known
        return known

    def note_drop(self, ref: ModelRef, place: Place, cause: Cause) -> None:
        """Both sides remember: who was dropped, and who needed the room."""
        newcomer = str(cause.newcomer or "")
        event = Event(
            self.wall_clock(),
            "dropped",
            str(place),
            ref.version,
            cause=cause.kind,
            other=newcomer,
            value=cause.value,
            rate_per_s=cause.rate_per_s,
            other_rate_per_s=cause.newcomer_rate_per_s,
        )
        self._add(ref, event)
        if cause.newcomer is not None and cause.newcomer != ref:
            mirrored = msgspec.structs.replace(event, what="pushed out", version=cause.newcomer.version, other=str(ref))
            self._add(cause.newcomer, mirrored)

    def note_churn(self, place: Place, alarm: Alarm | None) -> None:
        """Log when models begin to push each other out in circles, and when they stop."""
        if alarm is not None and place not in self._churning:
            self._churning.add(place)
            log.warning("%s", why.churning(alarm))
        elif alarm is None and place in self._churning:
            self._churning.remove(place)
            log.info("%s: models no longer push each other out in circles", place)

    def since(self, number: int) -> tuple[Happened, ...]:
        """What happened after event ``number``, as far as the journal reaches back; 0: all of it."""
        new = itertools.takewhile(lambda happened: happened.number > number, reversed(self._journal))
        return tuple(reversed(tuple(new)))

    def _add(self, ref: ModelRef, event: Event) -> None:
        self.touch(ref).events.append(event)
        self._happened += 1
        self._journal.append(Happened(self._happened, ref.name, event))

    def why(self, name: str) -> tuple[Event, ...]:
        """What happened to every version of ``name``, oldest first."""
        events = [event for ref, history in self._histories.items() if ref.name == name for event in history.events]
        return tuple(sorted(events, key=lambda event: event.at_s))
