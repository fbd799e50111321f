"""The pod as a whole: memory that runs out ends one worker and not the container, and what is hopeless says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.isolation.evil import EVILS, POKE, Evil, evil_files
from predictor import health
from tests.fakes.pod import ServedPod
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_pytorch
from tests.predictor.test_memory_watch import cgroup1, cgroup2
from tests.predictor.test_pod import Server, _until, publish

GIB = 1 << 30


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        publish(fake, "hoard", evil_files(Evil("hoard", "keeps what it takes", "hoard")))
        publish(fake, "fill", evil_files(EVILS["fill"]))
        publish(fake, "healthy", affine_pytorch(scale=2.0))
        yield fake


async def test_a_watch_that_fails_once_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(health, "AGAIN_S", 0.0)
    looks: list[int] = []

    async def watch() -> None:
        looks.append(1)
        if len(looks) < 3:
            raise ZeroDivisionError

    await health.go_on("memory", watch)
    assert len(looks) == 3
    assert caplog.text.count("the watch over memory failed, and goes on") == 2


@pytest.mark.parametrize("version", [1, 2])
def test_memory_that_runs_out_ends_the_worker_that_has_most_of_it(s3: FakeS3, tmp_path: Path, version: int) -> None:
    write = cgroup1 if version == 1 else cgroup2
    write(tmp_path, GIB)
    limit = "memory.max" if version == 2 else "memory/memory.limit_in_bytes"
    (tmp_path / "sys/fs/cgroup" / limit).write_text(str(4 * GIB))
    server = Server(s3, isolation="model", system_root=str(tmp_path), quarantine_backoff_s="60")
    try:
        assert server.infer("healthy").status_code == 200
        for _ in range(6):
            assert server.infer("hoard", [[POKE] * 4]).status_code == 200
        write(tmp_path, 5 * GIB, cache=4 * GIB)  # page cache is no reason
        _until(lambda: "hearth_working_set_bytes 1.073741824e+09" in server.admin.get("/metrics").text)
        assert server.infer("hoard").status_code == 200
        write(tmp_path, 4 * GIB)
        _until(lambda: "hearth_memory_ends_total 1.0" in server.admin.get("/metrics").text)
        write(tmp_path, GIB)
        refused = server.infer("hoard")
        assert refused.status_code == 503
        assert "out of memory: 4.3 GB of 4.3 GB are in use" in refused.json()["error"]
        assert 'hearth_model_deaths_total{cause="out of memory",model="hoard"} 1.0' in server.admin.get("/metrics").text
        assert server.infer("healthy").json()["outputs"][0]["data"] == [3.0, 5.0, 7.0, 9.0]
    finally:
        status, logged = server.stop()
    assert status == 0, logged
    assert "memory is short: 4.3 GB of 4.3 GB are in use; worker model:hoard:1@" in logged


def test_a_model_that_fills_its_folder_loses_its_worker_and_its_folder(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Server(s3, isolation="model", scratch_bytes=str(4 << 20), quarantine_backoff_s="60")
    try:
        assert server.infer("healthy").status_code == 200
        died = server.infer("fill", [[POKE] * 4])
        assert died.status_code == 502, died.text
        told = died.json()["error"]
        assert "scratch full: its folder holds" in told
        assert "of 4.2 MB (HEARTH_SCRATCH_BYTES); in it: fill:1" in told
        refused = server.infer("fill")
        assert refused.status_code == 503
        assert "scratch full" in refused.json()["error"]
        metrics = server.admin.get("/metrics").text
        assert "hearth_scratch_ends_total 1.0" in metrics
        assert 'hearth_model_deaths_total{cause="scratch full",model="fill"} 1.0' in metrics
        _until(lambda: not list(tmp_path.rglob("evil-*")), 20)
        assert server.infer("healthy").json()["outputs"][0]["data"] == [3.0, 5.0, 7.0, 9.0]
    finally:
        status, logged = server.stop()
    assert status == 0, logged
    assert not list(tmp_path.iterdir()), "the front's own folder is left"


def test_a_file_beyond_the_share_cannot_be_written(s3: FakeS3) -> None:
    server = Server(s3, scratch_bytes=str(64 << 10))
    try:
        failed = server.infer("fill", [[POKE] * 4])
        assert failed.status_code >= 500
        assert "File too large" in failed.json()["error"]
        assert server.infer("fill").status_code == 200
    finally:
        status, logged = server.stop()
    assert status == 0, logged


def test_where_memory_is_scarce_cold_models_are_built_one_after_the_other(s3: FakeS3, tmp_path: Path) -> None:
    cgroup2(tmp_path, int(0.95 * 4 * GIB) - (1 << 20))
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(str(4 * GIB))
    names = [f"cold-{number}" for number in range(5)]
    for name in names:
        publish(s3, name, affine_pytorch(scale=2.0))
    server = Server(s3, isolation="model", system_root=str(tmp_path))
    try:
        with ThreadPoolExecutor(len(names)) as threads:
            answers = list(threads.map(server.infer, names))
        assert [answer.status_code for answer in answers] == [200] * len(names), [answer.text for answer in answers]
        metrics = server.admin.get("/metrics").text
        assert "hearth_builds_waiting 0.0" in metrics
        assert "hearth_memory_ends_total 0.0" in metrics
    finally:
        status, logged = server.stop()
    assert status == 0, logged


@pytest.mark.parametrize(("write", "limit"), [(cgroup1, "memory/memory.limit_in_bytes"), (cgroup2, "memory.max")])
def test_a_worker_that_the_kernel_killed_for_memory_is_told_as_that(
    s3: FakeS3, tmp_path: Path, write: Callable[..., None], limit: str
) -> None:
    write(tmp_path, GIB, kills=3)
    (tmp_path / "sys/fs/cgroup" / limit).write_text(str(4 * GIB))
    server = Server(s3, isolation="model", system_root=str(tmp_path), quarantine_backoff_s="60")
    try:
        for name in ("healthy", "hoard"):
            assert server.infer(name).status_code == 200
        (hoard,) = server.children("hearth-worker model:hoard")
        write(tmp_path, GIB, kills=4)
        os.kill(hoard, signal.SIGKILL)
        _until(lambda: "hearth_worker_deaths_total" in server.admin.get("/metrics").text)
        refused = server.infer("hoard")
        assert refused.status_code == 503
        assert "killed by the kernel: out of memory" in refused.json()["error"]
        counted = 'hearth_model_deaths_total{cause="out of memory (kernel)",model="hoard"} 1.0'
        assert counted in server.admin.get("/metrics").text
        (healthy,) = server.children("hearth-worker pool")  # the first one, forked before anybody knew whose it would be
        os.kill(healthy, signal.SIGKILL)  # by somebody else
        _until(lambda: 'hearth_worker_deaths_total{device="0"} 2.0' in server.admin.get("/metrics").text)
        assert server.infer("healthy").status_code == 200
    finally:
        status, logged = server.stop()
    assert status == 0, logged
    assert "ended: killed by SIGKILL" in logged


def test_a_pod_that_is_hopeless_is_not_live_and_says_why() -> None:
    with ServedPod() as served:
        assert httpx.get(f"{served.url}/livez").json() == {"live": True}
        served.pod.hopeless = lambda: "for 2 min already: the worker of device 0 did not start"
        for url in (served.url, served.admin_url):
            answer = httpx.get(f"{url}/livez")
            assert (answer.status_code, answer.json()["live"]) == (503, False)
            assert "did not start" in answer.json()["error"]
        assert "did not start" in httpx.get(f"{served.url}/readyz?verbose").json()["live"]


def test_workers_that_never_start_make_a_pod_unready_and_in_the_end_not_live(s3: FakeS3, tmp_path: Path) -> None:
    """Told that it computes on a GPU where there is none, every worker ends before its Hello."""
    log = tmp_path / "log"  # supervision looks once a second, probes ask at any time
    server = Server(s3, device="cuda", device_budget_bytes=str(GIB), sick_timeout_s="3", log=log)
    try:
        _until(lambda: server.http.get("/readyz").status_code == 503, 60)
        told = server.http.get("/readyz?verbose").json()
        assert "did not start 3 times in a row" in told["error"]
        _until(lambda: server.http.get("/livez").status_code == 503, 30)
        assert 'hearth_device_failed{device="0"} 1.0' in server.admin.get("/metrics").text
        _until(lambda: "this pod is not live: for " in log.read_text())
    finally:
        status, logged = server.stop()
    assert status == 0
    assert logged.count("this pod is not ready: the worker of device 0 did not start") == 1
    assert logged.count("this pod is not live: for ") == 1
