"""The controller's HTTP port: what it answers, and that it answers without the cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.admin_pod import AdminPod
from tests.fakes.kube import FakeKube
from tests.warmup.controlling import Running, Store, model_status, put_model, put_pod, put_pool, ready, running
from warmup.api import Desk, application
from warmup.checks import Finding
from warmup.telemetry import METRICS

BROKEN = Finding(ok=False, reason="InvalidModel", message="holds no model")


@contextlib.asynccontextmanager
async def asking(it: Running) -> AsyncIterator[httpx.AsyncClient]:
    built = it.built
    desk = Desk(
        built.summary,
        built.pods,
        built.telemetry,
        is_synced=lambda: built.world.synced,
        is_leader=built.leader.is_leader,
        troubles=built.world.troubles,
        waiting=lambda: 0,
    )
    transport = httpx.ASGITransport(application(desk))
    async with httpx.AsyncClient(transport=transport, base_url="http://controller") as client:
        yield client


async def told(client: httpx.AsyncClient, path: str, status: int = 200) -> Any:
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as running_:
        put_pool(running_)
        put_pool(running_, "other")
        yield running_


async def test_pools_and_models_are_told_with_their_states(fake: FakeKube) -> None:
    put_model(fake, "good", uri="s3://models/good")
    put_model(fake, "bad")
    async with AdminPod() as pod, running(fake, Store({"s3://models/bad": BROKEN})) as it, asking(it) as client:
        put_pod(fake, pod.address)
        await it.until(lambda: ready(fake, "good") == "True" and ready(fake, "bad") == "False")
        await it.until(lambda: it.built.pods.of("gpu") and it.built.pods.of("gpu")[0].report)
        await it.settle()
        gpu, other = (await told(client, "/hearth/v1/pools"))["pools"]
        assert (gpu["name"], gpu["ready"], gpu["models"]) == ("gpu", True, {"FailedToLoad": 1, "Standby": 1})
        assert [(each["name"], each["state"]) for each in gpu["pods"]] == [("pod-1", "serving")]
        assert (other["name"], other["models"], other["pods"]) == ("other", {}, [])
        bad, good = (await told(client, "/hearth/v1/models?pool=gpu"))["models"]
        assert (good["name"], good["state"], good["ready"], good["failure"]) == ("good", "Standby", True, "")
        assert good["uri"] == "s3://models/good"
        assert (bad["name"], bad["ready"]) == ("bad", False)
        assert "holds no model" in bad["failure"]
        assert (await told(client, "/hearth/v1/models?pool=other"))["models"] == []


async def test_one_model_can_be_probed(fake: FakeKube) -> None:
    put_model(fake, "good")
    put_model(fake, "bad")
    async with running(fake, Store({"s3://models/bad": BROKEN})) as it, asking(it) as client:
        await it.until(lambda: ready(fake, "good") == "True" and ready(fake, "bad") == "False")
        await it.settle()
        assert (await told(client, "/hearth/v1/models/good"))["ready"] is True
        assert "holds no model" in (await told(client, "/hearth/v1/models/bad", 503))["error"]
        assert "nobody" in (await told(client, "/hearth/v1/models/nobody", 404))["error"]
        assert model_status(fake, "good")["states"]["targetModelState"] == "Standby"


async def test_residency_is_every_running_pods_own_and_nothing_at_zero(fake: FakeKube) -> None:
    async with AdminPod() as pod, running(fake) as it, asking(it) as client:
        await it.until(lambda: it.built.summary.pools)
        assert await told(client, "/hearth/v1/residency") == {"pods": []}
        put_pod(fake, pod.address)
        await it.until(lambda: it.built.pods.of("gpu"))
        (residency,) = (await told(client, "/hearth/v1/residency?pool=gpu"))["pods"]
        assert (residency["pod"], residency["pool"], residency["models"]) == ("pod-1", "gpu", [])
        assert await told(client, "/hearth/v1/residency?pool=other") == {"pods": []}


async def test_why_tells_what_happened_and_knows_who_never_was(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake) as it, asking(it) as client:
        await it.until(lambda: ready(fake, "m") == "True")
        events = (await told(client, "/hearth/v1/why/m"))["events"]
        assert [event["what"] for event in events] == ["declared"]
        assert "error" in await told(client, "/hearth/v1/why/nobody", 404)


@pytest.mark.parametrize(
    ("path", "status"), [("/hearth/v1/models?pool=none", 404), ("/hearth/v1/residency?pool=none", 404), ("/nowhere", 404)]
)
async def test_errors_say_what_is_wrong(path: str, status: int, fake: FakeKube) -> None:
    async with running(fake) as it, asking(it) as client:
        await it.until(lambda: it.built.summary.pools)
        assert list(await told(client, path, status)) == ["error"]


async def test_probes_say_ready_once_everything_was_read_and_who_leads(fake: FakeKube) -> None:
    fake.fail("hang", verb="list", plural="pods")
    async with running(fake) as it, asking(it) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        await it.until(lambda: it.built.world.synced and it.built.leader.is_leader())
        assert (await client.get("/readyz")).text == "ok\n"
        assert (await client.get("/readyz?verbose")).text.startswith("leader\n")


async def test_every_metric_is_exposed(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with AdminPod() as pod, running(fake) as it, asking(it) as client:
        put_pod(fake, pod.address)
        await it.until(lambda: ready(fake, "m") == "True" and it.built.pods.of("gpu") and it.built.pods.of("gpu")[0].report)
        await it.settle()
        text = (await client.get("/metrics")).text
        for metric in METRICS:
            assert f"# HELP {metric.name} " in text
        assert 'hearth_controller_models{pool="gpu",state="Standby"} 1.0' in text
        assert 'hearth_controller_writes_total{outcome="ok",resource="configmaps"} 1.0' in text
        assert "hearth_controller_leader 1.0" in text
