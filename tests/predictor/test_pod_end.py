"""How a whole pod ends: asked to, while work of every kind is under way, and killed; and what its successor finds."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.isolation.evil import EVILS, POKE, evil_files
from predictor import heat
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import Mlp, affine_onnx, affine_pytorch, mlp_pytorch
from tests.predictor.test_pod import BUCKET, Server, _until, publish

MIB = 1 << 20


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        publish(fake, "quick", affine_pytorch(scale=1.0))
        publish(fake, "other", affine_onnx(scale=2.0))
        publish(fake, "slow", affine_pytorch(scale=1.0, sleep_s=1.0))
        publish(fake, "late", affine_pytorch(scale=3.0))
        for name in ("sleep", "fork", "ignore-sigterm"):
            publish(fake, name, evil_files(EVILS[name]))
        yield fake


def family(pid: int) -> set[int]:
    """The process and its descendants."""
    found = {pid}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= family(int(child))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_sigterm_finishes_what_runs_and_refuses_what_waits(s3: FakeS3) -> None:
    server = Server(s3)
    try:
        assert server.infer("slow").status_code == 200
        s3.stall("models/late/1/model.safetensors", times=None)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            running, waiting = threads.submit(server.infer, "slow"), threads.submit(server.infer, "late")
            _until(lambda: server.residency()["in_flight"] == 2 and server.residency()["waiting"] == 1)
            begin_s = time.monotonic()
            server.process.terminate()
            refused = waiting.result(20)
            assert time.monotonic() - begin_s < 0.8, "it waited for the request that runs"
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "drains" in refused.json()["error"]
            ready = server.admin.get("/readyz")
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            assert running.result(20).status_code == 200
    finally:
        s3.heal()
        status, logged = server.stop()
    assert status == 0, logged


@pytest.mark.parametrize("name", ["sleep", "ignore-sigterm"])
def test_a_model_that_hangs_does_not_outlast_the_grace_period(s3: FakeS3, name: str) -> None:
    server = Server(s3, drain_timeout_s="0.5")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert server.infer(name).status_code == 200
        hanging = thread.submit(server.infer, name, [[POKE] * 4])
        _until(lambda: server.residency()["in_flight"] == 1)
        members = family(server.process.pid)
        begin_s = time.monotonic()
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert time.monotonic() - begin_s < 6
        with pytest.raises(Exception):  # noqa: B017, PT011 (its connection was cut, in one of several ways)
            hanging.result(5)
    server.stop()
    _until(lambda: not any(map(alive, members)))


def test_what_was_asked_is_written_when_the_pod_is_asked_to_end_and_not_when_it_has_drained(s3: FakeS3) -> None:
    server = Server(s3, state=f"s3://{BUCKET}/state", pool="red", pod="pod-1", drain_timeout_s="60")
    written = "state/red/heat/pod-1.json"
    try:
        assert (server.infer("quick").status_code, server.infer("sleep").status_code) == (200, 200)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            hanging = threads.submit(server.infer, "sleep", [[POKE] * 4])
            _until(lambda: server.residency()["in_flight"] == 1)
            server.process.terminate()
            _until(lambda: written in (s3.objects(BUCKET) or {}))
            assert server.process.poll() is None, "it drains yet, and a grace period may be over before that"
            server.process.kill()
            with pytest.raises(httpx.TransportError):
                hanging.result()
        told = heat.decode((s3.objects(BUCKET) or {})[written].data, heat.Heat)
        assert (told.final, {one.name for one in told.models}) == (True, {"quick", "sleep"})
    finally:
        server.process.kill()
        server.process.communicate(timeout=20)


def test_a_front_that_is_killed_takes_its_workers_and_what_they_forked_with_it(s3: FakeS3) -> None:
    publish(s3, "twin", evil_files(EVILS["twin"]))
    server = Server(s3, isolation="model")
    for name in ("quick", "other", "twin"):
        assert server.infer(name).status_code == 200
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(server.infer, "sleep", [[POKE] * 4])
        _until(lambda: server.residency()["in_flight"] == 1)
        members = family(server.process.pid)
        assert len(members) >= 5
        server.process.kill()
        begin_s = time.monotonic()
        while any(map(alive, members)):
            assert time.monotonic() - begin_s < 2.0, [pid for pid in members if alive(pid)]
            time.sleep(0.01)
        with pytest.raises(Exception):  # noqa: B017, PT011 (as above)
            hanging.result(5)
    server.process.communicate()


def test_after_a_crash_the_models_on_disk_are_served_while_s3_is_away(s3: FakeS3, tmp_path: Path) -> None:
    settings = {"disk_path": str(tmp_path / "cache"), "disk_budget_bytes": str(64 * MIB)}
    server = Server(s3, **settings)
    for name in ("quick", "other"):
        assert server.infer(name).status_code == 200
    _until(lambda: all("disk" in str(model["copies"]) for model in server.residency()["models"]))
    server.process.kill()
    server.process.communicate()
    gets = s3.gets(BUCKET, "models/quick/1/model.safetensors"), s3.gets(BUCKET, "models/other/1/model.onnx")
    server = Server(s3, **settings)
    try:
        for name, first in (("quick", 2.0), ("other", 3.0)):
            answer = server.infer(name)
            assert (answer.headers["hearth-start"], answer.json()["outputs"][0]["data"][0]) == ("disk", first)
    finally:
        status, logged = server.stop()
    assert status == 0, logged
    assert gets == (s3.gets(BUCKET, "models/quick/1/model.safetensors"), s3.gets(BUCKET, "models/other/1/model.onnx"))


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_a_model_that_was_half_on_disk_is_whole_or_not_there(s3: FakeS3, tmp_path: Path, way: signal.Signals) -> None:
    mlp = Mlp(32 << 10, 7)  # 16 MiB: ended at whatever moment of its writing
    publish(s3, "large", mlp_pytorch(mlp))
    settings = {"disk_path": str(tmp_path / "cache"), "disk_budget_bytes": str(256 * MIB)}
    rows = [[float(number % 5) for number in range(Mlp.width)]]
    server = Server(s3, **settings)
    right = server.infer("large", rows)
    assert right.status_code == 200
    server.process.send_signal(way)
    _, logged = server.process.communicate(timeout=20)
    assert way == signal.SIGKILL or server.process.returncode == 0, logged
    server = Server(s3, **settings)
    try:
        again = server.infer("large", rows)
        assert again.headers["hearth-start"] in {"disk", "s3"}
        assert again.json()["outputs"] == right.json()["outputs"]
    finally:
        assert server.stop()[0] == 0


def test_a_pod_that_runs_out_of_descriptors_serves_on_and_does_not_spin(s3: FakeS3) -> None:
    """Beyond its limit the kernel refuses to accept; a loop that asks again at once would burn a core."""
    server = Server(s3)
    clients = []
    try:
        assert server.infer("quick").status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (230, 230))
        for _ in range(300):
            client = socket.create_connection(("127.0.0.1", server.port))
            clients.append(client)
        time.sleep(0.5)
        begin = _cpu_s(server.process.pid)
        time.sleep(1.0)
        assert _cpu_s(server.process.pid) - begin < 0.5
        for client in clients:
            client.close()
        server.http.close()
        _until(lambda: _answers(server))
    finally:
        for client in clients:
            client.close()
        status, logged = server.stop()
    assert status == 0, logged


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.settimeout(5)
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.1 200")
    return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
