"""The device tier, seen from the front: what a model takes there, and one worker process per device that does the work.

What stays out: torch (engine/), keeping the process alive (workers/), when to promote and drop (policy/ledger.py).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

from predictor.errors import WorkerDied
from predictor.model import ModelFormat, ModelRef, ModelSpec
from predictor.policy.residency import Footprint
from predictor.tiers.ram import SharedMemory
from predictor.wire import Loaded, Tensor
from predictor.workers.worker import Answer, Worker

Buffer = bytes | bytearray | memoryview


class DeviceTier(Protocol):
    """What the cache asks of one device; the real one and the tests' fake keep the same contract."""

    async def promote(self, spec: ModelSpec) -> Loaded:
        """Make a model that is in RAM ready to run. Raises LoadFailed, WorkerDied."""

    async def drop(self, ref: ModelRef) -> None:
        """Free what the model took. Idempotent; returns at once when the worker that held it is gone."""

    def run(self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer], *, outputs: Sequence[str]) -> Future[Answer]:
        """Compute; sent before this returns. The future fails with ModelFailed, SchemaMismatch or WorkerDied."""


class WorkerDevice:
    """The real device tier: asks a worker process.

    copy  the device copy gets bytes of its own (a GPU always; a CPU with HEARTH_CPU_COPY)
    """

    def __init__(self, worker: Worker, ram: SharedMemory, *, copy: bool) -> None:
        self.worker = worker
        self._ram = ram
        self._copy = copy

    async def promote(self, spec: ModelSpec) -> Loaded:
        """Hand the model's arena to the worker and have it built there.

        A worker that dies meanwhile may have died of another model, so its successor is asked once; a model that kills
        its worker kills two and fails.
        """
        arena = self._ram.arena(spec.ref)
        try:
            return await self.worker.load(spec, arena, copy=self._copy)
        except WorkerDied:
            return await self.worker.load(spec, arena, copy=self._copy)

    async def drop(self, ref: ModelRef) -> None:
        """Have the worker forget the model. A worker that dies meanwhile has forgotten it, too."""
        try:
            await self.worker.unload(ref)
        except WorkerDied:
            return

    def run(self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer], *, outputs: Sequence[str]) -> Future[Answer]:
        """Send one request to the worker."""
        return self.worker.run(ref, inputs, body, outputs)


def footprint(spec: ModelSpec, *, copy: bool) -> Footprint:
    """What ``spec`` takes in RAM and on a device.

    ONNX Runtime always copies the weights out of the file. A PyTorch module on a CPU is views of the arena, charged
    once, to RAM, unless ``copy`` gives it bytes of its own.
    """
    shares_ram = spec.format is ModelFormat.PYTORCH and not copy
    return Footprint(spec.arena_bytes, 0 if shares_ram else spec.arena_bytes, shares_ram)
