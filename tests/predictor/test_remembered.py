"""What a pod was told of demand, apart from what it notes itself. In virtual time, on two clocks that differ."""

from __future__ import annotations

import asyncio

import pytest

from predictor.heat import MAX_MODELS, Warmth
from predictor.model import ModelRef
from predictor.policy.demand import HALF_LIVES_S, Demand
from predictor.remembered import MEASURED, STEP, Remembered

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

EPOCH_S = 1_700_000_000.0
A, B = (ModelRef("default", name, 1, "r1") for name in "ab")


class Rig:
    def __init__(self) -> None:
        self.broken: set[ModelRef] = set()
        self.demand = Demand()
        clock = asyncio.get_running_loop().time
        self.remembered = Remembered(self.demand, clock, lambda: EPOCH_S + clock(), self.broken.__contains__)

    def note(self, ref: ModelRef, times: int = 1) -> None:
        for _ in range(times):
            self.demand.note(ref, asyncio.get_running_loop().time())

    async def own(self) -> dict[tuple[str, int], Warmth]:
        models, _ = await self.remembered.own()
        return {(one.name, one.version): one for one in models}


async def test_what_was_told_counts_for_a_model_from_the_moment_it_is_looked_up() -> None:
    rig = Rig()
    await asyncio.sleep(HALF_LIVES_S[0])
    rig.remembered.restore([Warmth("a", 1, 2.0, 0.0)], EPOCH_S, own=False)
    now_s = asyncio.get_running_loop().time()
    assert rig.demand.rate(A, now_s) == 0.0
    rig.remembered.claim(A)
    rig.remembered.claim(A)
    assert rig.demand.rate(A, now_s) == pytest.approx(0.5), "half of the fast one is left, and the mean of both counts"


async def test_what_was_told_is_not_told_on_however_long_it_decays() -> None:
    rig = Rig()
    rig.remembered.restore([Warmth("a", 1, 2.0, 1.0), Warmth("b", 1, 1.0, 1.0)], EPOCH_S, own=False)
    rig.remembered.claim(A)
    alone = Rig()
    for _ in range(5):
        await asyncio.sleep(1000)
        rig.note(A)
        alone.note(A)
    told, expected = await rig.own(), await alone.own()
    assert told.keys() == expected.keys() == {("a", 1)}
    assert told["a", 1].fast == pytest.approx(expected["a", 1].fast)
    assert told["a", 1].slow == pytest.approx(expected["a", 1].slow)


async def test_the_demand_of_a_pod_that_ended_is_told_on_looked_up_or_not() -> None:
    rig = Rig()
    rig.remembered.restore([Warmth("a", 1, 2.0, 1.0, 3.0, 7, (120, 30)), Warmth("b", 2, 1.0, 0.5)], EPOCH_S, own=True)
    rig.remembered.claim(A)
    told = await rig.own()
    assert told["a", 1] == Warmth("a", 1, 2.0, 1.0, 3.0, 7, (120, 30))
    assert told["b", 2] == Warmth("b", 2, 1.0, 0.5)


async def test_contents_that_were_overwritten_are_one_model_to_others() -> None:
    rig = Rig()
    rig.note(A, 2)
    rig.note(ModelRef("default", "a", 1, "r2"), 3)
    alone = Rig()
    alone.note(A, 5)
    assert (await rig.own())["a", 1].fast == pytest.approx((await alone.own())["a", 1].fast)


async def test_a_version_that_was_published_since_takes_over_what_the_one_before_it_had() -> None:
    rig = Rig()
    rig.remembered.restore([Warmth("a", 1, 2.0, 1.0)], EPOCH_S, own=False)
    newer = ModelRef("default", "a", 2)
    rig.remembered.claim(newer, ("a", 1))
    assert rig.demand.rate(newer, asyncio.get_running_loop().time()) == pytest.approx(1.5)
    assert await rig.own() == {}


async def test_documents_of_the_future_are_of_now() -> None:
    rig = Rig()
    rig.remembered.restore([Warmth("a", 1, 2.0, 2.0)], EPOCH_S + 3600.0, own=True)
    rig.remembered.claim(A)
    assert (await rig.own())["a", 1].fast == pytest.approx(2.0)


async def test_only_the_models_asked_most_are_told_and_others_have_their_turn_meanwhile() -> None:
    rig = Rig()
    for number in range(3 * STEP):
        rig.note(ModelRef("default", f"m{number}", 1), 1 + (number % STEP == 7))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    models, at_s = await rig.remembered.own()
    counting.cancel()
    assert len(models) == MAX_MODELS
    assert at_s == EPOCH_S + asyncio.get_running_loop().time()
    assert {one.name for one in models[:3]} == {"m7", f"m{STEP + 7}", f"m{2 * STEP + 7}"}
    assert turns >= 2


async def test_what_was_measured_replaces_what_was_told_and_stays_bounded() -> None:
    rig = Rig()
    rig.remembered.restore([Warmth("a", 1, 2.0, 2.0, 9.0, 9)], EPOCH_S, own=True)
    rig.remembered.measured(A, 1.5, 100)
    told = (await rig.own())["a", 1]
    assert (told.load_s, told.size_bytes) == (1.5, 100)
    for number in range(MEASURED):
        rig.remembered.measured(ModelRef("default", f"m{number}", 1), 1.0, 1)
    told = (await rig.own())["a", 1]
    assert (told.load_s, told.size_bytes) == (0.0, 0), "the one measured longest ago was forgotten"


async def test_a_document_tells_whose_it_is() -> None:
    rig = Rig()
    rig.note(B)
    told = await rig.remembered.heat("pod-1", "1.2", final=True, absorbed=("pod-0",))
    assert (told.pod, told.release, told.final, told.absorbed) == ("pod-1", "1.2", True, ("pod-0",))
    assert [one.name for one in told.models] == ["b"]
    assert told.models[0].visits == (0,)


async def test_what_could_not_be_built_is_not_told_until_it_is_or_its_contents_are_others() -> None:
    rig = Rig()
    rig.note(A)
    rig.note(B)
    rig.broken.add(A)
    assert set(await rig.own()) == {("b", 1)}
    rig.note(ModelRef("default", "a", 1, "r2"))
    assert (await rig.own())["a", 1].fast == (await rig.own())["b", 1].fast, "of the contents that fail nothing is told"
    rig.broken.clear()
    assert (await rig.own())["a", 1].fast == 2 * (await rig.own())["b", 1].fast
