"""Models that end their worker, in a whole pod, beside healthy ones under load: who fails, who is blamed, who comes back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import pytest

from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_pytorch
from tests.predictor.test_pod import Server, _until, publish

ISOLATIONS = ("pool", "tenant", "model")
HEALTHY = ("h0", "h1", "h2")
BAD = [[666.0, 0.0, 0.0, 0.0]]

TEMPERS = {
    "abort": "os.abort()",
    "segfault": "ctypes.string_at(0)",
    "exit": "os._exit(3)",
    "sleep": "time.sleep(1000)",
}
"""What a model does when it is asked with BAD; the cores that it would leave are turned off in its builder."""

CODE = """
import ctypes, os, resource, time
import torch
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(4))

    def forward(self, x):
        if x[0, 0] == 666:
            TEMPER
        return x * self.scale + 1

def build(config):
    BUILD
    return Evil()
"""


def files(name: str, *, temper: str = "pass", build: str = "pass", **more: object) -> dict[str, bytes]:
    """``y = 2 x + 1``, until it is asked with BAD. Its tenant is its name's first letter."""
    made = affine_pytorch(scale=2.0)
    manifest = json.loads(made["hearth.json"]) | {"tenant": name[0], **more}
    code = CODE.replace("TEMPER", temper).replace("BUILD", build)
    return {**made, "model.py": code.encode(), "hearth.json": json.dumps(manifest).encode()}


