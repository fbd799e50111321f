"""The V2 routes as a client sees them, over real sockets; the cache is the real one, what it loads is not."""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from predictor.api.inference import ATTEMPTS
from predictor.api.message import Answering, Request
from predictor.api.pod import PodState
from predictor.errors import (
    ComputedTooLong,
    InvalidModel,
    LoadFailed,
    ModelFailed,
    StoreUnavailable,
    TrustRequired,
    WorkerDied,
    WorkerRestarting,
    WorkerTaken,
)
from predictor.model import TensorSpec
from predictor.wire import Field, Tensor
from predictor.workers.dispatch import Answer
from tests.fakes.pod import ServedPod, double, model

X = TensorSpec("x", "FP32", (-1, 2))
Y = TensorSpec("y", "FP32", (-1, 2))
ONE = {"id": "r-1", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]}]}


@pytest.fixture
def served() -> Iterator[ServedPod]:
    with ServedPod(
        "uvloop", model("double", 3, inputs=(X,), outputs=(Y,)), model("told"), model("echo"), model("bad")
    ) as served:
        served.device.computes["double"] = served.device.computes["told"] = double
        served.device.schemas["told"] = (Field("x", "FP32", (-1, 2)),), (Field("y", "FP32", (-1, 2)),)
        yield served
        served.until(lambda: served.pod.load.requests == 0)
        assert served.leases() == 0


@pytest.fixture
def client(served: ServedPod) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=10) as client:
        yield client


def infer(client: httpx.Client, name: str = "double", body: Any = ONE) -> httpx.Response:
    return client.post(f"/v2/models/{name}/infer", json=body)


def metric(served: ServedPod, name: str, **labels: str) -> float:
    return served.pod.telemetry.registry.get_sample_value(name, labels) or 0.0


# ---- inference ---------------------------------------------------------------------------------------------------


def test_an_inference_is_answered_and_says_what_it_cost(served: ServedPod, client: httpx.Client) -> None:
    cold, hot = infer(client), infer(client)

    assert cold.status_code == hot.status_code == 200
    assert (
        cold.json()
        == hot.json()
        == {
            "model_name": "double",
            "model_version": "3",
            "id": "r-1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 4.0]}],
        }
    )
    assert hot.headers["hearth-start"] == "hot"
    assert hot.headers["hearth-version"] == "3"
    assert hot.headers["server-timing"] == "compute;dur=0.50"
    assert re.fullmatch(r"pod-1;up=\d+\.\d{3}", hot.headers["hearth-pod"])
    assert int(hot.headers["content-length"]) == len(hot.content)


def test_a_load_is_told_stage_by_stage(served: ServedPod, client: httpx.Client) -> None:
    served.ram.fetch_s = lambda _: 0.02

    reply = infer(client)

    assert reply.headers["hearth-start"] == "s3"
    stages = dict(re.findall(r"(\w+);dur=(\d+\.\d\d)", reply.headers["server-timing"]))
    assert list(stages)[-1] == "compute"
    assert float(stages["fetch"]) >= 20


def test_a_version_can_be_named(client: httpx.Client) -> None:
    assert client.post("/v2/models/double/versions/3/infer", json=ONE).status_code == 200
    assert client.post("/v2/models/double/versions/4/infer", json=ONE).status_code == 404
    assert client.post("/v2/models/double/versions/latest/infer", json=ONE).status_code == 404


def test_a_name_may_be_percent_encoded(client: httpx.Client) -> None:
    assert client.post("/v2/models/d%6fuble/infer", json=ONE).status_code == 200
    assert client.post("/v2/models/%ff/infer", json=ONE).status_code == 400


def test_the_content_type_does_not_matter(client: httpx.Client) -> None:
    body = httpx.Request("POST", "http://h", json=ONE).content
    for kind in ("application/octet-stream", "text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/v2/models/double/infer", content=body, headers={"Content-Type": kind}).status_code == 200


