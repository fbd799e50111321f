"""A whole pod: `hearth serve` as a process, a scripted S3 beside it, real models, real HTTP."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import Mlp, affine_onnx, affine_pytorch, mlp_onnx, mlp_pytorch

BUCKET = "bucket"
ROWS = [[1.0, 2.0, 3.0, 4.0]]


class Server:
    """One `hearth serve` process on free ports."""

    def __init__(self, s3: FakeS3, **settings: str | Path) -> None:
        """``log``: where its standard error goes, if it is not to be read by ``stop``."""
        log = self._log = Path(settings.pop("log")) if "log" in settings else None
        self.port, self.admin_port = _free_port(), _free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HEARTH_"))}
        environment |= s3.environment() | {
            "HEARTH_MODELS": f"s3://{BUCKET}/models",
            "HEARTH_PORT": str(self.port),
            "HEARTH_ADMIN_PORT": str(self.admin_port),
            "HEARTH_TRUST": "code",
            "HEARTH_SETTLE_S": "0",
            "HEARTH_FETCH_RETRIES": "1",
            "HEARTH_DRAIN_TIMEOUT_S": "10",
            **{f"HEARTH_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "predictor.boot", "serve"],
            env=environment,
            stderr=subprocess.PIPE if log is None else log.open("w"),
            text=True,
        )
        _until(lambda: self.process.poll() is not None or _listens(self.port))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.admin = httpx.Client(base_url=f"http://127.0.0.1:{self.admin_port}", timeout=60)

    def infer(self, name: str, rows: list[list[float]] | None = None) -> httpx.Response:
        rows = rows or ROWS
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": rows}
        return self.http.post(f"/v2/models/{name}/infer", json={"id": "7", "inputs": [tensor]})

    def residency(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.admin.get("/hearth/v1/residency").json()
        return answer

    def children(self, name: str) -> list[int]:
        """Processes of the front whose name in lists of processes begins so."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name.encode())]

    def worker_pid(self) -> int:
        """Of the first worker, which is forked when torch is imported."""
        _until(lambda: bool(self.children("hearth-worker")))
        return self.children("hearth-worker")[0]

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit status and everything it logged."""
        self.http.close()
        self.admin.close()
        self.process.terminate()
        try:
            _, logged = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, logged if self._log is None else self._log.read_text()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def publish(s3: FakeS3, name: str, files: dict[str, bytes], version: int = 1) -> None:
    for path, data in files.items():
        s3.put(BUCKET, f"models/{name}/{version}/{path}", data)


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        for number in range(6):
            publish(fake, f"torch-{number}", affine_pytorch(scale=number + 1.0))
            publish(fake, f"onnx-{number}", affine_onnx(scale=number + 1.0))
        yield fake


@pytest.fixture(scope="module")
def pod(s3: FakeS3) -> Iterator[Server]:
    server = Server(s3)
    yield server
    status, logged = server.stop()
    assert status == 0, logged


@pytest.mark.parametrize("format_", ["torch", "onnx"])
def test_the_first_request_fetches_the_model_and_the_second_is_hot(pod: Server, format_: str) -> None:
    first, second = pod.infer(f"{format_}-0"), pod.infer(f"{format_}-0")
    assert first.status_code == 200, first.text
    assert first.json()["outputs"][0]["data"] == pytest.approx([2.0, 3.0, 4.0, 5.0])
    assert first.json()["id"] == "7"
    assert (first.headers["hearth-start"], second.headers["hearth-start"]) == ("s3", "hot")
    assert "fetch" in first.headers["server-timing"]
    assert "compute" in second.headers["server-timing"]
    assert first.headers["hearth-version"] == "1"


def test_a_hundred_concurrent_first_requests_cause_one_get_per_file(pod: Server, s3: FakeS3) -> None:
    with concurrent.futures.ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(lambda _: pod.infer("onnx-5"), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["outputs"][0]["data"] == pytest.approx([7.0, 13.0, 19.0, 25.0]) for answer in answers)
    assert s3.gets(BUCKET, "models/onnx-5/1/model.onnx") == 1


@pytest.mark.parametrize("format_", ["torch", "onnx"])
def test_requests_that_ran_as_one_agree_with_the_model_run_alone(pod: Server, s3: FakeS3, format_: str) -> None:
    """rtol 1e-4, atol 1e-5: a batch's products are summed in another order."""
    mlp, name = Mlp(256, 7), f"{format_}-batched"
    files = mlp_pytorch(mlp) if format_ == "torch" else mlp_onnx(mlp)
    manifest = json.loads(files.get("hearth.json", b"{}")) | {"batching": {"max_batch_size": 16}}
    publish(s3, name, {**files, "hearth.json": json.dumps(manifest).encode()})
    draw = np.random.default_rng(1)
    asked = [draw.standard_normal((1 + number % 3, Mlp.width), dtype=np.float32) for number in range(300)]
    assert pod.infer(name, asked[0].tolist()).status_code == 200
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda x: pod.infer(name, x.tolist()), asked))
    for x, answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200, answer.text
        y = np.array(answer.json()["outputs"][0]["data"], dtype=np.float32).reshape(x.shape)
        np.testing.assert_allclose(y, mlp(x), rtol=1e-4, atol=1e-5)
    metrics = {family.name: family for family in text_string_to_metric_families(pod.admin.get("/metrics").text)}
    of = {s.name: s.value for s in metrics["hearth_batch_rows"].samples if s.labels == {"model": name}}
    assert of["hearth_batch_rows_sum"] == sum(len(x) for x in asked) + len(asked[0])
    assert of["hearth_batch_rows_count"] < len(asked), "some ran as one"


