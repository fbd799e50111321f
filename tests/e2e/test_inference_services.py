"""Models as InferenceServices on a real cluster: Ready at zero, right from zero, changed and broken under load, faults around.

The tests build on each other: one pool, one controller, from applying the models to the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest

from tests.e2e import surroundings
from tests.e2e.cold import cold_start, timed
from tests.e2e.declared import (
    CONTROLLER,
    READER,
    STORAGE_KEY,
    Models,
    conditions,
    credentials,
    hearth,
    inference_service,
    ready_pods,
    scale_of,
    standing,
    states,
)
from tests.e2e.kubernetes import Namespace, eventually
from tests.e2e.pool import ANSWER_TIMEOUT_S, HELLO, POOL, READY_TIMEOUT_S
from tests.e2e.test_pool_from_zero import ZERO_TIMEOUT_S

COUNT: Final = int(os.environ.get("HEARTH_E2E_MODELS", "30"))
READY_S: Final = 30.0
"""What applying all of them may take until the last is Ready; a bench's bar, far from what a test would wait for."""
LOAD_S: Final = 2.0


@pytest.fixture
def clients() -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=600, max_keepalive_connections=20)
    with httpx.Client(base_url=surroundings.ingress(), timeout=ANSWER_TIMEOUT_S, limits=limits) as client:
        yield client


def metric(models: Models, name: str) -> Counter[str]:
    """A controller metric's samples: labels → value."""
    text = models.controller("/metrics").text
    return Counter(
        {labels or "": int(float(value)) for labels, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)}
    )


def usage(models: Models) -> str:
    """What the controller has used so far."""
    text = models.controller("/metrics").text
    found = {name: float(value) for name, value in re.findall(r"^process_(\w+) (\S+)$", text, re.MULTILINE)}
    return f"{found['resident_memory_bytes'] / 1e6:.0f} MB, {found['cpu_seconds_total']:.1f} CPU-s"


def test_models_are_ready_at_zero(models: Models) -> None:
    """Credentials by turns: a ServiceAccount's, storage-config's, the pool's own."""
    names = [f"affine-{number:03}" for number in range(COUNT)]
    with ThreadPoolExecutor(10) as threads:
        uris = list(threads.map(lambda number: models.shelf.affine(f"declared/{names[number]}", number + 2.0), range(COUNT)))
    manifests = []
    for number, (name, uri) in enumerate(zip(names, uris, strict=True)):
        models.scales[name] = number + 2.0
        by_key = {"key": STORAGE_KEY, "path": f"declared/{name}", "parameters": {"bucket": models.shelf.name}}
        storage: dict[str, Any] = {"storage": by_key} if number % 3 == 1 else {"storageUri": uri}
        manifests.append(inference_service(name, storage=storage, account=READER if number % 3 == 0 else ""))
    models.namespace.wait_for_zero(POOL, timeout_s=READY_TIMEOUT_S)
    before = usage(models)
    begin_s = time.monotonic()
    models.apply(manifests)
    applied_s = time.monotonic() - begin_s

    def all_ready() -> bool | None:
        found = models.statuses()
        return (
            True
            if len(found) == COUNT and all(conditions(status).get("Ready") == "True" for status in found.values())
            else None
        )

    eventually(all_ready, what=f"{COUNT} models Ready", timeout_s=SETTLED_S)
    took_s = time.monotonic() - begin_s
    writes = metric(models, "hearth_controller_writes_total")
    print(f"\n{COUNT} models applied in {applied_s:.1f} s, all Ready after {took_s:.1f} s (bar {READY_S:g} s);")  # noqa: T201
    print(f"controller: {before} before, {usage(models)} after; writes: {dict(writes)}")  # noqa: T201
    assert not models.namespace.live_pods(POOL), "looking at models woke the pool"
    for status in models.statuses().values():
        assert states(status) == ("Standby", "Standby", "UpToDate")
        assert status["url"] == f"http://{models.host}"
        assert conditions(status) == {"Ready": "True", "PredictorReady": "True", "IngressReady": "True"}


