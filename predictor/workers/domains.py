"""Which models share a worker: one device's workers, started when a model needs one, ended when no model is left in it.

    pool     one worker for all models
    tenant   one for each tenant's
    model    one for every version of every model

A model in quarantine has a worker of its own in each of them. What stays out: what a worker is (worker.py), who is in
quarantine (policy/quarantine.py), which model is on which device (policy/ledger.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from predictor.errors import NoWorkerLeft
from predictor.model import ModelRef, ModelSpec
from predictor.workers.death import KERNEL_OUT_OF_MEMORY, OWN_FAULT, Death
from predictor.workers.dispatch import Outcome, Work
from predictor.workers.spawn import Spawned
from predictor.workers.worker import Worker, restarting

log = logging.getLogger(__name__)

POOL: Final = "pool"
TENANT: Final = "tenant"
MODEL: Final = "model"

LINGER_S: Final = 10.0
"""How long a worker without models is kept: what is dropped and loaded again a moment later needs no new one."""

VACATE_S: Final = 30.0
"""How long a model that needs a worker waits for another one's models to make way: requests that use them end first."""

STOP_S: Final = 5.0


def domain_of(spec: ModelSpec, isolation: str, quarantined: Callable[[ModelRef], bool]) -> str:
    """The name of the worker that the model belongs into; models with equal names share it."""
    ref = spec.ref
    if isolation == MODEL:
        return f"{MODEL}:{ref}@{ref.revision}"
    if quarantined(ref):
        return f"quarantine:{ref}@{ref.revision}"
    return f"{TENANT}:{spec.tenant or ref.namespace}" if isolation == TENANT else POOL


class Make(Protocol):
    """How a worker is made that does not outlive its process. ``first``: see Worker."""

    def __call__(
        self,
        name: str,
        *,
        first: Spawned | None,
        on_lost: Callable[[], None],
        on_death: Callable[[Death], None],
    ) -> Worker:
        """Make it; it is begun afterwards."""


class Watcher(Protocol):
    """Who is told what happens to workers."""

    def lost(self, device: int, refs: tuple[ModelRef, ...]) -> None:
        """A worker is gone, and these models with it."""

    def died(self, device: int, death: Death, refs: tuple[ModelRef, ...]) -> None:
        """The same a moment later, when its process has ended and the reason is known."""

    def carries(self, ref: ModelRef) -> None:
        """From now on this model is the one that its worker is booked with."""

    def vacate(self, device: int, groups: Sequence[tuple[ModelRef, ...]]) -> bool:
        """A worker is needed and there may be no more: have one of these, each with its models, emptied. False: none may be."""


class Occupied(NamedTuple):
    """A worker, for those who look at processes. ``pid``: 0 until it is up; ``scratch``: the folder it may write to, or ""."""

    name: str
    pid: int
    refs: tuple[ModelRef, ...]
    scratch: str = ""


@dataclass(slots=True, eq=False)
class Domain:
    """A worker and the models in it, the first of which it is booked with."""

    name: str
    worker: Worker
    refs: dict[ModelRef, None] = field(default_factory=dict)
    used_s: float = 0.0
    lingering: asyncio.TimerHandle | None = None


