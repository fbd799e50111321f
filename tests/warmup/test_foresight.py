"""Looking ahead for a pool: what is carried from look to look, told, counted, and kept over the controller's restarts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import generate_latest

from predictor.report import Event, Happened, PodReport
from predictor.telemetry import Telemetry
from tests.fakes.kube import FakeKube
from tests.warmup.controlling import NAMESPACE, running
from tests.warmup.objects import knative_service
from warmup import activity, calendar
from warmup.activity import Activity
from warmup.forecast import SLOT_S, SLOTS_A_DAY, Slots, slot_of
from warmup.foresight import LOAD_AGAIN_S, SAVE_S, THINK_S, Bounds, Foresight, Scene
from warmup.history import History, pool_key
from warmup.kube import Forbidden, KubeError
from warmup.pods import Followed, PodRef
from warmup.pools import Owner, Pool, Wishes
from warmup.prewarm import Revision, Tell
from warmup.telemetry import METRICS

NOW = 1_767_344_400.0
"""2026-01-02 09:00 UTC, a Friday."""

GPU = Pool("gpu", "team", "knative", Owner("v1", "Service", "gpu", "u1"), service="gpu", revision="r1")
NINE = Wishes(calendar=calendar.parse("0 9 * * * for 1h"))


@dataclass
class Memory:
    """A ConfigMap in memory. ``fails``: so many times, it cannot be read or written."""

    pool: Pool
    stands: bytes = b""
    fails: int = 0
    error: type[KubeError] = KubeError
    reads: int = 0

    async def load(self) -> Activity | None:
        self.reads += 1
        self._fail()
        return activity.decode(self.stands) if self.stands else None

    async def write(self, document: bytes, may_write: Any, *, at_once: bool = False) -> bool:
        self._fail()
        assert may_write()
        self.stands = document
        return True

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            raise self.error("the API server is away")


@dataclass
class World:
    """A namespace with one pool, and what was told about it."""

    pool: Pool = GPU
    pods: list[Followed] = field(default_factory=list)
    revision: Revision | None = field(default_factory=lambda: Revision("r1", "7"))
    memory: Memory = field(default_factory=lambda: Memory(GPU))
    bounds: Bounds = field(default_factory=Bounds)
    now_s: float = NOW
    leads: bool = True

    def __post_init__(self) -> None:
        self.told: list[Tell] = []
        self.telemetry = Telemetry(METRICS)
        self.begin()

    def begin(self) -> None:
        """As a controller that starts anew."""
        self.history = History(1000)
        scene = Scene(
            pools=lambda: {"gpu": self.pool} if self.pool else {},
            pods=lambda _: self.pods,
            revision=lambda name: self.revision if self.revision and self.revision.name == name else None,
            created_s=lambda _: NOW - 1000,
        )
        self.foresight = Foresight(
            scene,
            may_act=lambda: self.leads,
            remember=lambda _: self.memory,
            announce=self._announce,
            history=self.history,
            telemetry=self.telemetry,
            clock=lambda: self.now_s,
            bounds=self.bounds,
        )

    async def tick(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        await self.foresight.tick()

    def reasons(self) -> list[str]:
        return [told.reason for told in self.told]

    def metrics(self) -> str:
        return generate_latest(self.telemetry.registry).decode()

    async def _announce(self, told: Tell) -> None:
        self.told.append(told)


def pod(asked: int = 0, ago_s: float | None = None, running_now: int = 0) -> Followed:
    report = PodReport("p", asked=asked, asked_s_ago=ago_s, running=running_now)
    return Followed(PodRef("gpu", "p", "10.0.0.1"), state="answering", report=report)


def asked_at_nine(days: int) -> Activity:
    slot = slot_of(NOW)
    past = {slot - number: 0 for number in range(1, days * SLOTS_A_DAY + 1)}
    return Activity(at_s=NOW - 1, slots=Slots(past | {slot - day * SLOTS_A_DAY: 1 for day in range(1, days + 1)}))


async def test_without_a_wish_nothing_is_done_and_yet_something_learned() -> None:
    world = World()
    await world.tick()
    await world.tick(SAVE_S)
    assert not world.foresight.wishes()
    assert not world.foresight.retentions()
    assert not world.told
    assert activity.decode(world.memory.stands).slots.pods == {slot_of(NOW): 0}


async def test_a_window_of_the_calendar_is_wished_told_once_and_its_end_too() -> None:
    world = World(pool=replace(GPU, wishes=NINE))
    for _ in range(3):
        await world.tick(THINK_S)
    assert world.foresight.wishes()["gpu"].reason == "calendar"
    assert world.reasons() == ["PodsAhead"]
    assert "0 9 * * * for 1h" in world.told[0].message
    assert 'hearth_controller_wanted_pods{pool="gpu",reason="calendar"} 1.0' in world.metrics()
    await world.tick(3600)
    assert not world.foresight.wishes()
    assert world.reasons() == ["PodsAhead", "NotAheadAnyMore"]
    assert "wanted_pods{" not in world.metrics()


async def test_an_entry_that_goes_on_and_on_is_told_once() -> None:
    world = World(pool=replace(GPU, wishes=Wishes(calendar=calendar.parse("*/10 * * * * for 1h"))))
    for _ in range(20):
        await world.tick(600)
    assert world.reasons() == ["PodsAhead"]


async def test_a_new_calendar_counts_at_once() -> None:
    world = World()
    await world.tick()
    world.pool = replace(GPU, wishes=NINE)
    await world.tick(0.1)
    assert world.foresight.wishes()


async def test_more_pods_than_max_scale_are_neither_told_nor_counted() -> None:
    four = Wishes(calendar=calendar.parse("0 9 * * * for 1h with 4 pods"))
    world = World(pool=replace(GPU, wishes=four), revision=Revision("r1", most=2))
    await world.tick()
    assert "2 pods" in world.told[0].message
    assert "held by min-scale 2 on r1" in world.told[0].message
    assert "} 2.0" in world.metrics()


async def test_hearth_warm_is_told_in_the_same_words() -> None:
    world = World(pool=replace(GPU, wishes=Wishes(until_s=NOW + 60)))
    await world.tick()
    assert not world.foresight.wishes(), "prewarm.py knows of it anyway"
    assert "held by a request every 20 s: asked for with `hearth warm`" in world.told[0].message
    assert "held by a request every 20 s" in world.foresight.told("gpu")[0]
    await world.tick(60)
    assert world.reasons() == ["PodsAhead", "NotAheadAnyMore"]


async def test_a_restart_tells_nothing_again_and_remembers_why() -> None:
    world = World(pool=replace(GPU, wishes=NINE))
    await world.tick()
    await world.foresight.close()
    world.begin()
    await world.tick()
    assert world.reasons() == ["PodsAhead"]
    (noted,) = world.history.of(pool_key("gpu"))
    assert noted.what == "PodsAhead"
    assert noted.at_s == NOW + 1


async def test_what_is_kept_is_not_written_over_before_it_was_read() -> None:
    kept = activity.encode(Activity(gaps_s=[77.0]))
    world = World(memory=Memory(GPU, kept, fails=2))
    await world.tick()
    await world.tick()
    assert world.memory.reads == 1, "it is not asked again at once"
    assert world.memory.stands == kept
    await world.tick(LOAD_AGAIN_S)
    await world.tick(LOAD_AGAIN_S)
    assert activity.decode(world.memory.stands).gaps_s == [77.0]


async def test_a_write_that_fails_is_repeated() -> None:
    world = World()
    await world.tick()
    world.memory.fails, world.memory.stands = 1, b""
    await world.tick(SAVE_S)
    assert not world.memory.stands
    await world.tick(SAVE_S)
    assert world.memory.stands


async def test_the_past_starts_a_pod_ahead_of_its_slot_and_says_so() -> None:
    memory = Memory(GPU, activity.encode(asked_at_nine(4)))
    world = World(memory=memory, bounds=Bounds(weight=10))
    await world.tick()
    wish = world.foresight.wishes()["gpu"]
    assert (wish.reason, wish.until_s) == ("forecast", NOW + SLOT_S)
    assert world.reasons() == ["PodsAhead", "ForecastOn"]
    assert 'forecast_precision{pool="gpu"} 1.0' in world.metrics()
    assert any(line.startswith("forecast on") for line in world.foresight.told("gpu"))


async def test_a_past_that_is_too_short_is_told_once() -> None:
    world = World(bounds=Bounds(weight=10))
    for _ in range(3):
        await world.tick(THINK_S)
    assert world.reasons() == ["ForecastOff"]
    assert "0 days" in world.told[0].message


async def test_a_forecast_that_was_wrong_yesterday_is_told_and_starts_nothing() -> None:
    past = asked_at_nine(5)
    past.slots.pods[slot_of(NOW) - SLOTS_A_DAY] = 0
    world = World(memory=Memory(GPU, activity.encode(past)), bounds=Bounds(weight=10))
    await world.tick()
    assert not world.foresight.wishes()
    assert world.reasons() == ["ForecastOff"]
    assert "0%" in world.told[0].message


async def test_the_last_pod_is_kept_by_the_pools_weight_before_the_controllers() -> None:
    past = activity.encode(Activity(colds_s=[20.0]))
    world = World(memory=Memory(GPU, past), bounds=Bounds(weight=10))
    await world.tick()
    assert world.foresight.retentions()["r1"].seconds == 140
    assert 'retention_seconds{pool="gpu"} 200.0' in world.metrics()
    assert any("kept for" in line for line in world.foresight.told("gpu"))
    world.pool = replace(GPU, wishes=Wishes(weight=20.0))
    await world.tick()
    assert world.foresight.retentions()["r1"].seconds == 340
    world.pool = replace(GPU, wishes=Wishes(weight=0.0))
    await world.tick()
    assert not world.foresight.retentions()


async def test_pods_reports_become_gaps_and_loads_cold_starts() -> None:
    world = World(pods=[pod(1, 0.5)])
    await world.tick()
    for second in range(1, 30):
        world.pods = [pod(1, second + 0.5)]
        await world.tick()
    world.pods = [pod(2, 0.5)]
    await world.tick()
    world.foresight.happened(world.pods[0].ref, [Happened(1, "m", Event(NOW, "loaded", "ram", 1, seconds=3))])
    world.foresight.happened(PodRef("other", "p", ""), [])
    await world.tick(SAVE_S)
    assert activity.decode(world.memory.stands).gaps_s == pytest.approx([30], abs=1)


async def test_a_pool_without_a_ready_revision_or_without_knative_is_let_be() -> None:
    world = World(revision=None)
    await world.tick()
    world.pool = replace(GPU, kind="deployment", service="", wishes=NINE)
    await world.tick()
    assert not world.told
    assert not world.foresight.told("gpu")


async def test_who_does_not_lead_looks_at_nothing_and_begins_with_what_is_kept() -> None:
    world = World(pool=replace(GPU, wishes=NINE), leads=False)
    await world.tick()
    assert world.memory.reads == 0
    world.leads = True
    await world.tick()
    assert world.foresight.wishes()
    world.leads = False
    await world.tick()
    assert not world.foresight.wishes()
    assert "wanted_pods{" not in world.metrics()


async def test_before_the_first_look_nothing_is_known_of_a_pools_revision() -> None:
    world = World(memory=Memory(GPU, fails=1))
    assert world.foresight.unsure() == {"r1"}
    await world.tick()
    assert world.foresight.unsure() == {"r1"}, "its past could not be read"
    await world.tick(LOAD_AGAIN_S)
    assert not world.foresight.unsure()


async def test_a_past_that_may_not_be_read_holds_nothing_up() -> None:
    world = World(memory=Memory(GPU, fails=1000, error=Forbidden))
    await world.tick()
    assert not world.foresight.unsure()
    assert not world.foresight.wishes()


async def test_what_was_kept_is_not_told_twice_by_a_controller_that_leads_again() -> None:
    world = World(pool=replace(GPU, wishes=NINE))
    await world.tick()
    await world.tick(SAVE_S)
    world.leads = False
    await world.tick()
    world.leads = True
    await world.tick()
    assert len(world.history.of(pool_key("gpu"))) == 1


async def test_what_stands_is_told_in_sentences() -> None:
    world = World(pool=replace(GPU, wishes=NINE))
    await world.tick()
    lines = world.foresight.told("gpu")
    assert lines[0].startswith("1 pod until 2026-01-02 10:00 UTC")
    assert any("2026-01-03 09:00 UTC" in line for line in lines)
    assert not world.foresight.told("other")


async def test_a_whole_controller_warms_a_pool_by_its_calendar_and_says_why() -> None:
    async with FakeKube() as fake:
        kind = {"apiVersion": "serving.knative.dev/v1"}
        dates = {calendar.WARM_AT: "* * * * * for 1h"}
        service = knative_service("gpu", labels={"hearth.dev/pool": "gpu"}, annotations=dates)
        fake.put("services", kind | {"kind": "Service"} | service, namespace=NAMESPACE)
        fake.put("revisions", kind | {"metadata": {"name": "gpu-00001"}, "spec": {}}, namespace=NAMESPACE)

        woken: list[str] = []

        async def wake(url: str) -> str:
            woken.append(url)
            return ""

        def reasons() -> set[str]:
            return {event["reason"] for event in fake.objects("events", namespace=NAMESPACE).values()}

        async with running(fake, cold_start_weight=10) as controller:
            controller.built.warming._wake = wake
            await controller.until(lambda: woken)
            await controller.until(lambda: "PodsAhead" in reasons())
            summary = controller.built.summary
            assert woken == [f"http://gpu.{NAMESPACE}.svc/readyz"]
            assert not any(asked.verb == "patch" and asked.plural == "revisions" for asked in fake.asked)
            assert any(noted.what == "PodsAhead" for noted in summary.why("gpu"))
            assert any("* * * * * for 1h" in line for line in summary.outlook("gpu"))
        assert fake.object("configmaps", "hearth-gpu-history", namespace=NAMESPACE)
