"""A whole controller collects what pods noted, keeps it over its own restarts, and publishes what pods begin with."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from prometheus_client import generate_latest

from predictor import heat
from predictor.errors import UnknownModel
from predictor.heat import HOTSET_FILE, MAX_MODELS, Heat, HotSet, Warmth
from predictor.report import CopyReport, ModelReport, Residency, TierReport, WarmUp
from tests.fakes.admin_pod import AdminPod
from tests.fakes.kube import FakeKube, Fault
from tests.warmup.controlling import NAMESPACE, Running, put_model, put_pod, put_pool, running, writes
from tests.warmup.test_reconcile import Killed, Mortal
from warmup.kept import MAX_DOCUMENT_BYTES, SET_ASIDE
from warmup.memory import Memory, decode

GB = 10**9
BRISK: dict[str, Any] = {"heat_s": 0.1, "poll_s": 0.1}


def noted(pod: str, **requests: float) -> Heat:
    """What a pod was asked just now; each rate is one model's, on both time scales."""
    lines = tuple(Warmth(name, 1, rate, rate, 2.0, GB) for name, rate in requests.items())
    return Heat(pod, time.time(), lines)


def published(fake: FakeKube, pool: str = "gpu") -> HotSet | None:
    found = fake.object("configmaps", f"hearth-{pool}-hotset", namespace=NAMESPACE)
    return None if found is None else heat.decode(found["data"][HOTSET_FILE].encode(), HotSet)


def names(fake: FakeKube, pool: str = "gpu") -> list[str]:
    hot = published(fake, pool)
    return [] if hot is None else [one.name for one in hot.models]


def remembered(fake: FakeKube, pool: str = "gpu") -> Memory | None:
    found = fake.object("configmaps", f"hearth-{pool}-demand", namespace=NAMESPACE)
    if found is None:
        return None
    return decode(gzip.decompress(base64.b64decode(found["binaryData"]["demand.json.gz"])))


def remembered_names(fake: FakeKube) -> set[str]:
    memory = remembered(fake)
    return set() if memory is None else {line.name for life in memory.lives for line in life.heat.models}


def rates(fake: FakeKube, pool: str = "gpu") -> dict[str, float]:
    hot = published(fake, pool)
    return {} if hot is None else {one.name: one.slow for one in hot.models}


def remove_pod(fake: FakeKube, name: str) -> None:
    fake.remove("pods", name, namespace=NAMESPACE)


def end_pod(fake: FakeKube, name: str) -> None:
    """As kubectl delete does: the pod is told, and goes on until it is gone."""
    found = fake.object("pods", name, namespace=NAMESPACE)
    assert found is not None
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    fake.put("pods", found, namespace=NAMESPACE)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as made:
        put_pool(made)
        yield made


@pytest.fixture
async def one() -> AsyncIterator[AdminPod]:
    async with AdminPod("one") as made:
        yield made


@pytest.fixture
async def two() -> AsyncIterator[AdminPod]:
    async with AdminPod("two") as made:
        yield made


def happened(controller: Running, model: str, what: str) -> bool:
    try:
        return what in [noted.what for noted in controller.built.summary.why(model)]
    except UnknownModel:
        return False


async def until_led(controller: Running) -> None:
    await controller.until(lambda: controller.built.leader.is_leader() and controller.built.world.synced)


async def test_what_pods_noted_is_published_added_up_and_by_value(fake: FakeKube, one: AdminPod, two: AdminPod) -> None:
    one.heat, two.heat = noted("one", m=1.0, n=2.0), noted("two", m=2.0)
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: controller.built.hot_sets.shown().get("gpu"))
        end_pod(fake, "one")
        end_pod(fake, "two")
        await controller.until(lambda: names(fake) == ["m", "n"])
    assert rates(fake) == pytest.approx({"m": 3.0, "n": 2.0}, rel=0.01)


