"""How a pool is kept warm: what is decided, row by row, and what then happens to Revisions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from tests.fakes.kube import FakeKube, Object
from warmup import ahead, warming
from warmup.prewarm import FORMER, MARK, MIN_SCALE, PODS, VERIFY_S, Decision, Effort, Patch, Revision, Tell, Wake, Wish, decide
from warmup.warming import Warming
from warmup.watch import Pace

NOW = 1_000_000.0
BRISK = Pace(first_s=0.01, most_s=0.05, watch_s=5.0, absent_s=0.05)
WARM = {MIN_SCALE: "1", MARK: "true"}
URL = "http://gpu-predictor.team.svc/readyz"


@dataclass(frozen=True)
class Pool:
    name: str = "gpu"
    namespace: str = "team"
    kind: str = "kserve"
    service: str = "gpu-predictor"
    revision: str = "r1"
    warm_until_s: float | None = NOW + 600


WISH = Pool()
NO_WISH = replace(WISH, warm_until_s=None)
PLAIN = Revision("r1", "7")
ZERO = replace(PLAIN, min_scale="0", wanted=0)
MARKED = replace(PLAIN, min_scale="1", marked=True, wanted=0)
WAITING = Effort("r1", NOW - VERIFY_S + 1)
PATIENT = Effort("r1", NOW - VERIFY_S)
TWICE = Effort("r1", NOW - 90, 2, NOW - 4 * VERIFY_S)

UNMARK: dict[str, str | None] = {MARK: None, FORMER: None}


def released(annotations: dict[str, str | None]) -> Patch:
    return Patch("r1", "7", UNMARK | annotations)


TABLE: list[tuple[str, list[Pool], list[Revision], Effort | None, str, list[object]]] = [
    ("nothing is done for nobody", [NO_WISH], [ZERO], None, "off", []),
    ("a wish patches the Revision", [WISH], [PLAIN], None, "starting", [Patch("r1", "7", WARM)]),
    ("and notes what was there", [WISH], [ZERO], None, "starting", [Patch("r1", "7", WARM | {FORMER: "0"})]),
    ("a pod that is there anyway is kept", [WISH], [replace(ZERO, ready=1)], None, "starting", [Patch]),
    ("a user's own min-scale is left alone", [WISH], [replace(PLAIN, min_scale="2")], None, "own", []),
    ("a patch is given time", [WISH], [MARKED], WAITING, "starting", []),
    ("after which a request is sent, and told", [WISH], [MARKED], PATIENT, "waking", [Wake("gpu", "r1", URL), Tell]),
    ("not if a pod is on its way", [WISH], [replace(MARKED, wanted=1)], PATIENT, "starting", []),
    ("an autoscaler that never decided is no pod", [WISH], [replace(MARKED, wanted=-1)], PATIENT, "waking", [Wake, Tell]),
    ("a request is given time, too", [WISH], [MARKED], Effort("r1", NOW - 40, 1, NOW - 2 * VERIFY_S + 1), "waking", []),
    ("and then repeated, without telling", [WISH], [MARKED], Effort("r1", NOW - 40, 1, NOW - 2 * VERIFY_S), "waking", [Wake]),
    ("when that does not help, it is told", [WISH], [MARKED], TWICE, "waking", [Wake, Tell]),
    ("once", [WISH], [MARKED], Effort("r1", NOW - 900, 3, NOW - 80), "waking", [Wake]),
    ("and tried again for ever, rarely", [WISH], [MARKED], Effort("r1", 0, 60, NOW - 299), "waking", []),
    ("rarely, but tried", [WISH], [MARKED], Effort("r1", 0, 60, NOW - 300), "waking", [Wake]),
    ("a pod that came is told", [WISH], [replace(MARKED, ready=1)], WAITING, "warm", [Tell]),
    ("once as well", [WISH], [replace(MARKED, ready=1)], replace(WAITING, warm_s=NOW - 1), "warm", []),
    ("one that was there at the start is no news", [WISH], [replace(MARKED, ready=1)], None, "warm", []),
    ("a pod that went is waited for anew", [WISH], [MARKED], Effort("r1", 0, 1, 1, NOW - 50), "starting", []),
    ("a restart waits before it wakes", [WISH], [MARKED], None, "starting", []),
    ("the time is over", [replace(WISH, warm_until_s=NOW)], [MARKED], None, "off", [released({MIN_SCALE: None})]),
    ("the wish is gone", [NO_WISH], [MARKED], WAITING, "off", [Patch]),
    ("what was there comes back", [NO_WISH], [replace(MARKED, former="0")], None, "off", [released({MIN_SCALE: "0"})]),
    ("what is set meanwhile stays", [NO_WISH], [replace(MARKED, min_scale="3")], None, "off", [released({})]),
    ("what is removed meanwhile stays so", [NO_WISH], [replace(MARKED, min_scale=None)], None, "off", [released({})]),
    (
        "a rollout moves the patch",
        [replace(WISH, revision="r2")],
        [replace(MARKED, ready=1), Revision("r2", "9")],
        replace(WAITING, warm_s=NOW),
        "starting",
        [Patch("r2", "9", WARM), released({MIN_SCALE: None})],
    ),
    ("a Revision of nobody's pool is released", [], [MARKED], None, "", [Patch]),
    ("without a ready Revision it says so", [replace(WISH, revision="")], [], None, "unable", [Tell]),
    ("once, of course", [replace(WISH, revision="")], [], Effort("", NOW), "unable", []),
    ("a Deployment is refused", [replace(WISH, kind="deployment", service="", revision="")], [], None, "unable", [Tell]),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_what_is_decided(row: tuple[str, list[Pool], list[Revision], Effort | None, str, list[object]]) -> None:
    _, pools, revisions, effort, state, actions = row
    efforts = {"gpu": effort} if effort else {}
    decision = decide(pools, {one.name: one for one in revisions}, efforts, now_s=NOW)
    assert decision.states.get("gpu", "") == state
    assert len(decision.actions) == len(actions), decision.actions
    for action, expected in zip(decision.actions, actions, strict=True):
        if isinstance(expected, type):
            assert isinstance(action, expected)
        else:
            assert action == expected


def test_deciding_again_at_once_does_nothing_twice() -> None:
    """But for the patch, which the watch has not told of yet: the API server refuses it by its version."""
    first = decide([WISH], {"r1": MARKED}, {"gpu": PATIENT}, now_s=NOW)
    second = decide([WISH], {"r1": MARKED}, first.efforts, now_s=NOW)
    assert first.actions
    assert not second.actions


def test_a_deployment_is_told_why() -> None:
    (told,) = decide([replace(WISH, kind="deployment", service="")], {}, {}, now_s=NOW).actions
    assert isinstance(told, Tell)
    assert "Deployment" in told.message
    assert told.reason == "CannotWarm"


def test_an_effort_counts_from_its_beginning_though_the_patch_is_seen_late() -> None:
    decision = Decision((), {}, {})
    for second in range(4):
        decision = decide([WISH], {"r1": ZERO if second < 2 else MARKED}, decision.efforts, now_s=NOW + second)
    assert decision.efforts["gpu"].since_s == NOW


TWO = Wish(2, NOW + 60, "calendar", "because", "k")
SET_TO_TWO = {MIN_SCALE: "2", MARK: "true", PODS: "2"}
TWO_SET = replace(PLAIN, min_scale="2", marked=True, set_scale=2, wanted=2)

MORE: list[tuple[str, Pool, Wish | None, Revision, str, list[object]]] = [
    ("a wish for two sets two", NO_WISH, TWO, PLAIN, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("most wins", WISH, TWO, PLAIN, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("a wish that is over counts for nothing", NO_WISH, replace(TWO, until_s=NOW), PLAIN, "off", []),
    ("no more than max-scale", NO_WISH, TWO, replace(PLAIN, most=1), "starting", [Patch("r1", "7", WARM)]),
    ("a user's own two suffice", NO_WISH, TWO, replace(PLAIN, min_scale="2"), "own", []),
    (
        "a user's own one does not",
        NO_WISH,
        TWO,
        replace(PLAIN, min_scale="1"),
        "starting",
        [Patch("r1", "7", SET_TO_TWO | {FORMER: "1"})],
    ),
    ("one becomes two", NO_WISH, TWO, MARKED, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("two become one", WISH, None, TWO_SET, "starting", [Patch("r1", "7", WARM | {PODS: None})]),
    ("one of two is not enough", NO_WISH, TWO, replace(TWO_SET, ready=1), "starting", []),
    ("two are", NO_WISH, TWO, replace(TWO_SET, ready=2), "warm", []),
    (
        "both go",
        NO_WISH,
        None,
        replace(TWO_SET, former="0"),
        "off",
        [Patch("r1", "7", UNMARK | {PODS: None, MIN_SCALE: "0"})],
    ),
    (
        "what somebody set meanwhile is not changed",
        NO_WISH,
        replace(TWO, pods=3),
        replace(TWO_SET, min_scale="7", ready=7),
        "warm",
        [],
    ),
]


@pytest.mark.parametrize("row", MORE, ids=[row[0] for row in MORE])
def test_what_is_decided_for_several_pods(row: tuple[str, Pool, Wish | None, Revision, str, list[object]]) -> None:
    _, pool, wish, revision, state, actions = row
    decision = decide([pool], {"r1": revision}, {}, now_s=NOW, wishes={"gpu": wish} if wish else {})
    assert decision.states["gpu"] == state
    assert list(decision.actions) == actions


def test_an_autoscaler_that_stays_at_one_of_two_is_woken() -> None:
    revision = replace(TWO_SET, wanted=1, ready=1)
    wake, tell = decide([NO_WISH], {"r1": revision}, {"gpu": PATIENT}, now_s=NOW, wishes={"gpu": TWO}).actions
    assert wake == Wake("gpu", "r1", URL)
    assert isinstance(tell, Tell)
    assert "only a ready pod" in tell.message


class Cluster:
    """The API server in memory, and what Knative's autoscaler would do."""

    def __init__(self, fake: FakeKube) -> None:
        self.fake = fake
        self.now_s = NOW
        self.pools: list[Pool] = [WISH]
        self.told: list[Tell] = []
        self.woken: list[str] = []
        self.leads = True
        self.warming = Warming(
            fake.client(),
            pools=lambda: self.pools,
            may_act=lambda: self.leads,
            announce=self._announce,
            clock=lambda: self.now_s,
            wake=self._wake,
            pace=BRISK,
        )

    def revision(self, name: str, annotations: dict[str, str] | None = None) -> None:
        metadata = {"name": name, "annotations": annotations or {}}
        self.fake.put("revisions", {"apiVersion": "serving.knative.dev/v1", "metadata": metadata, "spec": {}})
        self.scale(name, 0)

    def scale(self, name: str, pods: int) -> None:
        status = {"desiredScale": pods, "actualScale": pods}
        body: Object = {"apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "metadata": {"name": name}, "status": status}
        self.fake.put("podautoscalers", body)

    def annotations(self, name: str) -> dict[str, str]:
        found = self.fake.object("revisions", name)
        assert found is not None
        told: dict[str, str] = found["metadata"].get("annotations") or {}
        return told

    async def until_seen(self) -> None:
        """The watches know what the API server has."""
        async with asyncio.timeout(10):
            while True:
                changed = asyncio.Event()
                self.warming.revisions.on_change(lambda *_, it=changed: it.set())
                self.warming.scalers.on_change(lambda *_, it=changed: it.set())
                here = {name: warming._asked(found) for name, found in self.fake.objects("revisions").items()}
                scales = {name: warming._scale(found) for name, found in self.fake.objects("podautoscalers").items()}
                if dict(self.warming.revisions.objects) == here and dict(self.warming.scalers.objects) == scales:
                    return
                await changed.wait()

    async def tick(self, seconds: float = 1.0) -> None:
        await self.until_seen()
        self.now_s += seconds
        await self.warming.tick()

    async def _announce(self, told: Tell) -> None:
        self.told.append(told)

    async def _wake(self, url: str) -> str:
        self.woken.append(url)
        self.scale("r1", 1)
        return "HTTP 200"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with FakeKube() as fake:
        cluster = Cluster(fake)
        cluster.revision("r1", {MIN_SCALE: "0", "mine": "1"})
        watches = [asyncio.create_task(watch.run()) for watch in (cluster.warming.revisions, cluster.warming.scalers)]
        await cluster.warming.revisions.until_synced()
        await cluster.warming.scalers.until_synced()
        yield cluster
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_a_pool_is_warmed_and_released_and_its_revision_is_as_before(cluster: Cluster) -> None:
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "1", MARK: "true", FORMER: "0", "mine": "1"}
    cluster.scale("r1", 1)
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "warm"}
    assert [told.reason for told in cluster.told] == ["Warm"]
    cluster.now_s += 600
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}
    assert not cluster.woken


