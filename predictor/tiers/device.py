"""The device tier, seen from the front: what a model takes there, and the worker processes that do the work.

What stays out: torch (engine/), keeping processes alive (workers/), when to promote and drop (policy/ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from predictor.errors import WorkerDied, WorkerRestarting
from predictor.model import ModelFormat, ModelRef, ModelSpec
from predictor.policy.batching import Terms
from predictor.policy.residency import Footprint
from predictor.tiers.ram import SharedMemory
from predictor.wire import Loaded
from predictor.workers.builds import Builds
from predictor.workers.dispatch import Dispatcher, Job
from predictor.workers.domains import Domains

ONNX_COPIES: Final = 2
"""What a session is taken to hold until it was measured, in sizes of its file: 1.03 for plain multiplications, whose weights
are packed in place of the originals."""

ONNX_BUILDING: Final = 4
"""What making a session takes, in sizes of its file: the file, its parsed form, and the weights (measured: 3.0 to 4.1)."""

BUILDING_BYTES: Final = 128 << 20
"""So much of it is the worker's own (budgets.POOL_WORKER_BYTES), one build at a time, and more at once only where that much
memory is free (workers/builds.py). Booked, it would have a small model push
out three of its size for the milliseconds of its build: 41 % of the demo's requests were hot then, instead of 56 %."""

ASIDE_BYTES: Final = 1 << 20
"""What building takes beside weights: the module's or graph's own objects. 0.1 to 1.3 MB measured."""


ATTEMPTS: Final = 3
"""Workers that a model is handed to before its load fails: two may end by others' doing while it is being built."""

FURTHER_WORKER_BYTES: Final = 10 << 20
CONTEXT_BYTES: Final = 512 << 20
"""What a device's second worker takes, and every further one: a process forked from the zygote, beyond what it shares with that
(9.2 MB: docs/benchmarks.md, "One more worker"); on a GPU a context and its libraries' kernels (unverified on a GPU)."""


class Apart(NamedTuple):
    """What isolation adds to a model.

    domain        models whose domains are equal share a worker
    worker_bytes  of the device, for a worker that is booked with this model
    overdue       it computes beside others right now
    """

    domain: str = ""
    worker_bytes: int = 0
    overdue: bool = False


class DeviceTier(Protocol):
    """What the cache asks of one device; the real one and the tests' fake keep the same contract."""

    async def promote(self, spec: ModelSpec, *, probe: bool) -> Loaded:
        """Make a model that is in RAM ready to run. Raises LoadFailed, OutOfMemory, WorkerDied.

        probe  measure what it takes
        """

    async def drop(self, ref: ModelRef) -> None:
        """Free what the model took. Idempotent; returns at once when the worker that held it is gone."""

    def run(self, job: Job, terms: Terms) -> None:
        """Have it computed; ``job.done`` is told the outcome. Raises TooManyRequests, DeadlineExceeded instead of starting."""

    def withdraw(self, job: Job) -> bool:
        """Forget a job that only waits. False: it is being computed, or is done."""