def descendants(pid: int) -> set[int]:
    """Processes below ``pid``."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child)} | descendants(int(child))
    return found


class Load:
    """Healthy models asked steadily, one client each. ``wrong``: every answer that was not right."""

    def __init__(self, server: Server, names: tuple[str, ...] = HEALTHY) -> None:
        self.wrong: list[str] = []
        self.answered = 0
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server.port, name)) for name in names]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, port: int, name: str) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while not self._ends.wait(0.02):
                answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
                self.answered += 1
                if answer.status_code != 200 or answer.json()["outputs"][0]["data"] != [3.0, 5.0, 7.0, 9.0]:
                    self.wrong.append(f"{name}: {answer.status_code} {answer.text}")


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        for name in HEALTHY:
            publish(fake, name, files(name))
        for name, temper in TEMPERS.items():
            publish(fake, f"e-{name}", files("e", temper=temper))
        publish(fake, "e-build", files("e", build="os.abort()"))
        publish(fake, "e-twice", files("e", temper="os.abort()", idempotent=True))
        yield fake


@contextlib.contextmanager
def serving(s3: FakeS3, isolation: str, **settings: str | Path) -> Iterator[Server]:
    """A pod; no process of it is left when it has ended."""
    server = Server(s3, isolation=isolation, execute_timeout_s="2", **settings)
    seen: set[int] = set()
    try:
        yield server
        seen = descendants(server.process.pid)
    finally:
        status, logged = server.stop()
    assert status == 0, logged
    assert "Traceback" not in logged, logged
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in seen))


def model(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next((one for one in server.residency()["models"] if one["name"] == name), {})
    return found


def settled(server: Server) -> None:
    """Wait until every healthy model is on the device again: a request is sent to no third worker, if two die at once."""
    _until(
        lambda: all(
            any(copy["tier"] == "device" and copy["state"] == "ready" for copy in model(server, name)["copies"])
            for name in HEALTHY
        )
    )


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_whatever_ends_its_worker_costs_the_healthy_models_no_request(s3: FakeS3, isolation: str) -> None:
    with serving(s3, isolation) as server:
        for name in HEALTHY:
            assert server.infer(name).status_code == 200
        fetched = {name: s3.gets("bucket", f"models/{name}/1/model.safetensors") for name in HEALTHY}
        with Load(server) as load:
            for name, cause in (("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("exit", "exit status 3")):
                assert server.infer(f"e-{name}").status_code == 200
                answer = server.infer(f"e-{name}", BAD)
                assert answer.status_code == 502, answer.text
                assert f"model e-{name}:1 ended its worker" in answer.json()["error"]
                assert cause in answer.json()["error"]
                settled(server)
            assert server.infer("e-sleep").status_code == 200
            answer = server.infer("e-sleep", BAD)
            assert answer.status_code == 502, answer.text
            assert "HEARTH_EXECUTE_TIMEOUT_S" in answer.json()["error"]
            settled(server)
            answer = server.infer("e-build")
            assert answer.status_code == 502, answer.text
            assert "while it was being loaded" in answer.json()["error"]
            settled(server)
        assert load.wrong == []
        assert load.answered > 20
        assert {name: s3.gets("bucket", f"models/{name}/1/model.safetensors") for name in HEALTHY} == fetched
        assert {one["name"] for one in server.residency()["models"] if one["quarantine"]} >= {"e-abort", "e-segfault"}
        metrics = server.admin.get("/metrics").text
        assert 'hearth_model_deaths_total{cause="SIGSEGV",model="e-segfault"} 1.0' in metrics
        assert 'hearth_model_deaths_total{cause="execute timeout",model="e-sleep"} 1.0' in metrics


def test_in_a_pool_the_second_death_of_a_model_happens_in_a_worker_of_its_own(s3: FakeS3) -> None:
    with serving(s3, "pool") as server:
        assert [server.infer(name).status_code for name in ("h0", "e-abort")] == [200, 200]
        assert server.infer("e-abort", BAD).status_code == 502
        paused = server.infer("e-abort")
        assert (paused.status_code, paused.headers["retry-after"]) == (503, "1")
        assert "SIGABRT" in paused.json()["error"]
        told = model(server, "e-abort")
        assert "in quarantine: it ended a worker (killed by SIGABRT)" in told["quarantine"]
        assert server.infer("h0").status_code == 200
        _until(lambda: server.infer("e-abort").status_code == 200)
        workers = descendants(server.process.pid)
        assert server.infer("e-abort", [*BAD[:], [1.0, 2.0, 3.0, 4.0]]).status_code == 502
        assert server.infer("h0").headers["hearth-start"] == "hot"
        assert len(workers - descendants(server.process.pid)) == 1
        assert "ended 2 workers" in model(server, "e-abort")["quarantine"]
        events = server.admin.get("/hearth/v1/why/e-abort").json()["events"]
        assert [event["what"] for event in events].count("died") == 2
        assert server.admin.post("/hearth/v1/clear", json={"models": ["e-abort"]}).json() == {"cleared": ["e-abort"]}
        assert server.infer("e-abort").status_code == 200


def test_a_build_that_hangs_holds_up_nobody_in_another_worker_and_workers_make_way_for_each_other(s3: FakeS3) -> None:
    publish(s3, "e-hangs", files("e", build="__import__('time').sleep(1000)"))
    with serving(s3, "model", max_workers="2") as server, concurrent.futures.ThreadPoolExecutor(1) as thread:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
        hung = thread.submit(
            server.http.post,
            "/v2/models/e-hangs/infer",
            json={"inputs": [tensor]},
            headers={"Hearth-Deadline-Ms": "10000"},
        )
        _until(lambda: bool(model(server, "e-hangs")))
        for name in ("h0", "h1", "h0"):
            assert server.infer(name).status_code == 200
        assert not hung.done()
        causes = [event.get("cause") for event in server.admin.get("/hearth/v1/why/h0").json()["events"]]
        assert "worker" in causes
        assert hung.result().status_code == 504


def test_a_poisoned_request_is_refused_after_two_workers_and_an_idempotent_one_is_tried_again_by_itself(s3: FakeS3) -> None:
    with serving(s3, "pool", quarantine_backoff_s="0") as server:
        assert server.infer("e-twice", BAD).status_code == 502, "begun, begun again, and no third time"
        refused = server.infer("e-twice", BAD)
        assert refused.status_code == 422, refused.text
        assert "HEARTH_POISON_TTL_S" in refused.json()["error"]
        assert server.infer("e-twice").status_code == 200
        metrics = server.admin.get("/metrics").text
        assert 'hearth_model_deaths_total{cause="SIGABRT",model="e-twice"} 2.0' in metrics


def test_what_everybody_asks_is_not_refused_for_a_batch_that_it_died_in(s3: FakeS3) -> None:
    made = files("e", temper="pass", max_batch_size=16)
    code = made["model.py"].replace(
        b"if x[0, 0] == 666:", b"time.sleep(x[0, 1].item())\n        if (x[:, 0] == 666).any(): os.abort()\n        if 0:"
    )
    publish(s3, "e-batch", {**made, "model.py": code})
    with serving(s3, "pool", quarantine_backoff_s="0") as server, concurrent.futures.ThreadPoolExecutor(9) as threads:
        common = [[1.0, 0.0, 0.0, 0.0]]
        assert server.infer("e-batch", common).status_code == 200
        first = threads.submit(server.infer, "e-batch", [[1.0, 0.7, 0.0, 0.0]])
        _until(lambda: server.residency()["in_flight"] == 1)
        rest = [threads.submit(server.infer, "e-batch", rows) for rows in (*[common] * 7, BAD)]
        assert first.result().status_code == 200
        answers = [one.result() for one in rest]
        assert {answer.status_code for answer in answers} == {502}, [answer.text for answer in answers]
        assert server.infer("e-batch", common).status_code == 200
        assert server.infer("e-batch", BAD).status_code == 502
        assert server.infer("e-batch", BAD).status_code == 422
        assert server.admin.post("/hearth/v1/clear", json={"models": ["e-batch"]}).json() == {"cleared": ["e-batch"]}


@pytest.mark.parametrize("isolation", ["tenant", "model"])
def test_a_worker_has_the_weights_and_requests_of_its_own_models_only(s3: FakeS3, isolation: str) -> None:
    rows = [[float(number), 1.0, 2.0, 3.0] for number in range(8192)]
    with serving(s3, isolation) as server:
        for name in (*HEALTHY, "e-abort"):
            answer = server.infer(name, rows)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"][-4:] == [2 * 8191.0 + 1, 3.0, 5.0, 7.0]
        maps: dict[int, str] = {}
        for pid in server.children("hearth-worker"):
            maps[pid] = Path(f"/proc/{pid}/maps").read_text()
        arenas = [text.count("memfd:hearth:arena") for text in maps.values() if "memfd:hearth:arena" in text]
        assert sorted(arenas) == ([1, 3] if isolation == "tenant" else [1, 1, 1, 1])
        assert not any("memfd:hearth:weights" in text for text in maps.values())
        passages = {pid: _passages(pid) for pid in maps}
        seen: set[int] = set()
        for own in passages.values():
            assert not own & seen, "no two workers have one in common"
            seen |= own
        assert len(seen) == len(maps)
        assert seen < _passages(server.process.pid), "and none has the one that the front receives in"


def _passages(pid: int) -> set[int]:
    """Inodes of the passages for requests that a process has open."""
    found: set[int] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:hearth:requests" in str(link.readlink()):
                found.add(link.stat().st_ino)
    return found


DEATHS = int(os.environ.get("SOAK_DEATHS", "50"))
WARM = 3
"""Deaths before the first look: what is set up once is no leak."""


class Holdings(NamedTuple):
    """What a front holds. ``shared``: mappings of shared memory, its own and answers'; ``private_bytes``: memory of its own."""

    descriptors: int
    processes: int
    shared: int
    private_bytes: int

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            len(descendants(pid)),
            Path(f"/proc/{pid}/maps").read_text().count("memfd:hearth"),
            int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) << 10,
        )


