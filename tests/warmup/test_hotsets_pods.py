"""The controller and real pods: what one is asked, the other is ordered, and the third begins with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.heat import HOTSET_FILE
from tests.fakes.kube import FakeKube
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_pytorch
from tests.predictor.test_pod import Server, publish
from tests.warmup.controlling import NAMESPACE, put_pod, put_pool, running

HOT = "torch-1"


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        for number in range(3):
            publish(fake, f"torch-{number}", affine_pytorch(scale=number + 1.0))
        yield fake


@contextlib.contextmanager
def pod(s3: FakeS3, name: str, **settings: str) -> Iterator[Server]:
    server = Server(s3, pod=name, **settings)
    try:
        yield server
    finally:
        server.stop()


def ask(server: Server, times: int) -> None:
    for _ in range(times):
        assert server.infer(HOT).status_code == 200


async def until_resident(server: Server) -> None:
    """Return once it is, without being asked for it."""

    def is_there() -> bool:
        return HOT in {model["name"] for model in server.residency()["models"] if model["loads"]}

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(is_there):  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.1)


async def test_demand_goes_from_pod_to_pod(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmup.ordering.LOOK_EACH_S", 0.2)
    monkeypatch.setattr("warmup.ordering.COMPARE_EACH_S", 0.5)
    with pod(s3, "one") as one, pod(s3, "two") as two:
        async with FakeKube() as fake:
            put_pool(fake)
            for name, server in (("one", one), ("two", two)):
                put_pod(fake, f"127.0.0.1:{server.admin_port}", name=name)
            await asyncio.to_thread(ask, one, 3)
            async with running(fake, heat_s=0.2) as controller:
                await controller.until(lambda: HOT in (hot_set(fake) or ""))
                await until_resident(two)
                history = controller.built.controller.parts.history
                await controller.until(lambda: {"ordered", "preloaded"} <= {noted.what for noted in history.of(HOT)})
                events = await asyncio.to_thread(lambda: two.admin.get(f"/hearth/v1/why/{HOT}").json()["events"])
                assert any("asked on one, cold on two" in event["cause"] for event in events)
                assert (await asyncio.to_thread(two.infer, HOT)).headers["hearth-start"] == "hot"
            document = hot_set(fake)
    assert document is not None
    (tmp_path / HOTSET_FILE).write_text(document)
    with pod(s3, "three", declared_path=str(tmp_path)) as three:
        await until_resident(three)


def hot_set(fake: FakeKube) -> str | None:
    found = fake.object("configmaps", "hearth-gpu-hotset", namespace=NAMESPACE)
    return None if found is None else str(found["data"][HOTSET_FILE])
