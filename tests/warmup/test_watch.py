"""What is kept of the cluster, and that it stays right whatever the API server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from tests.fakes.kube import FakeKube
from warmup.kube import CONFIG_MAPS, INFERENCE_SERVICES, Object, Resource
from warmup.watch import Pace, Watched, whole

BRISK = Pace(first_s=0.01, most_s=0.05, healthy_s=30.0, watch_s=5.0, absent_s=0.05)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as running:
        yield running


def put(fake: FakeKube, name: str, value: str, *, namespace: str = "team", **labels: str) -> None:
    body = {"apiVersion": "v1", "metadata": {"name": name, "labels": labels}, "data": {"value": value}}
    fake.put("configmaps", body, namespace=namespace)


def value_of(found: Object) -> str | None:
    """None for those that are not kept."""
    value = str(found["data"]["value"])
    return None if value == "skip" else value


@contextlib.asynccontextmanager
async def running(watched: Watched[str]) -> AsyncIterator[None]:
    task = asyncio.create_task(watched.run())
    try:
        async with asyncio.timeout(10):
            await watched.until_synced()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(watched: Watched[str], holds: Callable[[], bool]) -> None:
    """Return once it holds; looked at when something changes."""
    changed = asyncio.Event()
    watched.on_change(lambda *_: changed.set())
    async with asyncio.timeout(10):
        while not holds():
            await changed.wait()
            changed.clear()


async def test_it_has_what_was_there_and_follows_what_comes_changes_and_goes(fake: FakeKube) -> None:
    put(fake, "old", "1")
    put(fake, "elsewhere", "1", namespace="other")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    told: list[tuple[str, str | None, str | None]] = []
    watched.on_change(lambda name, old, new: told.append((name, old, new)))
    assert not watched.synced
    async with running(watched):
        assert dict(watched.objects) == {"old": "1"}
        put(fake, "new", "1")
        put(fake, "old", "2")
        fake.remove("configmaps", "new")
        await until(watched, lambda: ("new", "1", None) in told)
    assert told == [("old", None, "1"), ("new", None, "1"), ("old", "1", "2"), ("new", "1", None)]
    assert watched.present


async def test_a_change_of_what_is_not_kept_is_not_told(fake: FakeKube) -> None:
    put(fake, "a", "1")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    told: list[str] = []
    async with running(watched):
        watched.on_change(lambda name, _old, _new: told.append(name))
        put(fake, "a", "1", label="changed")
        put(fake, "b", "skip")
        put(fake, "c", "1")
        await until(watched, lambda: "c" in told)
        assert told == ["c"]
        put(fake, "c", "skip")
        await until(watched, lambda: "c" not in watched.objects)
    assert told == ["c", "c"]


async def test_it_selects_by_label(fake: FakeKube) -> None:
    put(fake, "mine", "1", pool="a")
    put(fake, "yours", "1", pool="b")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, labels="pool=a", pace=BRISK)
    async with running(watched):
        assert set(watched.objects) == {"mine"}
        put(fake, "mine", "1", pool="b")
        await until(watched, lambda: not watched.objects)


async def test_what_happened_while_the_server_was_away_is_seen_when_it_is_back(fake: FakeKube) -> None:
    put(fake, "stays", "1")
    put(fake, "goes", "1")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    async with running(watched):
        with fake.away():
            put(fake, "comes", "1")
            fake.remove("configmaps", "goes")
            assert set(watched.objects) == {"stays", "goes"}
            assert watched.synced
        await until(watched, lambda: set(watched.objects) == {"stays", "comes"})
        assert not watched.error


async def test_what_was_forgotten_while_it_was_away_is_listed_anew(fake: FakeKube) -> None:
    put(fake, "goes", "1")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    async with running(watched):
        with fake.away():
            put(fake, "comes", "1")
            fake.remove("configmaps", "goes")
            fake.forget()
        await until(watched, lambda: set(watched.objects) == {"comes"})


async def test_a_watch_that_fell_behind_is_followed_by_a_listing(fake: FakeKube) -> None:
    put(fake, "a", "1")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    async with running(watched):
        await fake.until_asked("watch", "configmaps")
        await fake.expire_watches()
        put(fake, "a", "2")
        await until(watched, lambda: watched.objects["a"] == "2")
        await fake.until_asked("list", "configmaps", times=2)


@pytest.mark.parametrize("what", [500, 403, 410, 429, "hang", "drop"])
async def test_a_listing_that_fails_is_repeated(fake: FakeKube, what: int | str) -> None:
    put(fake, "a", "1")
    fake.fail(what, verb="list", times=3)
    watched = Watched(fake.client(timeout_s=0.1), CONFIG_MAPS, value_of, pace=BRISK)
    async with running(watched):
        assert dict(watched.objects) == {"a": "1"}


@pytest.mark.parametrize("what", [500, 403, 410, "drop"])
async def test_a_watch_that_fails_goes_on_later_without_a_second_listing_where_none_is_needed(
    fake: FakeKube, what: int | str
) -> None:
    put(fake, "a", "1")
    fake.fail(what, verb="watch", times=3)
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    async with running(watched):
        put(fake, "a", "2")
        await until(watched, lambda: watched.objects["a"] == "2")
    listings = sum(asked.verb == "list" for asked in fake.asked)
    assert listings > 1 if what == 410 else listings == 1


async def test_a_server_that_is_away_is_asked_less_and_less_often() -> None:
    pace = Pace(first_s=1.0, most_s=8.0)
    watched = Watched(None, CONFIG_MAPS, value_of, pace=pace)  # type: ignore[arg-type]  # nothing is asked here
    for failures, most_s in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (5000, 8.0)):
        for _ in range(20):
            assert most_s / 2 <= watched._wait_s(failures) <= most_s
    assert watched._wait_s(0) == 0


async def test_a_kind_that_the_cluster_does_not_have_is_empty_and_found_once_it_comes(fake: FakeKube) -> None:
    fake.groups.remove("serving.kserve.io/v1beta1")
    watched: Watched[str] = Watched(fake.client(), INFERENCE_SERVICES, lambda found: found["metadata"]["name"], pace=BRISK)
    async with running(watched):
        assert not watched.objects
        assert not watched.present
        fake.put("inferenceservices", {"apiVersion": "serving.kserve.io/v1beta1", "metadata": {"name": "m"}, "spec": {}})
        fake.groups.add("serving.kserve.io/v1beta1")
        await until(watched, lambda: set(watched.objects) == {"m"})
        assert watched.present


async def test_a_kind_that_is_missed_once_keeps_its_objects_and_twice_loses_them(fake: FakeKube) -> None:
    put(fake, "a", "1")
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    told: list[str | None] = []
    async with running(watched):
        watched.on_change(lambda _name, _old, new: told.append(new))
        await fake.until_asked("watch", "configmaps")
        fake.fail(404, verb="list", times=1)
        await fake.expire_watches()
        put(fake, "a", "2")
        await until(watched, lambda: watched.objects.get("a") == "2")
        assert None not in told
        await fake.until_asked("watch", "configmaps", times=2)
        fake.fail(404, verb="list", times=2)
        await fake.expire_watches()
        put(fake, "b", "1")
        await until(watched, lambda: None in told)
        await until(watched, lambda: set(watched.objects) == {"a", "b"})


async def test_how_old_the_news_is_can_be_asked(fake: FakeKube) -> None:
    watched = Watched(fake.client(), CONFIG_MAPS, value_of, pace=BRISK)
    assert watched.stale_s() == float("inf")
    async with running(watched):
        assert watched.stale_s() < 60


async def test_thousands_of_objects_are_read(fake: FakeKube) -> None:
    for number in range(2500):
        put(fake, f"m-{number}", "1")
    watched = Watched(fake.client(), Resource("", "v1", "configmaps", "ConfigMap"), value_of, pace=BRISK)
    async with running(watched):
        assert len(watched.objects) == 2500
    assert sum(asked.verb == "list" for asked in fake.asked) == 5


def test_the_whole_is_all_but_the_books_of_who_wrote_what() -> None:
    found = {"metadata": {"name": "a", "managedFields": [1, 2]}, "spec": {"b": 1}}
    assert whole(found) == {"metadata": {"name": "a"}, "spec": {"b": 1}}