async def test_what_does_not_start_by_itself_is_woken(cluster: Cluster) -> None:
    await cluster.tick()
    await cluster.tick(11)
    await asyncio.gather(*cluster.warming._waking.values())
    await cluster.tick()
    assert cluster.woken == [URL]
    assert [told.reason for told in cluster.told] == ["WakingPool", "Warm"]
    assert "1 wake request" in cluster.told[-1].message


async def test_a_restart_in_between_loses_and_repeats_nothing(cluster: Cluster) -> None:
    await cluster.tick()
    cluster.warming._efforts = {}
    await cluster.tick()
    assert sum(asked.verb == "patch" for asked in cluster.fake.asked) == 1
    cluster.pools = []
    cluster.warming._efforts = {}
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}


async def test_a_controller_that_does_not_lead_does_nothing(cluster: Cluster) -> None:
    cluster.leads = False
    await cluster.tick()
    assert not [asked for asked in cluster.fake.asked if asked.verb == "patch"]


@pytest.mark.parametrize("what", [403, 409, 404, 500])
async def test_a_patch_that_fails_is_repeated_at_the_next_look(cluster: Cluster, what: int) -> None:
    cluster.fake.fail(what, verb="patch")
    await cluster.tick()
    assert MARK not in cluster.annotations("r1")
    await cluster.tick()
    assert MARK in cluster.annotations("r1")


