"""A trace replayed on a real cluster, through zero again and again, with and without waking up warm. A bench, run by hand.

HEARTH_E2E_TRACE names the trace (minute,fn,count); HEARTH_E2E_REPLAY the folder for the runs. Same schedule each time, turn
about. Models have ballast, so that a load moves bytes; their answers are checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from loadtest import payloads, records
from loadtest.draws import Draw
from loadtest.report.recorded import Run, read
from tests.e2e import surroundings
from tests.e2e.declared import CONTROLLER, Models, conditions, inference_service
from tests.e2e.kubernetes import eventually
from tests.e2e.pool import POOL, READY_TIMEOUT_S
from tests.e2e.test_pool_from_zero import ZERO_TIMEOUT_S
from tests.fakes.zoo import SCHEMA, WIDTH, tensors_file

TRACE: Final = surroundings.said("TRACE", "")
FOLDER: Final = surroundings.said("REPLAY", "")
ROUNDS: Final = int(surroundings.said("REPLAY_ROUNDS", "2"))
SECONDS: Final = float(surroundings.said("REPLAY_S", "300"))
COMPRESS: Final = float(surroundings.said("REPLAY_COMPRESS", "15"))
SIZES_BYTES: Final = tuple(int(said) << 20 for said in surroundings.said("REPLAY_MIB", "16,128").split(","))
WAKE_UPS: Final = tuple(surroundings.said("REPLAY_WAKE_UP", "hot-set,off").split(","))
APPLIED_TIMEOUT_S: Final = 180.0

pytestmark = pytest.mark.skipif(not (TRACE and FOLDER), reason="HEARTH_E2E_TRACE and HEARTH_E2E_REPLAY: docs/cluster.md")

MODEL_PY: Final = """
import torch

class Heavy(torch.nn.Module):
    def __init__(self, width, ballast):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(width))
        self.ballast = torch.nn.Parameter(torch.empty(ballast))

    def forward(self, x):
        return x * self.scale + 1

def build(config):
    return Heavy(config["width"], config["ballast"])
"""


@dataclass(frozen=True)
class Heavy:
    """y = scale * x + 1, and bytes that only take room."""

    name: str
    scale: float
    ballast: int

    @property
    def files(self) -> dict[str, bytes]:
        """Its folder, manifest included."""
        scale = np.full(WIDTH, self.scale, np.float32).tobytes()
        ballast = np.zeros(self.ballast, np.float32).tobytes()
        tensors = {"scale": ("F32", [WIDTH], scale), "ballast": ("F32", [self.ballast], ballast)}
        manifest = {"format": "pytorch", "parameters": {"width": WIDTH, "ballast": self.ballast}, **SCHEMA}
        return {
            "model.safetensors": tensors_file(tensors),
            "model.py": MODEL_PY.encode(),
            "hearth.json": json.dumps(manifest).encode(),
        }

    @property
    def line(self) -> dict[str, Any]:
        """Of the deck, with the right answer."""
        x = [1.0, 2.0, 3.0, 4.0]
        tensor = {"datatype": "FP32", "shape": [1, WIDTH]}
        y = [self.scale * value + 1 for value in x]
        return {
            "model": self.name,
            "inputs": [{"name": "x", **tensor, "data": x}],
            "outputs": [{"name": "y", **tensor, "data": y}],
        }


def heavies(count: int) -> list[Heavy]:
    """Sizes log-uniform, independent of who is asked how often."""
    draw, (least, most) = Draw(1, "sizes"), SIZES_BYTES
    return [
        Heavy(f"heavy-{number:02}", number + 2.0, int(least * (most / least) ** draw.uniform()) // 4) for number in range(count)
    ]


def set_wake_up(models: Models, value: str) -> None:
    """A new Revision with HEARTH_WAKE_UP, at rest; ``off`` also takes the controller's orders away."""
    orders = f"HEARTH_CONTROLLER_ORDERS={str(value != 'off').lower()}"
    models.namespace.kubectl("set", "env", f"deployment/{CONTROLLER}", orders)
    models.namespace.kubectl("rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s", timeout_s=130)
    found = models.namespace.items("inferenceservices", "--field-selector", "metadata.name=pool")[0]
    environment = found["spec"]["predictor"]["containers"][0]["env"]
    place = next((place for place, one in enumerate(environment) if one["name"] == "HEARTH_WAKE_UP"), None)
    before = latest(models)
    operation = {"op": "add", "path": "/spec/predictor/containers/0/env/-", "value": {"name": "HEARTH_WAKE_UP", "value": value}}
    if place is not None:
        operation = {"op": "replace", "path": f"/spec/predictor/containers/0/env/{place}/value", "value": value}
    models.namespace.kubectl("patch", "isvc", "pool", "--type=json", "-p", json.dumps([operation]))
    eventually(lambda: True if latest(models) != before else None, what="the new Revision ready", timeout_s=READY_TIMEOUT_S)
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)


