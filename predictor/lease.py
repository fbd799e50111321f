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
from predictor.policy.residency import Place
from predictor.report import Event
from predictor.tiers.device import Buffer, DeviceTier
from predictor.wire import Field, Loaded, Tensor
from predictor.workers.worker import Answer

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
    """

    schema: Schema = field(default_factory=Schema)
    loads: int = 0
    load_s: float = 0.0
    failure: HearthError | None = None
    unloaded: bool = False
    last_used_s: float = 0.0
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=REMEMBERED_EVENTS))


class Stage(NamedTuple):
    """One hop of a load, on the loop's clock."""

    name: str
    begin_s: float
    end_s: float


@dataclass(slots=True)
class Waiter:
    """A request that waits for its model."""

    ref: ModelRef
    arrived_s: float
    lease: asyncio.Future[Lease]


@dataclass(slots=True)
class Lease:
    """The right to run one model, until ``release``.

    device  the tier that ``place`` is on
    end     what ``release`` calls, once
    start   where the model was when the request came: ``hot`` (on a device), ``ram`` or ``s3``
    *_s     seconds this request waited for each stage; ``wait_s`` is what no stage explains
    """

    ref: ModelRef
    place: Place
    schema: Schema
    device: DeviceTier
    end: Callable[[Lease], None]
    start: str = "hot"
    wait_s: float = 0.0
    fetch_s: float = 0.0
    device_s: float = 0.0
    build_s: float = 0.0
    released: bool = False

    def run(self, inputs: Sequence[Tensor], body: Sequence[Buffer], outputs: Sequence[str]) -> asyncio.Future[Answer]:
        """Compute on the leased copy. See DeviceTier.run for what the future may fail with."""
        assert not self.released, f"run after release: {self.ref}"
        return self.device.run(self.ref, inputs, body, outputs=outputs)

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
