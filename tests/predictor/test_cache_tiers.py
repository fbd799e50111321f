"""The cache beyond the plain way in and out: disk, measured memory, pins and time, on fake tiers in virtual time."""

from __future__ import annotations

import asyncio
import math

import pytest

from predictor.errors import LoadFailed, ModelTooLarge, OutOfMemory
from predictor.model import ModelFormat, ModelSpec
from predictor.policy.eviction import Rules
from predictor.policy.residency import DISK, RAM, Place
from predictor.profiles import Profiles
from predictor.tiers.device import Placement
from predictor.tiers.disk_files import DiskFault, Fault
from predictor.wire import Peak, Tensor
from tests.fakes.jobs import compute
from tests.fakes.profiles import HEADROOM_BYTES, at_once
from tests.predictor.test_cache import PAGE, Rig, model

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

DEVICE = Place(0)


def measuring(pages: int = 4, *, copies: bool = True) -> Profiles:
    """Profiles that know nothing yet, of devices with room for so many pages."""
    return Profiles(Placement(copies), lambda: "test", None, at_once, device_bytes=pages * PAGE + HEADROOM_BYTES)


async def ask(rig: Rig, spec: ModelSpec, elements: int) -> str:
    lease = await rig.cache.lease(spec, deadline_s=asyncio.get_running_loop().time() + 60, elements=elements)
    try:
        await compute(lease, (Tensor("x", "FP32", (elements,), 0),))
        return lease.start
    finally:
        lease.release()


async def drop(rig: Rig, name: str) -> None:
    assert await rig.cache.unload(name)


async def test_a_model_that_left_ram_comes_back_from_disk() -> None:
    rig = Rig(disk_pages=10)
    assert await rig.ask(model("a")) == "s3"
    await asyncio.sleep(1.0)
    await drop(rig, "a")
    assert await rig.ask(model("a")) == "disk"
    assert rig.ram.fetched["a"] == 1
    assert rig.disk is not None
    assert rig.disk.written["a"] == 1


async def test_a_damaged_disk_copy_costs_a_fetch_and_no_request() -> None:
    rig = Rig(disk_pages=10)
    assert rig.disk is not None
    await rig.ask(model("a"))
    await asyncio.sleep(1.0)
    await drop(rig, "a")
    rig.disk.faults["a"] = [DiskFault(Fault.DAMAGED, "part 3 of model.onnx differs")]
    assert await rig.ask(model("a")) == "s3"
    await asyncio.sleep(1.0)
    assert rig.disk.written["a"] == 2, "and it is written anew"
    told = rig.cache.telemetry.registry.get_sample_value("hearth_disk_faults_total", {"kind": "damaged"})
    assert told == 1


async def test_a_full_disk_leaves_a_cache_in_ram() -> None:
    rig = Rig(disk_pages=10)
    assert rig.disk is not None
    rig.disk.faults["a"] = [DiskFault(Fault.FULL, "no space left")]
    assert await rig.ask(model("a")) == "s3"
    await asyncio.sleep(1.0)
    assert await rig.ask(model("a")) == "hot"
    assert rig.cache.history(model("a").ref).failure is None, "nothing is wrong with the model"
    assert rig.ledger.used_bytes(DISK) == 0


async def test_copies_that_an_earlier_process_left_are_used() -> None:
    rig = Rig(disk_pages=10)
    assert rig.disk is not None
    rig.disk.present.add(model("a").ref)
    rig.cache.adopt(model("a").ref, PAGE)
    assert await rig.ask(model("a")) == "disk"
    assert rig.ram.fetched["a"] == 0


async def test_the_first_build_measures_and_the_second_does_not() -> None:
    rig = Rig(profiles=measuring())
    rig.device.measures["a"] = (2 * PAGE, (Peak(10, PAGE),))
    await rig.ask(model("a"))
    assert rig.device.probed["a"] == 1
    need = rig.cache.profiles.need(model("a"))
    assert (need.device_bytes, need.activation_bytes) == (2 * PAGE, PAGE)
    assert rig.ledger.used_bytes(DEVICE) == 2 * PAGE
    await drop(rig, "a")
    await rig.ask(model("a"))
    assert rig.device.probed["a"] == 1


async def test_a_model_measured_too_large_is_dropped_and_then_refused_before_a_byte_moves() -> None:
    rig = Rig(device_pages=4, profiles=measuring())
    rig.device.measures["a"] = (3 * PAGE, (Peak(10, 2 * PAGE),))
    with pytest.raises(ModelTooLarge, match="3145728 to stay, 2097152 to compute, measured"):
        await rig.ask(model("a"))
    assert rig.device.present == set()
    with pytest.raises(ModelTooLarge, match="measured"):
        await rig.ask(model("a"))
    assert rig.ram.fetched["a"] == 1


