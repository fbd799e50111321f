"""What follows from a worker's death: blame, pauses, and who comes back from RAM; on fake tiers, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from predictor.errors import LoadFailed, PoisonedRequest, Quarantined, StoreUnavailable, WorkerDied
from predictor.infirmary import Infirmary, digest
from predictor.model import ModelRef, ModelSpec
from predictor.policy.residency import Place
from predictor.recovery import Recovery
from predictor.wire import Tensor
from predictor.wishes import Wish
from predictor.workers.death import Death
from tests.predictor.test_cache import HOUR_S, Rig, model

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


class Ward:
    """A pod's cache and what watches over its workers."""

    def __init__(self, *names: str, devices: int = 1) -> None:
        self.rig = Rig(devices=devices)
        self.cache = self.rig.cache
        self.infirmary = self.cache.infirmary = Infirmary(clock=lambda: asyncio.get_running_loop().time())
        self.recovery = Recovery(self.cache.telemetry)
        self.recovery.cache = self.cache
        self.infirmary.on_recovered = self.recovery.recovered
        self.specs: dict[str, ModelSpec] = {name: model(name) for name in names}
        self.refs = {name: spec.ref for name, spec in self.specs.items()}

    async def up(self, *names: str) -> None:
        for name in names or self.specs:
            await self.rig.ask(self.specs[name])

    def die(self, *names: str, culprit: str = "", suspects: tuple[str, ...] = (), device: int = 0) -> None:
        """A worker that had these models."""
        refs = tuple(self.refs[name] for name in names)
        self.rig.devices[device].present -= set(refs)
        self.recovery.lost(device, refs)
        death = Death(
            "pool", "killed by SIGSEGV", "SIGSEGV", self.refs.get(culprit), tuple(self.refs[name] for name in suspects)
        )
        self.recovery.died(device, death, refs)

    def events(self, name: str) -> list[str]:
        return [event.what for event in self.cache.chronicle.why(name)]

    def counted(self, name: str, *labels: str) -> float:
        return float(self.cache.telemetry.counter(name, *labels)._value.get())


async def test_where_nobody_was_inside_the_log_tells_who_was_there(caplog: pytest.LogCaptureFixture) -> None:
    ward = Ward("a", "b", "c", "d")
    await ward.up()
    ward.die("a", "b", "c", "d")
    assert "ended: killed by SIGSEGV (nobody was inside; in it: a:1, b:1, c:1 and 1 more)" in caplog.text


async def test_a_vouched_for_model_has_its_requests_back_also_when_it_is_well_itself() -> None:
    ward = Ward("evil", "other")
    evil, other = ward.refs["evil"], ward.refs["other"]
    for _ in range(2):
        ward.infirmary.killed(evil, (), ())
        ward.infirmary.killed(other, (), ())
    with pytest.raises(PoisonedRequest, match="hearth load --clear"):
        ward.infirmary.alone(evil, (), ())
    assert ward.infirmary.clear("evil") == [evil]
    assert not ward.infirmary.alone(evil, (), ())
    with pytest.raises(PoisonedRequest):
        ward.infirmary.alone(other, (), ())


async def test_the_others_come_back_from_ram_at_once_the_most_asked_for_first_and_nobody_has_to_ask() -> None:
    ward = Ward("a", "b", "c")
    await ward.up("a", "b", "c", "b", "b", "c")
    ward.die("a", "b", "c")
    assert next(iter(ward.rig.ledger.preloads._wanted)) == ward.refs["b"]
    await asyncio.sleep(5.0)
    assert ward.rig.device.present == set(ward.refs.values())
    assert dict(ward.rig.ram.fetched) == {"a": 1, "b": 1, "c": 1}
    assert [await ward.rig.ask(ward.specs[name]) for name in "abc"] == ["hot"] * 3
    assert ward.counted("hearth_worker_deaths_total", "0") == 1.0


async def test_the_culprit_pauses_and_says_so_while_others_are_served() -> None:
    ward = Ward("good", "evil")
    await ward.up()
    ward.die("good", "evil", culprit="evil")
    with pytest.raises(Quarantined, match=r"it ended a worker \(killed by SIGSEGV\); it pauses for 1.0 s") as told:
        await ward.rig.ask(ward.specs["evil"])
    assert told.value.retry_after_s == pytest.approx(1.0)
    with pytest.raises(Quarantined):
        ward.cache.preload(ward.specs["evil"], Wish("a test"))
    assert await ward.rig.ask(ward.specs["good"]) == "ram"
    await asyncio.sleep(1.0)
    assert await ward.rig.ask(ward.specs["evil"]) == "ram"
    assert ward.counted("hearth_model_deaths_total", "evil", "SIGSEGV") == 1.0
    assert "died" in ward.events("evil")
    assert "died" not in ward.events("good")
    ward.die("evil", culprit="evil")
    with pytest.raises(Quarantined) as told:
        await ward.rig.ask(ward.specs["evil"])
    assert told.value.retry_after_s == pytest.approx(2.0)
    assert ward.infirmary.clear("evil") == [ward.refs["evil"]]
    assert await ward.rig.ask(ward.specs["evil"]) == "ram"
    assert ward.infirmary.clear("evil") == []


