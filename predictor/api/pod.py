"""What the API knows of the pod it speaks for, and what it asks of the parts behind it."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from predictor.api.reader import Load
from predictor.cache import Cache
from predictor.declarations import Declarations
from predictor.model import ModelSpec
from predictor.passage import Passage
from predictor.report import DeclaredReport, WarmUp
from predictor.settings import Settings
from predictor.telemetry import Telemetry, Timeline
from predictor.wakeup import WakeUp


class PodState(enum.Enum):
    """Where a pod is in its life. It answers in every state; what changes is what ``/readyz`` says."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class ModelCatalogue(Protocol):
    """What the API asks of the catalogue; the real one and the tests' fake keep the same contract."""

    def known(self, name: str, version: int | None) -> ModelSpec | None:
        """The spec if it was resolved before; never waits."""

    async def resolve(self, name: str, version: int | None) -> ModelSpec:
        """The spec, looked up. Raises UnknownModel, InvalidModel, TrustRequired and the store's errors."""

    def forget(self, name: str) -> None:
        """What was resolved is not what lies in the model store any more: the next look-up reads a new listing."""

    async def names(self) -> tuple[str, ...]:
        """Every model that can be asked for."""

    def report(self) -> tuple[DeclaredReport, ...]:
        """How declared models fare here."""


@dataclass(slots=True, kw_only=True)
class Pod:
    """One predictor pod, as its API sees it.

    name            sent in Hearth-Pod; made safe for a header
    device_failure  why the pod cannot compute; "" while it can or is still starting
    hopeless        why this pod should be restarted; "" if it should not
    disk_degraded   why nothing can be written to disk; "" while all is well, or nothing is kept there
    load            what is inside the inference port now
    passage         where large bodies are received, for the workers to read; None: nowhere in particular
    declarations    what a controller declares; None: nobody does
    wakeup          loads the hot set and takes orders; None: there is none of either
    """

    settings: Settings
    name: str
    catalogue: ModelCatalogue
    cache: Cache
    telemetry: Telemetry
    timeline: Timeline
    device_failure: Callable[[], str]
    hopeless: Callable[[], str] = lambda: ""
    disk_degraded: Callable[[], str] = lambda: ""
    state: PodState = PodState.STARTING
    load: Load = field(default_factory=Load)
    passage: Passage | None = None
    declarations: Declarations | None = None
    wakeup: WakeUp | None = None

    def __post_init__(self) -> None:
        self.name = safe(self.name)
        self.telemetry.gauge("hearth_in_flight_requests").set_function(lambda: self.load.requests)

    @property
    def in_flight(self) -> int:
        """Requests inside the pod."""
        return self.load.requests

    def warm_up(self) -> WarmUp:
        """How far it is with the hot set, and with orders since."""
        return self.wakeup.report() if self.wakeup is not None else WarmUp()

    def unready(self) -> str:
        """Why this pod should get no requests; "" if it should. A model that is not loaded yet is no reason."""
        if self.state is PodState.DRAINING:
            return "this pod drains: it finishes what it has and ends"
        return self.device_failure()


def safe(name: str) -> str:
    """A pod's name as a header and an object's key can hold it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)