def test_binary_in_and_out(client: httpx.Client) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    head = httpx.Request("POST", "http://h", json={"inputs": [tensor], "outputs": wanted}).content

    for _ in range(2):
        reply = client.post(
            "/v2/models/double/infer",
            content=head + struct.pack("<2f", 1, 2),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        length = int(reply.headers["inference-header-content-length"])
        assert reply.content[length:] == struct.pack("<2f", 2, 4)
        assert reply.headers["content-type"] == "application/octet-stream"


def test_a_hundred_first_requests_load_once(served: ServedPod) -> None:
    served.ram.fetch_s = lambda _: 0.05

    async def ask_all() -> list[int]:
        async with httpx.AsyncClient(base_url=served.url, timeout=10, limits=httpx.Limits(max_connections=100)) as client:
            replies = await asyncio.gather(*(client.post("/v2/models/double/infer", json=ONE) for _ in range(100)))
        return [reply.status_code for reply in replies]

    assert asyncio.run(ask_all()) == [200] * 100
    assert served.ram.fetched["double"] == 1


# ---- refusals ----------------------------------------------------------------------------------------------------

WRONG = {
    "unknown input": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
    "missing input": [],
    "wrong datatype": [{"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}],
    "wrong shape": [{"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}],
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", ["double", "told"])
def test_what_the_model_does_not_take_is_422_cold_and_hot(
    served: ServedPod, client: httpx.Client, name: str, case: str
) -> None:
    cold = infer(client, name, {"inputs": WRONG[case]})
    assert infer(client, name).status_code == 200
    hot = infer(client, name, {"inputs": WRONG[case]})

    assert cold.status_code == hot.status_code == 422
    assert f"model {name}:" in hot.json()["error"]
    assert served.device.ran[name] == 1


def test_what_cannot_run_is_refused_before_anything_is_loaded(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client, body={"inputs": WRONG["wrong shape"]}).status_code == 422
    assert infer(client, body={"inputs": 1}).status_code == 400

    assert not served.ram.fetched


def test_an_unknown_output_is_422(client: httpx.Client) -> None:
    for _ in range(2):
        reply = infer(client, body=ONE | {"outputs": [{"name": "nope"}]})
        assert (reply.status_code, reply.json()) == (422, {"error": "model double:3 has no output nope"})


def test_an_unknown_model_is_404_and_leaves_no_metric_of_its_name(served: ServedPod, client: httpx.Client) -> None:
    for number in range(3):
        assert infer(client, f"nobody-{number}").status_code == 404

    assert metric(served, "hearth_requests_total", model="", version="", code="404") == 3
    assert metric(served, "hearth_requests_total", model="nobody-1", version="", code="404") == 0


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (StoreUnavailable("S3 does not answer", retry_after_s=1.2), 503, "2"),
        (StoreUnavailable("S3 does not answer"), 503, None),
        (InvalidModel("no files"), 422, None),
        (TrustRequired("set HEARTH_TRUST=code"), 422, None),
    ],
)
def test_what_the_catalogue_says_is_told(
    served: ServedPod, client: httpx.Client, error: Any, status: int, retry_after: str | None
) -> None:
    served.catalogue.errors["bad"] = error

    reply = infer(client, "bad")

    assert (reply.status_code, reply.json()) == (status, {"error": error.message})
    assert reply.headers.get("retry-after") == retry_after
    assert reply.headers["hearth-pod"].startswith("pod-1;")


def test_a_model_that_raises_is_500_and_the_next_request_is_served(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client).status_code == 200
    served.device.fails["double"] = [ModelFailed("ValueError: \ud800 no")]

    reply = infer(client)

    assert (reply.status_code, reply.json()) == (500, {"error": "ValueError: ? no"})
    assert infer(client).status_code == 200
    assert metric(served, "hearth_requests_total", model="double", version="3", code="500") == 1


def test_an_answer_that_contradicts_itself_is_500_and_no_hang(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client).status_code == 200
    served.device.computes["double"] = lambda *_: Answer((Tensor("y", "FP32", (1, 2), 8),), (b"\0" * 3,), 0.0)

    assert infer(client).status_code == 500


@pytest.mark.parametrize("warm", [False, True])
def test_a_request_whose_worker_died_before_computing_it_is_sent_once_more(
    served: ServedPod, client: httpx.Client, *, warm: bool
) -> None:
    if warm:
        assert infer(client).status_code == 200
    served.device.fails["double"] = [WorkerRestarting("the worker ended")]

    assert infer(client).status_code == 200


def test_a_request_whose_worker_dies_again_and_again_is_refused(served: ServedPod, client: httpx.Client) -> None:
    served.device.fails["double"] = [WorkerRestarting("the worker ended", retry_after_s=0.1) for _ in range(ATTEMPTS)]

    reply = infer(client)

    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert infer(client).status_code == 200


def test_a_request_that_its_worker_died_of_is_not_sent_again(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client).status_code == 200
    served.device.fails["double"] = [WorkerDied("killed by signal 11")]

    assert infer(client).status_code == 502
    assert served.device.ran["double"] == 2


def test_who_is_told_of_a_death_is_told_how_long_the_model_pauses(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client).status_code == 200
    cache = served.pod.cache
    ref = next(copy.ref for copy in served.call(cache.ledger.copies) if copy.ref.name == "double")
    for _ in range(5):
        served.call(lambda: cache.infirmary.quarantine.died(ref, "killed by SIGSEGV", cache.clock()))
    served.device.fails["double"] = [WorkerDied("killed by signal 11", retry_after_s=1.0)]
    reply = infer(client)
    pause_s = served.call(lambda: cache.infirmary.quarantine.wait_s(ref, cache.clock()))
    assert reply.status_code == 502
    assert pause_s > 1.0
    assert int(reply.headers["retry-after"]) >= pause_s


def test_requests_that_no_model_can_be_asked_count_for_nothing(served: ServedPod, client: httpx.Client) -> None:
    wrong = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [9, 9]}]}
    for _ in ("cold", "hot"):
        before = served.pod.load.asked
        assert infer(client, "nobody").status_code == 404
        assert infer(client, body=wrong).status_code == 400
        assert client.post("/v2/models/double/infer", content=b"{").status_code == 400
        assert served.pod.load.asked == before
        assert infer(client).status_code == 200
        assert served.pod.load.asked == before + 1
    served.device.fails["double"] = [WorkerRestarting("the worker ended")]
    assert infer(client).status_code == 200
    assert served.pod.load.asked == 3, "one that is sent twice counts once"


def test_a_request_whose_model_cannot_be_looked_up_for_the_moment_counts_as_one(
    served: ServedPod, client: httpx.Client
) -> None:
    served.catalogue.errors["double"] = StoreUnavailable("S3 does not answer")
    assert infer(client).status_code == 503
    assert served.pod.load.asked == 1


def test_a_request_that_its_worker_died_of_is_sent_once_more_where_its_model_says_that_it_may() -> None:
    with ServedPod("uvloop", model("twice", idempotent=True)) as served, httpx.Client(base_url=served.url) as client:
        assert infer(client, "twice").status_code == 200
        served.device.fails["twice"] = [WorkerDied("killed by signal 11")]
        assert infer(client, "twice").status_code == 200
        assert served.device.ran["twice"] == 3
        served.device.fails["twice"] = [ComputedTooLong("60 s")]
        assert infer(client, "twice").status_code == 502
        assert served.device.ran["twice"] == 4


def test_a_request_that_ended_two_workers_is_refused_and_others_of_its_model_are_not(
    served: ServedPod, client: httpx.Client
) -> None:
    assert infer(client).status_code == 200
    for ran in (2, 3):
        served.device.fails["double"] = [WorkerDied("killed by signal 11")]
        assert infer(client).status_code == 502
        assert served.device.ran["double"] == ran
    refused = infer(client)
    assert refused.status_code == 422
    assert "HEARTH_POISON_TTL_S" in refused.json()["error"]
    other = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [9, 9]}]}
    assert infer(client, body=other).status_code == 200
    assert served.device.ran["double"] == 4