async def test_the_last_pods_end_publishes_at_once_what_it_was_asked_since(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        one.heat = noted("one", m=1.0, n=5.0)
        await one.until_asked(2, "/hearth/v1/heat")
        assert names(fake) == ["m"], "a write each half minute is enough while a pod runs"
        end_pod(fake, "one")
        await controller.until(lambda: names(fake) == ["n", "m"])
        await controller.until(lambda: remembered_names(fake) == {"m", "n"})


async def test_a_pod_that_begins_to_end_is_asked_then_and_not_when_its_turn_comes(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, poll_s=0.1, heat_s=600) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        one.heat = noted("one", m=1.0, n=5.0)
        end_pod(fake, "one")
        await controller.until(lambda: names(fake) == ["n", "m"])


async def test_a_pod_that_ends_without_a_word_leaves_what_it_told_before(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        one.misbehaves = "hang"
        remove_pod(fake, "one")
        await controller.until(lambda: any(life.gone_s for life in getattr(remembered(fake), "lives", ())))
        assert rates(fake) == pytest.approx({"m": 1.0}, rel=0.01)


async def test_the_next_controller_publishes_the_same_of_pods_that_ended_before_it_came(
    fake: FakeKube, one: AdminPod, two: AdminPod
) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
    remove_pod(fake, "one")  # while no controller runs
    two.heat = noted("two", n=5.0)
    put_pod(fake, two.address, name="two")
    async with running(fake, identity="two", **BRISK) as controller:
        await two.until_asked(2, "/hearth/v1/heat")
        end_pod(fake, "two")
        await controller.until(lambda: names(fake) == ["n", "m"])
        assert rates(fake) == pytest.approx({"n": 5.0, "m": 1.0}, rel=0.01)
    async with running(fake, identity="three", **BRISK) as controller:
        await until_led(controller)
        await two.until_asked(3, "/hearth/v1/heat")
        remove_pod(fake, "two")
        await controller.until(lambda: all(life.gone_s for life in getattr(remembered(fake), "lives", ())))
        assert rates(fake) == pytest.approx({"n": 5.0, "m": 1.0}, rel=0.01), "neither is counted twice"


async def test_an_unchanged_pool_is_not_written_again_by_the_next_controller(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
    before = len(writes(fake, "configmaps"))
    async with running(fake, identity="two", **BRISK) as controller:
        await until_led(controller)
        await one.until_asked(5, "/hearth/v1/heat")
        assert controller.built.hot_sets.shown()["gpu"].models == 1
    assert len(writes(fake, "configmaps")) == before


async def test_what_was_not_written_yet_is_when_the_controller_is_asked_to_end(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
        one.heat = noted("one", n=5.0)
        await one.until_asked(2, "/hearth/v1/heat")
        await controller.built.hot_sets.close()
        assert names(fake) == ["n"]
        assert remembered_names(fake) == {"n"}


async def test_two_pools_have_nothing_of_each_other(fake: FakeKube, one: AdminPod, two: AdminPod) -> None:
    put_pool(fake, "cpu")
    one.heat, two.heat = noted("one", m=1.0), noted("two", n=1.0)
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two", pool="cpu")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: (names(fake), names(fake, "cpu")) == (["m"], ["n"]))


async def test_a_deleted_model_is_not_in_the_hot_set(fake: FakeKube, one: AdminPod) -> None:
    put_model(fake, "m")
    one.heat = noted("one", m=1.0, root=0.5)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m", "root"] and happened(controller, "m", "declared"))
        await controller.settle()
        await one.until_asked(3, "/hearth/v1/heat")
        fake.remove("inferenceservices", "m", namespace=NAMESPACE)
        await controller.until(lambda: happened(controller, "m", "deleted"))
        await one.until_asked(12, "/hearth/v1/heat")
        end_pod(fake, "one")
        await controller.until(lambda: names(fake) == ["root"])


async def test_a_pod_of_an_older_release_tells_none_and_is_none(fake: FakeKube, one: AdminPod) -> None:
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await one.until_asked(3, "/hearth/v1/heat")
        await controller.until(lambda: controller.built.pods.of("gpu")[0].state == "answering")
    assert published(fake) is None


async def test_garbage_and_newer_documents_are_set_aside_and_replaced(fake: FakeKube, one: AdminPod) -> None:
    for what, contents in (
        ("demand", {"binaryData": {"demand.json.gz": "bm90IGd6aXA="}}),
        ("hotset", {"data": {HOTSET_FILE: "{"}}),
    ):
        fake.put("configmaps", {"metadata": {"name": f"hearth-gpu-{what}"}, **contents}, namespace=NAMESPACE)
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: SET_ASIDE in _binary(fake, "demand") and SET_ASIDE in _binary(fake, "hotset"))
        await controller.until(lambda: names(fake) == ["m"])


def _binary(fake: FakeKube, what: str) -> dict[str, str]:
    found = fake.object("configmaps", f"hearth-gpu-{what}", namespace=NAMESPACE) or {}
    return dict(found.get("binaryData") or {})


async def test_a_controller_that_only_watches_writes_and_orders_nothing(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as first:
        await first.until(lambda: names(fake) == ["m"] and remembered(fake))
        before = len(writes(fake, "configmaps"))
        async with running(fake, identity="two", **BRISK) as second:
            await second.until(lambda: second.built.world.synced)
            await one.until_asked(10)
            assert second.built.hot_sets.shown() == {}
        assert len(writes(fake, "configmaps")) == before


async def test_a_pool_that_is_gone_is_nobodys_any_more(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        fake.remove("deployments", "gpu", namespace=NAMESPACE)
        await controller.until(lambda: not controller.built.hot_sets.shown())


async def test_a_pod_that_tells_garbage_or_nothing_keeps_nobody_from_being_heard(
    fake: FakeKube, one: AdminPod, two: AdminPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.1)
    monkeypatch.setattr("warmup.ordering.COMPARE_EACH_S", 0.1)  # the first may be over before anybody listens for it
    one.heat, two.heat = noted("one", m=1.0), noted("two", n=2.0)
    one.residency = resident("m")

    def spoil(path: str) -> None:
        two.misbehaves = "garbage" if path in ("/hearth/v1/heat", "/hearth/v1/residency") else ""

    two.on_request = spoil
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        await two.until_asked(1, "/hearth/v1/residency")
        two.on_request = lambda path: setattr(two, "misbehaves", "hang" if path == "/hearth/v1/heat" else "")
        await two.until_asked(1, "/hearth/v1/heat")
        assert two.orders == []
        remove_pod(fake, "two")
        end_pod(fake, "one")
        assert names(fake) == ["m"]


async def test_names_too_long_for_one_object_cost_the_least_valuable_models_their_place(fake: FakeKube, one: AdminPod) -> None:
    long = [f"{number:04}-{secrets.token_urlsafe(180)}" for number in range(MAX_MODELS)]
    one.heat = noted("one", **{name: 2.0 - number / MAX_MODELS for number, name in enumerate(long)})
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: published(fake) and remembered(fake))
        hot = names(fake)
        assert 2000 < len(hot) < MAX_MODELS
        assert hot == long[: len(hot)]
        assert controller.built.hot_sets.shown()["gpu"].size_bytes <= MAX_DOCUMENT_BYTES
        assert remembered_names(fake) <= set(long)
        assert len(remembered_names(fake)) >= MAX_MODELS / 4


async def test_an_api_server_that_is_away_costs_no_demand_and_no_farewell_without_end(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
        one.heat = noted("one", m=1.0, n=5.0)
        await one.until_asked(2, "/hearth/v1/heat")
        fake.faults += (fault := [Fault(500, verb, "configmaps", times=1000) for verb in ("create", "update")])
        await controller.built.hot_sets.close()
        end_pod(fake, "one")
        await controller.until(lambda: any(asked.verb == "update" and asked.plural == "configmaps" for asked in fake.asked))
        assert names(fake) == ["m"]
        for each in fault:
            fake.faults.remove(each)
        await controller.until(lambda: names(fake) == ["n", "m"])


async def test_without_its_memory_a_pool_at_zero_goes_on_from_what_was_published(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
    remove_pod(fake, "one")
    fake.remove("configmaps", "hearth-gpu-demand", namespace=NAMESPACE)
    async with running(fake, identity="two", **BRISK) as controller:
        await controller.until(lambda: controller.built.hot_sets.shown().get("gpu"))
        one.heat = noted("one", n=5.0)
        one.restart()
        put_pod(fake, one.address, name="again")
        await one.until_asked(3, "/hearth/v1/heat")
        end_pod(fake, "again")
        await controller.until(lambda: names(fake) == ["n", "m"])


async def test_a_pool_that_was_made_again_owns_documents_again(fake: FakeKube, one: AdminPod) -> None:
    one.heat = noted("one", m=1.0)
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"] and remembered(fake))
        before = fake.object("deployments", "gpu", namespace=NAMESPACE)
        assert before is not None
        fake.remove("deployments", "gpu", namespace=NAMESPACE)
        put_pool(fake)
        after = fake.object("deployments", "gpu", namespace=NAMESPACE)
        assert after is not None
        assert after["metadata"]["uid"] != before["metadata"]["uid"]

        def owner(what: str) -> str:
            found = fake.object("configmaps", f"hearth-gpu-{what}", namespace=NAMESPACE)
            return "" if found is None else str(found["metadata"]["ownerReferences"][0]["uid"])

        await controller.until(lambda: {owner("demand"), owner("hotset")} == {after["metadata"]["uid"]})
        assert names(fake) == ["m"]


async def _story(fake: FakeKube, one: AdminPod, two: AdminPod) -> None:
    """One pod comes and goes, then another; each was heard before it ends."""
    one.heat, two.heat = noted("one", m=1.0), noted("two", m=1.0, n=5.0)
    put_pod(fake, one.address, name="one")
    await one.until_asked(2, "/hearth/v1/heat")
    end_pod(fake, "one")
    while "m" not in remembered_names(fake):  # noqa: ASYNC110 - what a pod tells a controller that dies then is lost with both
        await asyncio.sleep(0.01)
    remove_pod(fake, "one")
    put_pod(fake, two.address, name="two")
    await two.until_asked(2, "/hearth/v1/heat")
    end_pod(fake, "two")
    while "n" not in remembered_names(fake):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    remove_pod(fake, "two")


@pytest.mark.parametrize("after", range(1, 7))
async def test_a_controller_that_ends_after_any_write_is_succeeded_by_one_that_publishes_the_same(
    fake: FakeKube, one: AdminPod, two: AdminPod, after: int
) -> None:
    mortal = Mortal(fake.client(NAMESPACE, timeout_s=2.0), after)
    story = asyncio.create_task(_story(fake, one, two))
    with contextlib.suppress(Killed):
        async with running(fake, kube=mortal, **BRISK):  # type: ignore[arg-type]
            dead = asyncio.create_task(mortal.dead.wait())
            await asyncio.wait([story, dead], return_when=asyncio.FIRST_COMPLETED)
            dead.cancel()
    async with running(fake, identity="two", lease_name="second", **BRISK) as controller:
        await story
        await controller.until(lambda: rates(fake) == pytest.approx({"n": 5.0, "m": 2.0}, rel=0.02))


# ---- orders ---------------------------------------------------------------------------------------------------


def resident(*names: str, budget: int = 10 * GB) -> Residency:
    models = tuple(ModelReport(name, 1, copies=(CopyReport("device", 0, "ready", GB),)) for name in names)
    return Residency((TierReport("device", 0, budget, len(names) * GB),), models)


def ordered(pod: AdminPod) -> list[tuple[str, str]]:
    return [(order.name, order.why) for order in pod.orders]


async def test_what_is_asked_on_one_pod_is_ordered_on_another_once_and_told(
    fake: FakeKube, one: AdminPod, two: AdminPod
) -> None:
    put_model(fake, "m")
    one.heat, one.residency = noted("one", m=1.0), resident("m")
    two.heat, two.residency = noted("two"), resident()
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: two.orders)
        assert ordered(two) == [("m", "asked on one, cold on two")]
        assert one.orders == []
        history = [(noted.what, noted.detail) for noted in controller.built.summary.why("m")]
        assert ("ordered", "on pod two: asked on one, cold on two") in history
        sent = two.requests.count("/hearth/v1/orders")
        await two.until_asked(10)
        assert two.requests.count("/hearth/v1/orders") == sent, "it has taken it"
    number = two.orders[0].number
    async with running(fake, identity="two", **BRISK) as controller:
        await controller.until(lambda: len(two.orders) == 2)
        assert two.orders[1].number > number, "another controller's numbers go on from there"


async def test_a_pod_that_loads_its_hot_set_is_not_disturbed(fake: FakeKube, one: AdminPod, two: AdminPod) -> None:
    one.heat, one.residency = noted("one", m=1.0), resident("m")
    two.heat, two.residency, two.warm_up = noted("two"), resident(), WarmUp("loading", "mounted", 5, 1)
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, **BRISK) as controller:
        await two.until_asked(1, "/hearth/v1/residency")
        await two.until_asked(3)
        assert two.orders == []
        told = msgspec.to_builtins(controller.built.summary.of_pools())
        assert told[0]["pods"][1]["warm_up"] == {"state": "loading", "source": "mounted", "wanted": 5, "loaded": 1}
        assert told[0]["hot_set"]["models"] == 1


def annotate(fake: FakeKube, model: str, lines: str) -> None:
    found = fake.object("inferenceservices", model, namespace=NAMESPACE)
    assert found is not None
    found["metadata"]["annotations"]["hearth.dev/warm-at"] = lines
    fake.put("inferenceservices", found, namespace=NAMESPACE)


async def test_the_calendar_of_a_model_is_an_order_for_the_only_pod(
    fake: FakeKube, one: AdminPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.1)
    put_model(fake, "m")
    annotate(fake, "m", "* * * * *")
    one.residency = resident()
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: one.orders)
        assert ordered(one) == [("m", "hearth.dev/warm-at: * * * * *")]
        assert one.orders[0].version == 0
        assert one.orders[0].until_s > time.time()


async def test_a_calendar_that_cannot_be_read_is_told_once(
    fake: FakeKube, one: AdminPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.1)
    put_model(fake, "m")
    annotate(fake, "m", "every morning")
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: happened(controller, "m", "calendar"))
        await one.until_asked(10)
        told = [found["message"] for found in fake.objects("events", namespace=NAMESPACE).values()]
        assert len([text for text in told if "every morning" in text]) == 1
        assert one.orders == []


async def test_a_rhythm_is_an_order_shortly_before_the_next_visit(fake: FakeKube, one: AdminPod) -> None:
    visits = tuple(3600 * number - 8 for number in (5, 4, 3, 2, 1))
    one.heat = Heat("one", time.time(), (Warmth("m", 1, 1e-6, 1e-6, 2.0, GB, visits), Warmth("n", 1, 1e-6, 1e-6, 2.0, GB)))
    one.residency = resident()
    put_pod(fake, one.address, name="one")
    async with running(fake, **BRISK) as controller:
        await controller.until(lambda: one.orders)
        assert ordered(one) == [("m", "asked every 1 h")]
        metrics = generate_latest(controller.built.telemetry.registry).decode()
        assert 'hearth_controller_orders_total{pool="gpu",reason="rhythm"} 1.0' in metrics


async def test_nothing_is_ordered_where_the_operator_wants_none(fake: FakeKube, one: AdminPod, two: AdminPod) -> None:
    one.heat, one.residency = noted("one", m=1.0), resident("m")
    two.heat, two.residency = noted("two"), resident()
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, orders=False, **BRISK) as controller:
        await controller.until(lambda: names(fake) == ["m"])
        await two.until_asked(3, "/hearth/v1/heat")
        assert "/hearth/v1/residency" not in two.requests


async def test_an_order_that_gets_lost_is_sent_again_and_an_older_pod_is_left_alone(
    fake: FakeKube, one: AdminPod, two: AdminPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.1)
    one.heat, one.residency = noted("one", m=1.0, n=1.0), resident("m", "n")
    two.heat, two.residency, two.takes = noted("two"), resident(), False
    async with AdminPod("older", refuses=True) as older:
        older.residency = resident()
        for pod in (one, two, older):
            put_pod(fake, pod.address, name=pod.name)
        async with running(fake, **BRISK):
            await two.until_asked(3, "/hearth/v1/orders")
            two.takes = True
            await two.until_asked(1, "/hearth/v1/orders")
            assert {order.name for order in two.orders} == {"m", "n"}
            sent = two.requests.count("/hearth/v1/orders")
            await two.until_asked(12)
            assert two.requests.count("/hearth/v1/orders") == sent
            assert older.requests.count("/hearth/v1/orders") == 1


async def test_an_order_whose_answer_is_garbage_or_never_comes_is_sent_again(
    fake: FakeKube, one: AdminPod, two: AdminPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.1)
    one.heat, one.residency = noted("one", m=1.0), resident("m")
    two.heat, two.residency = noted("two"), resident()
    wrong = ["garbage", "hang", "500"]

    def spoil(path: str) -> None:
        two.misbehaves = wrong[0] if path == "/hearth/v1/orders" and wrong else ""
        if path == "/hearth/v1/orders" and wrong:
            wrong.pop(0)

    two.on_request = spoil
    put_pod(fake, one.address, name="one")
    put_pod(fake, two.address, name="two")
    async with running(fake, pod_timeout_s=0.3, **BRISK) as controller:
        await controller.until(lambda: not wrong)
        await two.until_asked(5)
        assert two.orders == [], "who refuses is left alone for a while"
        wrong += ["garbage"]
        monkeypatch.setattr("warmup.placement.AGAIN_S", 0.0)
        monkeypatch.setattr("warmup.ordering.COMPARE_EACH_S", 0.1)
        await controller.until(lambda: two.orders)
        assert ordered(two)[0] == ("m", "asked on one, cold on two")
