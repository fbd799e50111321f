"""The demo's clients: what is asked, the asking itself in JSON and in binary, and whether the answers are right.

``python -m predictor.demo.traffic PLAN`` sends a whole plan and writes one line per answer. It is a process of its
own and imports nothing beyond the standard library, so that neither training nor drawing is in the latencies.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

CLASSES: Final = 10
ZIPF_EXPONENT: Final = 1.1
"""Popularity of the k-th model is 1/k^1.1: of 24 models, the first six get 69 % of the requests."""

MAX_IMAGES: Final = 4
ANSWER_TIMEOUT_S: Final = 90.0
BINARY_LENGTH: Final = "Inference-Header-Content-Length"


class Request(NamedTuple):
    """Ask ``model`` (an index into the plan's models) what it sees in these test images."""

    model: int
    images: tuple[int, ...]
    binary: bool


class Outcome(NamedTuple):
    """One answer, or why there is none.

    start      hot, ram or s3: what the server says it had to do (Hearth-Start)
    right      images named as their label says
    different  images named otherwise than the model names them when it runs alone
    error      empty where an answer came
    """

    model: int
    start: str
    latency_s: float
    images: int
    right: int
    different: int
    binary: bool
    error: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything the clients need to know, as plain data.

    names, expected  each model's name, and its answers to all test images when it runs alone
    images, labels   the test images (64 numbers from 0 to 16) and what they show
    """

    host: str
    port: int
    names: Sequence[str]
    expected: Sequence[Sequence[int]]
    images: Sequence[Sequence[float]]
    labels: Sequence[int]
    requests: Sequence[Request] = field(default=())
    clients: int = 4

    def write(self, path: Path) -> None:
        """Keep the plan in a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan that ``write`` kept."""
        content: dict[str, Any] = json.loads(path.read_text())
        content["requests"] = [Request(model, tuple(images), binary) for model, images, binary in content["requests"]]
        return cls(**content)


def popularity(models: int, exponent: float = ZIPF_EXPONENT) -> list[float]:
    """The share of requests that the first, second, ... model gets: Zipf's law; the shares add up to 1."""
    weights = [1.0 / rank**exponent for rank in range(1, models + 1)]
    return [weight / sum(weights) for weight in weights]


def schedule(*, models: int, images: int, requests: int, seed: int) -> list[Request]:
    """What to ask, in order: models by popularity (which one is popular is drawn too), one to four images each."""
    draw = random.Random(seed)  # noqa: S311 (a repeatable demo, no secret)
    ranking = draw.sample(range(models), models)
    return [
        Request(model, tuple(draw.choices(range(images), k=draw.randint(1, MAX_IMAGES))), binary=draw.choice((True, False)))
        for model in draw.choices(ranking, popularity(models), k=requests)
    ]


class Client:
    """One keep-alive connection to the inference port."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connection = http.client.HTTPConnection(plan.host, plan.port, timeout=ANSWER_TIMEOUT_S)

    def ask(self, request: Request) -> Outcome:
        """Send one request and judge the answer. Never raises for what the server does: that is in the outcome."""
        plan = self._plan
        pixels = [plan.images[image] for image in request.images]
        body, headers = (binary_body if request.binary else json_body)(pixels)
        start, seen, error = "", [], ""
        began_s = time.perf_counter()
        try:
            self._connection.request("POST", f"/v2/models/{plan.names[request.model]}/infer", body, headers)
            response = self._connection.getresponse()
            content = response.read()
            latency_s = time.perf_counter() - began_s
            start = response.getheader("Hearth-Start", "")
            if response.status == http.client.OK:
                seen = classes(content, response.getheader(BINARY_LENGTH))
            else:
                error = f"HTTP {response.status}: {content[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError, struct.error) as problem:
            latency_s = time.perf_counter() - began_s
            error = f"{type(problem).__name__}: {problem}"
            self.close()
        if not error and len(seen) != len(request.images):
            error = f"{len(seen)} answers to {len(request.images)} images"
        if error:
            seen = []
        expected = plan.expected[request.model]
        return Outcome(
            model=request.model,
            start=start,
            latency_s=latency_s,
            images=len(request.images),
            right=sum(answer == plan.labels[image] for answer, image in zip(seen, request.images, strict=False)),
            different=sum(answer != expected[image] for answer, image in zip(seen, request.images, strict=False)),
            binary=request.binary,
            error=error,
        )

    def close(self) -> None:
        """Hang up; the next request connects again."""
        self._connection.close()


def json_body(pixels: Sequence[Sequence[float]]) -> tuple[bytes, dict[str, str]]:
    """A V2 request in JSON, tensors flat."""
    values = [value for image in pixels for value in image]
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [len(pixels), len(pixels[0])], "data": values}
    return json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}


def binary_body(pixels: Sequence[Sequence[float]]) -> tuple[bytes, dict[str, str]]:
    """The same with the binary tensor extension in both directions: a JSON header, then little-endian float32."""
    values = [value for image in pixels for value in image]
    size = {"binary_data_size": 4 * len(values)}
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [len(pixels), len(pixels[0])], "parameters": size}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return header + struct.pack(f"<{len(values)}f", *values), {
        "Content-Type": "application/octet-stream",
        BINARY_LENGTH: str(len(header)),
    }


def classes(content: bytes, header_bytes: str | None) -> list[int]:
    """The digit each image was taken for: the largest of its ten logits.

    header_bytes  the answer's Inference-Header-Content-Length; None where the answer is all JSON
    """
    length = len(content) if header_bytes is None else int(header_bytes)
    output = json.loads(content[:length])["outputs"][0]
    if header_bytes is None:
        logits = output["data"]
        if logits and isinstance(logits[0], list):
            logits = list(itertools.chain.from_iterable(logits))
    else:
        size_bytes = output["parameters"]["binary_data_size"]
        logits = struct.unpack(f"<{size_bytes // 4}f", content[length : length + size_bytes])
    rows = [logits[first : first + CLASSES] for first in range(0, len(logits), CLASSES)]
    return [max(range(CLASSES), key=row.__getitem__) for row in rows]


def send(plan: Plan) -> Iterator[Outcome]:
    """Send the plan's requests from its clients, each asking again as soon as it was answered; outcomes as they come."""
    pending = iter(plan.requests)
    outcomes: list[Outcome] = []
    changed = threading.Condition()
    working = plan.clients

    def work() -> None:
        nonlocal working
        client = Client(plan)
        try:
            while True:
                with changed:
                    request = next(pending, None)
                if request is None:
                    return
                outcome = client.ask(request)
                with changed:
                    outcomes.append(outcome)
                    changed.notify()
        finally:
            client.close()
            with changed:
                working -= 1
                changed.notify()

    for number in range(plan.clients):
        threading.Thread(target=work, name=f"client-{number}", daemon=True).start()
    while True:
        with changed:
            changed.wait_for(lambda: outcomes or working == 0)
            ready, outcomes[:] = list(outcomes), []
            finished = working == 0
        yield from ready
        if finished:
            return


def encoded(outcome: Outcome) -> bytes:
    """One line for the pipe."""
    return json.dumps(outcome).encode() + b"\n"


def decoded(lines: Iterable[bytes]) -> list[Outcome]:
    """The outcomes of whole lines."""
    return [Outcome(*json.loads(line)) for line in lines]


if __name__ == "__main__":
    for told in send(Plan.read(Path(sys.argv[1]))):
        sys.stdout.buffer.write(encoded(told))
        sys.stdout.buffer.flush()