def test_a_request_that_was_inside_when_another_model_ended_the_worker_is_no_poison(
    served: ServedPod, client: httpx.Client
) -> None:
    assert infer(client).status_code == 200
    served.device.fails["double"] = [WorkerTaken("memory") for _ in range(3)]
    assert [infer(client).status_code for _ in range(4)] == [502, 502, 502, 200]


def test_a_suspect_that_survives_alone_is_innocent(served: ServedPod, client: httpx.Client) -> None:
    assert infer(client).status_code == 200
    for _ in range(3):
        served.device.fails["double"] = [WorkerDied("killed by signal 11")]
        assert infer(client).status_code == 502
        assert infer(client).status_code == 200
    assert served.call(lambda: len(served.pod.cache.infirmary.poison)) == 0


def test_while_a_model_pauses_its_requests_are_told_for_how_long_and_why(served: ServedPod, client: httpx.Client) -> None:
    ref = served.catalogue.specs["double"].ref
    served.call(lambda: served.pod.cache.infirmary.quarantine.died(ref, "killed by SIGSEGV", served.pod.cache.clock() + 29.0))
    with httpx.Client(base_url=served.admin_url) as admin:
        refused = infer(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert "killed by SIGSEGV" in refused.json()["error"]
        assert infer(client, "echo").status_code == 200
        told = next(one for one in admin.get("/hearth/v1/residency").json()["models"] if one["name"] == "double")
        assert (told["copies"], "in quarantine" in told["quarantine"]) == ([], True)
        listed = next(one for one in client.post("/v2/repository/index").json() if one["name"] == "double")
        assert (listed["state"], "SIGSEGV" in listed["reason"]) == ("UNAVAILABLE", True)
        assert "SIGSEGV" in admin.post("/hearth/v1/preload", json={"models": ["double"]}).json()["refused"]["double"]
        assert admin.post("/hearth/v1/clear", json={"models": ["double", "echo"]}).json() == {"cleared": ["double"]}
    assert infer(client).status_code == 200


def test_a_request_held_too_long_is_504() -> None:
    with ServedPod("uvloop", model("slow"), hold_timeout_s=0.05) as served, httpx.Client(base_url=served.url) as client:
        served.ram.fetch_s = lambda _: 60.0
        loading = infer(client, "slow")
        served.catalogue.hanging.add("lost")
        looking = infer(client, "lost")
        describing = client.get("/v2/models/lost")

    assert [loading.status_code, looking.status_code, describing.status_code] == [504] * 3
    assert "retry-after" in loading.headers
    assert "could not be looked up before its deadline" in looking.json()["error"]


def test_a_client_may_shorten_its_wait_but_not_lengthen_it() -> None:
    with ServedPod("uvloop", model("slow"), hold_timeout_s=0.5) as served, httpx.Client(base_url=served.url) as client:
        served.ram.fetch_s = lambda _: 60.0
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}

        def ask(patience: str) -> tuple[int, float]:
            begin_s = time.monotonic()
            answer = client.post("/v2/models/slow/infer", json=body, headers={"HEARTH-deadline-MS": patience})
            return answer.status_code, time.monotonic() - begin_s

        (short, short_s), (long, long_s) = ask("20"), ask("3600000")
        refused = [ask(nonsense)[0] for nonsense in ("soon", "-5", "0", "1.5", "9" * 40)]

    assert (short, long) == (504, 504)
    assert short_s < long_s < 30
    assert refused == [400] * 5