SETTLED_S: Final = 180.0


def test_kubectl_and_kserves_client_return_at_once(models: Models) -> None:
    models.namespace.kubectl("wait", "--for=condition=Ready", "isvc", "--selector=of=models", "--timeout=90s", timeout_s=100)
    shown = models.namespace.kubectl("get", "isvc", "affine-000").splitlines()[1]
    assert shown.split()[:3] == ["affine-000", f"http://{models.host}", "True"]
    waiting = (
        f"import kserve; kserve.KServeClient().wait_isvc_ready('affine-000', {models.namespace.name!r}, timeout_seconds=10)"
    )
    subprocess.run([sys.executable, "-c", waiting], check=True, timeout=60)


def test_nothing_is_written_while_nothing_changes(models: Models) -> None:
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    before = metric(models, "hearth_controller_writes_total")
    time.sleep(5)
    assert metric(models, "hearth_controller_writes_total") == before


def test_a_wake_from_zero_answers_right_and_the_status_follows_up_and_down(models: Models) -> None:
    models.namespace.wait_for_zero(HELLO, timeout_s=ZERO_TIMEOUT_S)
    hello = timed(models.ingress, models.ingress.build_request("GET", "/", headers={"Host": models.hello_host}))
    models.starts.append(cold_start(HELLO, hello, models.namespace))
    for name in ("affine-000", "affine-001"):  # twice from zero; two styles of credentials
        models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
        assert conditions(models.statuses()[name])["Ready"] == "True"
        answered = models.ask(name)
        assert answered.response.headers["Hearth-Start"] == "s3"
        models.starts.append(cold_start(name, answered, models.namespace))
        models.until(name, "Loaded", lambda status: states(status)[0] == "Loaded", timeout_s=20)
        assert models.statuses()[name]["modelStatus"]["copies"] == {"totalCopies": 1, "failedCopies": 0}
        assert models.ask(name).response.headers["Hearth-Start"] == "hot"
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    models.until("affine-001", "Standby again", lambda status: states(status)[0] == "Standby")
    assert {conditions(status)["Ready"] for status in models.statuses().values()} == {"True"}


def test_a_changed_model_moves_without_a_failed_request_and_a_broken_change_moves_nothing(
    models: Models, clients: httpx.Client
) -> None:
    """All of it beside a request every 100 ms, to the model that changes and to one that does not."""
    models.ask("affine-002")
    other = models.pulse("affine-002", clients)
    changed = models.pulse("affine-003", clients, scales=(models.scales["affine-003"], 1000.0))
    models.ask("affine-003")
    with other.beating(), changed.beating():
        next_uri = models.shelf.affine("declared/next", 1000.0)
        models.declare("affine-003", next_uri, 1000.0)
        eventually(lambda: changed.answers["x1000"] or None, what="an answer of the new place", timeout_s=60)
        models.until("affine-003", "moved", lambda status: states(status) == ("Loaded", "Loaded", "UpToDate"))
        old = changed.answers["x5"]
        time.sleep(LOAD_S)
        assert changed.answers["x5"] == old, "traffic went back"

        models.declare("affine-003", f"s3://{models.shelf.name}/nowhere", 1000.0)
        models.until("affine-003", "nothing there", lambda status: states(status)[2] == "BlockedByFailedLoad")
        broken = models.shelf.put("declared/broken", {"model.onnx": b"these are no weights"})
        models.declare("affine-003", broken, 1000.0)
        models.until(
            "affine-003", "broken", lambda status: blocked(status) and "model.onnx cannot be loaded" in failure(status)
        )
        status = models.statuses()["affine-003"]
        assert status["modelStatus"]["lastFailureInfo"]["reason"] == "ModelLoadFailed"
        assert conditions(status)["Ready"] == "False"
        time.sleep(LOAD_S)
        assert changed.answers["x5"] == old

        models.declare("affine-003", next_uri, 1000.0)
        models.until("affine-003", "repaired", lambda status: states(status) == ("Loaded", "Loaded", "UpToDate"))
    for pulse in (other, changed):
        pulse.check()
    print(f"\nbeside changes: {dict(other.answers)} and {dict(changed.answers)}, none failed")  # noqa: T201
    events = models.namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=affine-003", "-o", "json")
    reasons = {event["reason"] for event in json.loads(events)["items"]}
    assert reasons & {"FailedToLoad", "BlockedByFailedLoad"}, reasons


