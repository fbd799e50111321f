"""Who shares a worker, when one is started and ended, and what is told of it; over workers that are fakes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from predictor.errors import NoWorkerLeft, WorkerRestarting
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.workers.death import KERNEL_OUT_OF_MEMORY, Death
from predictor.workers.dispatch import Outcome, Work
from predictor.workers.domains import LINGER_S, Domains, Occupied, domain_of
from predictor.workers.worker import Worker

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


def spec(name: str, tenant: str = "", version: int = 1) -> ModelSpec:
    files = (FileSpec("model.onnx", f"{name}/model.onnx", "etag", 4096),)
    return ModelSpec(ModelRef("default", name, version, "r"), ModelFormat.ONNX, "bucket", files, tenant=tenant)


class FakeWorker:
    """A worker that is up at once and unloads whatever it is told to."""

    def __init__(self, name: str, on_lost: Callable[[], None], on_death: Callable[[Death], None], *, first: bool) -> None:
        self.name = name
        self.pid = 7
        self.scratch = "/scratch/7"
        self.failure = ""
        self.came_up = True
        self.first = first
        self.begun = 0
        self.stopped = 0
        self.unloaded: list[ModelRef] = []
        self.ran: list[Work] = []
        self.ended: list[tuple[str, str, ModelRef | None]] = []
        self._on_lost = on_lost
        self._on_death = on_death

    def begin(self) -> None:
        self.begun += 1

    async def stop(self, timeout_s: float) -> None:
        await asyncio.sleep(0.1)
        self.stopped += 1

    async def unload(self, ref: ModelRef) -> None:
        await asyncio.sleep(0.1)
        self.unloaded.append(ref)

    def run(self, work: Work, done: Callable[[Outcome], None]) -> None:
        self.ran.append(work)

    def end(self, reason: str, cause: str, blame: ModelRef | None = None) -> None:
        self.ended.append((reason, cause, blame))

    def die(self, reason: str = "killed by SIGSEGV", cause: str = "SIGSEGV") -> None:
        self._on_lost()
        self._on_death(Death(self.name, reason, cause))


class Bench:
    """One device. ``told``: what its watcher heard."""

    def __init__(self, isolation: str, **more: Any) -> None:
        self.made: list[FakeWorker] = []
        self.unmade: list[FakeWorker] = []
        self.told: list[tuple[str, object]] = []
        self.deaths: list[Death] = []
        self.sick: set[ModelRef] = set()
        self.gives_way = 0
        self.domains = Domains(
            0,
            self._make,
            lambda worker: self.unmade.append(cast("FakeWorker", worker)),
            lambda spec: domain_of(spec, isolation, self.sick.__contains__),
            self,
            isolation=isolation,
            first=cast("Any", object()),
            **more,
        )
        self.domains.begin()

    def _make(self, name: str, *, first: object, on_lost: Callable[[], None], on_death: Callable[[Death], None]) -> Worker:
        self.made.append(FakeWorker(name, on_lost, on_death, first=first is not None))
        return cast("Worker", self.made[-1])

    def lost(self, device: int, refs: tuple[ModelRef, ...]) -> None:
        self.told.append(("lost", refs))

    def died(self, device: int, death: Death, refs: tuple[ModelRef, ...]) -> None:
        self.told.append(("died", refs))
        self.deaths.append(death)

    def carries(self, ref: ModelRef) -> None:
        self.told.append(("carries", ref))

    def vacate(self, device: int, groups: Sequence[tuple[ModelRef, ...]]) -> bool:
        self.told.append(("vacate", tuple(groups)))
        for refs in groups[: self.gives_way]:
            for ref in refs:
                asyncio.get_running_loop().call_later(1.0, self.domains.leave, ref)
        return self.gives_way > 0

    def enter(self, *specs: ModelSpec) -> list[FakeWorker]:
        return [cast("FakeWorker", self.domains.enter(one)) for one in specs]


@pytest.mark.parametrize(
    ("isolation", "names"),
    [
        ("pool", ["pool", "pool", "pool", "quarantine:sick:1@r"]),
        ("tenant", ["tenant:default", "tenant:red", "tenant:red", "quarantine:sick:1@r"]),
        ("model", ["model:a:1@r", "model:b:1@r", "model:b:2@r", "model:sick:1@r"]),
    ],
)
async def test_models_share_a_worker_as_the_isolation_says_and_sick_ones_never(isolation: str, names: list[str]) -> None:
    sick = spec("sick", "red")
    specs = [spec("a"), spec("b", "red"), spec("b", "red", version=2), sick]
    assert [domain_of(one, isolation, {sick.ref}.__contains__) for one in specs] == names


async def test_the_process_that_the_boot_started_becomes_the_worker_that_is_needed_first() -> None:
    bench = Bench("tenant")
    assert bench.domains.occupied() == [Occupied("pool", 7, (), "/scratch/7")]
    first, second, again = bench.enter(spec("a", "red"), spec("b", "blue"), spec("c", "red"))
    assert (first.first, second.first, again) == (True, False, first)
    assert [worker.name for worker in bench.made] == ["tenant:red", "tenant:blue"]
    assert [worker.begun for worker in bench.made] == [1, 1]
    await bench.domains.stop()
    assert [worker.stopped for worker in bench.made] == [1, 1]


async def test_a_worker_is_ended_when_it_was_empty_for_a_while_and_not_if_a_model_comes_back() -> None:
    bench = Bench("tenant")
    a = spec("a", "red")
    bench.enter(a)
    await bench.domains.unload(a.ref)
    assert bench.made[0].unloaded == [a.ref]
    await asyncio.sleep(LINGER_S - 1)
    assert bench.enter(a) == [bench.made[0]]
    await asyncio.sleep(LINGER_S + 1)
    assert bench.made[0].stopped == 0
    bench.domains.leave(a.ref)
    bench.domains.leave(a.ref)
    await asyncio.sleep(LINGER_S + 1)
    assert (bench.made[0].stopped, bench.unmade) == (1, [bench.made[0]])
    assert bench.enter(a) == [bench.made[1]], "a new one: what one tenant used, no other one gets"


async def test_the_pools_worker_stays_without_models() -> None:
    bench = Bench("pool")
    a = spec("a")
    bench.enter(a)
    await bench.domains.unload(a.ref)
    await asyncio.sleep(10 * LINGER_S)
    assert (len(bench.made), bench.made[0].stopped) == (1, 0)


async def test_of_too_many_workers_the_one_that_was_empty_longest_makes_room_and_none_with_models() -> None:
    bench = Bench("model", max_workers=3)
    specs = [spec(name) for name in "abcde"]
    bench.enter(*specs[:3])
    with pytest.raises(NoWorkerLeft, match="HEARTH_MAX_WORKERS"):
        bench.enter(specs[3])
    for one in (specs[1], specs[0]):
        bench.domains.leave(one.ref)
        await asyncio.sleep(1.0)
    bench.enter(specs[3])
    await asyncio.sleep(1.0)
    assert [worker.stopped for worker in bench.made] == [0, 1, 0, 0]
    bench.enter(specs[4])
    await asyncio.sleep(1.0)
    assert [worker.stopped for worker in bench.made] == [1, 1, 0, 0, 0]
    assert bench.unmade == [bench.made[1], bench.made[0]]


async def test_a_model_that_needs_a_worker_waits_until_anothers_models_made_way_or_fails() -> None:
    bench = Bench("model", max_workers=2)
    a, b, c = (spec(name) for name in "abc")
    bench.enter(a, b)
    with pytest.raises(NoWorkerLeft):
        await bench.domains.enter_in_time(c)
    assert bench.told == [("vacate", ((a.ref,), (b.ref,)))]
    bench.gives_way = 1
    began_s = asyncio.get_running_loop().time()
    worker = await bench.domains.enter_in_time(c)
    assert asyncio.get_running_loop().time() - began_s == pytest.approx(1.0)
    assert cast("FakeWorker", worker).name == "model:c:1@r"
    assert bench.domains.lane(a.ref) is None


async def test_the_first_model_carries_its_worker_and_hands_it_on_when_it_goes() -> None:
    bench = Bench("tenant")
    a, b, c = spec("a", "red"), spec("b", "red"), spec("c", "blue")
    assert [bench.domains.carried(one) for one in (a, b, c)] == [True, True, True], "each would, if it came first"
    bench.enter(a, b)
    assert [bench.domains.carried(one) for one in (a, b, c)] == [True, False, True]
    bench.domains.leave(a.ref)
    assert bench.told == [("carries", b.ref)]
    assert [bench.domains.carried(one) for one in (a, b)] == [False, True]
    pool = Bench("pool")
    pool.enter(a)
    assert not pool.domains.carried(a), "the pool's worker is in the budgets"
    pool.sick.add(b.ref)
    assert pool.domains.carried(b)


async def test_a_model_alone_in_a_worker_that_the_kernel_killed_for_memory_is_blamed_and_one_of_several_is_not() -> None:
    bench = Bench("model")
    a = spec("a")
    (worker,) = bench.enter(a)
    worker.die("killed by the kernel: out of memory", KERNEL_OUT_OF_MEMORY)
    assert [death.culprit for death in bench.deaths] == [a.ref]
    shared = Bench("pool")
    shared.enter(spec("a"), spec("b"))
    shared.made[0].die("killed by the kernel: out of memory", KERNEL_OUT_OF_MEMORY)
    assert [death.culprit for death in shared.deaths] == [None]


async def test_a_model_alone_in_a_worker_is_blamed_for_what_a_thread_of_its_did_and_not_for_what_came_from_outside() -> None:
    a = spec("a")
    for cause, culprit in (("SIGABRT", a.ref), ("exit", a.ref), ("SIGKILL", None), ("start timeout", None)):
        bench = Bench("model")
        (worker,) = bench.enter(a)
        worker.die(cause, cause)
        assert [death.culprit for death in bench.deaths] == [culprit]
    bench = Bench("model")
    (worker,) = bench.enter(a)
    worker.came_up = False
    worker.die("exit status 255 before it was up", "exit")
    assert [death.culprit for death in bench.deaths] == [None]
    shared = Bench("pool")
    shared.enter(a, spec("b"))
    shared.made[0].die("killed by SIGABRT", "SIGABRT")
    assert [death.culprit for death in shared.deaths] == [None]


async def test_a_dead_workers_models_are_told_and_whoever_asks_next_gets_another_worker() -> None:
    bench = Bench("pool")
    a, b, sick = spec("a"), spec("b"), spec("sick")
    bench.enter(a, b)
    bench.sick.add(sick.ref)
    (apart,) = bench.enter(sick)
    assert (apart.name, bench.domains.lane(sick.ref) is bench.domains.lane(a.ref)) == ("quarantine:sick:1@r", False)
    assert bench.domains.lane(a.ref) is bench.domains.lane(b.ref)
    bench.made[0].die()
    assert bench.told == [("lost", (a.ref, b.ref)), ("died", (a.ref, b.ref))]
    assert [(worker.name, worker.begun) for worker in bench.made[1:]] == [("quarantine:sick:1@r", 1), ("pool", 1)]
    await bench.domains.unload(a.ref)
    assert bench.made[0].unloaded == [a.ref], "its own worker says when nobody computes on its weights any more"
    assert bench.enter(a) == [bench.made[2]]
    apart.die()
    assert len(bench.made) == 3, "nobody needs it"
    assert bench.unmade == [bench.made[0], apart]
    await bench.domains.unload(sick.ref)
    bench.enter(sick)
    assert len(bench.made) == 4


async def test_a_worker_that_never_came_up_is_not_given_up() -> None:
    bench = Bench("tenant")
    a = spec("a")
    bench.made[0].came_up = False
    bench.made[0].failure = "no device"
    assert bench.domains.failure == "no device"
    bench.made[0].die()
    assert bench.enter(a) == [bench.made[0]]
    bench.made[0].die()
    assert bench.unmade == []
    other = Bench("tenant")
    other.made[0].die()
    assert other.enter(a) == [other.made[1]], "one that died before anybody needed it is not handed out"


async def test_work_goes_to_the_models_worker_and_ends_can_be_ordered() -> None:
    bench = Bench("tenant")
    a, b = spec("a", "red"), spec("b", "blue")
    bench.enter(a, b)
    work = Work(b.ref, (), (), (), measure=False)
    outcomes: list[Outcome] = []
    bench.domains.run(work, outcomes.append)
    assert (bench.made[0].ran, bench.made[1].ran) == ([], [work])
    bench.domains.run(work._replace(ref=spec("nobody").ref), outcomes.append)
    assert outcomes == [], "never before it returns"
    await asyncio.sleep(0)
    assert [type(outcome) for outcome in outcomes] == [WorkerRestarting]
    assert bench.domains.end("tenant:blue", "memory ran out", "memory", b.ref)
    assert bench.made[1].ended == [("memory ran out", "memory", b.ref)]
    assert not bench.domains.end("tenant:green", "", "")
