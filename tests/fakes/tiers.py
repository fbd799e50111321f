"""Tiers that move no bytes: they take the virtual time they are told to, fail when told to, and count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import accumulate

from predictor.errors import HearthError, WorkerDied
from predictor.model import ModelRef, ModelSpec
from predictor.policy.batching import Terms
from predictor.tiers.disk_files import DiskFault
from predictor.tiers.scattered import Scattered
from predictor.wire import Loaded, Peak
from predictor.workers.dispatch import Answer, Dispatcher, Job, Outcome, Work

Delay = Callable[[ModelRef], float]


class FakeRam:
    """A RAM tier. ``fails[name]``: errors that the next fetches of that model raise, in order."""

    def __init__(self, fetch_s: Delay = lambda _: 1.0) -> None:
        self.fetch_s = fetch_s
        self.fails: dict[str, list[HearthError]] = {}
        self.present: set[ModelRef] = set()
        self.fetched: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()

    def image(self, ref: ModelRef) -> Scattered:
        assert ref in self.present, f"{ref} is not in RAM"
        return Scattered(())

    async def fetch(
        self, spec: ModelSpec, background: Callable[[], bool], read: Callable[[Scattered], Awaitable[bool]]
    ) -> None:
        assert spec.ref not in self.present, f"{spec.ref} fetched twice"
        background()
        if await read(Scattered(())):
            self.present.add(spec.ref)
            return
        self.fetched[spec.ref.name] += 1
        try:
            await asyncio.sleep(self.fetch_s(spec.ref))
        except asyncio.CancelledError:
            self.stopped[spec.ref.name] += 1
            raise
        if self.fails.get(spec.ref.name):
            raise self.fails[spec.ref.name].pop(0)
        self.present.add(spec.ref)

    async def drop(self, ref: ModelRef) -> None:
        await asyncio.sleep(0.01)
        self.present.discard(ref)


class FakeDisk:
    """A disk. ``faults[name]``: what the next reads and writes of that model raise, in order."""

    def __init__(self, read_s: Delay = lambda _: 0.2, write_s: Delay = lambda _: 0.3) -> None:
        self.read_s = read_s
        self.write_s = write_s
        self.faults: dict[str, list[DiskFault]] = {}
        self.present: set[ModelRef] = set()
        self.written: Counter[str] = Counter()
        self.read_times: Counter[str] = Counter()

    async def write(self, spec: ModelSpec, image: Scattered) -> None:
        assert spec.ref not in self.present, f"{spec.ref} written twice"
        await asyncio.sleep(self.write_s(spec.ref))
        self._fail(spec)
        self.written[spec.ref.name] += 1
        self.present.add(spec.ref)

    async def read(self, spec: ModelSpec, image: Scattered) -> None:
        assert spec.ref in self.present, f"{spec.ref} is not on disk"
        await asyncio.sleep(self.read_s(spec.ref))
        self._fail(spec)
        assert spec.ref in self.present, f"{spec.ref} was dropped while it was read"
        self.read_times[spec.ref.name] += 1

    async def drop(self, ref: ModelRef) -> None:
        await asyncio.sleep(0.01)
        self.present.discard(ref)

    def _fail(self, spec: ModelSpec) -> None:
        if self.faults.get(spec.ref.name):
            raise self.faults[spec.ref.name].pop(0)


class FakeDevice:
    """A device. It refuses to promote what is not in RAM and to run what is not promoted, as the real one would.

    measures   what a build tells of a model: bytes held, peaks
    peaks      what a run with ``measure`` tells
    run_fails  errors that the next runs of a model raise, in order
    """

    def __init__(self, ram: FakeRam, promote_s: Delay = lambda _: 0.1, *, run_s: float = 0.01) -> None:
        self.ram = ram
        self.promote_s = promote_s
        self.run_s = run_s
        self.fails: dict[str, list[HearthError]] = {}
        self.present: set[ModelRef] = set()
        self.promoted: Counter[str] = Counter()
        self.probed: Counter[str] = Counter()
        self.measures: dict[str, tuple[int, tuple[Peak, ...]]] = {}
        self.peaks: dict[str, int] = {}
        self.run_fails: dict[str, list[HearthError]] = {}
        self.dead = asyncio.Event()
        self.runs = 0
        self.dispatcher = Dispatcher(self._send, clock=lambda: asyncio.get_running_loop().time())

    async def promote(self, spec: ModelSpec, *, probe: bool) -> Loaded:
        assert spec.ref in self.ram.present, f"{spec.ref} is not in RAM"
        assert spec.ref not in self.present, f"{spec.ref} promoted twice"
        self.promoted[spec.ref.name] += 1
        delay_s = self.promote_s(spec.ref)
        await asyncio.sleep(delay_s)
        if self.fails.get(spec.ref.name):
            raise self.fails[spec.ref.name].pop(0)
        self.present.add(spec.ref)
        self.probed[spec.ref.name] += probe
        held_bytes, peaks = self.measures.get(spec.ref.name, (-1, ()))
        return Loaded(0, (), (), delay_s / 2, delay_s / 2, held_bytes, peaks)

    async def drop(self, ref: ModelRef) -> None:
        await asyncio.sleep(0.01)
        self.present.discard(ref)

    def run(self, job: Job, terms: Terms) -> None:
        self.dispatcher.submit(job, terms)

    def withdraw(self, job: Job) -> bool:
        return self.dispatcher.withdraw(job)

    def _send(self, work: Work, done: Callable[[Outcome], None]) -> None:
        self.runs += 1

        def answer() -> None:
            name = work.ref.name
            if self.run_fails.get(name):
                done(self.run_fails[name].pop(0))
            elif work.ref in self.present:
                peak_bytes = self.peaks.get(name, -1) if work.measure else -1
                # An echo: the bytes of each input, whatever pieces they came in.
                whole = memoryview(b"".join(work.body))
                ends = tuple(accumulate(tensor.size_bytes for tensor in work.inputs))
                parts = tuple(whole[end - one.size_bytes : end] for one, end in zip(work.inputs, ends, strict=True))
                done(Answer(work.inputs, parts, self.run_s, peak_bytes=peak_bytes))
            else:
                done(WorkerDied(f"{work.ref} is not here"))

        asyncio.get_running_loop().call_later(self.run_s, answer)

    def die(self) -> None:
        """Lose everything, as a killed worker does."""
        self.present.clear()