def blocked(status: dict[str, Any]) -> bool:
    """Whether the change is told to have failed, while what was there before is loaded."""
    return states(status) == ("Loaded", "FailedToLoad", "BlockedByFailedLoad")


def test_a_canary_shares_requests_inside_the_pool_and_is_taken_back(models: Models, clients: httpx.Client) -> None:
    name = "affine-004"
    old = models.scales[name]
    models.ask(name)
    canary = models.shelf.affine("declared/canary", 500.0)
    models.apply([inference_service(name, storage={"storageUri": canary}, account=READER, percent=30)])
    models.until(
        name, "canary loaded", lambda status: conditions(status)["Ready"] == "True" and states(status)[2] == "UpToDate"
    )
    eventually(lambda: True if scale_of(models.post(name)) == 500.0 else None, what="the canary's answer", timeout_s=30)
    answers = Counter(scale_of(models.post(name, clients)) for _ in range(200))
    assert set(answers) == {old, 500.0}
    assert 30 <= answers[500.0] <= 90, answers  # 60 expected; four standard deviations are 26
    models.declare(name, f"s3://{models.shelf.name}/declared/{name}", old, account=READER)
    models.until(name, "back", lambda status: states(status) == ("Loaded", "Loaded", "UpToDate"))
    assert Counter(scale_of(models.post(name, clients)) for _ in range(50)) == {old: 50}


def test_a_deleted_model_is_gone_and_nobody_else_notices(models: Models, clients: httpx.Client) -> None:
    models.ask("affine-005")
    with models.pulse("affine-002", clients).beating() as other:
        models.namespace.kubectl("delete", "isvc", "affine-005", "--timeout=20s")
        eventually(
            lambda: True if models.post("affine-005").status_code == 404 else None, what="affine-005 unknown", timeout_s=20
        )
    other.check()
    models.ask("affine-002")

    def freed() -> bool | None:
        residency = json.loads(models.controller("/hearth/v1/residency?pool=pool").text)
        held = {model["name"]: model["copies"] for pod in residency["pods"] for model in pod.get("models", ())}
        return None if {copy["tier"] for copy in held.get("affine-005", ())} - {"disk"} else True

    eventually(freed, what="affine-005 out of RAM and device", timeout_s=20)


def test_a_new_model_reaches_a_running_pod_at_once(models: Models) -> None:
    models.ask("affine-002")
    uri = models.shelf.affine("declared/late", 77.0)
    begin_s = time.monotonic()
    models.declare("late", uri, 77.0)
    eventually(lambda: True if models.post("late").status_code == 200 else None, what="late answers", timeout_s=30)
    print(f"\na model answered in a running pod {time.monotonic() - begin_s:.1f} s after it was applied")  # noqa: T201
    models.ask("late")


def test_new_credentials_reach_a_running_pod_without_a_restart(models: Models) -> None:
    models.ask("affine-002")
    (secret, _, account) = credentials()
    secret["metadata"]["name"] = account["metadata"]["name"] = "second-reader"
    account["secrets"] = [{"name": "second-reader"}]
    uri = models.shelf.affine("declared/second", 78.0)
    models.apply([secret, account])
    begin_s = time.monotonic()
    models.declare("second", uri, 78.0, account="second-reader")
    models.until("second", "Ready", lambda status: conditions(status).get("Ready") == "True")
    models.ask("second")
    print(f"\na model with new credentials answered {time.monotonic() - begin_s:.1f} s after it was applied")  # noqa: T201


