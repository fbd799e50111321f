"""A model's status pass: what its InferenceService should say by now, and whether it is time to say it.

Never before the catalogue has it, and never between a write and what running pods make of it. What stays out: the words
(status.py), and how they are written (announce.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from predictor.declared import model_file, model_shard
from warmup import status
from warmup.announce import Announcer
from warmup.books import Books
from warmup.history import History
from warmup.kube import Object
from warmup.pods import Pods
from warmup.rollout import Checked
from warmup.status import Told
from warmup.view import Invalid, Model, Pool
from warmup.world import World

BEHIND_S: Final = 0.25
BEHIND_LIMIT_S: Final = 3.0
"""How long a status waits for a running pod to go by what was just written."""


@dataclass(slots=True)
class Tracked:
    """One model that is ours, as its last pass saw it. Moments are of the loop's clock.

    since_s    when it was seen first like this: its generation
    written_s  when its declaration was written last
    """

    model: Model
    finding: Checked | Invalid
    scope: str
    since_s: float
    written_s: float = 0.0


@dataclass(slots=True)
class State:
    """What the controller knows of its namespace beside the caches. Belongs to one event loop."""

    pools: dict[str, Pool] = field(default_factory=dict)
    books: dict[str, Books] = field(default_factory=dict)
    tracked: dict[str, Tracked] = field(default_factory=dict)


@dataclass(frozen=True)
class StatusPauses:
    """In seconds.

    pending_s  a new model's status says Pending if its check takes longer
    defer_s    KServe's controller writes a status of its own into whatever is new, and complains in an Event when somebody
               else was faster
    """

    pending_s: float = 2.0
    defer_s: float = 1.0


class Statuses:
    """Of all models."""

    def __init__(
        self,
        state: State,
        world: World,
        pods: Pods,
        announcer: Announcer,
        history: History,
        *,
        pauses: StatusPauses,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._world = world
        self._pods = pods
        self._announcer = announcer
        self._history = history
        self._pauses = pauses
        self._clock = clock

    async def look(self, name: str) -> float | None:
        """One pass; seconds until the next, None: when something changes. Raises KubeError."""
        due = self._due(name)
        if not isinstance(due, tuple):
            return due
        if not await self._announcer.allowed():
            return None
        due = self._due(name)  # waiting for one's turn takes time
        if not isinstance(due, tuple):
            return due
        found, tracked, new = due
        before = found.get("status") or {}
        # The same from the same beginning has the same name, also after a restart between the Event and the status.
        cause = f"{tracked.model.generation} {_moment_of_ready(before)}"
        for occurrence in status.events(tracked.model, before, new):
            await self._announcer.record(found, occurrence, cause)
            self._history.own(name, "status", f"{occurrence.reason}: {occurrence.message}", self._clock())
        await self._announcer.write_status(found, status.patch(before, new))
        return None

    async def orphan(self, found: Object, pool: str) -> None:
        """Say that a model's pool is gone. Raises KubeError."""
        if not await self._announcer.allowed():
            return
        found = self._announcer.latest(found)
        before = found.get("status") or {}
        new = status.orphaned(before, pool, self._clock())
        if not status.unchanged(before, new):
            self._history.own(found["metadata"]["name"], "status", f"there is no pool {pool} any more", self._clock())
            await self._announcer.write_status(found, status.patch(before, new))

    def told(self, model: Model, books: Books) -> tuple[list[Told], bool]:
        """What running pods say of the declared locations, and whether one does not know yet what is declared."""
        file = model_file(model_shard(model.name))
        told, behind = self._pods.told(model.pool, model.name, file, books.since(model.name))
        return [Told(pod, location) for pod, location in told], behind

    def _due(self, name: str) -> tuple[Object, Tracked, Object] | float | None:
        """What is to be written, or when to ask again; None: when something changes."""
        tracked = self._state.tracked.get(name)
        found = self._world.inference_services.objects.get(name)
        if tracked is None or found is None:
            return None
        books, pool = self._state.books.get(tracked.model.pool), self._state.pools.get(tracked.model.pool)
        if books is None or pool is None or not books.is_written(name):
            return None  # the pool's pass comes first, and adds the model again
        declared = books.written(name)
        finding = books.no_room(name, tracked.scope) or tracked.finding
        if isinstance(finding, Checked) and finding.state == "pending" and declared and finding.target.is_at(declared.target):
            return None
        told, behind = self.told(tracked.model, books)
        found = self._announcer.latest(found)
        previous = found.get("status") or {}
        wait_s = self._too_early_s(tracked, finding, behind=behind, is_new="deploymentMode" not in previous)
        if wait_s > 0:
            return wait_s
        new = status.status(tracked.model, pool, declared, finding, told, previous, self._clock())
        return None if status.unchanged(previous, new) else (found, tracked, new)

    def _too_early_s(self, tracked: Tracked, finding: Checked | Invalid, *, behind: bool, is_new: bool) -> float:
        """How long to wait with a word; 0 or less: not at all."""
        now_s = asyncio.get_running_loop().time()
        wait_s = 0.0
        if isinstance(finding, Checked) and finding.state == "pending":
            wait_s = tracked.since_s + self._pauses.pending_s - now_s
        if is_new:
            wait_s = max(wait_s, tracked.since_s + self._pauses.defer_s - now_s)
        if behind and now_s < tracked.written_s + BEHIND_LIMIT_S:
            wait_s = max(wait_s, BEHIND_S)
        return wait_s


def _moment_of_ready(before: Object) -> str:
    """When the status before became what it was."""
    conditions = before.get("conditions") or ()
    return next((str(each.get("lastTransitionTime", "")) for each in conditions if each.get("type") == "Ready"), "")
