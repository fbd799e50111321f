"""The right to use a model, who waits for one, and what is remembered of a model beyond its residency.

What stays out: when a lease is granted (policy/ledger.py) and who grants it (cache.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from predictor.errors import HearthError
from predictor.model import ModelRef, TensorSpec
from predictor.policy.batching import Terms
from predictor.policy.residency import Place
from predictor.report import Event
from predictor.tiers.device import DeviceTier
from predictor.wire import Field, Loaded
from predictor.workers.dispatch import Answer, Job, Outcome

REMEMBERED_EVENTS: Final = 50
"""Per model and version. A model that thrashes fills this within a minute: enough to see that it does."""


class Schema(NamedTuple):
    """What a model takes and gives: the manifest's word, else what the loaded model told. Empty: unknown."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @classmethod
    def of(cls, loaded: Loaded) -> Schema:
        """As a worker told it."""
        return cls(_specs(loaded.inputs), _specs(loaded.outputs))


@dataclass(slots=True)
class History:
    """What is remembered of a model beyond its residency.

    load_s   seconds its last complete load took, all hops
    failure  why its last load failed; None once one succeeded
    events   what happened to it, oldest first
    unloaded somebody ordered it away, and nobody has asked for it since
    limit    input elements up to which its memory is known: larger requests have room made for them first; -1: none is
    terms    how its requests are run
    """

    schema: Schema = field(default_factory=Schema)
    loads: int = 0
    load_s: float = 0.0
    failure: HearthError | None = None
    unloaded: bool = False
    limit: int = -1
    terms: Terms = field(default_factory=Terms)
    last_used_s: float = 0.0
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EVENTS))


class Stage(NamedTuple):
    """One part of a load, on the cache's clock. ``start``: of a fetch, where from, ``disk`` or ``s3``."""

    name: str
    begin_s: float
    end_s: float
    start: str = ""


class Waited(NamedTuple):
    """Where a model was when a request came for it, and the seconds that request waited for each stage."""

    start: str
    fetch_s: float
    device_s: float
    build_s: float


@dataclass(slots=True)
class Journeys:
    """The stages of loads under way, by model."""

    _stages: dict[ModelRef, list[Stage]] = field(default_factory=dict)

    def fetched(self, ref: ModelRef, begin_s: float, end_s: float, start: str) -> None:
        """It came into RAM."""
        self._stages[ref] = [Stage("fetch", begin_s, end_s, start)]

    def built(self, ref: ModelRef, begin_s: float, end_s: float, build_s: float) -> float:
        """It came to a device, building took the last ``build_s`` of that. Returns the seconds of all stages."""
        built_from_s = max(begin_s, end_s - build_s)
        stages = [stage for stage in self._stages.get(ref, ()) if stage.name == "fetch"]
        self._stages[ref] = [*stages, Stage("device", begin_s, built_from_s), Stage("build", built_from_s, end_s)]
        return sum(stage.end_s - stage.begin_s for stage in self._stages[ref])

    def waited(self, ref: ModelRef, arrived_s: float) -> Waited:
        """What a request that came at ``arrived_s`` waited for."""
        spans = {"fetch": 0.0, "device": 0.0, "build": 0.0}
        start = "hot"
        for stage in self._stages.get(ref, ()):
            spans[stage.name] += max(0.0, stage.end_s - max(stage.begin_s, arrived_s))
            if start == "hot":
                start = stage.start if spans["fetch"] else "ram"
        return Waited(start, spans["fetch"], spans["device"], spans["build"])

    def came_from(self, ref: ModelRef) -> str:
        """Where the load under way began: ``disk``, ``s3``, or ``ram``."""
        return next((stage.start for stage in self._stages.get(ref, ()) if stage.name == "fetch"), "ram")

    def end(self, ref: ModelRef) -> None:
        """The load is over, or failed."""
        self._stages.pop(ref, None)


@dataclass(slots=True)
class Waiter:
    """A request that waits for its model."""

    ref: ModelRef
    arrived_s: float
    lease: asyncio.Future[Lease]
    elements: int = 0

    def granted(
        self,
        place: Place,
        history: History,
        waited: Waited,
        now_s: float,
        *,
        device: DeviceTier,
        end: Callable[[Lease], None],
        learn: Callable[[Lease, int], None],
    ) -> Lease:
        """What it waited for. ``device``, ``end``, ``learn``: see Lease."""
        return Lease(
            self.ref,
            place,
            history.schema,
            history.terms,
            device,
            end,
            start=waited.start,
            elements=self.elements,
            learn=learn if self.elements > history.limit else None,
            wait_s=max(0.0, now_s - self.arrived_s - sum(waited[1:])),
            fetch_s=waited.fetch_s,
            device_s=waited.device_s,
            build_s=waited.build_s,
        )

    def answer(self, lease: Lease) -> None:
        """Hand it over, or end it if nobody waits any more."""
        if self.lease.done():  # cancelled in this very tick
            lease.release()
        else:
            self.lease.set_result(lease)

    def refuse(self, error: HearthError) -> None:
        """Tell it why not, if it waits still."""
        if not self.lease.done():
            self.lease.set_exception(error)


@dataclass(slots=True)
class Lease:
    """The right to run one model, until ``release``.

    device  the tier that ``place`` is on
    end     what ``release`` calls, once
    start   where the model was when the request came: ``hot`` (on a device), ``ram``, ``disk`` or ``s3``
    *_s     seconds this request waited for each stage; ``wait_s`` is what no stage explains
    learn   is told the bytes that a request larger than any before took, ``elements`` of input; None: it is not
    """

    ref: ModelRef
    place: Place
    schema: Schema
    terms: Terms
    device: DeviceTier
    end: Callable[[Lease], None]
    start: str = "hot"
    wait_s: float = 0.0
    fetch_s: float = 0.0
    device_s: float = 0.0
    build_s: float = 0.0
    elements: int = 0
    learn: Callable[[Lease, int], None] | None = None
    released: bool = False

    def run(self, job: Job) -> None:
        """Compute on the leased copy, when it is the job's turn. Raises TooManyRequests, DeadlineExceeded.

        ``job.done`` is told ModelFailed, SchemaMismatch, OutOfMemory, WorkerDied, DeadlineExceeded, or the Answer; who
        hears of that calls ``measured`` before ``release``.
        """
        assert not self.released, f"run after release: {self.ref}"
        if self.learn is not None:
            job.measure = job.alone = True
        self.device.run(job, self.terms)

    def measured(self, outcome: Outcome) -> None:
        """Remember what the request took, if it was measured."""
        if self.learn is not None and isinstance(outcome, Answer) and outcome.peak_bytes >= 0:
            self.learn(self, outcome.peak_bytes)

    def release(self) -> None:
        """End the lease; a second call does nothing."""
        if not self.released:
            self.released = True
            self.end(self)


def _specs(fields: Sequence[Field]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item.name, item.datatype, item.shape) for item in fields)


def again(error: HearthError | None) -> HearthError:
    """The same error anew: one instance raised in many tasks would collect all their tracebacks."""
    assert error is not None, "refused without a failure"
    return type(error)(error.message, retry_after_s=error.retry_after_s)
