"""A pod's cache among clients, tiers and faults that a seed decides, in virtual time. What must hold is checked all along.

What stays out: real bytes, real processes, real time. A failure is repeated by its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field

from predictor.cache import Cache
from predictor.errors import HearthError, LoadFailed, ModelFailed, OutOfMemory, StoreUnavailable, WorkerDied
from predictor.hops import Hops
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec, Tier
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Place, State
from predictor.profiles import Profiles
from predictor.telemetry import Telemetry, Timeline
from predictor.tiers.device import Placement
from predictor.tiers.disk_files import DiskFault, Fault
from predictor.wire import Peak, Tensor
from predictor.wishes import Wish
from tests.fakes.jobs import compute
from tests.fakes.profiles import at_once, disk_bytes
from tests.fakes.tiers import Delay, FakeDevice, FakeDisk, FakeRam

MB = 1 << 20
MODELS = 40
CLIENTS = 24
TENANTS = ("", "red", "blue")
PATIENCE_S = 120.0


class SteppedDevice(FakeDevice):
    """A device that notices what would hurt a real one: a model dropped while it computes, a run of one that is gone."""

    def __init__(self, ram: FakeRam, promote_s: Delay) -> None:
        super().__init__(ram, promote_s, run_s=0.02)
        self.computing: Counter[ModelRef] = Counter()

    async def drop(self, ref: ModelRef) -> None:
        assert not self.computing[ref], f"{ref} is dropped while {self.computing[ref]} requests compute on it"
        await super().drop(ref)


@dataclass
class World:
    """One seed's pod. ``events`` counts what clients, operators and faults did."""

    seed: int
    events: int = 0
    answers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        draw = self.random
        self.specs = [self._model(number) for number in range(MODELS)]
        copies = draw.random() < 0.5
        on_disk = draw.random() < 0.7
        self.ram = FakeRam(lambda _: draw.expovariate(2.0))
        self.disk = FakeDisk(lambda _: draw.expovariate(5.0), lambda _: draw.expovariate(2.0)) if on_disk else None
        self.devices = [SteppedDevice(self.ram, lambda _: draw.expovariate(5.0)) for _ in range(draw.choice((1, 1, 2)))]
        budgets = {RAM: draw.randint(30, 120) * MB}
        budgets |= {Place(index): draw.randint(20, 80) * MB for index in range(len(self.devices))}
        if on_disk:
            budgets[DISK] = draw.randint(30, 300) * MB
        rules = Rules(
            min_residency_s=draw.choice((0.0, 5.0)),
            idle_ttl_s=draw.choice((float("inf"), 30.0)),
            floors=draw.choice(({}, {"red": 0.2}, {"red": 0.2, "blue": 0.1})),
        )
        self.ledger = Ledger(budgets, Demand(), rules)
        device_bytes = max(size for place, size in budgets.items() if place.tier is Tier.DEVICE)
        self.profiles = Profiles(
            Placement(copies, 1, disk_bytes if on_disk else None), lambda: "sim", None, at_once, device_bytes=device_bytes
        )
        loop = asyncio.get_running_loop()
        self.cache = Cache(
            self.ledger,
            Hops(self.ram, self.devices, self.disk),
            self.profiles,
            Telemetry(),
            Timeline(),
            max_waiting=200,
            clock=loop.time,
            wall_clock=loop.time,
        )

    def _model(self, number: int) -> ModelSpec:
        draw = self.random
        format_ = draw.choice((ModelFormat.ONNX, ModelFormat.PYTORCH))
        file = FileSpec("model", f"m{number}/1/model", "etag", draw.choice((1, 2, 5, 8, 13)) * MB - draw.randint(0, 5000))
        return ModelSpec(ModelRef("default", f"m{number}", 1, "r"), format_, "bucket", (file,), tenant=draw.choice(TENANTS))

    # ---- who acts --------------------------------------------------------------------------------------------

    async def run(self, events: int) -> None:
        """Let everybody act until ``events`` happened, then see that all comes to rest."""
        actors = [self._client() for _ in range(CLIENTS)] + [self._operator(), self._fate()]
        tasks = [asyncio.ensure_future(actor) for actor in actors]
        try:
            while self.events < events:
                done, _ = await asyncio.wait(tasks, timeout=5.0, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                self.check()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._come_to_rest()

    async def _client(self) -> None:
        draw = self.random
        while True:
            await asyncio.sleep(draw.expovariate(3.0))
            self.events += 1
            spec = self.specs[min(int(draw.paretovariate(0.7)) - 1, MODELS - 1)]
            patience_s = draw.choice((0.3, 2.0, PATIENCE_S))
            asking = asyncio.ensure_future(self._ask(spec, draw.choice((1, 1, 1, 10, 1000)), patience_s))
            if draw.random() < 0.05:
                await asyncio.sleep(draw.expovariate(5.0))
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                self.answers["hung up"] += 1
                continue
            try:
                self.answers[await asking] += 1
            except HearthError as error:
                self.answers[type(error).__name__] += 1
            self.check()

    async def _ask(self, spec: ModelSpec, elements: int, patience_s: float) -> str:
        deadline_s = asyncio.get_running_loop().time() + patience_s
        for last in (False, True):
            lease = await self.cache.lease(spec, deadline_s=deadline_s, elements=elements)
            device = self.devices[lease.place.device]
            device.computing[spec.ref] += 1
            try:
                await compute(lease, (Tensor("x", "FP32", (elements,), 0),))
            except OutOfMemory:
                if last:
                    raise
                self.cache.exhausted(spec.ref, elements)
            else:
                return lease.start
            finally:
                device.computing[spec.ref] -= 1
                lease.release()
        raise AssertionError("two attempts, no answer")

    async def _operator(self) -> None:
        draw = self.random
        while True:
            await asyncio.sleep(draw.expovariate(0.5))
            self.events += 1
            spec = draw.choice(self.specs)
            match draw.randrange(4):
                case 0:
                    rate = draw.choice((0.0, 0.01, 1.0))
                    self.ledger.demand.add(spec.ref, rate, rate, self.cache.clock())
                    with contextlib.suppress(HearthError):
                        self.cache.preload(spec, Wish("a test"))
                case 1:
                    async with asyncio.timeout(600.0):
                        await self.cache.unload(spec.ref.name)
                case 2 if len(self.ledger.pins) < 2:
                    self.cache.pin(spec.ref.name)
                case _:
                    for name in self.ledger.pins:
                        self.cache.unpin(name)

    async def _fate(self) -> None:
        """What goes wrong, and what models turn out to take."""
        draw = self.random
        while True:
            await asyncio.sleep(draw.expovariate(1.0))
            self.events += 1
            name = draw.choice(self.specs).ref.name
            device = draw.choice(self.devices)
            match draw.randrange(7):
                case 0:
                    self.ram.fails.setdefault(name, []).append(StoreUnavailable("the store is down"))
                case 1 if self.disk is not None:
                    self.disk.faults.setdefault(name, []).append(DiskFault(Fault.DAMAGED, "bytes differ"))
                case 2:
                    device.fails.setdefault(name, []).append(
                        draw.choice((LoadFailed("bad"), OutOfMemory("full"), WorkerDied("dead")))
                    )
                case 3:
                    device.run_fails.setdefault(name, []).append(draw.choice((OutOfMemory("full"), ModelFailed("bad input"))))
                case 4:
                    held_bytes, peak = draw.randint(0, 15) * MB, draw.randint(0, 8) * MB
                    device.measures[name] = (held_bytes, (Peak(draw.choice((1, 10, 1000)), peak),))
                case 5:
                    device.peaks[name] = draw.choice((-1, draw.randint(0, 12) * MB))
                case _ if draw.random() < 0.2:
                    self.cache.device_lost(self.devices.index(device), [copy.ref for copy in self.ledger.copies()])

    # ---- what always holds -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Books and world agree, and no place holds more than it may."""
        books = self.ledger.books
        tiers = {RAM: self.ram.present, **{Place(index): device.present for index, device in enumerate(self.devices)}}
        if self.disk is not None:
            tiers[DISK] = self.disk.present
        for place, budget in self.ledger.budgets.items():
            here = list(books.here(place))
            assert sum(copy.size_bytes for copy in here) == books.used(place)
            ready = {copy.ref for copy in here if copy.state is State.READY}
            assert ready <= tiers[place] <= {copy.ref for copy in here}, f"{place}: {ready ^ tiers[place]}"
            if place.tier is not Tier.DEVICE:
                assert books.used(place) <= budget, f"{place}: {books.used(place)} of {budget}"
        for index, device in enumerate(self.devices):
            for ref, count in device.computing.items():
                copy = books.at(ref, Place(index))
                assert not count or (copy is not None and copy.holds >= count), f"{ref} computes on {place} unheld"

    async def _come_to_rest(self) -> None:
        """Without clients, everything ends: no waiter, no transfer, no hold, nothing over budget that may be dropped."""
        for name in self.ledger.pins:
            self.cache.unpin(name)
        await asyncio.sleep(600.0)
        assert self.cache.waiting == 0, f"{self.cache.waiting} wait for ever"
        books = self.ledger.books
        for copy in self.ledger.copies():
            assert copy.state is State.READY, f"under way for ever: {copy}"
            shares = copy.place == RAM and books.needs[copy.ref].shares_ram
            assert copy.holds == (len(books.above(copy.ref)) if shares else 0), f"held by nobody: {copy}"
        for place, budget in self.ledger.budgets.items():
            assert books.used(place) + books.headroom(place) <= budget, f"{place} is over its budget"
        await self.cache.close()
