"""A store whose S3 misbehaves: a fault is survived by a retry or told as the right error, in bounded time, memory intact."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from predictor.errors import HearthError, ObjectChanged, StoreRefused, StoreUnavailable
from predictor.tiers.scattered import Scattered
from predictor.tiers.store import S3Store
from tests.fakes.s3 import FakeS3
from tests.fakes.s3_server import Fault
from tests.fakes.stores import BUCKET, PART_BYTES, Told, as_file, opened, until

KEY = "models/m/1/model.onnx"
SIZE = 5 * PART_BYTES + 123
DATA = os.urandom(SIZE)
PAGE = mmap.PAGESIZE
SILENT_S = 0.3


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        fake.put(BUCKET, KEY, DATA)
        yield fake


@contextmanager
def region(size_bytes: int) -> Iterator[memoryview]:
    """Memory as an arena has it, between two pages that nobody may touch. Closing it fails while anything refers to it."""
    mapping = mmap.mmap(-1, 2 * PAGE + size_bytes)
    guard = b"\xee" * PAGE
    mapping[:PAGE] = mapping[PAGE + size_bytes :] = guard
    with memoryview(mapping) as whole:
        view = whole[PAGE : PAGE + size_bytes]
    try:
        yield view
    finally:
        assert mapping[:PAGE] == mapping[PAGE + size_bytes :] == guard
        view.release()
        mapping.close()


async def fetched(store: S3Store, key: str = KEY) -> bytes:
    """List and fetch one object."""
    (entry,) = (await store.listing(key)).objects
    with region(entry.size_bytes) as view:
        await store.fetch([(as_file(entry), Scattered([view]))], background=lambda: False)
        return bytes(view)


SURVIVED = {
    "500": Fault(2, "get", status=500, code="InternalError"),
    "503": Fault(2, "get", status=503, code="SlowDown"),
    "429": Fault(2, "get", status=429, code="TooManyRequests"),
    "a SlowDown under another status": Fault(2, "get", status=400, code="SlowDown"),
    "a short read": Fault(2, "get", after_bytes=1000, then="close"),
    "nothing at all": Fault(2, "get", after_bytes=0, then="close"),
    "a reset": Fault(2, "get", after_bytes=1000, then="reset"),
    "a stall": Fault(1, "get", after_bytes=1000, then="stall"),
    "a trickle": Fault(1, "get", trickle_s=0.05),
    "a slow first byte": Fault(2, "get", delay_s=SILENT_S / 2),
    "a first byte that is too late": Fault(1, "get", delay_s=SILENT_S * 2),
    "a Content-Length that is too long": Fault(2, "get", length_error=10),
    "a Content-Length that is too short": Fault(2, "get", length_error=-10),
    "another range than asked": Fault(2, "get", range_error=1),
    "no Content-Range": Fault(2, "get", headers={"Content-Range": ""}),
    "no Content-Length": Fault(2, "get", headers={"Content-Length": ""}),
    "a length other than asked": Fault(2, "get", headers={"Content-Range": "bytes 0-9/*"}),
    "no range at all": Fault(None, "get", ignore_range=True),
    "an error in the listing": Fault(2, "list", status=503, code="SlowDown"),
    "a listing that is cut off": Fault(2, "list", after_bytes=100, then="close"),
    "a listing that is garbled": Fault(2, "list", status=200, body=b"<ListBucketResult><Contents>"),
    "a listing that is something else": Fault(2, "list", status=200, body=b"<html/>"),
}


@pytest.mark.parametrize("name", SURVIVED)
async def test_a_passing_fault_is_survived(s3: FakeS3, name: str) -> None:
    fault = SURVIVED[name]
    s3.fault(Fault(**vars(fault)))
    async with opened(s3.environment(), fetch_timeout_s=SILENT_S) as store:
        begin_s = time.monotonic()
        assert await fetched(store) == DATA
        assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("status", [500, 503])
async def test_a_storm_of_errors_is_sat_out_within_the_retries_of_each_part(s3: FakeS3, status: int) -> None:
    s3.fail(status=status, times=12, operation="get")
    async with opened(s3.environment(), fetch_retries=12) as store:
        assert await fetched(store) == DATA
    assert s3.gets(BUCKET, KEY) == 12 + 6


async def test_many_kinds_of_faults_at_once_are_survived(s3: FakeS3) -> None:
    for name in ("a reset", "a short read", "503", "another range than asked", "a stall", "a Content-Length that is too long"):
        s3.fault(Fault(**vars(SURVIVED[name]) | {"times": 1}))
    async with opened(s3.environment(), fetch_timeout_s=SILENT_S, fetch_retries=6) as store:
        assert await fetched(store) == DATA


@pytest.mark.parametrize(
    "name", ["a\r\nHost: evil", "a b?list-type=2#x", "..", "%2e%2e%2f", "a\tb", "-", "\u202emodel", "x" * 900]
)
async def test_a_key_is_data_whatever_it_looks_like(s3: FakeS3, name: str) -> None:
    key = f"models/hostile/{name}"
    s3.put(BUCKET, key, DATA)
    async with opened(s3.environment()) as store:
        (entry,) = (await store.listing("models/hostile/")).objects
        assert entry.key == key
        with region(SIZE) as view:
            await store.fetch([(as_file(entry), Scattered([view]))], background=lambda: False)
            assert bytes(view) == DATA
        await store.confirm([as_file(entry)])
    assert {received.headers["Host"] for received in s3.received} == {s3.endpoint.removeprefix("http://")}
    assert s3.gets(BUCKET, key) == 6


LASTING = [name for name in SURVIVED if name not in {"a slow first byte", "no range at all"}]


@pytest.mark.parametrize("name", LASTING)
async def test_a_lasting_fault_is_told_as_unavailable_after_the_retries_allowed(s3: FakeS3, name: str) -> None:
    fault = Fault(**vars(SURVIVED[name]) | {"times": None})
    s3.fault(fault)
    async with opened(s3.environment(), fetch_timeout_s=SILENT_S, fetch_retries=1) as store:
        begin_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"the last of 2 attempts.*{s3.endpoint}") as raised:
            await fetched(store)
        assert time.monotonic() - begin_s < 5
        assert type(raised.value) is StoreUnavailable
        assert raised.value.retry_after_s
        s3.heal()
        assert await fetched(store) == DATA


REFUSED: dict[str, tuple[Fault, type[HearthError], str]] = {
    "no permission": (Fault(None, "get", status=403, code="AccessDenied"), StoreRefused, "s3:GetObject"),
    "no permission to list": (Fault(None, "list", status=403, code="AccessDenied"), StoreRefused, "s3:ListBucket"),
    "a wrong key": (Fault(None, "get", status=403, code="SignatureDoesNotMatch"), StoreRefused, "credentials are wrong"),
    "an old token": (Fault(None, "get", status=400, code="ExpiredToken"), StoreRefused, "have expired"),
    "a wrong clock": (Fault(None, "get", status=403, code="RequestTimeTooSkewed"), StoreRefused, "clock"),
    "no bucket": (Fault(None, "get", status=404, code="NoSuchBucket"), StoreRefused, "no such bucket"),
    "a deleted object": (Fault(None, "get", status=404, code="NoSuchKey"), ObjectChanged, "overwritten or deleted"),
    "a shorter object": (Fault(None, "get", status=416, code="InvalidRange"), ObjectChanged, "overwritten or deleted"),
    "a redirect to nowhere": (Fault(None, "get", status=307, code="TemporaryRedirect"), StoreRefused, "redirects"),
    "an unknown user": (Fault(None, "list", status=404, code="UserNotFound"), StoreRefused, "check the AWS credentials"),
    "nonsense": (Fault(None, "get", status=418, code="Teapot"), StoreRefused, "418 Teapot"),
    "an error page": (Fault(None, "get", status=403, body=b"<html>no</html>"), StoreRefused, "403 Forbidden"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_would_be_answered_the_same_again_is_asked_once_and_told_with_the_object(s3: FakeS3, name: str) -> None:
    fault, kind, told = REFUSED[name]
    s3.fault(Fault(**vars(fault)))
    async with opened(s3.environment(), fetch_concurrency=1) as store:
        with pytest.raises(kind, match=told) as raised:
            await fetched(store)
    assert type(raised.value) is kind
    assert f"s3://{BUCKET}/" + (KEY if fault.operation == "get" else "") in str(raised.value)
    assert "fake-secret" not in str(raised.value)
    assert s3.gets(BUCKET, KEY) == (1 if fault.operation == "get" else 0)


@pytest.mark.parametrize("headers", [{"Content-Range": f"bytes 0-{PART_BYTES - 1}/{SIZE + 1}"}, {"ETag": '"another"'}])
async def test_a_server_that_does_not_know_if_match_does_not_mix_objects_either(s3: FakeS3, headers: dict[str, str]) -> None:
    s3.fault(Fault(None, "get", headers=headers, ignore_if_match=True))
    async with opened(s3.environment(), fetch_concurrency=1) as store:
        with pytest.raises(ObjectChanged, match=KEY):
            await fetched(store)


async def test_a_server_that_tells_no_time_is_taken_to_have_ours(s3: FakeS3) -> None:
    s3.fault(Fault(1, "list", headers={"Date": ""}))
    async with opened(s3.environment()) as store:
        assert abs((await store.listing(KEY)).date_s - time.time()) < 60


async def test_an_object_swapped_under_a_fetch_is_never_mixed(s3: FakeS3) -> None:
    s3.swap(BUCKET, KEY, DATA[::-1])
    async with opened(s3.environment(), fetch_concurrency=1) as store:
        with pytest.raises(ObjectChanged, match=KEY):
            await fetched(store)


@pytest.mark.parametrize("then", ["close", "reset", "stall"])
async def test_a_part_goes_on_where_it_broke_off(s3: FakeS3, then: str) -> None:
    half = PART_BYTES // 2
    s3.fault(Fault(1, "get", after_bytes=half, then=then))
    told = Told()
    async with opened(s3.environment(), told, fetch_concurrency=1, fetch_timeout_s=SILENT_S) as store:
        assert await fetched(store) == DATA
    ranges = [received.range for received in s3.received if received.operation == "get"]
    assert ranges[0] == f"bytes=0-{PART_BYTES - 1}"
    if then != "reset":  # a reset also takes what the kernel had not handed out yet
        assert ranges[1] == f"bytes={half}-{PART_BYTES - 1}"
        assert told.fetched_bytes == SIZE


async def test_one_part_that_fails_ends_the_others_at_once(s3: FakeS3) -> None:
    s3.put(BUCKET, "models/m/1/other", DATA)
    s3.stall(KEY, after_bytes=10, times=None)
    s3.fault(Fault(None, "get", "models/m/1/other", status=403, code="AccessDenied", delay_s=0.1))
    async with opened(s3.environment(), fetch_timeout_s=30.0, fetch_concurrency=8) as store:
        first, second = (await store.listing("models/m/1/")).objects
        begin_s = time.monotonic()
        with region(SIZE) as view, region(SIZE) as other, pytest.raises(StoreRefused):
            await store.fetch(
                [(as_file(first), Scattered([view])), (as_file(second), Scattered([other]))], background=lambda: False
            )
        assert time.monotonic() - begin_s < 2


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_after_a_cancelled_fetch_nobody_writes_any_more(s3: FakeS3, cancellations: int) -> None:
    s3.stall(after_bytes=1000, times=None)
    async with opened(s3.environment(), fetch_timeout_s=30.0) as store:
        (entry,) = (await store.listing(KEY)).objects
        with region(SIZE) as view:
            fetch = asyncio.create_task(store.fetch([(as_file(entry), Scattered([view]))], background=lambda: False))
            await until(lambda: s3.gets(BUCKET, KEY) == 4)
            begin_s = time.monotonic()
            for _ in range(cancellations):
                fetch.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await fetch
            assert time.monotonic() - begin_s < 2
            view[:] = b"\x11" * SIZE
            s3.heal()
            assert await fetched(store) == DATA  # by the same threads, which would have written before
            assert bytes(view) == b"\x11" * SIZE


async def test_closing_the_store_ends_what_runs(s3: FakeS3) -> None:
    async with opened(s3.environment(), fetch_timeout_s=30.0) as store:
        (entry,) = (await store.listing(KEY)).objects
        s3.stall(KEY, after_bytes=1000, times=None)
        s3.fault(Fault(None, "list", delay_s=20))
        listing = asyncio.create_task(store.listing("models/"))
        with region(SIZE) as view:
            fetch = asyncio.create_task(store.fetch([(as_file(entry), Scattered([view]))], background=lambda: False))
            await until(lambda: s3.gets(BUCKET, KEY) == 4)
            begin_s = time.monotonic()
            await store._stores.close()
            for task in (listing, fetch):
                with pytest.raises(StoreUnavailable, match="stopping"):
                    await task
            assert time.monotonic() - begin_s < 2
        with pytest.raises(StoreUnavailable, match="stopping"):
            await store.listing("models/")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hearth-store")]


async def test_a_server_that_is_not_there_is_told_soon() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{probe.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake-secret",
        }
        told = Told()
        async with opened(environment, told) as store:
            with pytest.raises(StoreUnavailable, match="ConnectionRefusedError"):
                await store.listing("models/")
        assert told.requests == {("list", "broken"): 3}


async def test_a_server_that_speaks_something_else_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            for _ in range(2):
                with server.accept()[0] as connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake-secret",
        }
        async with opened(environment, fetch_retries=1) as store:
            with pytest.raises(StoreUnavailable, match="BadStatusLine"):
                await store.listing("models/")
        thread.join(10)


async def test_a_kept_connection_that_the_server_closed_costs_no_attempt(s3: FakeS3) -> None:
    async with opened(s3.environment(), fetch_retries=0) as store:
        await store.listing(KEY)
        s3.hang_up()
        await store.listing(KEY)
        assert await fetched(store) == DATA


async def test_a_connection_closed_just_as_it_is_asked_costs_no_attempt(s3: FakeS3) -> None:
    async with opened(s3.environment(), fetch_retries=0) as store:
        await store.listing(KEY)
        s3.fault(Fault(1, "list", before=s3.hang_up))
        await store.listing(KEY)
    assert s3.lists(BUCKET, KEY) == 3


async def test_connections_are_used_again_and_everything_is_told_to_the_owner(s3: FakeS3) -> None:
    told = Told()
    async with opened(s3.environment(), told) as store:
        for _ in range(5):
            assert await fetched(store) == DATA
    assert s3.connections <= 5
    assert told.requests == {("list", "200"): 5, ("fetch", "206"): 30}
    assert told.fetched_bytes == 5 * SIZE
    assert told.first_asks == 1
    assert all(name.startswith("hearth-store-") for name in told.threads)


async def test_long_listings_are_followed_and_endless_ones_are_not() -> None:
    with FakeS3(page_size=1) as s3:
        for number in range(101):
            s3.put(BUCKET, f"models/many/{number:03}", b"")
        async with opened(s3.environment()) as store:
            assert len((await store.listing("models/many/0")).objects) == 100
            with pytest.raises(StoreRefused, match=r"more than 100 pages, 100 names, below s3://bucket/models/"):
                await store.listing("models/")


async def test_listings_do_not_queue_behind_parts(s3: FakeS3) -> None:
    s3.stall(KEY, times=None)
    async with opened(s3.environment(), fetch_timeout_s=30.0, fetch_concurrency=2) as store:
        (entry,) = (await store.listing(KEY)).objects
        with region(SIZE) as view:
            fetch = asyncio.create_task(store.fetch([(as_file(entry), Scattered([view]))], background=lambda: False))
            await until(lambda: s3.gets(BUCKET, KEY) == 2)
            async with asyncio.timeout(2):
                await store.listing(KEY)
            assert s3.gets(BUCKET, KEY) == 2, "no more parts at once than allowed"
            s3.heal()
            await fetch
            assert bytes(view) == DATA


async def test_a_cancelled_listing_lets_go_of_its_thread_and_leaves_no_error_behind(s3: FakeS3) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    s3.fault(Fault(None, "list", delay_s=20))
    async with opened(s3.environment(), fetch_timeout_s=30.0) as store:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.gather(*(store.listing("models/") for _ in range(20)))
        s3.heal()
        assert len((await store.listing("models/")).objects) == 1
    gc.collect()
    assert not told