def test_what_cannot_be_is_told_in_the_status(models: Models) -> None:
    models.apply(
        [
            inference_service("not-s3", storage={"storageUri": "gs://bucket/model"}),
            inference_service("no-secret", storage={"storage": {"key": "nobody", "path": "declared/late"}}),
            inference_service("no-model", storage={"storageUri": f"s3://{models.shelf.name}/nowhere"}),
        ]
    )
    for name, words in (("not-s3", "s3://"), ("no-secret", "nobody"), ("no-model", "nowhere")):
        models.until(name, f"{words} in its failure", lambda status, words=words: words in failure(status))  # type: ignore[misc]
        assert conditions(models.statuses()[name])["Ready"] == "False"
    models.namespace.kubectl("delete", "isvc", "not-s3", "no-secret", "no-model")


def failure(status: dict[str, Any]) -> str:
    """The message of the last failure."""
    return str(status.get("modelStatus", {}).get("lastFailureInfo", {}).get("message", ""))


def test_the_controller_may_die_at_any_moment(models: Models, clients: httpx.Client) -> None:
    """Under traffic: nobody notices, nothing is done twice, and what came meanwhile is done afterwards."""
    models.ask("affine-006")
    uri = models.shelf.affine("declared/after", 88.0)
    before = {name: status for name, status in models.statuses().items() if name != "affine-006"}
    with models.pulse("affine-006", clients).beating() as pulse:
        models.namespace.kubectl(
            "delete", "pods", "--selector", f"app.kubernetes.io/name={CONTROLLER}", "--grace-period=0", "--force"
        )
        models.declare("after", uri, 88.0)
        models.until("after", "Ready", lambda status: conditions(status).get("Ready") == "True")
        eventually(lambda: True if models.post("after").status_code == 200 else None, what="after answers", timeout_s=30)
    pulse.check()
    now = models.statuses()
    assert {name: states(now[name])[2] for name in before} == {name: states(before[name])[2] for name in before}
    assert {name for name in before if conditions(now[name]).get("Ready") != conditions(before[name]).get("Ready")} == set()


def test_a_pool_wakes_without_its_controller_and_knows_every_model(models: Models) -> None:
    models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=0")
    try:
        models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
        answered = models.ask("after")
        models.starts.append(cold_start("no controller", answered, models.namespace))
        models.ask("affine-003")
    finally:
        models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=1")
        models.namespace.kubectl("rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s", timeout_s=130)
    models.until("after", "Loaded", lambda status: states(status)[0] == "Loaded")


def test_a_killed_pod_is_replaced_and_answers_for_all(models: Models) -> None:
    """What was inside it is lost with it; whoever asks again is answered by the next one."""
    killed = models.ask("affine-007").pod
    models.namespace.kubectl("delete", "pod", killed, "--grace-period=0", "--force")

    def answered_by_another() -> bool | None:
        try:
            answer = models.post("affine-007")
        except httpx.HTTPError:
            return None
        return True if answer.status_code == 200 and not answer.headers["Hearth-Pod"].startswith(killed) else None

    eventually(answered_by_another, what="an answer of another pod", timeout_s=60)
    models.ask("affine-002")


