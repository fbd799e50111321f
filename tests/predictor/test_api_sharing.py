"""Requests that share a device, as clients see it: batches, priorities, limits of one model, deadlines while queued."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

import httpx
import pytest

from predictor.errors import HearthError, ModelFailed, WorkerDied
from predictor.model import TensorSpec
from predictor.passage import Buffer
from predictor.wire import Tensor
from predictor.workers.dispatch import Answer
from tests.fakes.pod import Compute, ServedPod, double, model

POISON = 666.0
INPUTS, OUTPUTS = (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),)
CLIENTS = 12


def poisoned(error: HearthError) -> Compute:
    """Doubles, unless POISON is in the batch."""

    def compute(inputs: Sequence[Tensor], body: Sequence[Buffer]) -> Answer:
        if struct.pack("<f", POISON) in bytes(body[0]):
            raise error
        return double(inputs, body)

    return compute


@pytest.fixture
def served() -> Iterator[ServedPod]:
    models = [
        model("batched", inputs=INPUTS, outputs=OUTPUTS, max_batch_size=8),
        model("single", inputs=INPUTS, outputs=OUTPUTS),
        model("narrow", inputs=INPUTS, outputs=OUTPUTS, max_concurrency=2),
        model("short", inputs=INPUTS, outputs=OUTPUTS, max_queued=2),
        model("urgent", inputs=INPUTS, outputs=OUTPUTS, priority="high"),
    ]
    with ServedPod("uvloop", *models, hold_timeout_s=5.0, max_body_bytes_in_flight_per_model=2048) as pod:
        pod.device.computes = {spec.ref.name: double for spec in models}
        yield pod


class Crowd:
    """Clients that ask at once, each on a connection of its own."""

    def __init__(self, served: ServedPod) -> None:
        self.served = served
        self._stack = ExitStack()
        self._threads = self._stack.enter_context(ThreadPoolExecutor(CLIENTS))

    def __enter__(self) -> Self:
        for name in self.served.catalogue.specs:
            assert self.ask(name, 0.0).status_code == 200
        self.served.device.rows.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, name: str, *values: float, headers: dict[str, str] | None = None) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": values}
        url = f"{self.served.url}/v2/models/{name}/infer"
        return httpx.post(url, json={"inputs": [tensor]}, headers=headers, timeout=30)

    def begin(self, name: str, *values: float, **headers: str) -> Future[httpx.Response]:
        """Ask, and wait until the device or its queue has it."""
        device = self.served.device
        before = self._inside()
        future = self._threads.submit(self.ask, name, *values, headers={key.replace("_", "-"): v for key, v in headers.items()})
        self.served.until(lambda: self._inside() > before or future.done())
        assert device.held, "nothing holds the device"
        return future

    def _inside(self) -> int:
        device = self.served.device
        return len(device.dispatcher) + sum(device.waiting(name) for name in self.served.catalogue.specs)

    def hold(self, name: str) -> Future[httpx.Response]:
        """Keep the device busy with a request for ``name`` until ``let_go``."""
        self.served.call(lambda: self.served.device.held.add(name))
        return self.begin(name, -1.0)

    def let_go(self, name: str) -> None:
        self.served.call(lambda: self.served.device.let_go(name))


def data(reply: httpx.Response) -> list[float]:
    assert reply.status_code == 200, reply.text
    found: list[float] = reply.json()["outputs"][0]["data"]
    return found


def test_what_queues_while_the_device_is_busy_runs_as_one_and_each_gets_its_own(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        busy = crowd.hold("single")
        replies = [crowd.begin("batched", float(number), number + 0.5) for number in range(5)]
        crowd.let_go("single")
        assert data(busy.result()) == [-2.0]
        assert [data(reply.result()) for reply in replies] == [[2.0 * n, 2.0 * n + 1] for n in range(5)]
        assert served.device.rows["batched"] == [8, 2]
        assert replies[0].result().json()["outputs"][0]["shape"] == [2, 1]
        assert "queue;dur=" in replies[0].result().headers["server-timing"]
    sample = served.pod.telemetry.registry.get_sample_value
    assert sample("hearth_batch_rows_sum", {"model": "batched"}) == 11.0
    assert sample("hearth_batch_rows_count", {"model": "batched"}) == 3.0
    assert sample("hearth_compute_seconds_count", {"model": "batched"}) == 3.0
    assert sample("hearth_queue_seconds_count", {"model": "batched"}) == 6.0


def test_one_bad_request_does_not_spoil_its_batch(served: ServedPod) -> None:
    served.device.computes["batched"] = poisoned(ModelFailed("ValueError: poison"))
    with Crowd(served) as crowd:
        crowd.hold("single")
        values = [1.0, POISON, 2.0]
        replies = [crowd.begin("batched", value) for value in values]
        crowd.let_go("single")
        assert [reply.result().status_code for reply in replies] == [200, 500, 200]
        assert replies[1].result().json() == {"error": "ValueError: poison"}
        assert served.device.rows["batched"] == [3, 1, 1, 1]
    assert served.leases() == 0


def test_what_kills_its_worker_takes_its_batch_along_once_and_is_then_told_from_the_others(served: ServedPod) -> None:
    """All three had begun, so none is begun again unasked; asked again, each runs alone, and is found guilty or innocent."""
    served.device.computes["batched"] = poisoned(WorkerDied("killed by SIGSEGV"))
    with Crowd(served) as crowd:
        for expected in ([502, 502, 502], [200, 502, 200], [200, 422, 200]):
            crowd.hold("single")
            replies = [crowd.begin("batched", value) for value in (1.0, POISON, 2.0)]
            crowd.let_go("single")
            assert [reply.result().status_code for reply in replies] == expected
    assert served.leases() == 0


def test_a_batch_is_the_models_own_limit_and_its_order_is_kept(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        crowd.hold("single")
        replies = [crowd.begin("batched", *[float(number)] * 3) for number in range(4)]
        crowd.let_go("single")
        assert [data(reply.result()) for reply in replies] == [[2.0 * number] * 3 for number in range(4)]
        assert served.device.rows["batched"] == [6, 6]


def test_urgent_requests_go_first_by_header_or_by_their_model(served: ServedPod) -> None:
    order: list[float] = []

    def noting(inputs: Sequence[Tensor], body: Sequence[Buffer]) -> Answer:
        order.extend(struct.unpack("<f", body[0]))
        return double(inputs, body)

    with Crowd(served) as crowd:
        served.device.computes = dict.fromkeys(served.device.computes, noting)
        crowd.hold("single")
        replies = [
            crowd.begin("single", 1.0, hearth_priority="batch"),
            crowd.begin("single", 2.0),
            crowd.begin("urgent", 3.0),
            crowd.begin("single", 4.0, Hearth_Priority="HIGH"),
            crowd.begin("urgent", 5.0, hearth_priority="batch"),
        ]
        crowd.let_go("single")
        assert {reply.result().status_code for reply in replies} == {200}
    assert order == [-1.0, 3.0, 4.0, 2.0, 1.0, 5.0]


def test_a_priority_that_does_not_exist_is_refused_in_words(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        reply = crowd.ask("single", 1.0, headers={"Hearth-Priority": "asap"})
    assert reply.status_code == 400
    assert reply.json() == {"error": "Hearth-Priority is high, normal or batch, not 'asap'"}


def test_a_model_takes_so_many_requests_at_once_and_others_are_not_touched(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        crowd.hold("narrow")
        second = crowd.begin("narrow", 2.0)
        refused = crowd.ask("narrow", 3.0)
        assert refused.status_code == 429
        assert "limits.concurrency" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1
        other = crowd.begin("single", 4.0)
        crowd.let_go("narrow")
        assert data(second.result()) == [4.0]
        assert data(other.result()) == [8.0]
        assert data(crowd.ask("narrow", 5.0)) == [10.0]


def test_clients_that_go_away_make_room_for_others_of_their_model(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        crowd.hold("narrow")
        with socket.create_connection(("127.0.0.1", served.port)) as gone:
            body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[2.0]}]}'
            head = b"POST /v2/models/narrow/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
            gone.sendall(head + body)
            served.until(lambda: len(served.device.dispatcher) == 1)
            assert crowd.ask("narrow", 3.0).status_code == 429
        served.until(lambda: len(served.device.dispatcher) == 0)
        assert served.device.withdrawn["narrow"] == 1
        third = crowd.begin("narrow", 3.0)
        crowd.let_go("narrow")
        assert data(third.result()) == [6.0]
    assert served.leases() == 0


def test_a_models_queue_is_bounded(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        crowd.hold("short")
        waiting = [crowd.begin("short", value) for value in (1.0, 2.0)]
        refused = crowd.ask("short", 3.0)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "wait for its device" in refused.json()["error"]
        crowd.let_go("short")
        assert [data(reply.result()) for reply in waiting] == [[2.0], [4.0]]
    assert served.leases() == 0


def test_a_models_bodies_are_bounded_together_and_a_single_one_is_not(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        assert crowd.ask("batched", *[1.0] * 600).status_code == 200, "more than 2048 bytes, and alone"
        crowd.hold("single")
        large = crowd.begin("batched", *[1.0] * 300)
        refused = crowd.ask("batched", *[1.0] * 300)
        assert refused.status_code == 429
        assert "HEARTH_MAX_BODY_BYTES_IN_FLIGHT_PER_MODEL" in refused.json()["error"]
        crowd.let_go("single")
        assert large.result().status_code == 200


def test_a_queued_request_whose_deadline_cannot_be_met_any_more_is_refused_and_not_computed(served: ServedPod) -> None:
    with Crowd(served) as crowd:
        crowd.hold("single")
        reply = crowd.begin("batched", 1.0, hearth_deadline_ms="50").result(5)
        assert reply.status_code == 504, "while the device is still busy"
        crowd.let_go("single")
    assert "batched" not in served.device.rows
    assert served.leases() == 0
