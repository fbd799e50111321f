"""The wake-up on a real cache over fake tiers, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from predictor.errors import HearthError, LoadFailed, MalformedRequest, StoreUnavailable, UnknownModel
from predictor.heat import Warmth
from predictor.keeping import Found
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.policy.residency import RAM, Place
from predictor.report import MAX_ORDERS, Order, Orders
from predictor.wakeup import ENOUGH, GRACE_S, LOOK_UPS, TOLD, WakeUp
from tests.predictor.test_cache import HOUR_S, PAGE, Rig

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

DEVICE = Place(0)


def model(name: str, version: int = 1, pages: int = 1) -> ModelSpec:
    file = FileSpec("model.onnx", f"models/{name}/{version}/model.onnx", "etag", pages * PAGE)
    return ModelSpec(ModelRef("default", name, version), ModelFormat.ONNX, "bucket", (file,))


def hot(*names: str) -> Found:
    """The first is asked most."""
    models = tuple(Warmth(name, 1, float(len(names) - place), 0.0) for place, name in enumerate(names))
    return Found(models, "mounted")


class Catalogue:
    """Every version of a name; the last is served. ``look_up_s``: what a look-up takes."""

    def __init__(self, *specs: ModelSpec, look_up_s: float = 0.1) -> None:
        self.specs = specs
        self.look_up_s = look_up_s
        self.fails: dict[str, HearthError] = {}
        self.slow: dict[str, float] = {}
        self.wrong: set[str] = set()
        self.looked_up: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0

    async def settled(self, name: str, version: int | None) -> ModelSpec:
        self.looked_up[name] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.slow.get(name, self.look_up_s))
        finally:
            self.at_once -= 1
        assert name not in self.wrong, "ours"
        if name in self.fails:
            raise self.fails[name]
        found = [spec for spec in self.specs if spec.ref.name == name and version in {None, spec.ref.version}]
        if not found:
            raise UnknownModel(f"there is no model {name}")
        return max(found, key=lambda spec: spec.ref.version)


class Waking:
    """A pod's wake-up, running. ``read``: finds the hot set instead of ``found``."""

    def __init__(
        self,
        rig: Rig,
        found: Found,
        *specs: ModelSpec,
        look_up_s: float = 0.1,
        read_s: float = 0.0,
        cores: int = 4,
        read: Callable[[], Awaitable[Found]] | None = None,
        loads: bool = True,
    ) -> None:
        self.rig = rig
        self.catalogue = Catalogue(*specs, look_up_s=look_up_s)

        async def found_late() -> Found:
            await asyncio.sleep(read_s)
            rig.cache.remembered.restore(found.models, rig.cache.wall_clock(), own=False)
            return found

        self.wakeup = WakeUp(
            rig.cache,
            self.catalogue,
            read or found_late,
            cores,
            loads,
            wall_clock=lambda: 1000.0 + asyncio.get_running_loop().time(),
        )
        self.task = asyncio.create_task(self.wakeup.run())

    async def until_done(self) -> None:
        async with asyncio.timeout(HOUR_S):
            while self.wakeup.report().state not in {"done", "off"}:  # noqa: ASYNC110 (virtual time)
                await asyncio.sleep(0.01)

    def here(self, place: Place = DEVICE) -> set[str]:
        return {copy.ref.name for copy in self.rig.ledger.copies() if copy.place == place}


def built(rig: Rig) -> list[str]:
    """Names in the order in which they came to the device."""
    return [one.model for one in rig.cache.chronicle.since(0) if one.event.place == "device 0"]


async def test_the_hot_set_is_loaded_in_its_order_until_the_device_is_full_and_then_until_ram_is() -> None:
    rig = Rig(ram_pages=4, device_pages=2)
    waking = Waking(rig, hot(*"abcdef"), *map(model, "abcdef"))
    await waking.until_done()
    assert built(rig) == ["a", "b"]
    assert waking.here(RAM) == {"a", "b", "c", "d"}
    report = waking.wakeup.report()
    assert (report.source, report.wanted, report.loaded, report.skipped, report.failed) == ("mounted", 6, 4, 2, 0)
    metric = rig.cache.telemetry.registry.get_sample_value
    assert metric("hearth_preloads_total", {"outcome": "ram"}) == 2
    assert metric("hearth_wakeup_models", {"outcome": "skipped"}) == 2


async def test_a_pod_that_shall_not_wake_up_knows_the_demand_and_loads_nothing_unasked() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"ab"), *map(model, "ab"), loads=False)
    await asyncio.sleep(HOUR_S)
    assert not rig.ram.fetched
    assert (waking.wakeup.report().state, waking.wakeup.report().source) == ("off", "mounted")
    assert await rig.ask(model("a")) == "s3"
    ref = model("a").ref
    assert rig.ledger.demand.rate(ref, rig.cache.clock()) > rig.ledger.demand.rate(model("b").ref, rig.cache.clock())


