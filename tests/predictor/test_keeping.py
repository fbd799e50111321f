"""Demand in the state prefix: what a pod finds at its start, and what it leaves. In virtual time, on a store in memory."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from predictor import heat
from predictor.errors import StoreRefused, StoreUnavailable
from predictor.heat import Heat, HotSet, Warmth
from predictor.keeping import END_TIMEOUT_S, ENDED_S, MAX_BYTES, MAX_DOCUMENTS, OLD_S, READ_AGAIN_S, RENEW_S, WRITE_S, Keeping
from predictor.model import ModelRef
from predictor.policy.demand import Demand
from predictor.remembered import Remembered
from tests.fakes.memory import MemoryStore

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

EPOCH_S = 1_700_000_000.0
A = ModelRef("default", "a", 1)


def wall_clock() -> float:
    return EPOCH_S + asyncio.get_running_loop().time()


class Rig:
    """One pod's, over a store that several may share."""

    def __init__(self, store: MemoryStore | None, pod: str = "pod-1", folder: Path | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.demand = Demand()
        self.keeping = Keeping(
            remembered=Remembered(self.demand, loop.time, wall_clock),
            pod=pod,
            release=lambda: "1.0",
            folder=folder,
            store=store,
            prefix="state/red/",
            wall_clock=wall_clock,
        )

    def note(self, ref: ModelRef = A) -> None:
        self.demand.note(ref, asyncio.get_running_loop().time())


class HangingStore(MemoryStore):
    async def write(self, key: str, body: bytes) -> None:
        await asyncio.sleep(1000)


def store() -> MemoryStore:
    return MemoryStore(wall_clock)


def leave(kept: MemoryStore, pod: str, *models: Warmth, ago_s: float = 0.0, final: bool = True, absorbed: str = "") -> None:
    told = Heat(pod, wall_clock() - ago_s, models, final, tuple(absorbed.split()))
    kept.put(f"state/red/heat/{pod}.json", heat.encode(told), modified_s=wall_clock() - ago_s)


def found(kept: MemoryStore, pod: str) -> Heat | None:
    raw = kept.text(f"state/red/heat/{pod}.json")
    return heat.decode(raw, Heat) if raw is not None else None


async def test_without_a_controller_and_a_state_prefix_there_is_nothing_to_find_and_nothing_is_kept() -> None:
    rig = Rig(None)
    assert await rig.keeping.read() == ((), "")
    await rig.keeping.run()
    await rig.keeping.end()


async def test_what_changed_is_written_every_half_minute_and_nothing_else() -> None:
    kept = store()
    rig = Rig(kept)
    running = asyncio.create_task(rig.keeping.run())
    await asyncio.sleep(WRITE_S + 1)
    assert found(kept, "pod-1") is None, "a pod that nobody asked leaves nothing"
    rig.note()
    await asyncio.sleep(WRITE_S)
    first = found(kept, "pod-1")
    assert first is not None
    assert (first.final, [one.name for one in first.models]) == (False, ["a"])
    await asyncio.sleep(5 * WRITE_S)
    assert found(kept, "pod-1") == first
    await asyncio.sleep(RENEW_S)
    renewed = found(kept, "pod-1")
    assert renewed is not None
    assert renewed.at_s > first.at_s, "or it would pass for one that has ended"
    rig.note()
    await asyncio.sleep(WRITE_S)
    second = found(kept, "pod-1")
    assert second is not None
    assert second.at_s > first.at_s
    running.cancel()
    await rig.keeping.end()
    last = found(kept, "pod-1")
    assert last is not None
    assert last.final


async def test_a_pod_that_is_killed_loses_what_came_after_its_last_object() -> None:
    kept = store()
    rig = Rig(kept)
    running = asyncio.create_task(rig.keeping.run())
    rig.note()
    await asyncio.sleep(WRITE_S + 1)
    rig.note(ModelRef("default", "late", 1))
    running.cancel()
    await asyncio.sleep(ENDED_S + WRITE_S)
    models, source = await Rig(kept, "pod-2").keeping.read()
    assert ([one.name for one in models], source) == (["a"], "state prefix")


async def test_demand_of_pods_that_ended_is_taken_over_and_that_of_running_ones_is_not() -> None:
    kept = store()
    leave(kept, "final", Warmth("a", 1, 1.0, 1.0))
    leave(kept, "silent", Warmth("b", 1, 1.0, 1.0), ago_s=ENDED_S + 1, final=False)
    leave(kept, "running", Warmth("c", 1, 9.0, 9.0), ago_s=10.0, final=False)
    rig = Rig(kept, "pod-1")
    models, _ = await rig.keeping.read()
    assert {one.name for one in models} == {"a", "b", "c"}
    assert found(kept, "final") is not None, "nothing is deleted before it is written elsewhere"
    running = asyncio.create_task(rig.keeping.run())
    await asyncio.sleep(WRITE_S + 1)
    ours = found(kept, "pod-1")
    assert ours is not None
    assert {one.name for one in ours.models} == {"a", "b"}
    assert set(ours.absorbed) == {"final", "silent"}
    assert found(kept, "final") is None
    assert found(kept, "silent") is None
    assert found(kept, "running") is not None
    rig.note()
    await asyncio.sleep(WRITE_S)
    ours = found(kept, "pod-1")
    assert ours is not None
    assert ours.absorbed == (), "their objects are gone: there is nothing to tell apart any more"
    running.cancel()


async def test_the_object_of_the_same_pod_restarted_is_its_own() -> None:
    kept = store()
    leave(kept, "pod-1", Warmth("a", 1, 1.0, 1.0), final=False)
    rig = Rig(kept, "pod-1")
    await rig.keeping.read()
    await rig.keeping.end()
    ours = found(kept, "pod-1")
    assert ours is not None
    assert (ours.final, [one.name for one in ours.models]) == (True, ["a"])


async def test_what_was_taken_over_by_a_pod_that_runs_is_left_to_it() -> None:
    kept = store()
    leave(kept, "old", Warmth("a", 1, 5.0, 5.0), ago_s=30.0)
    leave(kept, "running", Warmth("a", 1, 5.0, 5.0), final=False, absorbed="old")
    rig = Rig(kept)
    (a,), _ = await rig.keeping.read()
    assert a.fast == pytest.approx(5.0), "counted once"
    await rig.keeping.end()
    assert found(kept, "old") is not None
    assert found(kept, "pod-1") is None


async def test_with_a_controller_nothing_is_taken_over() -> None:
    kept = store()
    leave(kept, "final", Warmth("a", 1, 1.0, 1.0))
    rig = Rig(kept, folder=Path("/nowhere"))
    models, _ = await rig.keeping.read()
    assert [one.name for one in models] == ["a"]
    await rig.keeping.end()
    assert found(kept, "final") is not None
    assert found(kept, "pod-1") is None


async def test_the_mounted_hot_set_counts_then_the_object_then_what_pods_left(tmp_path: Path) -> None:
    kept = store()
    leave(kept, "final", Warmth("left", 1, 1.0, 1.0))
    rig = Rig(kept, folder=tmp_path)
    assert (await rig.keeping.read()).models[0].name == "left"
    kept.put("state/red/hotset.json", heat.encode(HotSet("red", wall_clock(), (Warmth("object", 1, 1.0, 1.0),))))
    assert (await rig.keeping.read()).models[0].name == "object"
    (tmp_path / "hotset.json").write_bytes(heat.encode(HotSet("red", wall_clock(), (Warmth("mounted", 1, 1.0, 1.0),))))
    models, source = await rig.keeping.read()
    assert (models[0].name, source) == ("mounted", "mounted")


async def test_a_hot_set_that_nobody_renewed_for_a_week_gives_way_to_what_pods_left() -> None:
    kept = store()
    leave(kept, "final", Warmth("left", 1, 1.0, 1.0))
    kept.put("state/red/hotset.json", heat.encode(HotSet("red", wall_clock() - OLD_S, (Warmth("old", 1, 1.0, 1.0),))))
    models, _ = await Rig(kept).keeping.read()
    assert [one.name for one in models] == ["left"]


async def test_a_mounted_hot_set_that_cannot_be_read_is_told_once_and_the_next_place_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = store()
    leave(kept, "final", Warmth("left", 1, 1.0, 1.0))
    document = tmp_path / "hotset.json"
    rig = Rig(kept, folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        for raw in (b"{", b'{"pool": "red", "at_s": 1, "format": 9}'):
            document.write_bytes(raw)
            assert (await rig.keeping.read()).models[0].name == "left"
        document.unlink()
        document.mkdir()
        assert (await rig.keeping.read()).models[0].name == "left"
    assert sum("is set aside" in record.message for record in caplog.records) == 1
    assert sum("cannot be read" in record.message for record in caplog.records) == 1


async def test_a_document_that_is_too_long_is_set_aside() -> None:
    kept = store()
    kept.put("state/red/heat/long.json", b" " * (MAX_BYTES + 1))
    assert await Rig(kept).keeping.read() == ((), "")


async def test_old_objects_are_deleted_unread_and_only_the_newest_are_read() -> None:
    kept = store()
    leave(kept, "old", Warmth("old", 1, 1.0, 1.0), ago_s=OLD_S + 1)
    for number in range(MAX_DOCUMENTS + 5):
        leave(kept, f"p{number}", Warmth(f"m{number}", 1, 1.0, 1.0), ago_s=float(number))
    rig = Rig(kept)
    models, _ = await rig.keeping.read()
    assert {one.name for one in models} == {f"m{number}" for number in range(MAX_DOCUMENTS)}
    running = asyncio.create_task(rig.keeping.run())
    await asyncio.sleep(WRITE_S + 1)
    assert found(kept, "old") is None
    assert found(kept, f"p{MAX_DOCUMENTS}") is not None, "its demand waits for the next start"
    running.cancel()


async def test_a_store_that_is_away_is_told_once_until_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    kept = store()
    kept.fails = [StoreUnavailable("the store is away")] * 6
    rig = Rig(kept)
    with caplog.at_level(logging.INFO):
        assert await rig.keeping.read() == ((), "")
        assert asyncio.get_running_loop().time() == pytest.approx(sum(READ_AGAIN_S))
        assert "the store is away" in rig.keeping.trouble
        rig.note()
        running = asyncio.create_task(rig.keeping.run())
        await asyncio.sleep(5 * WRITE_S)
        running.cancel()
    assert found(kept, "pod-1") is not None
    assert rig.keeping.trouble == ""
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2, "one of reading, one of writing"


async def test_a_start_at_which_the_store_is_throttled_finds_the_hot_set_a_moment_later() -> None:
    kept = store()
    leave(kept, "final", Warmth("a", 1, 1.0, 1.0))
    kept.fails = [StoreUnavailable("503 SlowDown")]
    rig = Rig(kept)
    models, source = await rig.keeping.read()
    assert ([one.name for one in models], source, rig.keeping.trouble) == (["a"], "state prefix", "")
    assert asyncio.get_running_loop().time() == pytest.approx(READ_AGAIN_S[0])


async def test_a_store_that_refuses_is_not_asked_again() -> None:
    kept = store()
    kept.fails = [StoreRefused("403 AccessDenied")]
    rig = Rig(kept)
    assert await rig.keeping.read() == ((), "")
    assert asyncio.get_running_loop().time() == 0
    assert "403" in rig.keeping.trouble


async def test_a_store_that_hangs_does_not_keep_a_pod_from_ending() -> None:
    rig = Rig(HangingStore(wall_clock))
    rig.note()
    await rig.keeping.end()
    assert asyncio.get_running_loop().time() == pytest.approx(END_TIMEOUT_S)
    assert "takes too long" in rig.keeping.trouble


async def test_a_mistake_of_ours_does_not_end_the_writing_of_demand(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = store()
    rig = Rig(kept)
    rig.note()

    async def heat(*_: object, **__: object) -> Heat:
        raise ZeroDivisionError

    with monkeypatch.context() as mistaken:
        mistaken.setattr(rig.keeping.remembered, "heat", heat)
        running = asyncio.create_task(rig.keeping.run())
        await asyncio.sleep(WRITE_S + 0.5)
    assert found(kept, "pod-1") is None
    assert "the watch over demand failed, and goes on" in caplog.text
    await asyncio.sleep(WRITE_S + 1)
    assert found(kept, "pod-1") is not None
    running.cancel()