async def test_a_model_that_is_larger_than_was_assumed_makes_others_leave() -> None:
    rig = Rig(device_pages=4, profiles=measuring())
    for name in "ab":
        rig.device.measures[name] = (2 * PAGE, (Peak(10, PAGE // 2),))
        await rig.ask(model(name))
        await asyncio.sleep(10)
    assert rig.device.present == {model("b").ref}


async def test_a_larger_request_makes_room_is_measured_and_known_from_then_on() -> None:
    rig = Rig(device_pages=8, profiles=measuring(8))
    for name in "ab":
        rig.device.measures[name] = (PAGE, (Peak(10, PAGE),))
        await rig.ask(model(name))
        await asyncio.sleep(10)
    assert rig.device.present == {model("a").ref, model("b").ref}
    rig.device.peaks["b"] = 2 * PAGE
    assert rig.cache.hit(model("b").ref, 65) is None
    assert await ask(rig, model("b"), 65) == "hot"
    assert rig.device.present == {model("b").ref}, "foreseen: 6.5 times what 10 elements took"
    assert rig.cache.profiles.need(model("b")).activation_bytes == 2 * PAGE
    lease = rig.cache.hit(model("b").ref, 65)
    assert lease is not None
    lease.release()


async def test_a_request_no_device_can_ever_hold_is_refused_with_numbers() -> None:
    rig = Rig(device_pages=4, profiles=measuring())
    rig.device.measures["a"] = (PAGE, (Peak(10, PAGE),))
    await rig.ask(model("a"))
    with pytest.raises(ModelTooLarge, match="52428800 to compute a request of 500 elements, measured"):
        await ask(rig, model("a"), 500)
    assert await ask(rig, model("a"), 10) == "hot"


async def test_a_request_that_found_no_memory_gets_more_room_the_second_time() -> None:
    rig = Rig(device_pages=4, profiles=measuring())
    for name in "ab":
        rig.device.measures[name] = (PAGE, (Peak(10, 3 * PAGE // 2),))
        await rig.ask(model(name))
        await asyncio.sleep(10)
    rig.device.run_fails["b"] = [OutOfMemory("no memory")]
    with pytest.raises(OutOfMemory):
        await ask(rig, model("b"), 10)
    rig.cache.exhausted(model("b").ref, 10)
    assert await ask(rig, model("b"), 10) == "hot"
    assert rig.device.present == {model("b").ref}


async def test_a_build_that_finds_no_memory_is_tried_once_more_after_others_left() -> None:
    rig = Rig(device_pages=2)
    await rig.ask(model("a"))
    await asyncio.sleep(10)
    rig.device.fails["b"] = [OutOfMemory("no memory")]
    assert await rig.ask(model("b")) == "s3"
    assert rig.device.promoted["b"] == 2
    assert rig.device.present == {model("b").ref}


async def test_a_build_that_never_finds_memory_fails_and_books_nothing() -> None:
    rig = Rig(device_pages=2)
    rig.device.fails["b"] = [OutOfMemory("no memory"), OutOfMemory("still none")]
    with pytest.raises(OutOfMemory, match="still none"):
        await rig.ask(model("b"))
    assert rig.ledger.used_bytes(DEVICE) == 0


async def test_a_newcomer_waits_until_the_other_has_stayed_as_long_as_its_load_took() -> None:
    rig = Rig(device_pages=1, rules=Rules(min_residency_s=5.0))
    rig.device.promote_s = lambda _: 3.0
    loop = asyncio.get_running_loop()
    await rig.ask(model("a"))
    ready_s = loop.time()
    await rig.ask(model("b"))
    assert loop.time() - ready_s == pytest.approx(3.0 + 0.01 + 3.0, abs=0.1), "residency, drop, build"


async def test_a_pinned_model_stays_until_it_is_unpinned() -> None:
    rig = Rig(device_pages=1)
    await rig.ask(model("a"))
    rig.cache.pin("a")
    asking = asyncio.ensure_future(rig.ask(model("b")))
    await asyncio.sleep(30)
    assert not asking.done()
    rig.cache.unpin("a")
    assert await asking == "s3"


async def test_what_nobody_asks_for_leaves_after_its_time_to_live() -> None:
    rig = Rig(rules=Rules(idle_ttl_s=60.0))
    await rig.ask(model("a"))
    await asyncio.sleep(59)
    assert rig.device.present
    await asyncio.sleep(3)
    assert (rig.device.present, rig.ram.present) == (set(), set())
    assert rig.ledger.wake_s == math.inf


async def test_two_models_that_do_not_fit_together_are_answered_and_raise_the_churn_alarm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(device_pages=3)
    for _ in range(20):
        for name in "ab":
            await rig.ask(model(name, 2))
    assert rig.ledger.churn[DEVICE].alarm is not None
    assert rig.ledger.churn[RAM].alarm is None
    told = [line for line in caplog.messages if "push each other out of device 0" in line]
    assert len(told) == 1, "said once"
    assert "a:1, b:1" in told[0]


async def test_a_model_that_fails_to_build_leaves_its_measure_alone() -> None:
    rig = Rig(profiles=measuring(copies=False))
    spec = model("a", format=ModelFormat.PYTORCH)
    rig.device.fails["a"] = [LoadFailed("no such layer")]
    with pytest.raises(LoadFailed):
        await rig.ask(spec)
    assert rig.cache.profiles.of(spec).source == "assumed"