class Domains:
    """One device's workers.

    make, unmake  a worker; ``unmake`` gives back what ``make`` took for it, when it has ended
    name_of       which worker a model belongs into
    first         the process that the boot started: it becomes the worker that is needed first
    max_workers   at once; those that are being ended do not count
    """

    def __init__(
        self,
        device: int,
        make: Make,
        unmake: Callable[[Worker], None],
        name_of: Callable[[ModelSpec], str],
        watcher: Watcher,
        *,
        isolation: str = POOL,
        first: Spawned | None = None,
        max_workers: int = 64,
        linger_s: float = LINGER_S,
    ) -> None:
        self.device = device
        self._make = make
        self._unmake = unmake
        self._name_of = name_of
        self._watcher = watcher
        self._max_workers = max_workers
        self._linger_s = linger_s
        self._domains: dict[str, Domain] = {}
        self._of: dict[ModelRef, Domain] = {}
        self._ending: dict[Domain, asyncio.Task[None]] = {}
        self._left = asyncio.Event()
        # Nobody knows yet which models come first: the process that is up already will be theirs, under whatever name.
        self._unclaimed = self._new(POOL, first) if isolation == POOL or first is not None else None
        if isolation == POOL and self._unclaimed is not None:
            self._domains[POOL], self._unclaimed = self._unclaimed, None

    def begin(self) -> None:
        """Begin to supervise what the boot started."""
        for domain in (*self._domains.values(), *([self._unclaimed] if self._unclaimed else [])):
            domain.worker.begin()

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """End every worker."""
        domains = [*self._domains.values(), *self._of.values(), *([self._unclaimed] if self._unclaimed else [])]
        for domain in domains:
            self._stay(domain)
        await asyncio.gather(*(domain.worker.stop(timeout_s) for domain in dict.fromkeys(domains)), *self._ending.values())

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        """Why a worker does not start; "": all do."""
        return next((domain.worker.failure for domain in self._all() if domain.worker.failure), "")

    def lane(self, ref: ModelRef) -> Domain | None:
        """Whatever is the same for models that share a worker, and different for others."""
        return self._of.get(ref)

    def carried(self, spec: ModelSpec) -> bool:
        """Whether the model is the one that its worker is booked with, or would be. The pool's is booked with nobody."""
        name = self._name_of(spec)
        domain = self._of.get(spec.ref) or self._domains.get(name)
        if (domain.name if domain else name) == POOL:
            return False
        return domain is None or not domain.refs or next(iter(domain.refs)) == spec.ref

    def occupied(self) -> list[Occupied]:
        """Every worker there is."""
        return [Occupied(domain.name, domain.worker.pid, tuple(domain.refs), domain.worker.scratch) for domain in self._all()]

    # ---- models come and go ----------------------------------------------------------------------------------

    def enter(self, spec: ModelSpec) -> Worker:
        """The worker that the model is to be loaded in, which stays there for it until ``leave``. Raises NoWorkerLeft."""
        ref = spec.ref
        assert ref not in self._of, f"{ref} is in worker {self._of[ref].name} already"
        name = self._name_of(spec)
        domain = self._domains.get(name) or self._open(name)
        self._stay(domain)
        domain.refs[ref] = None
        self._of[ref] = domain
        return domain.worker

    async def enter_in_time(self, spec: ModelSpec) -> Worker:
        """``enter``, once another worker's models have made way, if one's may. Raises NoWorkerLeft."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VACATE_S):
                while True:
                    with contextlib.suppress(NoWorkerLeft):
                        return self.enter(spec)
                    groups = [tuple(domain.refs) for domain in self._domains.values() if domain.name != POOL]
                    if not self._watcher.vacate(self.device, groups):
                        break
                    self._left.clear()
                    await self._left.wait()
        return self.enter(spec)

    def leave(self, ref: ModelRef) -> None:
        """The model is not in its worker any more."""
        domain = self._of.pop(ref, None)
        if domain is None:
            return
        self._left.set()
        carrier = next(iter(domain.refs))
        del domain.refs[ref]
        loop = asyncio.get_running_loop()
        domain.used_s = loop.time()
        if domain.refs:
            if carrier == ref and domain.name != POOL:
                self._watcher.carries(next(iter(domain.refs)))
        elif domain.name != POOL and self._domains.get(domain.name) is domain:
            domain.lingering = loop.call_later(self._linger_s, self._end, domain)

    async def unload(self, ref: ModelRef) -> None:
        """Have the model's worker forget it: see Worker.unload."""
        domain = self._of.get(ref)
        if domain is None:
            return
        try:
            await domain.worker.unload(ref)
        finally:
            self.leave(ref)

    def run(self, work: Work, done: Callable[[Outcome], None]) -> None:
        """Have the model's worker compute: see Worker.run."""
        domain = self._of.get(work.ref)
        if domain is None:
            asyncio.get_running_loop().call_soon(done, restarting(work.ref.key))
        else:
            domain.worker.run(work, done)

    def end(self, name: str, reason: str, cause: str, blame: ModelRef | None = None) -> bool:
        """End a worker by force: see Worker.end. False: there is none of that name."""
        domain = next((domain for domain in self._all() if domain.name == name), None)
        if domain is None:
            return False
        domain.worker.end(reason, cause, blame)
        return True

    # ---- workers come and go ---------------------------------------------------------------------------------

    def _all(self) -> list[Domain]:
        return [*self._domains.values(), *([self._unclaimed] if self._unclaimed else [])]

    def _open(self, name: str) -> Domain:
        if self._unclaimed is not None:
            domain, self._unclaimed = self._unclaimed, None
            domain.name = domain.worker.name = name
        else:
            if len(self._domains) >= self._max_workers:
                empty = [domain for domain in self._domains.values() if not domain.refs and domain.name != POOL]
                if not empty:
                    raise NoWorkerLeft(
                        f"device {self.device} has {len(self._domains)} workers, each with models in it (HEARTH_MAX_WORKERS): "
                        f"unload some, raise the limit, or have more models share a worker (HEARTH_ISOLATION)",
                        retry_after_s=self._linger_s,
                    )
                self._end(min(empty, key=lambda domain: domain.used_s))
            domain = self._new(name, None)
            domain.worker.begin()
        self._domains[name] = domain
        return domain

    def _new(self, name: str, first: Spawned | None) -> Domain:
        # What the callbacks are about is made by the call that takes them.
        worker = self._make(
            name,
            first=first,
            on_lost=lambda: self._lost(domain),
            on_death=lambda death: self._died(domain, death),
        )
        domain = Domain(name, worker)
        return domain

    def _lost(self, domain: Domain) -> None:
        refs = tuple(domain.refs)
        if domain is self._unclaimed and domain.worker.came_up:
            self._unclaimed = None
        if domain.worker.came_up and self._domains.get(domain.name) is domain:
            self._stay(domain)
            del self._domains[domain.name]  # who asks from now on gets another one; this one's requests end with it
            if domain.name == POOL:
                self._open(POOL)
        self._watcher.lost(self.device, refs)

    def _died(self, domain: Domain, death: Death) -> None:
        alone = len(domain.refs) == 1 and domain.worker.came_up
        if alone and (death.cause == KERNEL_OUT_OF_MEMORY or (death.culprit is None and death.cause in OWN_FAULT)):
            # A model that has a worker for itself need not be inside it: it grew there, or left a thread behind that failed.
            death = death._replace(culprit=next(iter(domain.refs)), suspects=())
        self._watcher.died(self.device, death, tuple(domain.refs))
        if self._domains.get(domain.name) is not domain and domain is not self._unclaimed:
            self._unmake(domain.worker)

    def _stay(self, domain: Domain) -> None:
        if domain.lingering is not None:
            domain.lingering.cancel()
            domain.lingering = None

    def _end(self, domain: Domain) -> None:
        """Nobody is in it."""
        assert not domain.refs, f"worker {domain.name} ends with {list(domain.refs)} in it"
        self._stay(domain)
        del self._domains[domain.name]

        async def ended() -> None:
            await domain.worker.stop(STOP_S)
            self._unmake(domain.worker)
            del self._ending[domain]

        self._ending[domain] = asyncio.create_task(ended(), name=f"end worker {domain.name}")
