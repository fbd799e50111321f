"""Tiers that move no bytes: they take the virtual time they are told to, fail when told to, and count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from predictor.errors import HearthError, WorkerDied
from predictor.model import ModelRef, ModelSpec
from predictor.tiers.device import Buffer
from predictor.wire import Loaded, Tensor
from predictor.workers.worker import Answer

Delay = Callable[[ModelRef], float]


class FakeRam:
    """A RAM tier. ``fails[name]``: errors that the next fetches of that model raise, in order."""

    def __init__(self, fetch_s: Delay = lambda _: 1.0) -> None:
        self.fetch_s = fetch_s
        self.fails: dict[str, list[HearthError]] = {}
        self.present: set[ModelRef] = set()
        self.fetched: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()

    async def fetch(self, spec: ModelSpec, background: Callable[[], bool]) -> None:
        assert spec.ref not in self.present, f"{spec.ref} fetched twice"
        self.fetched[spec.ref.name] += 1
        background()
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


class FakeDevice:
    """A device. It refuses to promote what is not in RAM and to run what is not promoted, as the real one would."""

    def __init__(self, ram: FakeRam, promote_s: Delay = lambda _: 0.1, *, run_s: float = 0.01) -> None:
        self.ram = ram
        self.promote_s = promote_s
        self.run_s = run_s
        self.fails: dict[str, list[HearthError]] = {}
        self.present: set[ModelRef] = set()
        self.promoted: Counter[str] = Counter()
        self.dead = asyncio.Event()

    async def promote(self, spec: ModelSpec) -> Loaded:
        assert spec.ref in self.ram.present, f"{spec.ref} is not in RAM"
        assert spec.ref not in self.present, f"{spec.ref} promoted twice"
        self.promoted[spec.ref.name] += 1
        delay_s = self.promote_s(spec.ref)
        await asyncio.sleep(delay_s)
        if self.fails.get(spec.ref.name):
            raise self.fails[spec.ref.name].pop(0)
        self.present.add(spec.ref)
        return Loaded(0, (), (), delay_s / 2, delay_s / 2)

    async def drop(self, ref: ModelRef) -> None:
        await asyncio.sleep(0.01)
        self.present.discard(ref)

    def run(
        self, ref: ModelRef, inputs: Sequence[Tensor], body: Sequence[Buffer], *, outputs: Sequence[str]
    ) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def answer() -> None:
            if future.done():
                return
            if ref in self.present:
                future.set_result(Answer(tuple(inputs), b"".join(body), self.run_s))
            else:
                future.set_exception(WorkerDied(f"{ref} is not here"))

        loop.call_later(self.run_s, answer)
        return future

    def die(self) -> None:
        """Lose everything, as a killed worker does."""
        self.present.clear()
