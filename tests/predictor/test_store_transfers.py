"""Which part goes next: fairness, the background's patience, ends that leave nothing running. In virtual time, without S3."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from predictor.errors import StoreUnavailable
from predictor.model import FileSpec
from predictor.tiers.s3_arriving import Arriving, Part, parts
from predictor.tiers.s3_http import Halt
from predictor.tiers.s3_requests import Stopped
from predictor.tiers.s3_transfers import POLL_S, Overdue, Transfers
from predictor.tiers.scattered import Scattered

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

PART_S = 1.0


def now() -> bool:
    return False


def later() -> bool:
    return True


class Lanes:
    """Transfers whose parts take a second each and end early only when told to stop, a tenth of a second later."""

    def __init__(self, count: int, deadline_s: float = 1000.0) -> None:
        self.transfers = Transfers(count, deadline_s)
        self.begun: list[str] = []
        self.begun_s: list[float] = []
        self.running = 0
        self.most_running = 0
        self.fails: set[str] = set()

    def model(self, name: str, count: int) -> list[Part]:
        """As many parts of a file called so."""
        memory = Scattered([memoryview(bytearray(count))])
        return list(parts([Arriving(FileSpec(name, name, "etag", count), memory, "bucket")], 1))

    def start(self, waiting: Sequence[Part], background: object = now) -> asyncio.Task[None]:
        assert callable(background)
        return asyncio.create_task(self.transfers.carry(waiting, background, self._submit))

    def _submit(self, part: Part, halt: Halt) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._run(part, halt))

    async def _run(self, part: Part, halt: Halt) -> None:
        self.begun.append(part.file.spec.key)
        self.begun_s.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + PART_S
        try:
            if part.file.spec.key in self.fails:
                raise StoreUnavailable(f"{part.file.spec.key} is broken")
            while loop.time() < end_s:
                await asyncio.sleep(0.1)
                if halt.stopped:
                    raise Stopped
        finally:
            self.running -= 1


def elapsed_s() -> float:
    return asyncio.get_running_loop().time()


async def test_as_many_parts_run_at_once_as_there_are_lanes() -> None:
    lanes = Lanes(4)
    await lanes.start(lanes.model("a", 10))
    assert lanes.most_running == 4
    assert elapsed_s() == pytest.approx(3 * PART_S)


async def test_a_transfer_of_nothing_ends_at_once() -> None:
    lanes = Lanes(1)
    await lanes.start([])
    assert elapsed_s() == 0


async def test_a_small_model_does_not_wait_behind_a_large_one() -> None:
    lanes = Lanes(2)
    large = lanes.start(lanes.model("large", 20))
    await asyncio.sleep(0.5)
    small = lanes.start(lanes.model("small", 2))
    await small
    assert elapsed_s() <= 3.1 * PART_S
    assert not large.done()
    await large
    assert lanes.begun.count("large") == 20


async def test_the_background_waits_while_anybody_waits_and_goes_on_in_order_afterwards() -> None:
    lanes = Lanes(2)
    first = lanes.start(lanes.model("first", 4), later)
    second = lanes.start(lanes.model("second", 4), later)
    await asyncio.sleep(0.5)
    assert lanes.begun == ["first"] * 2, "most wanted first"
    await lanes.start(lanes.model("wanted", 3))
    await asyncio.gather(first, second)
    assert lanes.begun == ["first"] * 2 + ["wanted"] * 3 + ["first"] * 2 + ["second"] * 4
    assert lanes.begun_s[5] - lanes.begun_s[4] >= PART_S, "not even a lane that was free went to the background"


async def test_the_background_leaves_a_lane_in_four_to_whoever_comes() -> None:
    lanes = Lanes(8)
    background = lanes.start(lanes.model("hot set", 20), later)
    await asyncio.sleep(0.5)
    assert lanes.running == 6
    wanted = lanes.start(lanes.model("wanted", 2))
    await asyncio.sleep(0.1)
    assert lanes.running == 8, "at once, and not when the first part of the background has ended"
    await asyncio.gather(background, wanted)


async def test_a_request_that_joins_a_background_transfer_brings_it_forward() -> None:
    lanes = Lanes(2)
    joined = False
    wanted = lanes.start(lanes.model("wanted", 20))
    joining = lanes.start(lanes.model("preload", 2), lambda: not joined)
    await asyncio.sleep(0.5)
    assert "preload" not in lanes.begun
    joined = True
    await joining
    assert elapsed_s() <= 3.1 * PART_S
    await wanted


async def test_a_transfer_held_back_notices_by_itself_that_it_is_wanted() -> None:
    lanes = Lanes(2)
    joined = False
    wanted = lanes.start(lanes.model("wanted", 1))
    held_back = lanes.start(lanes.model("preload", 1), lambda: not joined)
    await asyncio.sleep(0.3)
    joined = True
    await asyncio.sleep(1.5 * POLL_S)
    assert lanes.begun == ["wanted", "preload"]
    await asyncio.gather(wanted, held_back)


async def test_the_first_error_ends_the_transfer_when_its_last_part_has_ended() -> None:
    lanes = Lanes(3)
    lanes.fails.add("broken")
    other = lanes.start(lanes.model("other", 1))
    with pytest.raises(StoreUnavailable, match="broken"):
        await lanes.start([*lanes.model("sound", 1), *lanes.model("broken", 1), *lanes.model("never", 5)])
    assert lanes.begun == ["other", "sound", "broken"]
    assert lanes.running == 1, "the other transfer's"
    assert elapsed_s() < 0.3, "what was sound was told to stop"
    await other


@pytest.mark.parametrize("times", [1, 5])
async def test_a_cancelled_transfer_ends_only_when_its_last_part_has_ended(times: int) -> None:
    lanes = Lanes(4)
    transfer = lanes.start(lanes.model("a", 10))
    await asyncio.sleep(0.55)
    for _ in range(times):
        transfer.cancel()
        await asyncio.sleep(0)
    assert not transfer.done()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert (lanes.running, len(lanes.begun)) == (0, 4)
    await lanes.start(lanes.model("b", 4))
    assert lanes.begun[4:] == ["b"] * 4, "its lanes are free again"


async def test_cancelling_a_transfer_that_is_held_back_is_immediate() -> None:
    lanes = Lanes(1)
    wanted = lanes.start(lanes.model("wanted", 2))
    held_back = lanes.start(lanes.model("preload", 2), later)
    await asyncio.sleep(0.5)
    held_back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held_back
    assert elapsed_s() == pytest.approx(0.5)
    await wanted


async def test_stopping_everything_ends_every_transfer_with_an_error() -> None:
    lanes = Lanes(2)
    transfers = [lanes.start(lanes.model(name, 4), background) for name, background in (("a", now), ("b", later))]
    await asyncio.sleep(0.5)
    lanes.transfers.stop()
    for transfer in transfers:
        with pytest.raises(Stopped):
            await transfer
    assert lanes.running == 0


async def test_a_transfer_that_takes_longer_than_it_may_is_ended() -> None:
    lanes = Lanes(1, deadline_s=2.5)
    with pytest.raises(Overdue) as raised:
        await lanes.start(lanes.model("a", 10))
    assert raised.value.spent_s == 2.5
    assert elapsed_s() < 2.7
    assert (lanes.running, len(lanes.begun)) == (0, 3)
    await lanes.start(lanes.model("b", 2))


async def test_while_a_transfer_is_held_back_its_time_stands_still() -> None:
    lanes = Lanes(1, deadline_s=4.5)
    held_back = lanes.start(lanes.model("preload", 4), later)
    await asyncio.sleep(0.5)
    for _ in range(3):
        await lanes.start(lanes.model("wanted", 4))
    await held_back
    assert elapsed_s() == pytest.approx(16 * PART_S)