async def test_nothing_is_built_before_the_first_request_or_the_end_of_the_grace() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"ab"), *map(model, "ab"))
    await asyncio.sleep(GRACE_S - 0.1)
    assert (waking.here(RAM), waking.here()) == ({"a", "b"}, set())
    await asyncio.sleep(5.0)
    assert waking.here() == {"a", "b"}


async def test_where_cores_are_few_nothing_is_fetched_either_until_the_first_request_has_its_model() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"ab"), *map(model, "abc"), cores=2)
    await asyncio.sleep(1.0)
    assert await rig.ask(model("c")) == "s3"
    assert list(rig.ram.fetched) == ["c"]
    await waking.until_done()
    assert list(rig.ram.fetched) == ["c", "a", "b"]
    unasked = Waking(idle := Rig(), hot("a"), model("a"), cores=2)
    await asyncio.sleep(GRACE_S - 0.1)
    assert not idle.ram.fetched
    await unasked.until_done()
    assert unasked.here() == {"a"}


async def test_the_first_request_is_served_before_anything_is_built_and_ends_the_grace() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"ab"), *map(model, "abc"))
    await asyncio.sleep(1.0)
    assert await rig.ask(model("c")) == "s3"
    assert asyncio.get_running_loop().time() < GRACE_S
    await waking.until_done()
    assert built(rig)[0] == "c"


async def test_while_somebody_waits_nothing_is_looked_up_and_nothing_begins() -> None:
    rig = Rig()
    rig.ram.fetch_s = lambda ref: 10.0 if ref.name == "cold" else 1.0
    waking = Waking(rig, hot(*(f"m{number}" for number in range(20))), *(model(f"m{number}") for number in range(20)))
    await asyncio.sleep(0.01)
    asking = asyncio.create_task(rig.ask(model("cold")))
    await asyncio.sleep(5.0)
    assert waking.wakeup.report().state == "paused"
    assert sum(waking.catalogue.looked_up.values()) <= LOOK_UPS
    assert waking.here(RAM) == {"cold"}
    await asking
    await waking.until_done()
    assert waking.wakeup.report().loaded == 20


async def test_look_ups_are_bounded_and_their_speed_changes_no_order() -> None:
    rig = Rig()
    names = [f"m{number}" for number in range(12)]
    waking = Waking(rig, hot(*names), *map(model, names), look_up_s=3.0)
    await waking.until_done()
    assert waking.catalogue.most_at_once == LOOK_UPS
    assert list(rig.ram.fetched) == names


async def test_a_model_that_is_gone_or_cannot_be_loaded_is_passed_over() -> None:
    rig = Rig()
    rig.ram.fails["b"] = [StoreUnavailable("away")]
    rig.device.fails["c"] = [LoadFailed("bad")]
    waking = Waking(rig, hot(*"abcde"), *map(model, "abcd"))
    await waking.until_done()
    assert waking.here() == {"a", "d"}
    report = waking.wakeup.report()
    assert (report.loaded, report.failed) == (2, 3)


async def test_of_a_hot_set_that_is_all_gone_a_few_models_are_told_and_no_name_breaks_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waking = Waking(Rig(), hot("two\nlines", "long" * 1000, *map(str, range(100))))
    with caplog.at_level(logging.INFO):
        await waking.until_done()
    told = [record.message for record in caplog.records if "not loaded ahead" in record.message]
    assert len(told) == TOLD
    assert all("\n" not in line.partition(":")[0] and len(line) < 1000 for line in told)
    assert waking.wakeup.report().failed == 102
    waking.wakeup.take(Orders((Order(1, "gone too"),)))
    with caplog.at_level(logging.INFO):
        await waking.until_done()
    assert any(record.message.startswith("model gone too is not loaded ahead") for record in caplog.records)


async def test_a_look_up_that_hangs_holds_up_the_others_for_a_while_only() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"ab"), *map(model, "ab"))
    waking.catalogue.slow["a"] = HOUR_S
    await waking.until_done()
    assert waking.here() == {"b"}
    assert waking.wakeup.report().failed == 1


async def test_a_hot_set_that_cannot_be_read_for_our_own_mistake_stops_no_orders(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()

    async def read() -> Found:
        raise AssertionError("ours")

    waking = Waking(rig, Found(), model("a"), read=read)
    waking.wakeup.take(Orders((Order(1, "a"),)))
    await waking.until_done()
    assert waking.here() == {"a"}
    assert "the hot set cannot be read" in caplog.text


async def test_a_look_up_that_fails_for_our_own_mistake_costs_that_model_only(caplog: pytest.LogCaptureFixture) -> None:
    waking = Waking(Rig(), hot("a"), model("a"), model("b"))
    waking.catalogue.wrong.add("a")
    async with asyncio.timeout(HOUR_S):
        while "the watch over the wake-up failed, and goes on" not in caplog.text:  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.1)
    waking.wakeup.take(Orders((Order(1, "b"),)))
    await waking.until_done()
    assert (waking.here(), waking.wakeup.report().failed) == ({"b"}, 1)