async def test_a_rollout_moves_the_patch(cluster: Cluster) -> None:
    await cluster.tick()
    cluster.revision("r2")
    cluster.pools = [replace(WISH, revision="r2")]
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}
    assert cluster.annotations("r2") == WARM


async def test_how_long_the_last_pod_stays_is_set_told_and_given_back(cluster: Cluster) -> None:
    cluster.revision("r1", {ahead.RETENTION: "5m", "mine": "1"})
    cluster.pools = [NO_WISH]
    cluster.warming.retentions = lambda: {"r1": ahead.Retention("gpu", 100, "a start takes long")}
    await cluster.tick()
    assert cluster.annotations("r1") == {
        ahead.RETENTION: "100s", ahead.RETAINED: "100s", ahead.RETAINED_FORMER: "5m", "mine": "1",
    }  # fmt: skip
    cluster.warming.retentions = lambda: {"r1": ahead.Retention("gpu", 200, "a start takes longer")}
    await cluster.tick()
    assert cluster.annotations("r1")[ahead.RETENTION] == "100s", "so soon it is not changed again"
    await cluster.tick(ahead.REST_S)
    assert cluster.annotations("r1")[ahead.RETENTION] == "200s"
    cluster.warming.retentions = dict
    await cluster.tick()
    assert cluster.annotations("r1") == {ahead.RETENTION: "5m", "mine": "1"}
    assert [told.reason for told in cluster.told] == ["RetentionSet", "RetentionSet", "RetentionReleased"]
    assert "a start takes long" in cluster.told[0].message


