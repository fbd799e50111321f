"""What the manifest says of the contents is held against what came, over real HTTP; what it does not say is listed again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import checksums, manifest
from predictor.errors import InvalidModel, ObjectChanged, StoreUnavailable
from predictor.model import FileSpec
from predictor.tiers.s3_arriving import Arriving, parts, verify
from predictor.tiers.s3_http import Halt
from predictor.tiers.scattered import Scattered
from tests.fakes.s3 import FakeS3
from tests.fakes.s3_server import Fault
from tests.fakes.stores import BUCKET, PART_BYTES, Told, as_file, opened, until

FOLDER = "models/m/1/"
KEY = f"{FOLDER}model.onnx"
SIZE = 5 * PART_BYTES + 123
DATA = os.urandom(SIZE)
WRONG = DATA[: 2 * PART_BYTES + 7] + bytes([DATA[2 * PART_BYTES + 7] ^ 1]) + DATA[2 * PART_BYTES + 8 :]
SMALL = checksums.PART_BYTES_MIN


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        fake.put(BUCKET, KEY, DATA)
        yield fake


def now() -> bool:
    """Somebody waits."""
    return False


def said(data: bytes, part_bytes: int = SMALL) -> FileSpec:
    """A file as a manifest that tells everything has it."""
    document = {"files": [checksums.entry("model.onnx", data, part_bytes=part_bytes)]}
    file = manifest.parse(json.dumps(document).encode(), "here").files[0]
    etag = hashlib.md5(data).hexdigest()
    return FileSpec("model.onnx", KEY, etag, len(data), file.sha256, file.part_checksums)


def only_sha256(data: bytes) -> FileSpec:
    return replace(said(data), checksums=None)


def scattered(memory: bytearray, cuts: Sequence[int]) -> Scattered:
    """``memory`` as a run that has seams at ``cuts``."""
    whole = memoryview(memory)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(memory)}), len(memory)]
    return Scattered([whole[begin:end] for begin, end in pairwise(bounds)])


SEAMS = {
    "none": [],
    "in every part": range(999, SIZE, 40_000),
    "many": range(7, SIZE, 1_000),
    "one byte": [PART_BYTES, PART_BYTES + 1],
}


@pytest.mark.parametrize("seams", SEAMS)
@pytest.mark.parametrize("then", ["", "close", "stall"])
async def test_memory_that_lies_apart_is_filled_by_one_get_a_part_and_goes_on_where_it_broke_off(
    s3: FakeS3, seams: str, then: str
) -> None:
    memory = bytearray(SIZE)
    apart = scattered(memory, SEAMS[seams])
    s3.fault(Fault(1, "get", then=then, after_bytes=50_000))
    async with opened(s3.environment(), fetch_timeout_s=0.5) as store:
        await store.fetch([(said(DATA), apart)], background=now)
    assert memory == DATA
    assert s3.gets(BUCKET, KEY) == 6 + bool(then)
    apart.release()
    memory.clear()  # BufferError if anybody still refers to it


@pytest.mark.parametrize("part_bytes", [SMALL, SMALL + 4096, 4 * SMALL, 16 << 20])
@pytest.mark.parametrize("get_bytes", [SMALL, 3 * SMALL + 11, 64 << 20])
async def test_whatever_the_manifest_and_the_store_call_a_part_each_is_verified(
    s3: FakeS3, part_bytes: int, get_bytes: int
) -> None:
    memory = bytearray(SIZE)
    async with opened(s3.environment(), fetch_part_bytes=get_bytes) as store:
        await store.fetch([(said(DATA, part_bytes), Scattered([memoryview(memory)]))], background=now)
        assert memory == DATA
        wrong = replace(said(DATA, part_bytes), etag=s3.put(BUCKET, KEY, WRONG))
        place = 2 * PART_BYTES // part_bytes
        with pytest.raises(InvalidModel, match=f"part {place} of "):
            await store.fetch([(wrong, Scattered([memoryview(memory)]))], background=now)


async def test_an_object_that_is_not_what_the_manifest_says_is_told_with_part_and_checksums_after_one_more_look(
    s3: FakeS3,
) -> None:
    file = replace(said(DATA), etag=s3.put(BUCKET, KEY, WRONG))
    async with opened(s3.environment(), fetch_concurrency=1) as store:
        await store.listing(KEY)  # leaves a connection to be used again
        with pytest.raises(InvalidModel) as raised:
            await store.fetch([(file, Scattered([memoryview(bytearray(SIZE))]))], background=now)
    assert file.checksums is not None
    found = xxhash.xxh3_64_hexdigest(WRONG[2 * PART_BYTES : 3 * PART_BYTES])
    for told in (f"s3://{BUCKET}/{KEY}", "part 2 of 6", found, file.checksums.parts[2], "publish the version again"):
        assert told in str(raised.value)
    assert [entry.range for entry in s3.received[-2:]] == [f"bytes={2 * PART_BYTES}-{3 * PART_BYTES - 1}"] * 2
    assert s3.connections == 2, "the second look is over another connection"


async def test_a_transfer_that_went_wrong_once_is_repaired_by_fetching_the_part_again(s3: FakeS3) -> None:
    told = Told()
    s3.fault(Fault(1, "get", body=os.urandom(PART_BYTES)))
    memory = bytearray(SIZE)
    async with opened(s3.environment(), told) as store:
        await store.fetch([(said(DATA), Scattered([memoryview(memory)]))], background=now)
    assert memory == DATA
    assert s3.gets(BUCKET, KEY) == 7
    assert told.fetched_bytes == SIZE + PART_BYTES


async def test_only_what_follows_the_wrong_part_is_fetched_again(s3: FakeS3) -> None:
    whole = DATA[: 4 * PART_BYTES]
    s3.put(BUCKET, KEY, whole)
    s3.fault(Fault(1, "get", body=whole[:PART_BYTES] + bytes(3 * PART_BYTES)))
    memory = bytearray(len(whole))
    async with opened(s3.environment(), fetch_part_bytes=4 * PART_BYTES) as store:
        await store.fetch([(said(whole), Scattered([memoryview(memory)]))], background=now)
    assert memory == whole
    assert [entry.range for entry in s3.received] == [f"bytes={begin}-{len(whole) - 1}" for begin in (0, PART_BYTES)]


async def test_transfers_that_go_wrong_in_another_way_each_time_are_a_broken_network_and_no_broken_model(s3: FakeS3) -> None:
    for _ in range(3):
        s3.fault(Fault(1, "get", body=os.urandom(PART_BYTES)))
    async with opened(s3.environment(), fetch_concurrency=1) as store:
        with pytest.raises(StoreUnavailable, match=r"part 0 of 6 .* hearth\.json says .* the last of 3 attempts"):
            await store.fetch([(said(DATA), Scattered([memoryview(bytearray(SIZE))]))], background=now)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
async def test_a_sha256_is_verified_beside_the_transfer_in_whatever_order_parts_come(s3: FakeS3, concurrency: int) -> None:
    memory = bytearray(SIZE)
    s3.fault(Fault(1, "get", delay_s=0.1))  # the first part comes last
    async with opened(s3.environment(), fetch_concurrency=concurrency) as store:
        await store.fetch([(only_sha256(DATA), scattered(memory, SEAMS["many"]))], background=now)
        assert memory == DATA
        wrong = replace(only_sha256(DATA), etag=s3.put(BUCKET, KEY, WRONG))
        with pytest.raises(InvalidModel, match=f"s3://{BUCKET}/{KEY} has sha256 .* publish the version again"):
            await store.fetch([(wrong, Scattered([memoryview(memory)]))], background=now)


async def test_an_empty_file_is_held_against_its_sha256_too(s3: FakeS3) -> None:
    empty = Scattered([])
    async with opened(s3.environment()) as store:
        for file in (said(b""), only_sha256(b"")):
            await store.fetch([(file, empty)], background=now)
        with pytest.raises(InvalidModel, match="sha256"):
            await store.fetch([(replace(only_sha256(b""), sha256="0" * 64), empty)], background=now)
    assert s3.received == []


def test_part_checksums_stand_in_for_the_sha256() -> None:
    memory = Scattered([memoryview(bytearray(DATA))])
    verify(replace(said(DATA), sha256="0" * 64), memory, BUCKET)
    with pytest.raises(InvalidModel, match="sha256"):
        verify(replace(only_sha256(DATA), sha256="0" * 64), memory, BUCKET)


@given(order=st.permutations(range(7)), cuts=st.lists(st.integers(0, 7 * 10), max_size=5))
@settings(deadline=None)
def test_a_digest_does_not_depend_on_the_order_in_which_parts_come(order: list[int], cuts: list[int]) -> None:
    data = bytes(range(70))
    spec = replace(only_sha256(data), size_bytes=70)
    arriving = Arriving(spec, scattered(bytearray(data), cuts), BUCKET)
    cut = list(parts([arriving], 10))
    for place in order:
        arriving.digest(cut[place].start, cut[place].end, Halt())
    wrong = Arriving(replace(spec, sha256="0" * 64), scattered(bytearray(data), cuts), BUCKET)
    for place in order[:-1]:
        wrong.digest(cut[place].start, cut[place].end, Halt())
    with pytest.raises(InvalidModel):
        wrong.digest(cut[order[-1]].start, cut[order[-1]].end, Halt())


def test_a_digest_that_nobody_wants_any_more_ends() -> None:
    halt = Halt()
    halt.stop()
    arriving = Arriving(replace(only_sha256(DATA), sha256="0" * 64), Scattered([memoryview(bytearray(DATA))]), BUCKET)
    arriving.digest(0, SIZE, halt)  # would raise if it had been taken to its end


@given(size_bytes=st.integers(0, 3 * SMALL), part_bytes=st.sampled_from([SMALL, SMALL + 4096, 2 * SMALL]))
@settings(deadline=None, max_examples=20)
def test_what_a_publisher_writes_is_what_the_store_verifies(size_bytes: int, part_bytes: int) -> None:
    data = DATA[:size_bytes]
    file = said(data, part_bytes)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.is_provable
    verify(file, Scattered([memoryview(bytearray(data))]), BUCKET)
    for place in {0, size_bytes // 2, size_bytes - 1} if data else ():
        wrong = bytearray(data)
        wrong[place] ^= 0x80
        with pytest.raises(InvalidModel, match=f"part {place // part_bytes} of"):
            verify(file, Scattered([memoryview(wrong)]), BUCKET)


def test_a_publisher_may_hand_over_a_path(tmp_path: Path) -> None:
    for name, data in (("whole", DATA), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        assert checksums.entry("m", tmp_path / name, part_bytes=SMALL) == checksums.entry("m", data, part_bytes=SMALL)


# ---- what S3 lists afterwards ------------------------------------------------------------------------------------


async def test_files_that_are_as_they_were_are_confirmed_by_one_listing_however_many_others_there_are() -> None:
    with FakeS3() as s3:
        names = ("model.onnx", "model.onnx_data", "modes.json")
        for name in names:
            s3.put(BUCKET, FOLDER + name, DATA[:100])
        for number in range(3000):
            s3.put(BUCKET, f"{FOLDER}checkpoints/{number}", b"")
        async with opened(s3.environment()) as store:
            files = [as_file(entry) for entry in (await store.listing(f"{FOLDER}mod")).objects]
            await store.confirm(files)
            assert s3.lists(BUCKET, f"{FOLDER}mode") == 1
            await store.confirm(files[:1])
            assert s3.lists(BUCKET, KEY) == 1
            await store.confirm([])
            assert len(s3.received) == 3


async def test_a_confirmation_follows_pages_only_as_far_as_it_must() -> None:
    with FakeS3(page_size=2) as s3:
        for name in ("a", "b", "c", "d", "e", "f"):
            s3.put(BUCKET, FOLDER + name, b"x")
        async with opened(s3.environment()) as store:
            files = {entry.key[-1]: as_file(entry) for entry in (await store.listing(FOLDER)).objects}
            before = len(s3.received)
            await store.confirm([files["a"], files["c"]])
            assert len(s3.received) - before == 2


async def test_files_that_changed_or_went_since_their_listing_are_not_confirmed(s3: FakeS3) -> None:
    s3.put(BUCKET, f"{FOLDER}other", b"old")
    async with opened(s3.environment()) as store:
        files = [as_file(entry) for entry in (await store.listing(FOLDER)).objects]
        await store.confirm(files)
        with pytest.raises(ObjectChanged, match="overwritten"):
            await store.confirm([replace(files[0], size_bytes=SIZE - 1), files[1]])
        s3.put(BUCKET, f"{FOLDER}other", b"new")
        with pytest.raises(ObjectChanged, match=f"s3://{BUCKET}/{FOLDER}other was overwritten"):
            await store.confirm(files)
        s3.delete(BUCKET, f"{FOLDER}other")
        with pytest.raises(ObjectChanged, match=f"s3://{BUCKET}/{FOLDER}other was deleted"):
            await store.confirm(files)


# ---- deadlines ---------------------------------------------------------------------------------------------------


async def test_a_fetch_that_takes_longer_than_it_may_is_told_with_how_much_came_and_at_what_rate(s3: FakeS3) -> None:
    s3.stall(KEY, after_bytes=1000, times=None)
    memory = bytearray(SIZE)
    async with opened(s3.environment(), fetch_timeout_s=30.0, fetch_deadline_s=0.4) as store:
        begin_s = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=rf"4000 of {SIZE} bytes came in 0\.4 s, 0\.01 MB/s.*FETCH_DEADLINE"
        ) as raised:
            await store.fetch([(said(DATA), Scattered([memoryview(memory)]))], background=now)
        assert time.monotonic() - begin_s < 5
        assert raised.value.retry_after_s
        s3.heal()
        await store.fetch([(said(DATA), Scattered([memoryview(memory)]))], background=now)
    assert memory == DATA


async def test_a_part_that_crawls_goes_on_over_another_connection_and_keeps_what_it_has(s3: FakeS3) -> None:
    s3.fault(Fault(1, "get", trickle_s=0.003))  # a second for the file, but 64 KiB, thus no silence, in every timeout
    memory, told = bytearray(SIZE), Told()
    async with opened(
        s3.environment(), told, fetch_part_bytes=SIZE, fetch_timeout_s=0.4, fetch_deadline_s=1.5, fetch_retries=2
    ) as store:
        await store.fetch([(only_sha256(DATA), Scattered([memoryview(memory)]))], background=now)
    assert memory == DATA
    assert told.requests == {("fetch", "timeout"): 1, ("fetch", "206"): 1}
    first, second = (entry.range for entry in s3.received)
    assert first == f"bytes=0-{SIZE - 1}"
    assert 0 < int(second.removeprefix("bytes=").partition("-")[0]) < SIZE


async def test_a_listing_that_never_ends_is_given_up(s3: FakeS3) -> None:
    s3.fault(Fault(None, "list", delay_s=20))
    async with opened(s3.environment(), fetch_timeout_s=30.0, fetch_deadline_s=0.3) as store:
        with pytest.raises(StoreUnavailable, match=r"no whole answer to a list in 0\.3 s"):
            await store.listing("models/")


async def test_a_fetch_cancelled_while_its_digest_runs_leaves_nobody_in_the_memory(s3: FakeS3) -> None:
    s3.fault(Fault(1, "get", then="stall", after_bytes=10))
    memory = bytearray(SIZE)
    apart = Scattered([memoryview(memory)])
    async with opened(s3.environment(), fetch_timeout_s=30.0) as store:
        fetch = asyncio.create_task(store.fetch([(only_sha256(DATA), apart)], background=now))
        await until(lambda: s3.gets(BUCKET, KEY) == 6)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
    apart.release()
    memory.clear()