def test_an_unknown_model_is_404_and_says_so(pod: Server) -> None:
    answer = pod.infer("nobody")
    assert answer.status_code == 404
    assert "nobody" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "JSON"),
        (b"{}", 400, "inputs"),
        ({"inputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}, 422, "x"),
        ({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}, 422, "FP32"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}, 422, "4"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3]}]}, 400, "x"),
        ({"inputs": [{"name": "x", "datatype": "FP9", "shape": [1], "data": [1]}]}, 400, "FP9"),
    ],
)
def test_bad_input_gets_an_error_that_says_where(pod: Server, body: bytes | dict[str, Any], status: int, told: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = pod.http.post("/v2/models/torch-0/infer", content=content)
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
    assert pod.infer("torch-0").status_code == 200


def test_a_killed_worker_is_replaced_and_its_models_come_back_without_s3(pod: Server, s3: FakeS3) -> None:
    assert pod.infer("torch-1").status_code == 200
    fetched = s3.gets(BUCKET, "models/torch-1/1/model.safetensors")
    os.kill(pod.worker_pid(), signal.SIGKILL)
    answer = pod.infer("torch-1")
    assert answer.status_code == 200, answer.text
    assert answer.headers["hearth-start"] == "ram"
    assert s3.gets(BUCKET, "models/torch-1/1/model.safetensors") == fetched


def test_weights_are_mapped_read_only_by_the_worker_and_the_front_never_loads_torch(pod: Server) -> None:
    assert pod.infer("torch-2").status_code == 200
    front = Path(f"/proc/{pod.process.pid}/maps").read_text()
    worker = Path(f"/proc/{pod.worker_pid()}/maps").read_text()
    arenas = [line.split()[1] for line in worker.splitlines() if "memfd:hearth:weights" in line]
    assert arenas
    assert set(arenas) == {"r--s"}
    assert "libtorch" in worker
    assert "libtorch" not in front
    assert "numpy" not in front


def test_the_admin_port_tells_residency_and_metrics(pod: Server) -> None:
    assert pod.infer("onnx-1").status_code == 200
    model = next(model for model in pod.residency()["models"] if model["name"] == "onnx-1")
    assert {copy["tier"] for copy in model["copies"]} == {"ram", "device"}
    metrics = pod.admin.get("/metrics").text
    assert 'hearth_requests_total{code="200",model="onnx-1",version="1"}' in metrics
    assert pod.http.get("/metrics").status_code == 404, "metrics stay on the admin port"


def test_models_can_be_loaded_and_unloaded_by_order(pod: Server) -> None:
    assert pod.admin.post("/hearth/v1/preload", json={"models": ["torch-3", "nobody"]}).json() == {
        "accepted": ["torch-3"],
        "unknown": ["nobody"],
    }
    _until(lambda: pod.infer("torch-3").headers["hearth-start"] == "hot")
    assert pod.admin.post("/hearth/v1/unload", json={"models": ["torch-3"]}).json() == {"unloaded": ["torch-3"]}
    assert pod.http.get("/v2/models/torch-3/ready").status_code == 400, "unloaded by order"
    assert pod.infer("torch-3").headers["hearth-start"] == "s3"
    assert pod.http.get("/v2/models/torch-3/ready").status_code == 200


def test_why_tells_what_happened_to_a_model_and_loads_nothing(pod: Server) -> None:
    pod.infer("onnx-2")
    pod.admin.post("/hearth/v1/unload", json={"models": ["onnx-2"]})
    address = f"http://127.0.0.1:{pod.admin_port}"
    told = subprocess.run(
        [sys.executable, "-m", "predictor.boot", "why", "onnx-2", "--address", address],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.splitlines()
    assert [line[25:].split(" in ")[0] for line in told] == [
        "version 1 came into ram",
        "version 1 came into device 0",
        "version 1 left device 0: somebody unloaded it",
        "version 1 left ram: somebody unloaded it",
    ]
    assert pod.admin.get("/hearth/v1/why/onnx-3").json() == {"model": "onnx-3", "events": []}
    assert pod.admin.get("/hearth/v1/why/nobody").status_code == 404
    assert all(model["name"] != "onnx-3" for model in pod.residency()["models"])


def test_overwritten_contents_are_served_after_the_next_look_at_the_bucket(s3: FakeS3) -> None:
    publish(s3, "changing", affine_onnx(scale=2.0))
    server = Server(s3, refresh_s="0.2")
    try:
        assert server.infer("changing").json()["outputs"][0]["data"][0] == 3.0
        publish(s3, "changing", affine_onnx(scale=5.0))
        _until(lambda: server.infer("changing").json()["outputs"][0]["data"][0] == 6.0)
    finally:
        assert server.stop()[0] == 0


def test_under_a_small_budget_every_model_answers_and_the_books_stay_within_it(s3: FakeS3) -> None:
    names = [f"{format_}-{number}" for format_ in ("torch", "onnx") for number in range(4)]
    server = Server(s3, cpu_copy="true", ram_budget_bytes="40960", device_budget_bytes="300000")
    try:
        for name in [*names, *reversed(names), *names]:
            answer = server.infer(name)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"][0] == int(name[-1]) + 2.0
            for tier in server.residency()["tiers"]:
                assert tier["reserved_bytes"] <= tier["budget_bytes"]
        assert server.residency()["drops"] > len(names)
    finally:
        assert server.stop()[0] == 0


def test_a_preload_is_asked_for_before_torch_is_imported_and_saves_the_first_request_its_load(s3: FakeS3) -> None:
    server = Server(s3, preload="torch-4,nobody,onnx-4")
    try:
        _until(lambda: {model["name"] for model in server.residency()["models"]} == {"torch-4", "onnx-4"})
        _until(lambda: all(model["loads"] == 1 for model in server.residency()["models"]))
        assert server.infer("torch-4").headers["hearth-start"] == "hot"
        stages = server.admin.get("/hearth/v1/timeline").json()["stages"]
        assert stages["listening"] < stages["asked"] < stages["imported"] < stages["built"] < stages["answered"]
    finally:
        status, logged = server.stop()
    assert status == 0
    assert "pre-load of nobody" in logged
    assert logged.count("cold start: listening=") == 1


def test_s3_that_is_away_is_503_and_leaves_nothing_half_made(s3: FakeS3) -> None:
    publish(s3, "late", affine_onnx(scale=1.0))
    server = Server(s3, fetch_retries="0")
    try:
        s3.fail(status=500, times=None)
        answer = server.infer("late")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        s3.heal()
        s3.fail(status=403, times=None)
        assert server.infer("late").status_code == 502
        s3.heal()
        assert server.infer("late").status_code == 200
        assert all(tier["reserved_bytes"] == tier["ready_bytes"] for tier in server.residency()["tiers"])
    finally:
        s3.heal()
        assert server.stop()[0] == 0


def test_contents_overwritten_while_they_are_fetched_are_listed_and_fetched_anew(pod: Server, s3: FakeS3) -> None:
    publish(s3, "swapped", affine_onnx(scale=2.0))
    s3.swap(BUCKET, "models/swapped/1/model.onnx", affine_onnx(scale=9.0)["model.onnx"])
    answer = pod.infer("swapped")
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"][0] == 10.0


def test_a_killed_front_takes_its_worker_with_it(s3: FakeS3) -> None:
    server = Server(s3)
    assert server.infer("onnx-0").status_code == 200
    worker = Path(f"/proc/{server.worker_pid()}")
    server.process.kill()
    server.stop()
    _until(lambda: not worker.exists())


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_in_words(s3: FakeS3) -> None:
    server = Server(s3, device="cuda")
    _, logged = server.process.communicate(timeout=20)
    assert server.process.returncode == 2
    assert "the memory of GPU 0 cannot be told" in logged
    assert "set HEARTH_DEVICE_BUDGET_BYTES" in logged


def test_models_with_code_need_the_operators_consent(s3: FakeS3) -> None:
    server = Server(s3, trust="data")
    try:
        answer = server.infer("torch-0")
        assert answer.status_code == 422
        assert "HEARTH_TRUST" in answer.json()["error"]
        assert server.infer("onnx-0").status_code == 200
    finally:
        assert server.stop()[0] == 0


def test_sigterm_lets_the_running_request_finish(s3: FakeS3) -> None:
    publish(s3, "slow", affine_pytorch(scale=1.0, sleep_s=1.5))
    server = Server(s3)
    try:
        assert server.infer("slow").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            running = thread.submit(server.infer, "slow")
            _until(lambda: server.residency()["in_flight"] == 1)
            server.process.terminate()
            assert running.result(timeout=20).status_code == 200
        assert server.process.wait(timeout=20) == 0
    finally:
        server.stop()


def test_wrong_settings_end_with_a_sentence_each(s3: FakeS3) -> None:
    server = Server(s3, models="gs://elsewhere", ram_budget_bytes="-1")
    _, logged = server.process.communicate(timeout=20)
    assert server.process.returncode == 2
    assert "--models (HEARTH_MODELS)" in logged
    assert "--ram-budget-bytes (HEARTH_RAM_BUDGET_BYTES)" in logged
    assert "Traceback" not in logged


def test_aws_settings_that_make_no_sense_are_told(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "environment", lambda: {"AWS_ENDPOINT_URL": "ftp://nowhere"})
    process = Server(s3).process
    _, logged = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "AWS_ENDPOINT_URL must be http://HOST or https://HOST" in logged
    assert "Traceback" not in logged


def test_a_taken_port_is_named(s3: FakeS3) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(s3, port=str(taken.getsockname()[1]))
        _, logged = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert "HEARTH_PORT" in logged


def _until(holds: Any, timeout_s: float = 30.0) -> None:
    """Poll until ``holds()``; what is waited for happens in another process, so there is nothing to await."""
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, "not within the time allowed"
        time.sleep(0.05)