def test_an_upgraded_pool_keeps_its_catalogue_and_drops_no_request(models: Models, clients: httpx.Client) -> None:
    """A new Revision beside the old one, as a new image makes it, under traffic; with a second controller about."""
    before = models.ask("affine-008").pod
    models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=2")
    label = {"spec": {"predictor": {"labels": {"release": "next"}}}}
    with models.pulse("affine-008", clients).beating() as pulse:
        models.namespace.kubectl("patch", "inferenceservice", "pool", "--type=merge", "--patch", json.dumps(label))
        eventually(
            lambda: True if models.ask("affine-008").pod != before else None,
            what="an answer of the new Revision",
            timeout_s=120,
        )
        time.sleep(LOAD_S)
    pulse.check()
    models.ask("affine-009")
    models.until("affine-009", "Loaded", lambda status: states(status)[0] == "Loaded")
    pods = models.namespace.items("pods", "--selector", f"app.kubernetes.io/name={CONTROLLER}")
    lease = models.namespace.items("leases", "--field-selector", f"metadata.name={CONTROLLER}")[0]
    assert len(pods) == 2
    assert lease["spec"]["holderIdentity"] in {pod["metadata"]["name"] for pod in pods}
    models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=1")


def test_looking_wakes_nothing(models: Models) -> None:
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    here = ("--cluster", "--namespace", models.namespace.name)
    shown = hearth("ps", *here)
    assert "pool" in shown
    assert "affine-000" in hearth("models", *here)
    history = hearth("why", "affine-007", *here)
    assert "device 0" in history, history  # of a pod that is gone
    summary = json.loads(models.controller("/hearth/v1/models/affine-000").text)
    assert summary["ready"] is True
    assert not models.namespace.live_pods(POOL)
    print(f"\n$ hearth ps --cluster\n{shown}\n$ hearth why affine-007 --cluster\n{history}")  # noqa: T201


def test_a_pool_is_warmed_ahead_of_its_requests_keeps_that_pod_and_is_let_go(models: Models) -> None:
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    here = ("--namespace", models.namespace.name)
    begin_s = time.monotonic()
    hearth("warm", "pool", "--for", "10m", *here)
    warm_s = time.monotonic() - begin_s
    first = models.ask("affine-000")
    before = standing(models)
    assert list(before[0].values()) == [first.pod]
    for _ in range(8):  # 16 s, more than twice the pool's window: nobody asks, and the same pod stays
        time.sleep(2)
        assert standing(models) == before
    history = hearth("why", "pool", "--cluster", *here)
    assert "held by a request every 2 s" in history, history
    hearth("warm", "pool", "--off", *here)
    again = models.ask("affine-000")
    hearth("warm", "pool", "--for", "10m", *here)  # of a pool that is up: it keeps its pod, and what is loaded there
    time.sleep(4)
    asked = models.ask("affine-000")
    assert (again.pod, asked.pod, asked.response.headers["Hearth-Start"]) == (first.pod, first.pod, "hot")
    assert standing(models) == before
    hearth("warm", "pool", "--off", *here)
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    print(f"\nwarm after {warm_s:.1f} s; the first request then took {first.took_s:.2f} s")  # noqa: T201
    print(f"\n$ hearth why pool --cluster\n{history}")  # noqa: T201


def test_a_pool_is_warmed_also_after_the_autoscaler_has_restarted(models: Models) -> None:
    """Then a min-scale on the Revision alone would do nothing; a request does."""
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    serving = Namespace("knative-serving")
    serving.kubectl("rollout", "restart", "deployment/autoscaler")
    serving.kubectl("rollout", "status", "deployment/autoscaler", "--timeout=120s", timeout_s=130)
    here = ("--namespace", models.namespace.name)
    begin_s = time.monotonic()
    hearth("warm", "pool", "--for", "10m", *here)
    assert ready_pods(models)
    print(f"\nafter the autoscaler's restart: warm after {time.monotonic() - begin_s:.1f} s")  # noqa: T201
    events = models.namespace.kubectl("get", "events", "-o", "json")
    told = [event["message"] for event in json.loads(events)["items"] if "arm" in event["reason"]]
    assert any(event["reason"] == "Warm" for event in json.loads(events)["items"]), told
    print("\n".join(told))  # noqa: T201
    hearth("warm", "pool", "--off", *here)
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
