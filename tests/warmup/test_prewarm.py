"""How a pool is kept warm: what is decided, row by row, and what then happens to Revisions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.fakes.kube import FakeKube, Object
from warmup import ahead, warming
from warmup.prewarm import (
    FORMER,
    MARK,
    MIN_SCALE,
    PACE_S,
    PODS,
    VERIFY_S,
    Decision,
    Effort,
    Patch,
    Requests,
    Revision,
    Tell,
    Wake,
    Wish,
    decide,
    means,
    pace_s,
)
from warmup.warming import Warming
from warmup.watch import Pace

NOW = 1_000_000.0
BRISK = Pace(first_s=0.01, most_s=0.05, watch_s=5.0, absent_s=0.05)
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
COMING = replace(ZERO, wanted=1)
UP = replace(ZERO, wanted=1, ready=1)
FORMERLY = replace(PLAIN, min_scale="1", marked=True, wanted=1, ready=1)
"""As an earlier release left it."""

WAKE = Wake("gpu", "r1", URL)
UNMARK: dict[str, str | None] = {MARK: None, FORMER: None, PODS: None}


def sent(ago_s: float, wakes: int = 0, warm_s: float | None = NOW - 100, **more: Any) -> Effort:
    return Effort("r1", NOW - 200, wakes, NOW - ago_s, warm_s, **more)


def woken(ago_s: float, wakes: int) -> Effort:
    return sent(ago_s, wakes, None)


def released(annotations: dict[str, str | None]) -> Patch:
    return Patch("r1", "7", UNMARK | annotations)


TABLE: list[tuple[str, list[Pool], list[Revision], Effort | None, str, list[object]]] = [
    ("nothing is done for nobody", [NO_WISH], [ZERO], None, "off", []),
    ("nor kept from going", [NO_WISH], [UP], sent(PACE_S), "off", []),
    ("a wish is a request, at once", [WISH], [ZERO], None, "waking", [WAKE]),
    ("also where Knative has not decided yet", [WISH], [PLAIN], None, "waking", [WAKE]),
    ("a pod that is there is warm at once, and held", [WISH], [UP], None, "warm", [WAKE]),
    ("a user's own min-scale is left alone", [WISH], [replace(PLAIN, min_scale="2")], None, "own", []),
    ("a request is given time", [WISH], [ZERO], woken(2 * VERIFY_S - 1, 1), "waking", []),
    ("and then repeated, without telling", [WISH], [ZERO], woken(2 * VERIFY_S, 1), "waking", [WAKE]),
    ("when that does not help, it is told", [WISH], [ZERO], woken(4 * VERIFY_S, 2), "waking", [WAKE, Tell]),
    ("once", [WISH], [ZERO], woken(80, 3), "waking", [WAKE]),
    ("and tried again for ever, rarely", [WISH], [ZERO], woken(299, 60), "waking", []),
    ("rarely, but tried", [WISH], [ZERO], woken(300, 60), "waking", [WAKE]),
    ("a pod on its way is held, too", [WISH], [COMING], woken(PACE_S, 1), "starting", [WAKE]),
    ("at the same pace, and not told of", [WISH], [COMING], woken(PACE_S - 1, 2), "starting", []),
    ("however long it takes", [WISH], [COMING], woken(PACE_S, 2), "starting", [WAKE]),
    ("a pod that came is told", [WISH], [UP], woken(3, 1), "warm", [Tell]),
    ("once as well", [WISH], [UP], sent(3), "warm", []),
    ("it is held at the pace", [WISH], [UP], sent(PACE_S - 1), "warm", []),
    ("for as long as it is wished", [WISH], [UP], sent(PACE_S), "warm", [WAKE]),
    ("a shorter window makes it faster", [WISH], [replace(UP, window_s=6)], sent(2), "warm", [WAKE]),
    ("but not more", [WISH], [replace(UP, window_s=6)], sent(1), "warm", []),
    ("a pod that went is woken anew, at once", [WISH], [ZERO], sent(3), "waking", [WAKE]),
    ("the time is over", [replace(WISH, warm_until_s=NOW)], [UP], sent(PACE_S), "off", []),
    ("a new Revision begins anew", [replace(WISH, revision="r2")], [UP, Revision("r2", "9")], sent(3), "waking", [Wake]),
    ("an old mark stays while one is wished", [WISH], [FORMERLY], None, "warm", [WAKE]),
    ("and goes with the wish", [NO_WISH], [FORMERLY], None, "off", [released({MIN_SCALE: None})]),
    ("what was there comes back", [NO_WISH], [replace(FORMERLY, former="0")], None, "off", [released({MIN_SCALE: "0"})]),
    ("what is set meanwhile stays", [NO_WISH], [replace(FORMERLY, min_scale="3")], None, "off", [released({})]),
    ("what is removed meanwhile stays so", [NO_WISH], [replace(FORMERLY, min_scale=None)], None, "off", [released({})]),
    ("a Revision of nobody's pool is released", [], [FORMERLY], None, "", [Patch]),
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
    first = decide([WISH], {"r1": ZERO}, {}, now_s=NOW)
    assert first.actions == (WAKE,)
    assert not decide([WISH], {"r1": ZERO}, first.efforts, now_s=NOW).actions


def test_requests_come_at_the_pace_for_as_long_as_the_wish_and_nothing_is_ever_written() -> None:
    efforts: Mapping[str, Effort] = {}
    moments = []
    for second in range(700):
        decision = decide([WISH], {"r1": ZERO if second < 3 else UP}, efforts, now_s=NOW + second)
        efforts = decision.efforts
        assert not [action for action in decision.actions if isinstance(action, Patch)]
        moments += [second for action in decision.actions if isinstance(action, Wake)]
    assert moments == list(range(0, 600, 20))


@pytest.mark.parametrize(("window_s", "expected_s"), [(6, 2), (30, 10), (60, 20), (3600, 20), (2, 1)])
def test_a_window_sees_three_requests_but_there_are_three_a_minute_at_least_and_one_a_second_at_most(
    window_s: float, expected_s: float
) -> None:
    assert pace_s(replace(PLAIN, window_s=window_s)) == expected_s


def test_a_start_that_failed_after_minutes_is_told_as_any_other() -> None:
    """A pod was wanted until its deadline; the requests of that time are none that Knative did not hear."""
    efforts: Mapping[str, Effort] = {}
    told = []
    for second in range(600):
        decision = decide([WISH], {"r1": COMING if 2 < second < 500 else ZERO}, efforts, now_s=NOW + second)
        efforts = decision.efforts
        told += [(second, action.reason) for action in decision.actions if isinstance(action, Tell)]
    assert told == [(520, "CannotWarm")]


def test_no_request_is_sent_beside_one_that_is_under_way() -> None:
    under_way = Requests({"gpu"})
    first = decide([WISH], {"r1": ZERO}, {}, now_s=NOW, requests=under_way)
    assert not first.actions
    assert decide([WISH], {"r1": ZERO}, first.efforts, now_s=NOW + 1).actions == (WAKE,)


def test_a_request_that_does_not_reach_a_pod_that_is_there_is_told_once_and_repeated_at_the_pace() -> None:
    failed = Requests(failed={"gpu": "HTTP 503"})
    first = decide([WISH], {"r1": UP}, {"gpu": sent(5)}, now_s=NOW, requests=failed)
    (told,) = first.actions
    assert isinstance(told, Tell)
    assert (told.type, told.reason) == ("Warning", "CannotWarm")
    assert "HTTP 503" in told.message
    assert decide([WISH], {"r1": UP}, first.efforts, now_s=NOW + 15, requests=failed).actions == (WAKE,)


@pytest.mark.parametrize("effort", [sent(5, warm_s=NOW - 1), woken(5, 1)])
def test_one_that_came_to_nothing_before_there_was_a_pod_is_no_bad_news_of_it(effort: Effort) -> None:
    actions = decide([WISH], {"r1": UP}, {"gpu": effort}, now_s=NOW, requests=Requests(failed={"gpu": "late"})).actions
    assert not [told for told in actions if isinstance(told, Tell) and told.type == "Warning"]


def test_what_holds_a_pool_is_said_in_words() -> None:
    assert means(UP, 1) == "a request every 20 s"
    assert means(UP, 2) == "min-scale 2 on r1"
    assert means(replace(UP, min_scale="3"), 2) == "its own min-scale 3"


def test_a_deployment_is_told_why() -> None:
    (told,) = decide([replace(WISH, kind="deployment", service="")], {}, {}, now_s=NOW).actions
    assert isinstance(told, Tell)
    assert "Deployment" in told.message
    assert told.reason == "CannotWarm"


def test_an_effort_counts_from_its_beginning_though_the_patch_is_seen_late() -> None:
    decision = Decision((), {}, {})
    for second in range(4):
        revision = ZERO if second < 2 else replace(TWO_SET, wanted=0)
        decision = decide([NO_WISH], {"r1": revision}, decision.efforts, now_s=NOW + second, wishes={"gpu": TWO})
    assert decision.efforts["gpu"].since_s == NOW


TWO = Wish(2, NOW + 60, "calendar", "because", "k")
SET_TO_TWO = {MIN_SCALE: "2", MARK: "true", PODS: "2"}
TWO_SET = replace(PLAIN, min_scale="2", marked=True, set_scale=2, wanted=2)

MORE: list[tuple[str, Pool, Wish | None, Revision, str, list[object]]] = [
    ("a wish for two sets two", NO_WISH, TWO, PLAIN, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("most wins", WISH, TWO, PLAIN, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("a wish that is over counts for nothing", NO_WISH, replace(TWO, until_s=NOW), PLAIN, "off", []),
    ("no more than max-scale", NO_WISH, TWO, replace(PLAIN, most=1), "waking", [WAKE]),
    ("a user's own two suffice", NO_WISH, TWO, replace(PLAIN, min_scale="2"), "own", []),
    (
        "a user's own one does not",
        NO_WISH,
        TWO,
        replace(PLAIN, min_scale="1"),
        "starting",
        [Patch("r1", "7", SET_TO_TWO | {FORMER: "1"})],
    ),
    ("one becomes two", NO_WISH, TWO, UP, "starting", [Patch("r1", "7", SET_TO_TWO | {FORMER: "0"})]),
    ("also an earlier release's one", NO_WISH, TWO, FORMERLY, "starting", [Patch("r1", "7", SET_TO_TWO)]),
    ("two become one, which is held", WISH, None, replace(TWO_SET, ready=2), "warm", [WAKE, released({MIN_SCALE: None})]),
    ("what is set is not believed", NO_WISH, TWO, replace(TWO_SET, wanted=0), "waking", [WAKE]),
    ("one of two is not enough", NO_WISH, TWO, replace(TWO_SET, ready=1), "starting", [WAKE]),
    ("two are", NO_WISH, TWO, replace(TWO_SET, ready=2), "warm", [WAKE]),
    (
        "both go",
        NO_WISH,
        None,
        replace(TWO_SET, former="0"),
        "off",
        [released({MIN_SCALE: "0"})],
    ),
    (
        "what somebody set meanwhile is not changed",
        NO_WISH,
        replace(TWO, pods=3),
        replace(TWO_SET, min_scale="7", ready=7),
        "warm",
        [WAKE],
    ),
]


@pytest.mark.parametrize("row", MORE, ids=[row[0] for row in MORE])
def test_what_is_decided_for_several_pods(row: tuple[str, Pool, Wish | None, Revision, str, list[object]]) -> None:
    _, pool, wish, revision, state, actions = row
    decision = decide([pool], {"r1": revision}, {}, now_s=NOW, wishes={"gpu": wish} if wish else {})
    assert decision.states["gpu"] == state
    assert list(decision.actions) == actions


def test_an_autoscaler_that_stays_at_one_of_two_is_sent_requests_and_it_is_told() -> None:
    revision = replace(TWO_SET, wanted=1, ready=1)
    efforts = {"gpu": woken(4 * VERIFY_S, 2)}
    wake, tell = decide([NO_WISH], {"r1": revision}, efforts, now_s=NOW, wishes={"gpu": TWO}).actions
    assert wake == WAKE
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
        self.failing = ""
        self.holding: asyncio.Event | None = None
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
        await asyncio.sleep(0)  # what is to be sent is sent

    async def _announce(self, told: Tell) -> None:
        self.told.append(told)

    async def answered(self) -> None:
        """What was sent is over."""
        await asyncio.gather(*self.warming._waking.values())
        await asyncio.sleep(0)

    async def _wake(self, url: str) -> str:
        self.woken.append(url)
        if self.holding is not None:
            await self.holding.wait()
        if not self.failing:
            self.scale("r1", 1)
        return self.failing

    def patches(self) -> int:
        return sum(asked.verb == "patch" for asked in self.fake.asked)


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


async def test_a_pool_is_warmed_and_let_go_and_its_revision_is_never_written(cluster: Cluster) -> None:
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "waking"}
    await cluster.answered()
    for _ in range(60):
        await cluster.tick()
        await cluster.answered()
    assert cluster.warming.states == {"gpu": "warm"}
    assert [told.reason for told in cluster.told] == ["Warm"]
    assert cluster.woken == [URL] * 4
    cluster.now_s += 600
    for _ in range(60):
        await cluster.tick()
    assert cluster.warming.states == {"gpu": "off"}
    assert len(cluster.woken) == 4
    assert not cluster.patches()


async def test_a_pool_that_is_up_is_warm_at_once_and_not_touched(cluster: Cluster) -> None:
    cluster.scale("r1", 1)
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "warm"}
    await cluster.answered()
    assert cluster.woken == [URL]
    assert not cluster.told
    cluster.pools = [NO_WISH]
    await cluster.tick()
    assert not cluster.patches()


async def test_a_request_that_is_held_is_the_only_one(cluster: Cluster) -> None:
    cluster.holding = asyncio.Event()
    for _ in range(50):
        await cluster.tick()
    assert cluster.woken == [URL]
    cluster.holding.set()
    await cluster.answered()
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "warm"}


async def test_requests_that_come_to_nothing_are_repeated_and_told(cluster: Cluster) -> None:
    cluster.failing = "HTTP 503"
    for _ in range(31):
        await cluster.tick()
        await cluster.answered()
    assert len(cluster.woken) == 3, "at 0, 10 and 30 s"
    assert [told.reason for told in cluster.told] == ["CannotWarm"]
    cluster.scale("r1", 1)
    for _ in range(41):
        await cluster.tick()
        await cluster.answered()
    assert len(cluster.woken) == 5, "a pod that is there is held at the pace, whatever comes of it"
    assert [told.reason for told in cluster.told] == ["CannotWarm", "Warm", "CannotWarm"]
    assert "HTTP 503" in cluster.told[-1].message


async def test_the_next_leader_goes_on_where_the_last_one_ended(cluster: Cluster) -> None:
    cluster.scale("r1", 1)
    await cluster.tick()
    await cluster.answered()
    cluster.leads = False
    for _ in range(15):
        await cluster.tick()
    assert cluster.woken == [URL]
    cluster.leads = True
    await cluster.tick()
    await cluster.answered()
    assert cluster.woken == [URL, URL]
    assert not cluster.told
    assert not cluster.patches()


async def test_a_restart_in_between_loses_and_repeats_nothing(cluster: Cluster) -> None:
    cluster.pools, cluster.warming.wishes = [NO_WISH], lambda: {"gpu": TWO}
    await cluster.tick()
    cluster.warming._efforts = {}
    await cluster.tick()
    assert cluster.patches() == 1
    cluster.pools, cluster.warming.wishes = [], dict
    cluster.warming._efforts = {}
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}


async def test_a_controller_that_does_not_lead_does_nothing(cluster: Cluster) -> None:
    cluster.leads = False
    cluster.warming.wishes = lambda: {"gpu": TWO}
    await cluster.tick()
    assert not cluster.patches()
    assert not cluster.woken


@pytest.mark.parametrize("what", [403, 409, 404, 500])
async def test_a_patch_that_fails_is_repeated_at_the_next_look(cluster: Cluster, what: int) -> None:
    cluster.warming.wishes = lambda: {"gpu": TWO}
    cluster.fake.fail(what, verb="patch")
    await cluster.tick()
    assert MARK not in cluster.annotations("r1")
    await cluster.tick()
    assert MARK in cluster.annotations("r1")


async def test_a_rollout_moves_the_patch(cluster: Cluster) -> None:
    cluster.warming.wishes = lambda: {"gpu": TWO}
    await cluster.tick()
    cluster.revision("r2")
    cluster.pools = [replace(WISH, revision="r2")]
    await cluster.tick()
    assert cluster.annotations("r1") == {MIN_SCALE: "0", "mine": "1"}
    assert cluster.annotations("r2") == SET_TO_TWO


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


async def test_how_long_the_last_pod_stays_is_not_changed_while_one_is_on_its_way(cluster: Cluster) -> None:
    cluster.holding = asyncio.Event()
    cluster.warming.retentions = lambda: {"r1": ahead.Retention("gpu", 100, "a start takes long")}
    await cluster.tick()
    await cluster.tick()
    assert cluster.woken
    assert not cluster.patches()
    cluster.holding.set()


async def test_a_wish_for_two_pods_is_carried_out_and_released(cluster: Cluster) -> None:
    cluster.pools = [NO_WISH]
    cluster.warming.wishes = lambda: {"gpu": TWO}
    await cluster.tick()
    assert cluster.annotations("r1")[MIN_SCALE] == "2"
    cluster.scale("r1", 2)
    await cluster.tick()
    assert cluster.warming.states == {"gpu": "warm"}
    await cluster.answered()
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
    cluster.warming.wishes = lambda: {"gpu": TWO}
    task = asyncio.create_task(cluster.warming.run())
    await cluster.fake.until_asked("patch", "revisions")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_request_that_reaches_nobody_says_so() -> None:
    async with FakeKube() as fake:
        assert await warming.request(fake.url) == "HTTP 404"
        fake.put("services", {"metadata": {"name": "here"}})
        assert not await warming.request(f"{fake.url}/api/v1/namespaces/team/services/here")
    assert "onnect" in await warming.request(fake.url)
