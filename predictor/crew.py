"""Makes a pod's workers as the settings want them: who shares one, what each may see, and what it is booked with.

What stays out: which worker a model is in (workers/domains.py), what a worker does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from predictor.infirmary import Infirmary
from predictor.model import ModelRef, ModelSpec
from predictor.passage import Passage
from predictor.recovery import Recovery
from predictor.settings import Settings
from predictor.tiers.device import CONTEXT_BYTES, FURTHER_WORKER_BYTES, Apart
from predictor.wire import Hello
from predictor.workers.death import Death
from predictor.workers.domains import POOL, Domains, domain_of
from predictor.workers.spawn import Spawned, Starter
from predictor.workers.worker import Pool, Worker

HEAP_BYTES: Final = 256 << 20
"""What a worker may allocate beyond its device's budget and the request bodies: its heap's slack, and the runtimes' own."""

PASSAGE_SHARE: Final = 2
"""The passage's length in HEARTH_MAX_BODY_BYTES_IN_FLIGHT, which bounds what is written into it: sizes are rounded up, gaps
are left, and a body's place is taken when it is announced. Pages appear when bytes do."""


class Crew:
    """Makes the workers of all devices; knows which of them is whose.

    kind, threads  of every worker
    starter        makes their processes
    pool           where weights are
    passage        where requests are received
    on_ready       told of every worker that is up
    memory_killed  see Worker

    all            the devices that were made
    """

    def __init__(
        self,
        settings: Settings,
        infirmary: Infirmary,
        recovery: Recovery,
        *,
        kind: str,
        threads: int,
        starter: Starter,
        pool: Pool,
        passage: Passage,
        on_ready: Callable[[Hello], object],
        memory_killed: Callable[[], bool],
    ) -> None:
        self.all: list[Domains] = []
        self._settings = settings
        self._infirmary = infirmary
        self._recovery = recovery
        self._kind = kind
        self._threads = threads
        self._starter = starter
        self._pool = pool
        self._passage = passage
        self._on_ready = on_ready
        self._memory_killed = memory_killed
        self._overdue: set[ModelRef] = set()

    def domains(self, device: int, budget_bytes: int, first: Spawned) -> Domains:
        """Those of one device. ``first``: the process that the boot started for it."""
        settings = self._settings

        def make(name: str, *, first: Spawned | None, on_lost: Callable[[], None], on_death: Callable[[Death], None]) -> Worker:
            shares = settings.isolation == POOL
            return Worker(
                device=device,
                kind=self._kind,
                threads=self._threads,
                starter=self._starter,
                name=name,
                successor=False,
                pool=self._pool,
                # Others' requests are nothing that a worker may see where it may not see their models.
                passage=self._passage if shares else Passage(PASSAGE_SHARE * settings.max_body_bytes_in_flight, "requests"),
                build_timeout_s=settings.build_timeout_s,
                execute_timeout_s=settings.execute_timeout_s,
                on_ready=self._on_ready,
                limit_bytes=budget_bytes + settings.max_body_bytes_in_flight + HEAP_BYTES,
                on_lost=on_lost,
                on_death=on_death,
                first=first,
                memory_killed=self._memory_killed,
            )

        def unmake(worker: Worker) -> None:
            if worker.passage is not None and worker.passage is not self._passage:
                worker.passage.close()
                worker.passage = None  # the worker is in cycles: its descriptor would stay until they are collected

        made = Domains(
            device,
            make,
            unmake,
            self._name,
            self._recovery,
            isolation=settings.isolation,
            first=first,
            max_workers=settings.max_workers,
        )
        self.all.append(made)
        return made

    def apart(self, spec: ModelSpec) -> Apart:
        """What isolation adds to a model."""
        worker_bytes = CONTEXT_BYTES if self._kind == "cuda" else FURTHER_WORKER_BYTES
        carried = any(domains.carried(spec) for domains in self.all)
        return Apart(self._name(spec), worker_bytes * carried, spec.ref in self._overdue)

    def overdue(self, ref: ModelRef, shares: bool) -> None:  # noqa: FBT001 (as the dispatcher tells it)
        """What the model computes takes so long that others compute beside it; or that is over."""
        (self._overdue.add if shares else self._overdue.discard)(ref)
        self._recovery.carries(ref)

    def _name(self, spec: ModelSpec) -> str:
        return domain_of(spec, self._settings.isolation, self._infirmary.quarantine.__contains__)
