"""Many more models than the device holds, under load: every answer right, the books never exceeded, and true.

Short in every run of the tests, with 20,000 requests in ``make soak`` (SOAK_REQUESTS).
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import Mlp, mlp_onnx, mlp_pytorch
from tests.predictor.test_pod import BUCKET, Server

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "1500"))
MODELS = 200
CLIENTS = 4
ON_DEVICE, IN_RAM = 20, 60
HIDDEN = (2048, 4096, 6144)
"""1, 2 and 3 MiB of weights."""

SLACK_BYTES = 20 << 20
"""What a worker may hold beyond what is booked: four times the largest ONNX file while it is built, which the budget for the
process has (tiers/device.py, BUILDING_BYTES), and 8 MiB of freed blocks that lie between others in its heap."""


@dataclass(frozen=True)
class Known:
    """A model, and what it answers when it runs alone."""

    name: str
    size_bytes: int
    inputs: npt.NDArray[np.float32]
    outputs: npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[FakeS3, list[Known]]]:
    with FakeS3() as s3:
        s3.make_bucket(BUCKET)
        known: list[Known] = []
        for number in range(MODELS):
            mlp = Mlp(HIDDEN[number % len(HIDDEN)], seed=number)
            files = mlp_onnx(mlp) if number % 2 else mlp_pytorch(mlp)
            for path, data in files.items():
                s3.put(BUCKET, f"models/m{number:03}/1/{path}", data)
            inputs = np.random.default_rng(number).standard_normal((2, mlp.width), dtype=np.float32)
            known.append(Known(f"m{number:03}", sum(map(len, files.values())), inputs, mlp(inputs)))
        yield s3, known


@pytest.mark.timeout(120 + REQUESTS // 20)
def test_two_hundred_models_share_room_for_twenty(models: tuple[FakeS3, list[Known]]) -> None:
    s3, known = models
    mean_bytes = sum(model.size_bytes for model in known) // MODELS
    budgets = {"ram": IN_RAM * mean_bytes, "device": ON_DEVICE * mean_bytes}
    server = Server(
        s3,
        cpu_copy="1",
        ram_budget_bytes=str(budgets["ram"]),
        device_budget_bytes=str(budgets["device"]),
        hold_timeout_s="120",
    )
    try:
        for model in known[:2]:  # one of each format
            _ask(server.port, [model], 1, seed=0)
            assert server.admin.post("/hearth/v1/unload", json={"models": [model.name]}).status_code == 200
        watch = Watch(server)
        watching = threading.Thread(target=watch.run)
        watching.start()
        with ThreadPoolExecutor(CLIENTS) as clients:
            asked = [clients.submit(_ask, server.port, known, REQUESTS // CLIENTS, seed) for seed in range(CLIENTS)]
            starts = sum((future.result() for future in asked), Counter[str]())
        watch.stop.set()
        watching.join(30)
        assert sum(starts.values()) == REQUESTS // CLIENTS * CLIENTS
        assert starts["hot"], starts
        assert starts["s3"] > ON_DEVICE, starts
        assert not watch.errors, watch.errors[:3]
        assert watch.looks > 10
        print(f"\n{dict(starts)}; {watch.told()}")  # noqa: T201 (for whoever measures)
    finally:
        status, logged = server.stop()
    assert status == 0, logged[-2000:]
    assert "Traceback" not in logged


def _ask(port: int, known: list[Known], count: int, seed: int) -> Counter[str]:
    """Zipf-distributed requests, one after another; every answer is compared."""
    draw = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(known) + 1)]
    order = random.Random(99).sample(known, len(known))
    starts: Counter[str] = Counter()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    for model in draw.choices(order, weights, k=count):
        tensor = {"name": "x", "datatype": "FP32", "shape": list(model.inputs.shape), "data": model.inputs.ravel().tolist()}
        client.request("POST", f"/v2/models/{model.name}/infer", json.dumps({"inputs": [tensor]}))
        response = client.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        found = np.array(body["outputs"][0]["data"], np.float32).reshape(model.outputs.shape)
        np.testing.assert_allclose(found, model.outputs, rtol=1e-4, atol=1e-5, err_msg=model.name)
        starts[response.headers["Hearth-Start"]] += 1
    client.close()
    return starts


class Watch:
    """Looks at books and processes for as long as the load lasts.

    The method: what the worker holds of its own is the growth of its anonymous memory (RssAnon) since a moment when both
    runtimes were imported and no model was there (what they take is budgeted for the process, tiers/budgets.py). That is to
    be at most what the device is booked with, computations included, and the slack. What the RAM tier takes is the shared
    memory that the front has mapped (RssShmem), but for the page on which its worker says what it does; at most the RAM
    budget. Memory is read before the books, and the larger booking of the looks before and after counts: both change while we
    read.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stop = threading.Event()
        self.errors: list[str] = []
        self.looks = 0
        self.worst = 0
        self.booked = 0
        self.worker = server.worker_pid()
        self.before = memory(self.worker, "RssAnon")

    def run(self) -> None:
        last = 0
        while not self.stop.is_set():
            grown = memory(self.worker, "RssAnon") - self.before
            shared = memory(self.server.process.pid, "RssShmem") - mmap.PAGESIZE
            booked = last
            for tier in self.server.residency()["tiers"]:
                taken = tier["reserved_bytes"] + tier["headroom_bytes"]
                if tier["reserved_bytes"] > tier["budget_bytes"]:
                    self.errors.append(f"{tier['reserved_bytes']} bytes in {tier['tier']} of {tier['budget_bytes']}")
                if tier["tier"] == "device":
                    last = taken
                elif shared > tier["budget_bytes"]:
                    self.errors.append(f"{shared} bytes of shared memory, the RAM budget is {tier['budget_bytes']}")
            booked = max(booked, last)
            if grown > booked + SLACK_BYTES:
                self.errors.append(f"the worker grew by {grown} bytes, {booked} are booked")
            if grown > self.worst:
                self.worst, self.booked = grown, booked
            self.looks += 1
            time.sleep(0.05)

    def told(self) -> str:
        return f"worker grew by {self.worst / 1e6:.1f} MB at most, {self.booked / 1e6:.1f} MB booked then, {self.looks} looks"


def memory(pid: int, field: str) -> int:
    """Bytes, from proc_pidmemory(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")