async def test_a_load_that_waits_when_its_model_is_found_out_is_refused() -> None:
    ward = Ward("evil")
    await ward.up()
    lease = await ward.cache.lease(ward.specs["evil"], deadline_s=HOUR_S)
    ward.rig.device.present.clear()
    ward.recovery.lost(0, (ward.refs["evil"],))
    waiting = asyncio.create_task(ward.rig.ask(ward.specs["evil"]))
    await asyncio.sleep(0.1)
    ward.recovery.died(0, Death("pool", "exit status 3", "exit", ward.refs["evil"]), (ward.refs["evil"],))
    lease.release()
    with pytest.raises(Quarantined, match="exit status 3"):
        await waiting
    assert ward.rig.device.promoted["evil"] == 1


async def test_of_two_suspects_neither_pauses_and_both_are_kept_apart() -> None:
    ward = Ward("good", "evil", "other")
    await ward.up()
    ward.die("good", "evil", "other", suspects=("good", "evil"))
    assert [ref in ward.infirmary.quarantine for ref in ward.refs.values()] == [True, True, False]
    assert "it, or another model, ended a worker" in ward.infirmary.reason(ward.refs["good"])
    await asyncio.sleep(5.0)
    assert ward.rig.device.present == set(ward.refs.values())
    assert ward.events("good").count("suspected") == 1


async def test_no_device_goes_on_with_a_model_that_ended_a_worker_of_another_one() -> None:
    ward = Ward("evil", devices=2)
    await ward.up()
    home = next(number for number, device in enumerate(ward.rig.devices) if device.present)
    ward.die(culprit="evil", device=1 - home)
    await asyncio.sleep(0.1)
    assert ward.rig.ledger.books.at(ward.refs["evil"], Place(home)) is None
    dropped = next(event for event in ward.cache.chronicle.why("evil") if event.what == "dropped")
    assert dropped.cause == "sick"


async def test_a_model_that_answers_well_for_long_enough_is_with_the_others_again() -> None:
    ward = Ward("evil")
    await ward.up()
    ward.die("evil", culprit="evil")
    await asyncio.sleep(61.0)
    for _ in range(20):
        ward.infirmary.answered(ward.refs["evil"], (), ())
    assert ward.refs["evil"] not in ward.infirmary.quarantine
    assert ward.events("evil")[-1] == "recovered"
    assert ward.infirmary.reason(ward.refs["evil"]) == ""


async def test_what_changed_is_booked_of_models_that_are_there_and_others_are_passed_over() -> None:
    ward = Ward("a")
    await ward.up()
    ward.recovery.carries(ward.refs["a"])
    ward.recovery.carries(ModelRef("default", "gone", 1))


async def test_the_least_valuable_worker_makes_way_and_none_that_is_pinned_or_being_filled() -> None:
    ward = Ward("a", "b", "c")
    await ward.up("a", "b", "c", "a", "c", "c")
    groups = [(ward.refs[name],) for name in "abc"]
    ward.cache.pin("b")
    assert ward.recovery.vacate(0, groups)
    assert ward.recovery.vacate(0, groups), "one is enough"
    await asyncio.sleep(0.1)
    assert ward.rig.device.present == {ward.refs["b"], ward.refs["c"]}
    assert ward.cache.chronicle.why("a")[-1].cause == "worker"
    assert not ward.recovery.vacate(0, [groups[1], (ward.refs["c"], ward.refs["a"])])


async def test_a_digest_is_of_what_the_model_gets_and_not_of_how_it_came() -> None:
    a, b = ModelRef("default", "a", 1), ModelRef("default", "b", 1)
    x = Tensor("x", "FP32", (1, 2), 8)
    body = (b"12345678",)
    found = digest(a, (x,), body)
    assert found == digest(a, (x,), (memoryview(bytearray(body[0])),))
    others = [
        digest(b, (x,), body),
        digest(a, (x,), (b"12345679",)),
        digest(a, (Tensor("y", "FP32", (1, 2), 8),), body),
        digest(a, (Tensor("x", "FP32", (2, 1), 8),), body),
        digest(a, (Tensor("x", "INT32", (1, 2), 8),), body),
    ]
    assert len({found, *others}) == 6


async def test_a_model_whose_build_failed_or_ended_its_worker_is_broken_and_one_that_was_only_in_the_way_is_not() -> None:
    ward = Ward("a", "b", "c", "d", "e")
    failures = (LoadFailed("no graph"), WorkerDied("SIGSEGV"), WorkerDied("not up"), StoreUnavailable("away"))
    ward.die(culprit="b")
    for name, failure in zip("abcd", failures, strict=True):
        ward.cache.chronicle.failed(ward.refs[name], Place(0), failure)
    assert [name for name in "abcde" if ward.cache.chronicle.broken(ward.refs[name])] == ["a", "b"]
    await ward.up("a")
    assert not ward.cache.chronicle.broken(ward.refs["a"])