def latest(models: Models) -> str:
    """Name of the pool's latest ready Revision."""
    (service,) = models.namespace.items("services.serving.knative.dev", "--field-selector", f"metadata.name={POOL}")
    return str(service["status"].get("latestReadyRevisionName"))


def replay(models: Models, deck: Path, folder: Path) -> Run:
    """One run."""
    command = [
        *(sys.executable, "-m", "predictor.boot", "loadtest", "run", "--host", surroundings.ingress()),
        *("--host-header", models.host, "--deck", str(deck), "--trace", TRACE, "--compress", str(COMPRESS)),
        *("--keep-alive-scaled", "--duration-s", str(SECONDS), "--max-send-lag-ms", "100", "--timeout-s", "120"),
        *("--pods-from", models.namespace.name, "--pods-every-s", "1", "--output", str(folder)),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS + 200, env=os.environ)
    print(ended.stdout[-600:], ended.stderr[-600:])  # noqa: T201
    return read(folder)


def told(folder: Path) -> dict[str, float]:
    """What the table says of one run."""
    found = records.read(folder).sort_by("due_s").to_pylist()
    latency_s = np.array([row["done_s"] - row["due_s"] for row in found])
    by_pod: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        by_pod[row["pod"]].append(row)
    first_touch_s = []
    for answered in by_pod.values():
        firsts = {row["model"]: row for row in sorted(answered, key=lambda row: row["sent_s"], reverse=True)}
        stages = ("timing_fetch_ms", "timing_device_ms", "timing_build_ms")
        first_touch_s.append(sum(row[stage] or 0.0 for row in firsts.values() for stage in stages) / 1e3)
    cold = [row["start"] not in {"hot", "ram"} for row in found]
    return {
        "requests": len(found),
        "errors": sum(bool(row["error"]) for row in found),
        "pods": len(by_pod),
        "cold": float(np.mean(cold)),
        "not hot": float(np.mean([row["start"] != "hot" for row in found])),
        "p50 ms": float(np.percentile(latency_s, 50) * 1e3),
        "p95 ms": float(np.percentile(latency_s, 95) * 1e3),
        "p99 ms": float(np.percentile(latency_s, 99) * 1e3),
        "first-touch load s a wake": float(np.mean(first_touch_s)),
    }


def pod_seconds(run: Run) -> float:
    """From the samples: pods that served, and how long."""
    if run.pods is None:
        return float("nan")
    return float(np.trapezoid(run.pods.ready, run.pods.at_s))


def test_replay_with_and_without_waking_up_warm(models: Models, tmp_path: Path) -> None:
    """Fails on wrong answers and failed requests only; the table is what it is for."""
    names = sorted({line.split(",")[1] for line in Path(TRACE).read_text().splitlines()[1:]})
    asked = heavies(len(names))
    for heavy in asked:
        models.shelf.put(f"heavy/{heavy.name}", {key: data for key, data in heavy.files.items() if key != "hearth.json"})
        models.shelf.client.put_object(
            Bucket=models.shelf.name, Key=f"heavy/{heavy.name}/hearth.json", Body=heavy.files["hearth.json"]
        )
    uri = f"s3://{models.shelf.name}/heavy"
    models.apply(
        inference_service(heavy.name, storage={"storageUri": f"{uri}/{heavy.name}"}, format_="pytorch") for heavy in asked
    )

    def ready() -> bool | None:
        found = models.statuses()
        mine = [conditions(found.get(heavy.name, {})).get("Ready") == "True" for heavy in asked]
        return True if all(mine) else None

    eventually(ready, what=f"{len(asked)} models Ready", timeout_s=APPLIED_TIMEOUT_S)
    deck = tmp_path / "deck.jsonl"
    payloads.write(deck, [heavy.line for heavy in asked])
    table, before = [], ""
    for turn in range(ROUNDS):
        for value in WAKE_UPS:
            if value != before:
                set_wake_up(models, value)
            before = value
            folder = Path(FOLDER) / f"{turn}-{value}"
            run = replay(models, deck, folder)
            models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
            found = {"wake-up": value, **told(folder), "pod s": pod_seconds(run)}
            table.append(found)
            print(json.dumps(found), flush=True)  # noqa: T201
    sizes = {heavy.name: heavy.ballast * 4 for heavy in asked}
    (Path(FOLDER) / "table.json").write_text(json.dumps({"rows": table, "size_bytes": sizes}, indent=1))
    assert all(row["errors"] == 0 for row in table), table