class WorkerDevice:
    """The real device tier: asks the worker that the model belongs into.

    dispatcher    sends to the workers
    copy          the device copy gets bytes of its own (a GPU always; a CPU with HEARTH_CPU_COPY)
    budget_bytes  what the device may hold: no probe takes more
    builds        how many workers may build at once, on all devices
    """

    def __init__(
        self,
        domains: Domains,
        dispatcher: Dispatcher,
        ram: SharedMemory,
        *,
        copy: bool,
        budget_bytes: int,
        builds: Builds,
    ) -> None:
        self.domains = domains
        self._builds = builds
        self._dispatcher = dispatcher
        self._ram = ram
        self._copy = copy
        self._budget_bytes = budget_bytes

    async def promote(self, spec: ModelSpec, *, probe: bool) -> Loaded:
        """Hand the model's arena to its worker and have it built there.

        A worker that ends meanwhile by another model's doing is no reason to fail: another one is asked. A model that ended
        its worker itself fails at once.
        """
        arena = self._ram.arena(spec.ref)
        probe_limit_bytes = self._budget_bytes if probe else 0
        attempts = 0
        while True:
            attempts += 1
            worker = await self.domains.enter_in_time(spec)
            try:
                async with self._builds.one(worker, _aside_bytes(spec, probe=probe)):
                    return await worker.load(spec, arena, copy=self._copy, probe_limit_bytes=probe_limit_bytes)
            except BaseException as error:
                self.domains.leave(spec.ref)
                if not isinstance(error, WorkerRestarting) or attempts >= ATTEMPTS:
                    raise

    async def drop(self, ref: ModelRef) -> None:
        """Have the worker forget the model. A worker that dies meanwhile has forgotten it, too."""
        try:
            await self.domains.unload(ref)
        except WorkerDied:
            return

    def run(self, job: Job, terms: Terms) -> None:
        """Queue one request for the worker."""
        self._dispatcher.submit(job, terms)

    def withdraw(self, job: Job) -> bool:
        """As the dispatcher has it."""
        return self._dispatcher.withdraw(job)


def _aside_bytes(spec: ModelSpec, *, probe: bool) -> int:
    """What a build may take beyond what is booked: until it was measured nobody knows what a model's code imports."""
    if probe:
        return BUILDING_BYTES
    return min(ONNX_BUILDING * spec.arena_bytes, BUILDING_BYTES) if spec.format is ModelFormat.ONNX else ASIDE_BYTES


@dataclass(frozen=True, slots=True)
class Placement:
    """How models lie in this pod: what can be told of their bytes before anything is built.

    copies      a device copy has bytes of its own (a GPU always; a CPU with HEARTH_CPU_COPY)
    slab_bytes  RAM is given away in pieces of this size
    disk_bytes  what a model takes on disk; None: nothing is kept there
    apart       what isolation adds
    """

    copies: bool
    slab_bytes: int = 1
    disk_bytes: Callable[[ModelSpec], int] | None = None
    apart: Callable[[ModelSpec], Apart] = lambda _: Apart()

    def known_bytes(self, spec: ModelSpec) -> int:
        """What a device copy takes at least.

        ONNX Runtime always copies the weights out of the file. A PyTorch module on a CPU is views of the arena, charged
        once, to RAM, unless copies have bytes of their own.
        """
        return 0 if self._shares_ram(spec) else spec.arena_bytes

    def assumed_bytes(self, spec: ModelSpec) -> int:
        """What a device copy is taken to hold until it was measured: rather too much, so that the books stay true."""
        if spec.format is ModelFormat.ONNX:
            return ONNX_COPIES * spec.arena_bytes + ASIDE_BYTES
        return self.known_bytes(spec) + ASIDE_BYTES

    def footprint(self, spec: ModelSpec, held_bytes: int, activation_bytes: int) -> Footprint:
        """What the model takes in every place, given what it was measured or assumed to take on a device.

        A computation that takes longer than it may has others beside it: what it takes is held then, as weights are, and no
        longer part of the room that computations have in turn.
        """
        domain, worker_bytes, overdue = self.apart(spec)
        return Footprint(
            ram_bytes=-(-spec.arena_bytes // self.slab_bytes) * self.slab_bytes,
            device_bytes=held_bytes + worker_bytes + (activation_bytes if overdue else 0),
            shares_ram=self._shares_ram(spec),
            activation_bytes=activation_bytes,
            disk_bytes=self.disk_bytes(spec) if self.disk_bytes else 0,
            tenant=spec.tenant or spec.ref.namespace,
            building_bytes=self._building_bytes(spec),
            domain=domain,
        )

    def _building_bytes(self, spec: ModelSpec) -> int:
        if spec.format is not ModelFormat.ONNX:
            return 0
        return max(ONNX_BUILDING * spec.arena_bytes - BUILDING_BYTES, 0)

    def _shares_ram(self, spec: ModelSpec) -> bool:
        return spec.format is ModelFormat.PYTORCH and not self.copies