@pytest.mark.timeout(120 + 10 * DEATHS)
@pytest.mark.parametrize("isolation", ["pool", "model"])
def test_deaths_in_a_row_leave_nothing_behind(s3: FakeS3, tmp_path: Path, isolation: str) -> None:
    """SOAK_DEATHS deaths in all: `make soak` has 1,000."""
    names = [f"e-{name}" for name in TEMPERS if name != "sleep"]
    large = [[1.0, 2.0, 3.0, 4.0]] * 4096
    # Into a file: 400 deaths are more lines than a pipe holds that nobody reads, and then a front stands still.
    with serving(s3, isolation, log=tmp_path / "log", quarantine_backoff_s="0") as server:
        assert server.infer("h0").status_code == 200
        held: list[Holdings] = []
        for number in range(WARM + -(-DEATHS // 2)):
            name = names[number % len(names)]
            assert server.infer(name, large).status_code == 200
            answer = server.infer(name, [[666.0, float(number), 0.0, 0.0], *large])  # another request each time: no poison
            assert answer.status_code == 502, answer.text
            assert server.infer("h0").status_code == 200
            held.append(Holdings.of(server.process.pid))
        for name in names:
            assert server.infer(name).status_code == 200
        metrics = server.admin.get("/metrics").text
        assert f'hearth_worker_deaths_total{{device="0"}} {len(held)}.0' in metrics
        least, last = held[WARM - 1], held[-1]
        print(f"{isolation}: {len(held)} deaths: " + " ".join(str(tuple(one)) for one in held))  # noqa: T201 (make soak shows it)
        assert last.descriptors <= max(one.descriptors for one in held[:WARM]) + 2 * len(names) * 8
        assert last.processes <= 1 + len(names) + 1 + 1, "the healthy one's, the evil ones', one that is ending, and the zygote"
        assert last.shared <= max(one.shared for one in held[:WARM]) + 2 * len(names) * 8
        growth = last.private_bytes - least.private_bytes
        assert growth < (8 << 20) + (16 << 10) * len(held), f"{growth} bytes more after {len(held)} deaths"
