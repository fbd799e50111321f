"""The cache on fake tiers, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from predictor.cache import Cache
from predictor.errors import DeadlineExceeded, HearthError, LoadFailed, ModelTooLarge, StoreUnavailable, Unavailable
from predictor.hops import Hops
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Place
from predictor.profiles import Profiles
from predictor.telemetry import Telemetry, Timeline
from predictor.wishes import Wish
from tests.fakes.jobs import compute
from tests.fakes.profiles import HEADROOM_BYTES, KnownProfiles, disk_bytes
from tests.fakes.tiers import FakeDevice, FakeDisk, FakeRam

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

PAGE = 1 << 20
"""Models and budgets are counted in these; smaller, and what computations take would not be negligible."""
HOUR_S = 3600.0


def model(name: str, pages: int = 1, format: ModelFormat = ModelFormat.ONNX) -> ModelSpec:  # noqa: A002 (the spec's own word)
    file = FileSpec("model.onnx", f"models/{name}/1/model.onnx", "etag", pages * PAGE)
    return ModelSpec(ModelRef("default", name, 1), format, "bucket", (file,))


class Rig:
    """A cache over fakes, with what the tests look at."""

    def __init__(
        self,
        ram_pages: int = 100,
        device_pages: int = 100,
        *,
        devices: int = 1,
        copy: bool = True,
        max_waiting: int = 100,
        disk_pages: int = 0,
        rules: Rules | None = None,
        profiles: Profiles | None = None,
    ) -> None:
        self.ram = FakeRam()
        self.devices = [FakeDevice(self.ram) for _ in range(devices)]
        self.device = self.devices[0]
        device_bytes = device_pages * PAGE + HEADROOM_BYTES
        budgets = {RAM: ram_pages * PAGE, **{Place(index): device_bytes for index in range(devices)}}
        self.disk = FakeDisk() if disk_pages else None
        if disk_pages:
            budgets[DISK] = disk_pages * disk_bytes(model("any"))
        self.ledger = Ledger(budgets, Demand(), rules)
        self.cache = Cache(
            self.ledger,
            Hops(self.ram, self.devices, self.disk),
            profiles or KnownProfiles(copies=copy, on_disk=disk_pages > 0),
            Telemetry(),
            Timeline(),
            max_waiting=max_waiting,
            clock=lambda: asyncio.get_running_loop().time(),
        )

    async def ask(self, spec: ModelSpec, *, patience_s: float = HOUR_S) -> str:
        """One request from lease to answer; returns where its model was."""
        loop = asyncio.get_running_loop()
        lease = await self.cache.lease(spec, deadline_s=loop.time() + patience_s)
        try:
            await compute(lease)
            return lease.start
        finally:
            lease.release()

    def held(self) -> int:
        return sum(copy.holds for copy in self.ledger.copies())


async def test_the_first_request_loads_from_s3_and_the_second_is_hot() -> None:
    rig = Rig()
    assert await rig.ask(model("a")) == "s3"
    assert await rig.ask(model("a")) == "hot"
    assert rig.ram.fetched["a"] == rig.device.promoted["a"] == 1


async def test_a_hundred_first_requests_share_one_load() -> None:
    rig = Rig()
    starts = await asyncio.gather(*(rig.ask(model("a")) for _ in range(100)))
    assert starts == ["s3"] * 100
    assert rig.ram.fetched["a"] == rig.device.promoted["a"] == 1


async def test_both_sides_remember_why_a_copy_went() -> None:
    rig = Rig(device_pages=1)
    for name in "ab":
        await rig.ask(model(name))
    victim, newcomer = rig.cache.chronicle.why("a")[-1], rig.cache.chronicle.why("b")[-2]
    assert (victim.what, victim.place, victim.cause, victim.other) == ("dropped", "device 0", "room", "b:1")
    assert (newcomer.what, newcomer.other) == ("pushed out", "a:1")
    assert victim.value == newcomer.value > 0.0
    assert [event.what for event in rig.cache.chronicle.why("a")] == ["loaded", "loaded", "dropped"]
    assert rig.cache.chronicle.why("nobody") == ()


async def test_a_model_dropped_from_the_device_comes_back_from_ram() -> None:
    rig = Rig(device_pages=1)
    assert [await rig.ask(model(name)) for name in "aba"] == ["s3", "s3", "ram"]
    assert rig.ram.fetched["a"] == 1


async def test_the_lease_says_how_long_each_stage_kept_the_request_waiting() -> None:
    rig = Rig()
    lease = await rig.cache.lease(model("a"), deadline_s=HOUR_S)
    assert (lease.fetch_s, lease.device_s, lease.build_s) == pytest.approx((1.0, 0.05, 0.05), abs=0.005)
    assert lease.wait_s == pytest.approx(0.0, abs=0.005)
    lease.release()


async def test_who_joins_a_load_late_waits_only_for_the_rest_of_it() -> None:
    rig = Rig()
    first = asyncio.create_task(rig.ask(model("a")))
    await asyncio.sleep(0.75)
    lease = await rig.cache.lease(model("a"), deadline_s=HOUR_S)
    assert lease.fetch_s == pytest.approx(0.25, abs=0.005)
    lease.release()
    await first


async def test_past_its_deadline_a_request_gets_504_and_the_load_goes_on() -> None:
    rig = Rig()
    with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.5 s"):
        await rig.ask(model("a"), patience_s=0.5)
    await asyncio.sleep(1.0)
    assert await rig.ask(model("a")) == "hot"


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    rig = Rig()
    waiter = asyncio.create_task(rig.ask(model("a")))
    await asyncio.sleep(0.5)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await asyncio.sleep(2.0)
    assert rig.cache.waiting == 0
    assert rig.held() == 0


async def test_a_waiter_cancelled_between_its_grant_and_its_waking_gives_the_lease_back() -> None:
    rig = Rig()

    async def wake_first() -> None:
        lease = await rig.cache.lease(model("a"), deadline_s=HOUR_S)
        second.cancel()  # granted in the same step as we were, not yet awake
        lease.release()

    first = asyncio.create_task(wake_first())
    await asyncio.sleep(0.1)
    second = asyncio.create_task(rig.ask(model("a")))
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert rig.held() == 0


async def test_a_failed_fetch_reaches_everybody_who_waits_and_the_next_request_tries_again() -> None:
    rig = Rig()
    rig.ram.fails["a"] = [StoreUnavailable("S3 is away", retry_after_s=2.0)]
    answers = await asyncio.gather(*(rig.ask(model("a")) for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    assert len({id(answer) for answer in answers}) == 5, "one exception object raised in five tasks"
    assert rig.ledger.used_bytes(RAM) == 0
    assert isinstance(rig.cache.history(model("a").ref).failure, StoreUnavailable)
    assert await rig.ask(model("a")) == "s3"
    assert rig.cache.history(model("a").ref).failure is None


async def test_a_failed_build_keeps_the_ram_copy_and_frees_the_device() -> None:
    rig = Rig()
    rig.device.fails["a"] = [LoadFailed("no such layer")]
    with pytest.raises(LoadFailed, match="no such layer"):
        await rig.ask(model("a"))
    assert rig.ledger.used_bytes(Place(0)) == 0
    assert await rig.ask(model("a")) == "ram"


async def test_two_models_that_do_not_fit_together_both_answer_in_turn() -> None:
    rig = Rig(ram_pages=3, device_pages=3)
    for _ in range(20):
        assert await rig.ask(model("a", 2)) == "s3"
        assert await rig.ask(model("b", 2)) == "s3"


async def test_two_models_that_do_not_fit_together_both_answer_when_asked_at_once() -> None:
    rig = Rig(ram_pages=3, device_pages=3)
    answers = await asyncio.gather(*(rig.ask(model(name, 2)) for _ in range(20) for name in "ab"))
    assert len(answers) == 40
    assert rig.held() == 0


async def test_a_model_that_is_never_idle_still_makes_way() -> None:
    rig = Rig(device_pages=1)
    await rig.ask(model("busy"))
    flood = [asyncio.create_task(_ask_for_ever(rig, model("busy"))) for _ in range(4)]
    assert await rig.ask(model("rare"), patience_s=5.0) == "s3"
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def _ask_for_ever(rig: Rig, spec: ModelSpec) -> None:
    while True:
        await rig.ask(spec)


async def test_a_model_that_can_never_fit_is_refused_with_numbers_before_a_byte_moves() -> None:
    rig = Rig(device_pages=1)
    with pytest.raises(ModelTooLarge, match=r"needs 2162688 bytes in device 0 \(2097152 to stay, 65536 to compute"):
        await rig.ask(model("a", 2))
    assert not rig.ram.fetched


async def test_a_full_waiting_room_answers_503_with_the_seconds_to_wait() -> None:
    rig = Rig(max_waiting=2)
    waiting = [asyncio.create_task(rig.ask(model("a"))) for _ in range(2)]
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable) as refused:
        await rig.ask(model("b"))
    assert refused.value.retry_after_s is not None
    await asyncio.gather(*waiting)


async def test_a_preload_takes_free_room_and_evicts_nothing() -> None:
    rig = Rig(ram_pages=3, device_pages=2)
    await rig.ask(model("used", 2))
    rig.cache.preload(model("wanted"), Wish("a test"))
    await asyncio.sleep(5.0)
    assert await rig.ask(model("used", 2)) == "hot"
    assert rig.cache.drops == 0
    assert rig.ram.present == {model("used").ref, model("wanted").ref}, "as far as there is room: RAM, not the device"


async def test_a_preload_under_way_gives_its_room_to_a_request() -> None:
    rig = Rig(ram_pages=2, device_pages=2)
    rig.ram.fetch_s = lambda ref: 100.0 if ref.name == "wanted" else 1.0
    rig.cache.preload(model("wanted", 2), Wish("a test"))
    await asyncio.sleep(1.0)
    assert await rig.ask(model("asked", 2), patience_s=3.0) == "s3"
    assert rig.ram.stopped["wanted"] == 1


async def test_a_pod_that_drains_begins_no_load_and_finishes_the_hop_that_it_is_at() -> None:
    rig = Rig()
    for name in "abc":
        rig.cache.preload(model(name), Wish("a test"))
    waiter = asyncio.create_task(rig.ask(model("d")))
    await asyncio.sleep(0)
    rig.cache.drain()
    with pytest.raises(Unavailable, match="this pod"):
        await waiter
    await asyncio.sleep(HOUR_S)
    assert set(rig.ram.fetched) == {"a", "b", "d"}
    assert rig.device.present == set()


async def test_a_request_joins_the_preload_of_its_model() -> None:
    rig = Rig()
    rig.cache.preload(model("a"), Wish("a test"))
    await asyncio.sleep(0.5)
    assert await rig.ask(model("a")) == "s3"
    assert rig.ram.fetched["a"] == 1


async def test_after_its_worker_died_a_model_comes_back_from_ram() -> None:
    rig = Rig()
    await rig.ask(model("a"))
    rig.device.die()
    rig.cache.device_lost(0, [copy.ref for copy in rig.ledger.copies()])
    assert await rig.ask(model("a")) == "ram"
    assert rig.ram.fetched["a"] == 1


async def test_an_unload_waits_for_the_requests_that_use_the_model() -> None:
    rig = Rig()
    lease = await rig.cache.lease(model("a"), deadline_s=HOUR_S)
    unloading = asyncio.create_task(rig.cache.unload("a"))
    await asyncio.sleep(1.0)
    assert not unloading.done()
    lease.release()
    assert await unloading is True
    assert list(rig.ledger.copies()) == []
    assert await rig.cache.unload("a") is False


async def test_a_view_on_the_device_goes_before_the_ram_copy_that_it_shows() -> None:
    rig = Rig(ram_pages=3, device_pages=1, copy=False)
    await rig.ask(model("a", 2, ModelFormat.PYTORCH))
    await rig.ask(model("b", 2, ModelFormat.PYTORCH))
    assert rig.ram.present == {model("b").ref}
    assert rig.device.present == {model("b").ref}


async def test_models_spread_over_two_devices() -> None:
    rig = Rig(device_pages=1, devices=2)
    await rig.ask(model("a"))
    await rig.ask(model("b"))
    assert [len(device.present) for device in rig.devices] == [1, 1]
    assert [await rig.ask(model(name)) for name in "ab"] == ["hot", "hot"]


async def test_closing_answers_whoever_waits() -> None:
    rig = Rig()
    waiting = asyncio.create_task(rig.ask(model("a")))
    await asyncio.sleep(0.1)
    await rig.cache.close()
    with pytest.raises(Unavailable):
        await waiting


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copy", [True, False])
async def test_a_random_day_answers_every_request_once_and_ends_with_true_books(seed: int, copy: bool) -> None:  # noqa: C901, FBT001 (drawn by pytest)
    draw = random.Random(seed)
    rig = Rig(ram_pages=14, device_pages=9, devices=2, copy=copy, max_waiting=10_000)
    rig.ram.fetch_s = lambda _: draw.expovariate(1.0)
    for device in rig.devices:
        device.promote_s = lambda _: draw.expovariate(10.0)
    formats = [ModelFormat.PYTORCH, ModelFormat.ONNX]
    specs = [model(f"m{number}", draw.randint(1, 8), draw.choice(formats)) for number in range(12)]
    answered = refused = 0

    async def client() -> None:
        nonlocal answered, refused
        for _ in range(50):
            spec = specs[min(int(draw.expovariate(0.3)), len(specs) - 1)]
            try:
                await rig.ask(spec, patience_s=draw.choice([0.5, HOUR_S]))
                answered += 1
            except HearthError:
                refused += 1
            await asyncio.sleep(draw.expovariate(2.0))

    async def chaos() -> None:
        for _ in range(60):
            await asyncio.sleep(draw.expovariate(1.0))
            spec = draw.choice(specs)
            match draw.randrange(5):
                case 0:
                    rig.ram.fails.setdefault(spec.ref.name, []).append(StoreUnavailable("storm"))
                case 1:
                    number = draw.randrange(len(rig.devices))
                    rig.devices[number].die()
                    rig.cache.device_lost(number, [copy.ref for copy in rig.ledger.copies()])
                case 2:
                    rig.cache.preload(spec, Wish("a test"))
                case 3:
                    await rig.cache.unload(spec.ref.name)
                case 4:
                    rig.devices[0].fails.setdefault(spec.ref.name, []).append(LoadFailed("bad luck"))

    await asyncio.gather(*(client() for _ in range(20)), chaos())
    assert answered + refused == 20 * 50
    assert answered > 500, f"only {answered} answers, {refused} errors: seed {seed}"
    await asyncio.sleep(100.0)
    assert rig.cache.waiting == 0
    for place in rig.ledger.budgets:
        assert rig.ledger.used_bytes(place) == rig.ledger.books.ready_bytes(place), "something is still on its way"
    booked = {(copy.ref, copy.place) for copy in rig.ledger.copies()}
    for index, device in enumerate(rig.devices):
        assert {(ref, Place(index)) for ref in device.present} == {key for key in booked if key[1] == Place(index)}
    assert {(ref, RAM) for ref in rig.ram.present} == {key for key in booked if key[1] == RAM}
