"""Declared models: which place answers, when a new one takes over, what a failure leaves as it was. In virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import pytest

from predictor.cache import Cache
from predictor.catalogue import Catalogue
from predictor.declared import Declared, Location
from predictor.errors import HearthError, InvalidModel, LoadFailed, StoreUnavailable, UnknownModel
from predictor.hops import Hops
from predictor.model import ModelSpec
from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Place
from predictor.repository import Source
from predictor.rollout import SCOPE_TIMEOUT_S, Rollout
from predictor.routes import AGAIN_S
from predictor.telemetry import Telemetry, Timeline
from tests.fakes.memory import MemoryStore
from tests.fakes.profiles import HEADROOM_BYTES, KnownProfiles
from tests.fakes.tiers import FakeDevice, FakeRam

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

EPOCH_S = 1_700_000_000.0
OLD, NEW = Location("s3://b/m/old", 1), Location("s3://b/m/new", 2)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class MemoryBucket(MemoryStore):
    """A bucket in memory."""

    def __init__(self, origin: str) -> None:
        super().__init__(lambda: EPOCH_S + now_s())
        self.origin = origin


class MemoryBuckets:
    """Buckets by name. The credentials of a scope open all of them."""

    def __init__(self) -> None:
        self.buckets: dict[str, MemoryBucket] = {}
        self.scopes: dict[str, Mapping[str, str]] = {}
        self.opened: list[tuple[str, str]] = []

    def at(self, bucket: str, scope: str = "") -> MemoryBucket:
        if scope and scope not in self.scopes:
            raise StoreUnavailable(f"the credentials {scope} have not come")
        self.opened.append((bucket, scope))
        return self.buckets.setdefault(bucket, MemoryBucket(f"http://s3/{bucket}"))

    def knows(self, scope: str) -> bool:
        return not scope or scope in self.scopes

    def declare(self, scopes: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
        changed = frozenset(
            scope for scope in scopes.keys() | self.scopes.keys() if scopes.get(scope) != self.scopes.get(scope)
        )
        self.scopes = dict(scopes)
        return changed


rigs: list[Rig] = []


@pytest.fixture(autouse=True)
async def nothing_stays() -> AsyncIterator[None]:
    """What a test leaves running is ended while its loop runs."""
    yield
    while rigs:
        rig = rigs.pop()
        await rig.rollout.close()
        await rig.cache.close()


class Rig:
    """A rollout over a repository and declared models, a cache over tiers that take a second to fetch."""

    def __init__(self, *, chances: tuple[float, ...] = (), has_repository: bool = True) -> None:
        self.buckets = MemoryBuckets()
        root = self.buckets.at("b")
        source = Source("default", root.origin, "b", "root/", trusts_code=False)
        self.catalogue = Catalogue(
            store=root if has_repository else None,
            source=source if has_repository else None,
            settle_s=0.0,
            unknown_ttl_s=5.0,
            refresh_s=10.0,
            clock=now_s,
        )
        self.ram = FakeRam()
        self.device = FakeDevice(self.ram)
        self.cache = Cache(
            Ledger({RAM: 100 * 4096, Place(0): 100 * 4096 + HEADROOM_BYTES}, Demand()),
            Hops(self.ram, [self.device]),
            KnownProfiles(slab_bytes=4096),
            Telemetry(),
            Timeline(),
            clock=now_s,
        )
        rigs.append(self)
        drawn = iter(chances)
        self.rollout = Rollout(
            self.catalogue,
            self.cache,
            self.buckets,
            "default",
            trusts_code=False,
            timeout_s=100.0,
            clock=now_s,
            wall_clock=lambda: EPOCH_S + now_s(),
            chance=lambda: next(drawn),
        )

    def put(self, key: str, contents: bytes = b"weights") -> None:
        self.buckets.at("b").put(key, contents, modified_s=EPOCH_S - 1000)

    def declare(
        self, target: Location, stable: Location | None = None, percent: int = 100, *, tenant: str = "", priority: str = ""
    ) -> None:
        self.rollout.declare({"m": Declared(target, stable, percent, tenant=tenant, priority=priority)})

    async def answer(self) -> str:
        """Ask once, as the API does; the key of what answered."""
        spec = self.rollout.known("m", None) or await self.rollout.resolve("m", None)
        lease = self.cache.hit(spec.ref) or await self.cache.lease(spec, deadline_s=now_s() + 30)
        lease.release()
        return spec.files[0].key

    def fares(self) -> dict[int, str]:
        """Number of a place of m → how it fares."""
        return {place.number: place.state for report in self.rollout.report() for place in report.locations}


def both(rig: Rig) -> None:
    rig.put("m/old/model.onnx", b"old")
    rig.put("m/new/model.onnx", b"new")


async def test_looking_up_what_would_answer_brings_no_target_up() -> None:
    rig = Rig()
    rig.declare(Location("s3://b/new", 2), Location("s3://b/old", 1))
    rig.put("old/model.onnx", b"old")
    rig.put("new/model.onnx", b"new")
    assert (await rig.rollout.settled("m", None)).ref.version == 1
    assert (await rig.rollout.settled("m", 2)).ref.version == 2
    assert not rig.ram.fetched
    assert await rig.answer() == "new/model.onnx", "a request tries the target first"
    assert (await rig.rollout.settled("m", None)).ref.version == 2
    rig.put("root/plain/1/model.onnx")
    assert (await rig.rollout.settled("plain", None)).ref.name == "plain"


# ---- what lies at a place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "location", "found", "version"),
    [
        (["a/model.onnx"], Location("s3://b/a"), "a/model.onnx", 1),
        (["a/model.onnx"], Location("s3://b/a/"), "a/model.onnx", 1),
        (["a/model.onnx", "ab/model.onnx"], Location("s3://b/a", 3), "a/model.onnx", 3),
        (["a/1/model.onnx", "a/7/model.onnx"], Location("s3://b/a", 3), "a/7/model.onnx", 7),
        (["a/7/model.onnx", "a/8/model.onnx"], Location("s3://b/a/7", 3), "a/7/model.onnx", 7),
        (["a/net-v3.onnx"], Location("s3://b/a/net-v3.onnx", 2), "a/net-v3.onnx", 2),
        (["a/net-v3.onnx", "a/net-v3.onnx.bak"], Location("s3://b/a/net-v3.onnx"), "a/net-v3.onnx", 1),
        (["a/x.onnx/model.onnx"], Location("s3://b/a/x.onnx"), "a/x.onnx/model.onnx", 1),
        (["a/resnet50.onnx"], Location("s3://b/a"), "a/resnet50.onnx", 1),
        (["model.onnx"], Location("s3://b"), "model.onnx", 1),
    ],
    ids=[
        "a folder",
        "a folder with a slash",
        "nothing of a folder that begins the same; numbered by the declaration",
        "the highest version below it",
        "the version level itself",
        "one file",
        "one file, and nothing that begins the same",
        "a folder that is called like a file",
        "the only .onnx file of a folder, whatever it is called",
        "a whole bucket",
    ],
)
async def test_a_declared_place_is(keys: list[str], location: Location, found: str, version: int) -> None:
    rig = Rig()
    for key in keys:
        rig.put(key)
    rig.declare(location)
    spec = await rig.rollout.resolve("m", None)
    assert (spec.files[0].key, spec.ref.version, spec.ref.name, spec.files[0].path) == (found, version, "m", "model.onnx")


async def test_two_onnx_files_without_a_word_which_one_are_no_model() -> None:
    rig = Rig()
    rig.put("a/one.onnx")
    rig.put("a/two.onnx")
    rig.declare(Location("s3://b/a"))
    with pytest.raises(InvalidModel, match=r"one\.onnx, two\.onnx"):
        await rig.rollout.resolve("m", None)


async def test_a_format_that_contradicts_the_manifest_is_told() -> None:
    rig = Rig()
    rig.put("a/model.onnx")
    rig.put("a/hearth.json", json.dumps({"format": "onnx"}).encode())
    rig.declare(Location("s3://b/a", format="pytorch"))
    with pytest.raises(InvalidModel, match="the InferenceService says 'pytorch'"):
        await rig.rollout.resolve("m", None)


async def test_tenant_and_priority_of_the_declaration_win_over_the_manifests() -> None:
    rig = Rig()
    rig.put("a/model.onnx")
    rig.put("a/hearth.json", json.dumps({"tenant": "red", "priority": "high"}).encode())
    rig.declare(Location("s3://b/a"), tenant="blue")
    spec = await rig.rollout.resolve("m", None)
    assert (spec.tenant, spec.priority) == ("blue", "high")
    rig.declare(Location("s3://b/a"), tenant="blue", priority="batch")
    again = await rig.rollout.resolve("m", None)
    assert (again.priority, again.ref) == ("batch", spec.ref)  # the same copies


async def test_a_declared_name_hides_the_repositorys_folder_and_uncovers_it_when_withdrawn() -> None:
    rig = Rig()
    rig.put("root/m/model.onnx", b"root")
    rig.put("root/other/model.onnx", b"root")
    rig.put("a/model.onnx", b"declared")
    rig.declare(Location("s3://b/a"))
    assert await rig.rollout.names() == ("m", "other")
    assert (await rig.rollout.resolve("m", None)).files[0].key == "a/model.onnx"
    rig.rollout.declare({"m": None})
    assert (await rig.rollout.resolve("m", None)).files[0].key == "root/m/model.onnx"


async def test_without_a_repository_what_is_not_declared_is_unknown() -> None:
    rig = Rig(has_repository=False)
    rig.put("a/model.onnx")
    rig.declare(Location("s3://b/a"))
    assert await rig.rollout.names() == ("m",)
    with pytest.raises(UnknownModel, match="none is declared"):
        await rig.rollout.resolve("other", None)


# ---- credentials -----------------------------------------------------------------------------------------------------


async def test_the_same_object_read_with_other_credentials_is_another_model() -> None:
    rig = Rig()
    rig.put("a/model.onnx")
    rig.buckets.scopes = {"red": {}}
    rig.declare(Location("s3://b/a"))
    own = await rig.rollout.resolve("m", None)
    rig.declare(Location("s3://b/a", 2, "red"))
    scoped = await rig.rollout.resolve("m", None)
    assert own.ref.revision != scoped.ref.revision
    assert (scoped.scope, scoped.origin) == ("red", "http://s3/b")


async def test_a_request_waits_for_credentials_that_are_on_their_way() -> None:
    rig = Rig()
    rig.put("a/model.onnx")
    rig.declare(Location("s3://b/a", scope="red"))
    asked = asyncio.create_task(rig.rollout.resolve("m", None))
    await asyncio.sleep(SCOPE_TIMEOUT_S - 1)
    rig.rollout.declare_scopes({"red": {}})
    assert (await asked).scope == "red"


async def test_credentials_that_never_come_are_named() -> None:
    rig = Rig()
    rig.declare(Location("s3://b/a", scope="red"))
    with pytest.raises(StoreUnavailable, match="red"):
        await rig.rollout.resolve("m", None)
    assert now_s() >= SCOPE_TIMEOUT_S


async def test_renewed_credentials_list_the_model_anew_and_keep_its_copies() -> None:
    rig = Rig()
    rig.put("a/model.onnx")
    rig.rollout.declare_scopes({"red": {"AWS_ACCESS_KEY_ID": "1"}})
    rig.declare(Location("s3://b/a", scope="red"))
    await rig.answer()
    listed = rig.buckets.at("b").listed["a/"]
    rig.rollout.declare_scopes({"red": {"AWS_ACCESS_KEY_ID": "2"}})
    await rig.answer()
    assert rig.buckets.at("b").listed["a/"] == listed + 1
    assert rig.ram.fetched["m"] == 1


# ---- one place after another -----------------------------------------------------------------------------------------


async def test_while_the_new_place_loads_the_old_one_answers_and_then_the_new_one() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    assert await rig.answer() == "m/old/model.onnx"
    rig.declare(NEW, OLD)
    begin_s = now_s()
    answers = set()
    while (answered := await rig.answer()) != "m/new/model.onnx":
        answers.add(answered)
        assert now_s() - begin_s < 10
        await asyncio.sleep(0.1)
    assert answers == {"m/old/model.onnx"}
    assert now_s() - begin_s >= 1.0  # the fetch
    assert rig.fares() == {1: "loaded", 2: "loaded"}
    rig.declare(NEW)  # the controller has seen it
    await asyncio.sleep(1)
    assert {spec.key for spec in rig.device.present} == {(await rig.rollout.resolve("m", None)).ref.key}


async def test_a_pod_that_has_neither_tries_the_new_place_first() -> None:
    rig = Rig()
    both(rig)
    rig.declare(NEW, OLD)
    assert await rig.answer() == "m/new/model.onnx"
    assert rig.ram.fetched["m"] == 1
    assert [report.locations[0].proven for report in rig.rollout.report()] == [True]


@pytest.mark.parametrize("broken", ["missing", "unloadable"])
async def test_a_new_place_that_fails_leaves_the_old_one_answering(broken: str) -> None:
    rig = Rig()
    rig.put("m/old/model.onnx", b"old")
    if broken == "unloadable":
        rig.put("m/new/model.onnx", b"new")
        rig.device.fails["m"] = [LoadFailed("these weights are none")]
    rig.declare(NEW, OLD)
    assert await rig.answer() == "m/old/model.onnx"
    (report,) = rig.rollout.report()
    failed = next(place for place in report.locations if place.number == 2)
    assert (failed.state, failed.permanent) == ("failed", True)
    assert failed.at_s >= EPOCH_S
    assert ("there is nothing at s3://b/m/new" if broken == "missing" else "these weights are none") in failed.failure
    assert await rig.answer() == "m/old/model.onnx"


async def test_what_failed_is_tried_again_by_itself_with_growing_pauses_until_it_is_repaired() -> None:
    rig = Rig()
    rig.put("m/old/model.onnx", b"old")
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD)
    await asyncio.sleep(AGAIN_S * 2)
    lists = rig.buckets.at("b").listed["m/new/"]
    assert lists == 2
    rig.put("m/new/model.onnx", b"new")
    await asyncio.sleep(AGAIN_S * 2 + 5)  # no request asks for it
    assert rig.fares() == {1: "loaded", 2: "loaded"}
    assert await rig.answer() == "m/new/model.onnx"


async def test_going_back_while_the_new_place_loads_ends_that_and_serves_the_old_one() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD)
    await asyncio.sleep(0.5)
    rig.declare(OLD)
    assert await rig.answer() == "m/old/model.onnx"
    await asyncio.sleep(5)
    assert rig.fares() == {1: "loaded"}
    assert len(rig.device.present) == 1


async def test_a_declaration_that_comes_between_two_requests_of_a_model_at_rest_loads_nothing() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    rig.declare(NEW, OLD)
    await asyncio.sleep(10)
    assert not rig.ram.fetched
    assert rig.rollout.report() == ()


async def test_a_withdrawn_model_leaves_ram_and_device() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.rollout.declare({"m": None})
    await asyncio.sleep(1)
    assert not rig.device.present
    assert not rig.ram.present
    with pytest.raises(UnknownModel):
        await rig.answer()


async def test_a_request_that_is_held_while_its_model_is_withdrawn_is_answered_or_told() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    asked = asyncio.create_task(rig.answer())
    await asyncio.sleep(0.5)
    rig.rollout.declare({"m": None})
    assert await asked == "m/old/model.onnx"


async def test_an_explicit_version_is_found_at_either_place() -> None:
    rig = Rig()
    rig.put("m/old/5/model.onnx", b"old")
    rig.put("m/new/6/model.onnx", b"new")
    rig.declare(NEW, OLD)
    assert (await rig.rollout.resolve("m", 5)).files[0].key == "m/old/5/model.onnx"
    assert (await rig.rollout.resolve("m", 6)).files[0].key == "m/new/6/model.onnx"
    known = rig.rollout.known("m", 5)
    assert known is not None
    with pytest.raises(UnknownModel, match="has no version 7"):
        await rig.rollout.resolve("m", 7)


# ---- canaries --------------------------------------------------------------------------------------------------------


async def test_a_canary_gets_its_share_once_it_is_loaded() -> None:
    rig = Rig(chances=tuple(number / 100 for number in range(100)))
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD, 25)
    await asyncio.sleep(5)
    answers = [await rig.answer() for _ in range(100)]
    assert answers.count("m/new/model.onnx") == 25


async def test_a_canary_of_no_percent_is_loaded_and_asked_nothing() -> None:
    rig = Rig(chances=(0.0, 0.5))
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD, 0)
    await asyncio.sleep(5)
    assert rig.fares() == {1: "loaded", 2: "loaded"}
    assert {await rig.answer(), await rig.answer()} == {"m/old/model.onnx"}


async def test_a_canary_that_fails_takes_no_request() -> None:
    rig = Rig()
    rig.put("m/old/model.onnx", b"old")
    rig.declare(NEW, OLD, 50)
    assert {await rig.answer() for _ in range(20)} == {"m/old/model.onnx"}


async def test_a_canary_that_becomes_everything_moves_without_loading_anything_again() -> None:
    rig = Rig(chances=(0.9,))
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD, 10)
    await asyncio.sleep(5)
    assert await rig.answer() == "m/old/model.onnx"
    rig.declare(NEW, OLD)
    assert await rig.answer() == "m/new/model.onnx"
    assert rig.ram.fetched["m"] == 2


async def test_a_report_tells_of_a_plain_models_failure_and_of_its_recovery() -> None:
    rig = Rig()
    both(rig)
    rig.device.fails["m"] = [LoadFailed("once")]
    rig.declare(OLD)
    with pytest.raises(LoadFailed):
        await rig.answer()
    assert rig.fares() == {1: "failed"}
    asked = asyncio.create_task(rig.answer())
    await asyncio.sleep(0.05)
    assert rig.fares() == {1: "loading"}
    await asked
    assert rig.fares() == {1: "loaded"}


async def test_closing_ends_what_is_being_brought_up() -> None:
    rig = Rig()
    both(rig)
    rig.declare(OLD)
    await rig.answer()
    rig.declare(NEW, OLD)
    await rig.rollout.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("bring up")]


async def test_what_is_asked_for_by_many_at_once_is_brought_up_once() -> None:
    rig = Rig()
    both(rig)
    rig.declare(NEW, OLD)
    found: list[ModelSpec | HearthError | BaseException] = await asyncio.gather(
        *(rig.rollout.resolve("m", None) for _ in range(50)), return_exceptions=True
    )
    assert {spec.files[0].key for spec in found if isinstance(spec, ModelSpec)} == {"m/new/model.onnx"}
    assert len(found) == 50
    assert rig.ram.fetched["m"] == 1
