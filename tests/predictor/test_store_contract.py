"""What every model store does, whatever is behind it: the scripted S3 must behave as moto does, and the one in memory too."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from predictor import checksums
from predictor.errors import InvalidModel, ObjectChanged, StoreRefused
from predictor.model import PartChecksums
from predictor.tiers.scattered import Scattered
from predictor.tiers.store import S3Store
from tests.fakes.memory import MemoryStore
from tests.fakes.s3 import FakeS3
from tests.fakes.stores import BUCKET, PART_BYTES, as_file, opened

ODD_KEYS = (
    "odd/space and+plus",
    "odd/~tilde'(quote)*!",
    "odd/ünïcode/模型",
    "odd/percent%2Fencoded",
    "odd/a//b",
    "odd/<xml>&amp;",
    "odd/question?mark#hash",
)


class Stand:
    """A server or a dictionary, and the store that reads it."""

    def __init__(
        self, put: Callable[[str, bytes], object], environment: dict[str, str], memory: MemoryStore | None = None
    ) -> None:
        self.put = put
        self._environment = environment
        self._memory = memory

    @asynccontextmanager
    async def store(self) -> AsyncIterator[MemoryStore | S3Store]:
        if self._memory is not None:
            yield self._memory
        else:
            async with opened(self._environment) as store:
                yield store


def _moto() -> Iterator[Stand]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="fake",
        aws_secret_access_key="fake-secret",
        region_name="us-east-1",
        config=Config(proxies={}),
    )
    client.create_bucket(Bucket=BUCKET)
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "fake",
        "AWS_SECRET_ACCESS_KEY": "fake-secret",
    }
    yield Stand(lambda key, data: client.put_object(Bucket=BUCKET, Key=key, Body=data), environment)
    server.stop()


@pytest.fixture(scope="module", params=["fake", "moto", "memory"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    if request.param == "memory":
        memory = MemoryStore(time.time)
        yield Stand(memory.put, {}, memory)
    elif request.param == "moto":
        yield from _moto()
    else:
        with FakeS3() as s3:
            s3.make_bucket(BUCKET)
            yield Stand(lambda key, data: s3.put(BUCKET, key, data), s3.environment())


def now() -> bool:
    """Somebody waits."""
    return False


async def test_a_listing_tells_keys_etags_sizes_and_times(stand: Stand) -> None:
    stand.put("list/m/1/model.onnx", b"weights")
    stand.put("list/m/1/empty", b"")
    async with stand.store() as store:
        listing = await store.listing("list/m/")
    assert [(entry.key, entry.size_bytes) for entry in listing.objects] == [("list/m/1/empty", 0), ("list/m/1/model.onnx", 7)]
    assert listing.objects[1].etag == hashlib.md5(b"weights").hexdigest()
    assert listing.folders == ()
    assert abs(listing.date_s - time.time()) < 60
    assert all(-60 < listing.date_s - entry.modified_s < 60 for entry in listing.objects)


async def test_a_prefix_is_exact(stand: Stand) -> None:
    for name in ("model1", "model10", "model1-x"):
        stand.put(f"exact/{name}/1/model.onnx", b"x")
    async with stand.store() as store:
        assert [entry.key for entry in (await store.listing("exact/model1/")).objects] == ["exact/model1/1/model.onnx"]
        assert (await store.listing("exact/model/")).objects == ()


async def test_folders_are_one_level(stand: Stand) -> None:
    for key in ("level/a/1/x", "level/a/2/x", "level/b x+/1/x", "level/file"):
        stand.put(key, b"")
    async with stand.store() as store:
        listing = await store.listing("level/", folders=True)
    assert listing.folders == ("level/a/", "level/b x+/")
    assert [entry.key for entry in listing.objects] == ["level/file"]


async def test_odd_keys_come_back_as_they_were_written_and_can_be_read(stand: Stand) -> None:
    for key in ODD_KEYS:
        stand.put(key, key.encode())
    async with stand.store() as store:
        listing = await store.listing("odd/")
        assert sorted(entry.key for entry in listing.objects) == sorted(ODD_KEYS)
        for entry in listing.objects:
            assert await store.read(entry.key, entry.etag, limit_bytes=100) == entry.key.encode()


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 10 * PART_BYTES + 7])
async def test_files_of_every_size_arrive_whole_and_where_they_belong(stand: Stand, size_bytes: int) -> None:
    data = bytes(index * 31 % 251 for index in range(size_bytes))
    stand.put(f"size/{size_bytes}/a", data)
    stand.put(f"size/{size_bytes}/b", data[::-1])
    memory = bytearray(b"\xee" * (2 * size_bytes + 30))
    async with stand.store() as store:
        first, second = (await store.listing(f"size/{size_bytes}/")).objects
        with memoryview(memory) as whole, whole[10 : 10 + size_bytes] as a, whole[20 + size_bytes : 20 + 2 * size_bytes] as b:
            await store.fetch([(as_file(first), Scattered([a])), (as_file(second), Scattered([b]))], background=now)
    gap = b"\xee" * 10
    assert memory == gap + data + gap + data[::-1] + gap


async def test_what_was_overwritten_since_its_listing_is_not_read(stand: Stand) -> None:
    stand.put("changed/a", b"old!")
    async with stand.store() as store:
        (old,) = (await store.listing("changed/")).objects
        stand.put("changed/a", b"new!")
        with pytest.raises(ObjectChanged):
            await store.read(old.key, old.etag, limit_bytes=100)
        with pytest.raises(ObjectChanged, match="changed/a"):
            await store.fetch([(as_file(old), Scattered([memoryview(bytearray(4))]))], background=now)


async def test_memory_that_lies_apart_is_filled_in_order(stand: Stand) -> None:
    data = bytes(index * 17 % 253 for index in range(3 * PART_BYTES + 5))
    stand.put("apart/a", data)
    memory = bytearray(len(data))
    whole = memoryview(memory)
    cuts = [0, 1, PART_BYTES - 1, PART_BYTES + 1, 3 * PART_BYTES, len(data)]
    async with stand.store() as store:
        (entry,) = (await store.listing("apart/")).objects
        pieces = Scattered([whole[begin:end] for begin, end in pairwise(cuts)])
        await store.fetch([(as_file(entry), pieces)], background=now)
    assert memory == data


async def test_what_the_manifest_says_of_the_contents_is_verified(stand: Stand) -> None:
    data = bytes(index * 13 % 241 for index in range(2 * PART_BYTES + 9))
    stand.put("proof/a", data)
    memory = Scattered([memoryview(bytearray(len(data)))])
    sums = PartChecksums("xxh3_64", PART_BYTES, tuple(checksums.entry("a", data, part_bytes=PART_BYTES)["checksums"]["parts"]))
    sha256 = hashlib.sha256(data).hexdigest()
    async with stand.store() as store:
        (entry,) = (await store.listing("proof/")).objects
        file = as_file(entry)
        for said in (replace(file, checksums=sums), replace(file, sha256=sha256.upper())):
            await store.fetch([(said, memory)], background=now)
        other = replace(sums, parts=(*sums.parts[:2], "0" * 16))
        for said in (replace(file, checksums=other, sha256=sha256), replace(file, sha256="0" * 64)):
            with pytest.raises(InvalidModel, match=r"/proof/a.* hearth\.json says 0000.*: publish the version again"):
                await store.fetch([(said, memory)], background=now)


async def test_files_are_confirmed_until_one_changes_or_goes(stand: Stand) -> None:
    for name in ("a", "b", "b2"):
        stand.put(f"confirm/{name}", b"old!")
    async with stand.store() as store:
        first, second, _ = (as_file(entry) for entry in (await store.listing("confirm/")).objects)
        await store.confirm([])
        await store.confirm([second])
        await store.confirm([first, second])
        with pytest.raises(ObjectChanged, match="confirm/gone"):
            await store.confirm([first, replace(second, key="confirm/gone")])
        stand.put("confirm/b", b"new!")
        await store.confirm([first])
        with pytest.raises(ObjectChanged, match="confirm/b"):
            await store.confirm([first, second])


async def test_what_was_never_there_is_not_read(stand: Stand) -> None:
    stand.put("gone/a", b"data")
    async with stand.store() as store:
        (entry,) = (await store.listing("gone/")).objects
        missing = entry._replace(key="gone/b")
        with pytest.raises(ObjectChanged):
            await store.fetch([(as_file(missing), Scattered([memoryview(bytearray(4))]))], background=now)


async def test_a_small_object_longer_than_its_limit_is_refused(stand: Stand) -> None:
    stand.put("long/a", b"x" * 101)
    async with stand.store() as store:
        (entry,) = (await store.listing("long/")).objects
        with pytest.raises(InvalidModel, match="longer"):
            await store.read(entry.key, entry.etag, limit_bytes=100)
        assert len(await store.read(entry.key, entry.etag, limit_bytes=101)) == 101


async def test_what_is_written_is_read_over_whatever_was_there_until_it_is_removed(stand: Stand) -> None:
    key = "state/pool/heat/a pod+1.json"
    async with stand.store() as store:
        for body in (b'{"a": 1}', b"", b"x" * 100_000):
            await store.write(key, body)
            (entry,) = (await store.listing("state/")).objects
            assert (entry.key, entry.size_bytes, entry.etag) == (key, len(body), hashlib.md5(body).hexdigest())
            assert await store.read(key, "", limit_bytes=100_000) == body
        await store.remove(key)
        await store.remove(key)
        assert (await store.listing("state/")).objects == ()


async def test_a_bucket_that_does_not_exist_is_told_as_such(stand: Stand) -> None:
    if stand._memory is None:  # the one in memory has no buckets
        async with opened(stand._environment, models="s3://nowhere") as store:
            with pytest.raises(StoreRefused, match=r"s3://nowhere/.*NoSuchBucket"):
                await store.listing("models/")
