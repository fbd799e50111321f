"""A load test from inside the cluster, as samples/loadtest has it: through a pool's start, records fetched, its Job ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from loadtest import payloads, records
from loadtest.report.figures import figures
from loadtest.report.recorded import TIERS, read
from tests.e2e import surroundings
from tests.e2e.kubernetes import eventually
from tests.e2e.models import OUTPUT, Model
from tests.e2e.pool import POOL, Pool, question
from tests.e2e.test_pool_from_zero import ZERO_TIMEOUT_S

SAMPLE: Final = Path(__file__).parents[2] / "manifests" / "samples" / "loadtest"
DURATION_S: Final = 8.0
RUN_TIMEOUT_S: Final = 180.0
IMAGE: Final = surroundings.loadtest_image()

pytestmark = pytest.mark.skipif(IMAGE is None, reason="HEARTH_E2E_LOADTEST_IMAGE names no image (docs/cluster.md)")


def asked(model: Model) -> dict[str, Any]:
    """A deck's line, its answer computed here."""
    output = {
        "name": OUTPUT,
        "datatype": "FP32",
        "shape": list(model.expected.shape),
        "data": model.expected.ravel().tolist(),
    }
    return {"model": model.name, **question(model.images), "outputs": [output]}


def write(folder: Path, pool: Pool) -> None:
    """The sample, with what its comments say is to be changed, and small enough for a node with two cores."""
    payloads.write(folder / "deck.jsonl", map(asked, pool.models))
    changed = {
        "--host-header=": pool.pool_host,
        "--workload=": "steady",
        "--duration-s=": DURATION_S,
        "--pods-from=": pool.namespace.name,
    }
    more = ["--rate=10", "--max-send-lag-ms=5000", "--pods-every-s=1", "--slo=cold[pod]>0%", "--slo=wrong<=0%"]
    arguments = arguments_of(pool)
    for start, value in changed.items():
        (place,) = (place for place, argument in enumerate(arguments) if argument.startswith(start))
        arguments[place] = f"{start}{value}"
    container = "/spec/template/spec/containers/0"
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": pool.namespace.name,
        "resources": [os.path.relpath(SAMPLE, folder.resolve())],
        "images": [IMAGE],
        "configMapGenerator": [{"name": "loadtest-deck", "behavior": "replace", "files": ["deck.jsonl"]}],
        "patches": [
            patch("loadtest", f"{container}/args", arguments + more),
            patch("loadtest-workers", f"{container}/resources/requests/cpu", "100m"),
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))


def patch(job: str, path: str, value: object) -> dict[str, Any]:
    """One of kustomize's."""
    return {"target": {"kind": "Job", "name": job}, "patch": json.dumps([{"op": "replace", "path": path, "value": value}])}


def arguments_of(pool: Pool) -> list[str]:
    """The master's, as the sample has them."""
    master = str(SAMPLE / "master.yaml")
    path = "jsonpath={.spec.template.spec.containers[0].args}"
    shown = pool.namespace.kubectl("create", "--dry-run=client", "-f", master, "--output", path)
    found: list[str] = json.loads(shown)
    return found


def test_a_load_test_from_inside_wakes_the_pool_and_its_job_says_whether_the_gates_were_met(pool: Pool, tmp_path: Path) -> None:
    write(tmp_path, pool)
    pool.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    pool.namespace.apply(tmp_path)

    def ended() -> str | None:
        for found in pool.namespace.items("pods", "--selector", "job-name=loadtest"):
            for container in found["status"].get("containerStatuses", ()):
                if container["name"] == "master" and container["state"].get("terminated"):
                    return str(found["metadata"]["name"])
        return None

    pod = eventually(ended, what="the load test's end", timeout_s=RUN_TIMEOUT_S)
    said = pool.namespace.kubectl("logs", pod, "-c", "master")
    run = tmp_path / "run"
    pool.namespace.kubectl("cp", f"{pod}:/run-folder/run", str(run), "-c", "keeper")
    pool.namespace.kubectl("exec", pod, "-c", "keeper", "--", "touch", "/run-folder/fetched")
    pool.namespace.kubectl("wait", "job/loadtest", "job/loadtest-workers", "--for=condition=Complete", "--timeout=50s")
    # Anywhere: a container's log has standard output and error in the order in which they were read, not written.
    verdicts = [line.partition(" ")[0] for line in said.splitlines() if line.startswith(("PASS ", "FAIL ", "INVALID"))]
    assert verdicts == ["PASS"] * 3, said

    told, found = records.read_run(run), read(run)
    assert (told["valid"], told["processes"], len(told["generators"])) == (True, 2, 2), told
    assert len(found.requests) == told["requests"] > DURATION_S
    assert figures(found).errors == 0
    assert TIERS.index("pod") in found.requests.tier
    assert found.pods is not None
    assert found.pods.ready.max() > 0, "the controller was not asked what pods there are"
