"""The admin port, as operators, the command line and Prometheus see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from predictor.api import admin
from predictor.api.pod import PodState
from predictor.client import AdminClient
from predictor.errors import StoreUnavailable
from predictor.report import CopyReport, ModelReport, Residency, TierReport
from predictor.telemetry import METRICS
from tests.fakes.pod import ServedPod, model
from tests.fakes.raw_client import RawClient

ECHO = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}


@pytest.fixture(scope="module")
def served() -> Iterator[ServedPod]:
    with ServedPod("uvloop", model("a"), model("b"), model("c"), model("huge", pages=1000)) as served:
        yield served


@pytest.fixture
def client(served: ServedPod) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.admin_url, timeout=10) as client:
        yield client
        client.post("/hearth/v1/unload", json={"models": ["a", "b", "c"]})


def infer(served: ServedPod, name: str) -> None:
    httpx.post(f"{served.url}/v2/models/{name}/infer", json=ECHO).raise_for_status()


def test_residency_tells_what_is_where_and_is_what_the_documentation_says(served: ServedPod, client: httpx.Client) -> None:
    infer(served, "a")

    reply = client.get("/hearth/v1/residency")

    report = admin.ResidencyReport.model_validate_json(reply.content, strict=True)
    assert msgspec.json.decode(reply.content, type=Residency).pod == report.pod == "pod-1"
    assert [(found.name, found.version) for found in report.models] == [("a", 1)]
    assert {(copy.tier, copy.state, copy.bytes) for copy in report.models[0].copies} == {
        ("ram", "ready", 4096),
        ("device", "ready", 4096),
    }
    assert {(tier.tier, tier.reserved_bytes) for tier in report.tiers} == {("ram", 4096), ("device", 4096)}


@pytest.mark.parametrize(
    ("told", "documented"),
    [
        (Residency, admin.ResidencyReport),
        (ModelReport, admin.Model),
        (CopyReport, admin.Copy),
        (TierReport, admin.TierRoom),
    ],
)
def test_the_documentation_has_every_field_that_is_told(told: Any, documented: Any) -> None:
    assert set(told.__struct_fields__) == set(documented.model_fields)


def test_preloading_accepts_what_exists_and_tells_what_does_not(served: ServedPod, client: httpx.Client) -> None:
    served.catalogue.errors["c"] = StoreUnavailable("S3 does not answer")
    reply = client.post("/hearth/v1/preload", json={"models": ["b", "nobody", "a", "b", "c", "huge"]})
    del served.catalogue.errors["c"]

    assert reply.status_code == 202
    told = reply.json()
    assert (told["accepted"], told["unknown"]) == (["b", "a"], ["nobody"])
    assert told["refused"]["c"] == "S3 does not answer"
    assert "model huge:1 needs" in told["refused"]["huge"]
    served.until(lambda: {copy.ref.name for copy in served.pod.cache.ledger.copies() if copy.place.device == 0} == {"a", "b"})


def test_an_order_that_refuses_nothing_says_nothing_of_refusals(client: httpx.Client) -> None:
    assert client.post("/hearth/v1/preload", json={"models": ["a", "nobody"]}).json() == {
        "accepted": ["a"],
        "unknown": ["nobody"],
    }


def test_unloading_drops_what_is_there(served: ServedPod, client: httpx.Client) -> None:
    infer(served, "a")

    assert client.post("/hearth/v1/unload", json={"models": ["a", "b", "nobody"]}).json() == {"unloaded": ["a"]}
    assert client.get("/hearth/v1/residency").json()["models"] == []


def test_the_command_lines_own_client_understands_all_of_it(served: ServedPod) -> None:
    client = AdminClient(served.admin_url)

    assert client.catalogue().models == ("a", "b", "c", "huge")
    assert client.preload(["a", "nobody"]).unknown == ("nobody",)
    infer(served, "a")
    assert client.timeline().stages["answered"] > 0
    assert client.residency().models[0].name == "a"
    assert client.unload(["a"]).unloaded == ("a",)


def test_metrics_are_the_tables_and_prometheus_reads_them(served: ServedPod, client: httpx.Client) -> None:
    infer(served, "a")
    reply = client.get("/metrics")

    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    assert reply.headers["content-type"].startswith("text/plain")
    assert set(families) <= {metric.name.removesuffix("_total") for metric in METRICS}
    assert {"hearth_requests", "hearth_request_seconds", "hearth_waiting_requests"} <= set(families)
    assert families["hearth_in_flight_requests"].samples[0].value == 0
    assert {sample.labels["model"] for sample in families["hearth_compute_seconds"].samples} >= {"a"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("GET", "/hearth/v1/preload", None, 405, "Method Not Allowed"),
        ("POST", "/hearth/v1/preload", b"{}", 422, "body.models: Field required"),
        ("POST", "/hearth/v1/preload", b"{", 422, "JSON"),
        ("POST", "/hearth/v1/unload", b'{"models": [1]}', 422, "body.models.0: Input should be a valid string"),
        ("POST", "/livez", None, 405, "POST is not possible"),
    ],
)
def test_refusals_have_the_same_form_as_everywhere(
    client: httpx.Client, *, method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    reply = client.request(method, path, content=body, headers={"Content-Type": "application/json"})

    assert reply.status_code == status
    assert says in reply.json()["error"]


def test_a_refusal_of_the_parts_behind_keeps_its_status_and_when_to_retry(served: ServedPod, client: httpx.Client) -> None:
    async def names() -> tuple[str, ...]:
        raise StoreUnavailable("S3 does not answer", retry_after_s=2.5)

    kept, served.catalogue.names = served.catalogue.names, names  # type: ignore[method-assign]
    reply = client.get("/hearth/v1/catalogue")
    served.catalogue.names = kept  # type: ignore[method-assign]

    assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")
    assert reply.json() == {"error": "S3 does not answer"}


def test_our_own_mistakes_are_500_without_their_text(served: ServedPod, client: httpx.Client) -> None:
    async def names() -> tuple[str, ...]:
        raise RuntimeError("secret")

    kept, served.catalogue.names = served.catalogue.names, names  # type: ignore[method-assign]
    reply = client.get("/hearth/v1/catalogue")
    served.catalogue.names = kept  # type: ignore[method-assign]

    assert reply.status_code == 500
    assert reply.json() == {"error": "internal error: RuntimeError; the server's log tells more"}


def test_the_interactive_documentation_names_every_route(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/hearth/v1/residency",
        "/hearth/v1/preload",
        "/hearth/v1/clear",
        "/hearth/v1/unload",
        "/hearth/v1/pin",
        "/hearth/v1/unpin",
        "/hearth/v1/timeline",
        "/hearth/v1/catalogue",
        "/hearth/v1/why/{name}",
        "/hearth/v1/state",
        "/hearth/v1/declarations",
        "/hearth/v1/heat",
        "/hearth/v1/orders",
        "/metrics",
    }


def test_probes_and_a_controllers_question_answer_without_the_framework() -> None:
    with ServedPod("uvloop") as served, RawClient(served.admin_port) as client:
        asked = client.get("/hearth/v1/state?since=0").status
        statuses = [client.get(path).status for path in ("/livez", "/readyz")]
        served.pod.state = PodState.DRAINING

        assert [asked, *statuses] == [200, 200, 200]
        assert client.get("/readyz").status == 503
        assert served.admin._service.handler._handler._rare._loading is None  # type: ignore[attr-defined]


def test_requests_that_come_before_the_framework_is_there_wait_for_it_even_if_the_first_one_leaves() -> None:
    with ServedPod("uvloop", model("a")) as served:
        first, second = RawClient(served.admin_port), RawClient(served.admin_port)
        for client in (first, second):
            client.send("GET /hearth/v1/catalogue HTTP/1.1\r\nHost: h\r\n\r\n")
        first.reset()

        assert second.reply().json == {"models": ["a"]}
        second.socket.close()
