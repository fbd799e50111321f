"""Running pods are asked and told, and none that misbehaves delays another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable

import pytest

from predictor.declared import Declared, Location, ModelShard, encode
from predictor.report import Happened
from predictor.telemetry import Telemetry
from tests.fakes.admin_pod import AdminPod
from warmup.pods import Listener, PodRef, Pods, Shard
from warmup.telemetry import METRICS

FILE = "models-03.json"
MODEL = Declared(Location("s3://models/m"))


class Heard(Listener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.pods: list[str] = []
        self.events: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def models_changed(self, models: Collection[str]) -> None:
        self.models += models
        self._news.set()

    def pod_changed(self, pool: str) -> None:
        self.pods.append(pool)
        self._news.set()

    def happened(self, ref: PodRef, events: Iterable[Happened]) -> None:
        self.events += [(each.model, each.event.what) for each in events]
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await self._news.wait()
                self._news.clear()


def shard(serial: int, **models: Declared) -> Shard:
    return Shard(serial, encode(ModelShard(serial, models)))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def pods(heard: Heard) -> AsyncIterator[Pods]:
    asked = Pods(heard, telemetry=Telemetry(METRICS), may_write=lambda: True, poll_s=0.01, timeout_s=0.3)
    yield asked
    await asked.close()


async def test_a_pod_gets_the_shards_that_it_lacks_and_only_those(heard: Heard, pods: Pods) -> None:
    async with AdminPod(loads="loaded") as pod:
        pod.shards["models-04.json"] = ModelShard(9)
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        pods.declare("pool", {FILE: shard(7, m=MODEL), "models-04.json": shard(9), "models-05.json": shard(3)})
        await heard.until(lambda: "m" in heard.models)
        assert {file: each.serial for file, each in pod.shards.items()} == {FILE: 7, "models-04.json": 9, "models-05.json": 3}
        told, behind = pods.told("pool", "m", FILE, 7)
        assert [(name, location.number, location.state) for name, location in told] == [("pod-1", 1, "loaded")]
        assert not behind
        before = pod.requests.count("/hearth/v1/declarations")
        await pod.until_asked(3)
        assert pod.requests.count("/hearth/v1/declarations") == before


async def test_what_a_pod_with_older_declarations_says_of_a_model_is_not_believed(heard: Heard, pods: Pods) -> None:
    async with AdminPod(loads="loaded", takes=False) as pod:
        pod.shards[FILE] = ModelShard(6, {"m": MODEL})
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        await heard.until(lambda: "m" in heard.models)
        assert pods.told("pool", "m", FILE, 7) == ([], True)


async def test_one_that_only_watches_asks_and_sends_nothing(heard: Heard) -> None:
    asked = Pods(heard, telemetry=Telemetry(METRICS), may_write=lambda: False, poll_s=0.01)
    async with AdminPod() as pod:
        asked.follow([PodRef("pool", "pod-1", pod.address)])
        asked.declare("pool", {FILE: shard(7, m=MODEL)})
        await pod.until_asked(3)
        assert pod.shards == {}
        await asked.close()


@pytest.mark.parametrize(
    ("misbehaves", "state"),
    [("hang", "silent"), ("garbage", "nonsense"), ("huge", "nonsense"), ("500", "nonsense"), ("older", "older")],
)
async def test_a_pod_that_misbehaves_delays_nobody_and_is_told_apart(
    misbehaves: str, state: str, heard: Heard, pods: Pods
) -> None:
    async with AdminPod("bad", misbehaves=misbehaves) as bad, AdminPod("good", loads="loaded") as good:
        pods.follow([PodRef("pool", "bad", bad.address), PodRef("pool", "good", good.address)])
        pods.declare("pool", {FILE: shard(7, m=MODEL)})
        await heard.until(lambda: "m" in heard.models and pods.of("pool")[0].state == state)
        assert [pod.ref.name for pod in pods.of("pool") if pod.report is not None] == ["good"]
        assert bad.shards == {}
        answers = await pods.residencies("pool")
        assert [answer["pod"] for answer in answers] == ["bad", "good"]
        assert ("error" in answers[0], "error" in answers[1]) == (True, False)


async def test_a_pod_that_nobody_can_reach_is_silent(heard: Heard, pods: Pods) -> None:
    async with AdminPod() as pod:
        address = pod.address
    pods.follow([PodRef("pool", "pod-1", address)])
    await heard.until(lambda: pods.of()[0].state == "silent")
    assert pods.reports("pool") == []


async def test_what_a_pod_told_is_forgotten_while_it_does_not_answer_and_believed_again_after(heard: Heard, pods: Pods) -> None:
    async with AdminPod(loads="loaded") as pod:
        pod.shards[FILE] = ModelShard(7, {"m": MODEL})
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        await heard.until(lambda: heard.models == ["m"])
        pod.misbehaves = "500"
        await heard.until(lambda: heard.models == ["m", "m"])
        assert pods.told("pool", "m", FILE, 0) == ([], False)
        pod.misbehaves = ""
        await heard.until(lambda: heard.models == ["m", "m", "m"])
        assert len(pods.told("pool", "m", FILE, 0)[0]) == 1


async def test_every_event_is_heard_once_also_after_the_container_started_anew(heard: Heard, pods: Pods) -> None:
    async with AdminPod() as pod:
        pod.began_s = asyncio.get_running_loop().time() - 100
        pod.happen("m", "loaded")
        pod.happen("n", "loaded")
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        await heard.until(lambda: len(heard.events) == 2)
        pod.restart()
        pod.happen("m", "failed")
        await heard.until(lambda: len(heard.events) == 3)
        await pod.until_asked(3)
        assert heard.events == [("m", "loaded"), ("n", "loaded"), ("m", "failed")]


async def test_a_pod_on_its_way_out_is_not_counted(heard: Heard, pods: Pods) -> None:
    async with AdminPod(loads="loaded") as pod:
        pod.shards[FILE] = ModelShard(7, {"m": MODEL})
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        await heard.until(lambda: heard.models == ["m"])
        pod.state = "draining"
        await heard.until(lambda: heard.models == ["m", "m"])
        assert pods.reports("pool") == []
        assert pods.told("pool", "m", FILE, 0) == ([], False)


async def test_pods_that_are_gone_are_asked_no_more(heard: Heard, pods: Pods) -> None:
    async with AdminPod(loads="loaded") as pod:
        pod.shards[FILE] = ModelShard(7, {"m": MODEL})
        pods.follow([PodRef("pool", "pod-1", pod.address)])
        await heard.until(lambda: heard.models == ["m"])
        pods.follow([])
        assert heard.models == ["m", "m"]
        assert pods.of() == []


async def test_more_pods_than_allowed_are_left_out(heard: Heard) -> None:
    asked = Pods(heard, telemetry=Telemetry(METRICS), may_write=lambda: True, max_pods=1)
    asked.follow([PodRef("pool", "a", "127.0.0.1:1"), PodRef("pool", "b", "127.0.0.1:1")])
    assert [pod.ref.name for pod in asked.of()] == ["a"]
    await asked.close()
