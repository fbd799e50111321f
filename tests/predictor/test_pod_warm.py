"""Demand outlives a pod: `hearth serve` again and again over one state prefix, with a scripted S3 and real models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor import heat
from predictor.heat import Heat, HotSet, Warmth
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_onnx, affine_pytorch
from tests.predictor.test_pod import BUCKET, Server, _until, publish

STATE = {"state": f"s3://{BUCKET}/state", "pool": "red"}
NAMES = [f"torch-{number}" for number in range(4)]


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        for number, name in enumerate(NAMES):
            publish(fake, name, affine_pytorch(scale=number + 1.0))
        publish(fake, "cold", affine_onnx(scale=7.0))
        yield fake


def left_behind(s3: FakeS3) -> dict[str, Heat]:
    objects = s3.objects(BUCKET) or {}
    return {
        key.removeprefix("state/red/heat/").removesuffix(".json"): heat.decode(stored.data, Heat)
        for key, stored in objects.items()
        if key.startswith("state/red/heat/")
    }


def warm_up(server: Server) -> dict[str, object]:
    told: dict[str, object] = server.http.get("/readyz?verbose").json()["warm_up"]
    return told


def loaded(server: Server) -> set[str]:
    return {model["name"] for model in server.residency()["models"] if model["loads"]}


def test_a_pod_loads_what_the_one_before_it_was_asked_for_without_being_asked(s3: FakeS3) -> None:
    first = Server(s3, **STATE, pod="pod-1")
    for count, name in enumerate(NAMES[:3], start=1):
        for _ in range(count):
            assert first.infer(name).status_code == 200
    assert warm_up(first)["state"] == "off"
    status, logged = first.stop()
    assert status == 0, logged
    (told,) = left_behind(s3).values()
    assert (told.pod, told.final) == ("pod-1", True)
    assert [one.name for one in told.models] == ["torch-2", "torch-1", "torch-0"], "the one asked most comes first"
    assert all(one.load_s > 0 and one.size_bytes > 0 for one in told.models)

    second = Server(s3, **STATE, pod="pod-2")
    try:
        _until(lambda: warm_up(second)["state"] == "done")
        assert warm_up(second) | {"trouble": ""} == warm_up(second) | {"source": "state prefix", "wanted": 3, "loaded": 3}
        assert loaded(second) == set(NAMES[:3])
        assert second.infer("torch-2").headers["hearth-start"] == "hot"
        events = second.admin.get("/hearth/v1/why/torch-2").json()["events"]
        assert [(event["what"], event["place"], event["cause"]) for event in events] == [
            ("preloaded", "ram", "hot set"),
            ("preloaded", "device 0", "hot set"),
        ]
        metrics = second.admin.get("/metrics").text
        assert 'hearth_preloads_total{outcome="loaded"} 3.0' in metrics
        assert 'hearth_wakeup_models{outcome="loaded"} 3.0' in metrics
    finally:
        status, logged = second.stop()
    assert status == 0, logged
    after = left_behind(s3)
    assert set(after) == {"pod-2"}, "what it has taken over is deleted"
    assert {one.name for one in after["pod-2"].models} == set(NAMES[:3])
    rates = {one.name: one.fast for one in after["pod-2"].models}
    assert rates["torch-2"] > rates["torch-1"] > rates["torch-0"]


def test_a_mounted_hot_set_is_loaded_by_value_and_nothing_of_it_is_told_as_the_pods_own(s3: FakeS3, tmp_path: Path) -> None:
    models = tuple(Warmth(name, 1, 10.0 - place, 1.0, 0.5, 1000) for place, name in enumerate([*NAMES, "gone"]))
    (tmp_path / "hotset.json").write_bytes(heat.encode(HotSet("red", time.time(), models)))
    server = Server(s3, **STATE, pod="pod-1", declared_path=str(tmp_path))
    try:
        _until(lambda: warm_up(server)["state"] == "done")
        told = warm_up(server)
        assert (told["source"], told["wanted"], told["loaded"], told["failed"]) == ("mounted", 5, 4, 1)
        fetched = [received.key for received in s3.received if received.key.endswith("/model.safetensors")]
        order = [key.split("/")[2] for key in fetched]
        assert set(order) == set(NAMES)
        assert order.index("torch-3") >= 2, "two are fetched at a time, the hottest first"
        assert server.admin.get("/hearth/v1/heat").json()["models"] == []
        assert server.infer("torch-1").status_code == 200
        (own,) = server.admin.get("/hearth/v1/heat").json()["models"]
        assert own[:2] == ["torch-1", 1]
        assert own[2] < 0.01, "one request, and not the ten a second of the hot set"
    finally:
        status, logged = server.stop()
    assert status == 0, logged


def test_orders_are_carried_out_once_behind_requests_and_reported(s3: FakeS3) -> None:
    server = Server(s3)
    try:
        orders = [
            {"number": 8, "name": "torch-1", "tier": "ram", "why": "asked on pod a, cold here", "until_s": time.time() + 60},
            {"number": 7, "name": "torch-0", "until_s": time.time() + 60},
            {"number": 9, "name": "torch-2", "until_s": time.time() - 1},
        ]
        for _ in range(2):
            assert server.admin.put("/hearth/v1/orders", json={"orders": orders}).json() == {"ordered": 9}
        _until(lambda: warm_up(server)["state"] == "done")
        told = warm_up(server)
        assert (told["wanted"], told["loaded"], told["skipped"]) == (3, 2, 1)
        report = server.admin.get("/hearth/v1/state").json()
        assert (report["ordered"], report["asked"], report["running"]) == (9, 0, 0)
        residency = {model["name"]: {copy["tier"] for copy in model["copies"]} for model in server.residency()["models"]}
        assert residency == {"torch-0": {"ram", "device"}, "torch-1": {"ram"}}
        (event,) = server.admin.get("/hearth/v1/why/torch-1").json()["events"]
        assert event["cause"] == "order 8: asked on pod a, cold here"
        assert server.admin.put("/hearth/v1/orders", content=b"{").status_code == 400
        odd = {"orders": [{"number": 10, "name": "torch-0", "tier": "disk"}]}
        assert "disk" in server.admin.put("/hearth/v1/orders", json=odd).json()["error"]
        server.infer("torch-0")
        report = server.admin.get("/hearth/v1/state").json()
        assert report["asked"] == 1
        assert report["asked_s_ago"] >= 0
    finally:
        assert server.stop()[0] == 0


def test_a_state_prefix_that_cannot_be_used_disturbs_nothing_and_is_told(s3: FakeS3) -> None:
    s3.fail(status=403, times=None, key="state/red/heat/")
    s3.fail(status=403, times=None, operation="put")
    server = Server(s3, **STATE, pod="pod-1", declared_path="")
    try:
        _until(lambda: warm_up(server)["state"] == "off")
        assert server.infer("torch-0").status_code == 200
    finally:
        status, logged = server.stop()
    assert status == 0
    assert logged.count("s3:ListBucket") == 1, logged
    assert logged.count("s3:PutObject") == 1, logged
    assert left_behind(s3) == {}


def test_what_is_no_document_or_a_newer_one_is_set_aside_with_a_warning_and_left_where_it_is(s3: FakeS3) -> None:
    s3.put(BUCKET, "state/red/hotset.json", b'{"pool": "red", "at_s": 1, "format": 9}')
    s3.put(BUCKET, "state/red/heat/bad.json", b"{")
    s3.put(BUCKET, "state/red/heat/other.json", heat.encode(Heat("liar", time.time(), (Warmth("torch-1", 1, 1.0, 1.0),))))
    good = Heat("good", time.time(), (Warmth("torch-0", 1, 1.0, 1.0),), final=True)
    s3.put(BUCKET, "state/red/heat/good.json", heat.encode(good))
    server = Server(s3, **STATE, pod="pod-1")
    try:
        _until(lambda: warm_up(server)["state"] == "done")
        assert loaded(server) == {"torch-0"}
    finally:
        status, logged = server.stop()
    assert status == 0
    assert logged.count("is set aside") == 3, logged
    assert {key for key in s3.objects(BUCKET) or {} if key.startswith("state/")} == {
        "state/red/hotset.json",
        "state/red/heat/bad.json",
        "state/red/heat/other.json",
        "state/red/heat/pod-1.json",
    }


def test_a_request_for_a_cold_model_passes_the_hot_set(s3: FakeS3) -> None:
    """Its parts go out although a dozen models are on their way; the scripted S3 gives each of theirs half a second late."""
    names = [f"large-{number}" for number in range(12)]
    for name in names:
        publish(s3, name, affine_onnx(scale=1.0))
        s3.delay(0.5, key=f"models/{name}/1/model.onnx")
    told = Heat("gone", time.time(), tuple(Warmth(name, 1, 1.0, 1.0) for name in names), final=True)
    s3.put(BUCKET, "state/red/heat/gone.json", heat.encode(told))
    server = Server(s3, **STATE, pod="pod-1", fetch_concurrency="4")
    try:
        assert server.infer("cold").headers["hearth-start"] == "s3"
        fetched = [received.key for received in s3.received if received.key.endswith("/model.onnx")]
        assert fetched.index(f"{BUCKET}/models/cold/1/model.onnx") <= 6, fetched
        _until(lambda: warm_up(server)["state"] == "done")
        assert loaded(server) == {"cold", *names}
        assert json.loads(server.admin.get("/hearth/v1/residency").text)["warm_up"]["loaded"] == 12
    finally:
        assert server.stop()[0] == 0
