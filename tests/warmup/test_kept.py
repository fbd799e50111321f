"""One document in one ConfigMap: read once, written seldom, and what cannot be read is not lost."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.fakes.kube import FakeKube
from tests.warmup.objects import pool_service
from warmup.kept import KEPT_LABEL, MAX_DOCUMENT_BYTES, MAX_READ_BYTES, SET_ASIDE, Kept
from warmup.kube import CONFIG_MAPS, Conflict, Kube
from warmup.view import pools

POOL = pools([pool_service()], [], [], [])["gpu"]
NAME = "hearth-gpu-notes"


def read(document: bytes) -> str:
    """Text that begins with an N."""
    if not document.startswith(b"N"):
        raise ValueError("it does not begin with an N")
    return document.decode()


def always() -> bool:
    return True


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as made:
        yield made


@pytest.fixture
async def kube(fake: FakeKube) -> AsyncIterator[Kube]:
    async with fake.client("ns") as client:
        yield client


@pytest.fixture(params=["notes.txt", "notes.gz"])
def key(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def kept(kube: Kube, key: str, pause_s: float = 60.0, **more: Any) -> Kept[str]:
    return Kept(kube, POOL, "notes", key=key, read=read, pause_s=pause_s, **more)


def stands(fake: FakeKube, key: str) -> str:
    """The document as the cluster has it."""
    found = fake.object("configmaps", NAME, namespace="ns")
    assert found is not None
    if key.endswith(".gz"):
        return gzip.decompress(base64.b64decode(found["binaryData"][key])).decode()
    return str(found["data"][key])


def put(fake: FakeKube, **contents: dict[str, str]) -> None:
    fake.put("configmaps", {"metadata": {"name": NAME}, **contents}, namespace="ns")


def writes(fake: FakeKube) -> int:
    return sum(asked.verb in ("create", "update") for asked in fake.asked)


async def test_what_one_wrote_the_next_one_reads(fake: FakeKube, kube: Kube, key: str) -> None:
    first = kept(kube, key)
    assert await first.load() is None
    assert await first.write(b"Nothing new", always)
    assert stands(fake, key) == "Nothing new"
    assert await kept(kube, key).load() == "Nothing new"


async def test_it_goes_when_the_pool_does_and_the_catalogues_watch_leaves_it_alone(
    fake: FakeKube, kube: Kube, key: str
) -> None:
    await kept(kube, key).write(b"N", always)
    metadata = fake.object("configmaps", NAME, namespace="ns")["metadata"]  # type: ignore[index]
    assert metadata["ownerReferences"] == [POOL.owner.reference()]
    assert metadata["labels"] == {
        "app.kubernetes.io/managed-by": "hearth", "hearth.dev/pool": "gpu", KEPT_LABEL: "true",
    }  # fmt: skip


async def test_it_is_written_only_where_it_is_another_and_seldom(fake: FakeKube, kube: Kube, key: str) -> None:
    one = kept(kube, key, pause_s=60.0)
    assert await one.write(b"N1", always)
    assert await one.write(b"N1", always)
    assert not await one.write(b"N2", always)
    assert writes(fake) == 1
    assert 0 < one.due_s <= 60
    assert await one.write(b"N2", always, at_once=True)
    assert stands(fake, key) == "N2"


async def test_what_stood_there_before_a_restart_is_not_written_again(fake: FakeKube, kube: Kube, key: str) -> None:
    await kept(kube, key).write(b"N1", always)
    again = kept(kube, key)
    await again.load()
    assert await again.write(b"N1", always)
    assert writes(fake) == 1


async def test_one_that_does_not_lead_writes_nothing(fake: FakeKube, kube: Kube, key: str) -> None:
    assert not await kept(kube, key).write(b"N", lambda: False)
    assert writes(fake) == 0


@pytest.mark.parametrize(
    "raw",
    [
        base64.b64encode(gzip.compress(b"from a newer release")).decode(),
        base64.b64encode(gzip.compress(b"N" * 100)[:-9]).decode(),
        base64.b64encode(gzip.compress(b"N" * (MAX_READ_BYTES + 1))).decode(),
        base64.b64encode(b"no gzip").decode(),
    ],
    ids=["newer", "cut short", "endless", "garbage"],
)
async def test_what_cannot_be_unpacked_is_set_aside(fake: FakeKube, kube: Kube, raw: str) -> None:
    put(fake, binaryData={"notes.gz": raw})
    one = kept(kube, "notes.gz")
    assert await one.load() is None
    assert one.trouble
    assert await one.write(b"N1", always)
    assert await one.write(b"N2", always, at_once=True)
    found = fake.object("configmaps", NAME, namespace="ns")
    assert found is not None
    assert found["binaryData"][SET_ASIDE] == raw
    assert stands(fake, "notes.gz") == "N2"


async def test_text_that_cannot_be_read_is_set_aside_and_stays_so_over_restarts(fake: FakeKube, kube: Kube) -> None:
    put(fake, data={"notes.txt": "from a newer release"})
    one = kept(kube, "notes.txt")
    assert await one.load() is None
    await one.write(b"N1", always)
    again = kept(kube, "notes.txt")
    assert await again.load() == "N1"
    assert not again.trouble
    await again.write(b"N2", always)
    found = fake.object("configmaps", NAME, namespace="ns")
    assert found is not None
    assert base64.b64decode(found["binaryData"][SET_ASIDE]) == b"from a newer release"


async def test_an_empty_one_is_damaged_and_leaves_nothing_to_set_aside(fake: FakeKube, kube: Kube, key: str) -> None:
    put(fake)
    one = kept(kube, key)
    assert await one.load() is None
    assert one.trouble
    await one.write(b"N", always)
    found = fake.object("configmaps", NAME, namespace="ns")
    assert found is not None
    assert SET_ASIDE not in found["binaryData"]


async def test_what_is_set_aside_goes_when_there_is_no_room_for_both(fake: FakeKube, kube: Kube) -> None:
    put(fake, data={"notes.txt": "X" * 500_000})
    one = kept(kube, "notes.txt")
    await one.load()
    await one.write(b"N" * 500_000, always)
    found = fake.object("configmaps", NAME, namespace="ns")
    assert found is not None
    assert SET_ASIDE not in found["binaryData"]


async def test_what_is_too_large_is_refused(kube: Kube) -> None:
    with pytest.raises(ValueError, match="900001 of at most 900000"):
        await kept(kube, "notes.txt").write(b"N" * (MAX_DOCUMENT_BYTES + 1), always)


async def test_an_editors_change_or_deletion_meanwhile_is_overwritten(fake: FakeKube, kube: Kube, key: str) -> None:
    one = kept(kube, key, pause_s=0.0)
    await one.write(b"N1", always)
    put(fake, data={"somebody": "was here"})
    assert await one.write(b"N2", always)
    assert stands(fake, key) == "N2"
    await kube.delete(CONFIG_MAPS, NAME)
    assert await one.write(b"N3", always)
    assert stands(fake, key) == "N3"


async def test_who_always_comes_second_says_so(fake: FakeKube, kube: Kube, key: str) -> None:
    class Contended:
        async def get(self, *_: Any) -> dict[str, Any]:
            return {"metadata": {"resourceVersion": "1"}}

        async def create(self, *_: Any) -> dict[str, Any]:
            raise Conflict("there is one")

        replace = create

    counted: list[tuple[str, str]] = []
    one: Kept[str] = Kept(Contended(), POOL, "notes", key=key, read=read, count=lambda *told: counted.append(told))
    with pytest.raises(Conflict, match="again and again"):
        await one.write(b"N", always)
    assert counted == [("configmaps", "conflict")] * 3
    assert fake.asked == []


async def test_leadership_that_is_lost_between_two_tries_ends_them(key: str) -> None:
    turns = iter((True, True, False))

    class Contended:
        async def get(self, *_: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"metadata": {"resourceVersion": "1"}}

        async def create(self, *_: Any) -> dict[str, Any]:
            raise Conflict("there is one")

        replace = create

    may_write: Callable[[], bool] = lambda: next(turns)  # noqa: E731
    one: Kept[str] = Kept(Contended(), POOL, "notes", key=key, read=read)
    assert not await one.write(b"N", may_write)
