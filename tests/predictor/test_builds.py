"""How many workers build at once, in virtual time, over memory that the test fills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from predictor.errors import LoadFailed
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.tiers.device import BUILDING_BYTES, WorkerDevice
from predictor.workers.builds import SEEN_S, Builds
from predictor.workers.memory_watch import left_bytes
from tests.predictor.test_memory_watch import cgroup1, cgroup2

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

MIB = 1 << 20
WANTED = 128 * MIB


class Container:
    """Memory that builds take for as long as they last, half a second each, and half of what they take only in the middle."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.at_once = self.most_at_once = self.done = 0
        self.builds = Builds(lambda: self.left)

    @asynccontextmanager
    async def _taking(self, size_bytes: int) -> AsyncIterator[None]:
        assert self.left is not None
        self.left -= size_bytes
        assert self.left >= 0, "the kernel would have ended the container"
        yield
        self.left += size_bytes

    async def build(self, worker: object, seconds: float = 0.5) -> None:
        async with self.builds.one(worker, WANTED):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if self.left is None:
                await asyncio.sleep(seconds)
            else:
                async with self._taking(WANTED // 2):
                    await asyncio.sleep(seconds / 2)
                    async with self._taking(WANTED // 2):
                        await asyncio.sleep(seconds / 2)
            self.at_once -= 1
            self.done += 1


async def test_no_more_workers_build_at_once_than_there_is_memory_for() -> None:
    container = Container(4 * WANTED)
    building = [asyncio.create_task(container.build(object())) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert container.builds.waiting == 17
    await asyncio.gather(*building)
    assert (container.most_at_once, container.done, container.builds.waiting) == (
        3,
        20,
        0,
    )  # half of each counts twice: 3, not 4


async def test_without_a_limit_all_build_at_once() -> None:
    container = Container(None)
    await asyncio.gather(*(container.build(object()) for _ in range(20)))
    assert container.most_at_once == 20


async def test_one_may_always_build_because_its_memory_is_in_the_budgets() -> None:
    container = Container(None)
    container.builds = Builds(lambda: 0)
    await asyncio.gather(*(container.build(object()) for _ in range(3)))
    assert (container.most_at_once, container.done) == (1, 3)


async def test_a_worker_that_builds_takes_further_models_behind_it() -> None:
    container = Container(None)
    container.builds = Builds(lambda: 0)
    worker = object()
    await asyncio.gather(*(container.build(worker) for _ in range(3)))
    assert container.most_at_once == 3, "the worker's own queue, as ever"


async def test_the_next_model_of_a_worker_is_counted_from_when_its_turn_comes() -> None:
    loop, worker = asyncio.get_running_loop(), object()
    container = Container(None)
    container.builds = Builds(lambda: 0)
    first, second = (asyncio.create_task(container.build(worker, seconds)) for seconds in (SEEN_S, SEEN_S + 1))
    await first
    begin_s = loop.time()
    other = asyncio.create_task(container.build(object()))
    await second
    assert not other.done()
    await other
    assert loop.time() - begin_s == pytest.approx(1.5, abs=0.1)


async def test_a_build_that_hangs_does_not_hold_up_the_others_for_long() -> None:
    container = Container(None)
    container.builds = Builds(lambda: 0)
    hung = asyncio.create_task(container.build(object(), 300.0))
    async with asyncio.timeout(SEEN_S + 2):
        await asyncio.gather(*(container.build(object()) for _ in range(3)))
    assert not hung.done()
    hung.cancel()


async def test_who_gives_up_waiting_leaves_its_turn_to_the_next() -> None:
    container = Container(None)
    container.builds = Builds(lambda: 0)
    first, impatient, third = (asyncio.create_task(container.build(object())) for _ in range(3))
    await asyncio.sleep(0.1)
    impatient.cancel()
    await asyncio.gather(first, third)
    assert impatient.cancelled()
    assert container.builds.waiting == 0


@pytest.mark.parametrize("write", [cgroup1, cgroup2])
async def test_what_is_left_is_the_share_less_the_working_set(tmp_path: Path, write: Any) -> None:
    assert left_bytes(1000, 0.9, tmp_path) is None
    write(tmp_path, 800, cache=100)
    assert left_bytes(1000, 0.9, tmp_path) == 200
    assert left_bytes(100, 0.9, tmp_path) == 0
    assert left_bytes(None, 0.9, tmp_path) is None


class Loads:
    """Domains whose workers are themselves: they note who builds."""

    def __init__(self) -> None:
        self.building: list[ModelRef] = []
        self.left: list[ModelRef] = []
        self.fails = False

    async def enter_in_time(self, spec: ModelSpec) -> Any:
        async def load(*_: object, **__: object) -> str:
            self.building.append(spec.ref)
            await asyncio.sleep(1.0)
            if self.fails:
                raise LoadFailed("it cannot be built")
            self.building.remove(spec.ref)
            return "loaded"

        return SimpleNamespace(load=load)

    def leave(self, ref: ModelRef) -> None:
        self.left.append(ref)


def spec(name: str, size_bytes: int, format_: ModelFormat = ModelFormat.ONNX) -> ModelSpec:
    files = (FileSpec("model", f"{name}/model", "etag", size_bytes),)
    return ModelSpec(ModelRef("default", name, 1, "r"), format_, "bucket", files)


def device(loads: Loads, builds: Builds) -> WorkerDevice:
    ram = SimpleNamespace(arena=lambda _: None)
    return WorkerDevice(cast("Any", loads), cast("Any", None), cast("Any", ram), copy=False, budget_bytes=MIB, builds=builds)


@pytest.mark.parametrize(
    ("model", "probe", "at_once"),
    [
        (spec("unknown", 4096), True, 2),  # nobody knows yet what it imports
        (spec("large", 64 * MIB), False, 2),
        (spec("small", 4 * MIB), False, 16),
        (spec("code", 64 * MIB, ModelFormat.PYTORCH), False, 20),
    ],
)
async def test_a_device_asks_for_what_no_ledger_knows(model: ModelSpec, at_once: int, *, probe: bool) -> None:
    loads = Loads()
    one = device(loads, Builds(lambda: 2 * BUILDING_BYTES))
    building = [asyncio.create_task(one.promote(model, probe=probe)) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert len(loads.building) == at_once
    await asyncio.gather(*building)


async def test_a_build_that_fails_makes_way() -> None:
    loads = Loads()
    loads.fails = True
    one = device(loads, Builds(lambda: 0))
    told = await asyncio.gather(*(one.promote(spec("a", MIB), probe=True) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in told] == [LoadFailed, LoadFailed]
    assert len(loads.left) == 2