# ---- what models are ---------------------------------------------------------------------------------------------


def test_metadata_tells_the_schema_of_the_manifest_or_what_the_loaded_model_told(client: httpx.Client) -> None:
    manifest = client.get("/v2/models/double").json()
    before = client.get("/v2/models/told").json()
    infer(client, "told")
    after = client.get("/v2/models/told/versions/1").json()

    assert manifest == {
        "name": "double",
        "versions": ["3"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert (before["inputs"], before["outputs"]) == ([], [])
    assert (after["inputs"], after["outputs"]) == (manifest["inputs"], manifest["outputs"])
    assert client.get("/v2/models/nobody").status_code == 404


def test_a_servable_model_is_ready_and_asking_does_not_load_it(served: ServedPod, client: httpx.Client) -> None:
    assert client.get("/v2/models/double/ready").json() == {"name": "double", "ready": True}
    assert client.get("/v2/models/double/versions/3/ready").status_code == 200
    assert client.get("/v2/models/nobody/ready").status_code == 404
    assert not served.ram.fetched


def test_a_model_whose_last_load_failed_is_not_ready_until_one_succeeds(served: ServedPod, client: httpx.Client) -> None:
    served.device.load_fails["echo"] = [LoadFailed("no such operator")]

    failed = infer(client, "echo")
    asked = client.get("/v2/models/echo/ready")

    assert failed.status_code == 500
    assert asked.status_code == 400
    assert asked.json() == {
        "name": "echo",
        "ready": False,
        "error": "the last load of model echo:1 failed: no such operator",
    }
    assert infer(client, "echo").status_code == 200
    assert client.get("/v2/models/echo/ready").status_code == 200


def test_the_repository_index_tells_each_models_state(served: ServedPod, client: httpx.Client) -> None:
    infer(client, "double")
    served.device.load_fails["bad"] = [LoadFailed("no such operator")]
    infer(client, "bad")

    index = {entry["name"]: entry for entry in client.post("/v2/repository/index").json()}

    assert index["double"] == {"name": "double", "version": "3", "state": "READY", "reason": ""}
    assert index["echo"] == {"name": "echo", "version": "", "state": "UNAVAILABLE", "reason": "standby"}
    assert index["bad"]["state"] == "UNAVAILABLE"
    assert "no such operator" in index["bad"]["reason"]


# ---- the server --------------------------------------------------------------------------------------------------


def test_server_metadata_names_the_server_and_what_it_understands(client: httpx.Client) -> None:
    told = client.get("/v2/").json()

    assert (told["name"], told["extensions"]) == ("hearth", ["binary_tensor_data"])


def test_probes_say_ready_before_anything_is_loaded_and_not_while_draining(served: ServedPod, client: httpx.Client) -> None:
    paths = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
    at_first = [client.get(path).status_code for path in paths]
    served.pod.state = PodState.DRAINING
    draining = [client.get(path).status_code for path in paths]

    assert at_first == [200] * 4
    assert draining == [200, 503, 200, 503]
    assert "drains" in client.get("/readyz").json()["error"]


def test_a_probe_is_no_demand(served: ServedPod, client: httpx.Client) -> None:
    """By requests to /readyz a controller holds a pod: they must not make it look as if somebody asked for a model."""
    for _ in range(3):
        assert client.get("/readyz").status_code == 200

    assert (served.pod.load.asked, served.pod.load.asked_s) == (0, 0.0)


def test_a_pod_whose_device_failed_is_alive_and_not_ready(served: ServedPod, client: httpx.Client) -> None:
    served.pod.device_failure = lambda: "CUDA is gone"

    reply = client.get("/readyz?verbose")

    assert reply.status_code == 503
    assert reply.json()["error"] == reply.json()["device"] == "CUDA is gone"
    assert reply.json()["state"] == "serving"
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/double/infer", "POST"),
        ("PUT", "/v2/models/double/versions/3/infer", "POST"),
        ("POST", "/v2/models/double", "GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_the_right_ones(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    reply = client.request(method, path)

    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert reply.json()["error"]


@pytest.mark.parametrize(
    "path", ["/", "/v2/models", "/v2/models/double/generate", "/v1/models/double", "/hearth/v1/residency", "//"]
)
def test_what_is_not_here_is_404(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        reply = client.request(method, path)
        assert (reply.status_code, list(reply.json())) == (404, ["error"])


# ---- telemetry ---------------------------------------------------------------------------------------------------


def test_answers_are_counted_and_timed_by_model(served: ServedPod, client: httpx.Client) -> None:
    for _ in range(3):
        infer(client)

    assert metric(served, "hearth_requests_total", model="double", version="3", code="200") == 3
    assert metric(served, "hearth_compute_seconds_count", model="double") == 3
    assert metric(served, "hearth_request_seconds_count", model="double", start="hot") == 2


def test_the_first_answer_is_marked_and_logged_once(
    served: ServedPod, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "predictor.api")
    for _ in range(3):
        infer(client)

    lines = [record.message for record in caplog.records if record.message.startswith("cold start: ")]
    assert len(lines) == 1
    assert re.fullmatch(r"cold start: fetched=\d+\.\d\d built=\d+\.\d\d answered=\d+\.\d\d", lines[0])


def test_a_failed_first_request_is_no_first_answer(served: ServedPod, client: httpx.Client) -> None:
    infer(client, "nobody")

    assert "answered" not in served.pod.timeline.stages


def test_a_handler_may_answer_at_once_later_or_by_itself(served: ServedPod) -> None:
    kinds: list[str] = []
    inner = served.inference._service.handler

    def watched(request: Request) -> Answering:
        answering = inner(request)
        kinds.append(type(answering).__name__)
        return answering

    served.inference._service.handler = watched
    with httpx.Client(base_url=served.url) as client:
        client.get("/livez")
        infer(client)
        infer(client)

    assert kinds == ["Response", "coroutine", "_Hot"]