async def test_what_a_request_brought_first_counts_as_loaded() -> None:
    rig = Rig()
    waking = Waking(rig, hot("a"), model("a"))
    await asyncio.sleep(0.5)
    await rig.ask(model("a"))
    await waking.until_done()
    assert waking.wakeup.report().loaded == 1
    assert [one.event.what for one in rig.cache.chronicle.since(0)] == ["loaded", "loaded"]


async def test_what_was_asked_before_the_hot_set_was_found_is_valued_by_it_all_the_same() -> None:
    rig = Rig()
    waking = Waking(rig, hot("a"), model("a"), read_s=30.0)
    await rig.ask(model("a"))
    assert waking.wakeup.report().state == "reading"
    before = rig.ledger.demand.rate(model("a").ref, 30.0)
    await waking.until_done()
    assert rig.ledger.demand.rate(model("a").ref, 30.0) > before + 0.4


async def test_the_rest_is_given_up_when_one_after_the_other_finds_no_room() -> None:
    rig = Rig(ram_pages=1, device_pages=1)
    names = [f"m{number}" for number in range(10 * ENOUGH)]
    waking = Waking(rig, hot(*names), *map(model, names))
    await waking.until_done()
    report = waking.wakeup.report()
    assert (report.loaded, report.skipped) == (1, len(names) - 1)
    assert sum(waking.catalogue.looked_up.values()) <= 1 + ENOUGH + 2 * LOOK_UPS


async def test_a_version_published_since_takes_the_place_of_the_one_that_was_hot() -> None:
    rig = Rig()
    waking = Waking(rig, hot("a"), model("a", 1), model("a", 2))
    await waking.until_done()
    assert {copy.ref.version for copy in rig.ledger.copies()} == {2}
    assert rig.ledger.demand.rate(model("a", 2).ref, 0.0) > 0


async def test_two_versions_that_were_both_asked_are_both_loaded() -> None:
    rig = Rig()
    models = (Warmth("a", 1, 1.0, 1.0), Warmth("a", 2, 2.0, 2.0))
    waking = Waking(rig, Found(models, "mounted"), model("a", 1), model("a", 2))
    await waking.until_done()
    assert {copy.ref.version for copy in rig.ledger.copies()} == {1, 2}


async def test_orders_go_before_the_rest_of_the_hot_set_and_mean_nothing_once_they_are_late() -> None:
    rig = Rig()
    names = [f"m{number}" for number in range(30)]
    waking = Waking(rig, hot(*names), *map(model, [*names, "ordered", "late"]), look_up_s=1.0)
    await asyncio.sleep(0.5)
    orders = (Order(2, "ordered", why="asked on pod a", until_s=2000.0), Order(3, "late", until_s=1000.0))
    assert waking.wakeup.take(Orders(orders)) == 3
    await waking.until_done()
    assert built(rig).index("ordered") <= 2 * LOOK_UPS
    assert "late" not in built(rig)
    assert rig.cache.chronicle.why("ordered")[-1].cause == "order 2: asked on pod a"


async def test_an_order_is_taken_once_and_no_more_than_the_queue_holds() -> None:
    rig = Rig()
    waking = Waking(rig, Found(), model("a"))
    await asyncio.sleep(0.1)
    assert waking.wakeup.report().state == "off"
    rig.ram.fails["cold"] = [StoreUnavailable("away")]
    rig.ram.fetch_s = lambda _: 100.0
    asking = asyncio.create_task(rig.ask(model("cold")))
    await asyncio.sleep(0.1)
    batch = Orders(tuple(Order(number, "a", 1) for number in range(1, MAX_ORDERS + 1)))
    assert waking.wakeup.take(batch) == MAX_ORDERS
    assert waking.wakeup.take(batch) == MAX_ORDERS
    assert waking.wakeup.report().wanted == MAX_ORDERS
    more = waking.wakeup.take(Orders(tuple(Order(MAX_ORDERS + number, "a") for number in range(1, 10))))
    assert more == MAX_ORDERS, "the queue is full: who asks again later is heard"
    with pytest.raises(MalformedRequest, match="at once"):
        waking.wakeup.take(Orders((*batch.orders, Order(9999, "a"))))
    with pytest.raises(StoreUnavailable):
        await asking
    await waking.until_done()
    assert waking.wakeup.report().loaded == MAX_ORDERS


async def test_an_order_for_an_exact_version_is_for_that_one() -> None:
    rig = Rig()
    waking = Waking(rig, Found(), model("a", 1), model("a", 2))
    waking.wakeup.take(Orders((Order(1, "a", 1),)))
    await waking.until_done()
    assert {copy.ref.version for copy in rig.ledger.copies()} == {1}


async def test_a_wake_up_that_is_stopped_leaves_no_look_up_behind() -> None:
    rig = Rig()
    waking = Waking(rig, hot(*"abcdef"), *map(model, "abcdef"), look_up_s=100.0)
    await asyncio.sleep(1.0)
    waking.task.cancel()
    await asyncio.gather(waking.task, return_exceptions=True)
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("look up")]