async def test_how_long_the_last_pod_stays_is_not_changed_while_pods_run_which_it_would_replace(cluster: Cluster) -> None:
    cluster.pools = [NO_WISH]
    cluster.scale("r1", 1)
    cluster.warming.retentions = lambda: {"r1": ahead.Retention("gpu", 100, "a start takes long")}
    await cluster.tick()
    assert ahead.RETENTION not in cluster.annotations("r1")
    cluster.scale("r1", 0)
    await cluster.tick()
    assert cluster.annotations("r1")[ahead.RETENTION] == "100s"
    cluster.scale("r1", 1)
    cluster.warming.retentions = dict
    await cluster.tick()
    assert cluster.annotations("r1")[ahead.RETENTION] == "100s"
    cluster.scale("r1", 0)
    await cluster.tick()
    assert ahead.RETENTION not in cluster.annotations("r1")


async def test_a_wish_of_the_calendar_is_carried_out_and_released(cluster: Cluster) -> None:
    cluster.pools = [NO_WISH]
    cluster.warming.wishes = lambda: {"gpu": TWO}
    await cluster.tick()
    assert cluster.annotations("r1")[MIN_SCALE] == "2"
    cluster.scale("r1", 2)
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "warm"}
    await cluster.tick(60)
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}


async def test_of_a_revision_of_which_nothing_is_known_yet_nothing_is_taken_back(cluster: Cluster) -> None:
    given = {MIN_SCALE: "1", MARK: "true", ahead.RETENTION: "100s", ahead.RETAINED: "100s"}
    cluster.revision("r1", given)
    cluster.pools = [NO_WISH]
    cluster.warming.unsure = lambda: {"r1"}
    await cluster.tick()
    assert cluster.annotations("r1") == given
    cluster.warming.unsure = tuple
    await cluster.tick()
    await cluster.tick()
    assert cluster.annotations("r1") == {}


async def test_it_runs_until_it_is_cancelled(cluster: Cluster) -> None:
    task = asyncio.create_task(cluster.warming.run())
    await cluster.fake.until_asked("patch", "revisions")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_wake_request_that_reaches_nobody_says_so() -> None:
    async with FakeKube() as fake:
        assert await warming.request(fake.url) == "HTTP 404"
    assert "onnect" in await warming.request(fake.url)
