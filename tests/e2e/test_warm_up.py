"""Warm at the right time, on a real cluster: a hot set that survives zero and the controller, pods ahead of traffic."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from predictor import heat
from predictor.heat import HotSet
from tests.e2e.declared import ADMIN_PORT, CONTROLLER, Models, conditions, hearth, ready_pods, states
from tests.e2e.kubernetes import eventually
from tests.e2e.pool import POOL, READY_TIMEOUT_S
from tests.e2e.test_pool_from_zero import ZERO_TIMEOUT_S

ASKED: Final = {"warm-often": 6, "warm-sometimes": 3, "warm-once": 1}
WAKES: Final = "warm-last"
"""The one that a pod is woken for: never asked before."""

LOADED_TIMEOUT_S: Final = 30.0


def state(models: Models, pod: str) -> dict[str, Any]:
    """What a pod tells its controller, through the API server's proxy: no request of the pool."""
    path = f"/api/v1/namespaces/{models.namespace.name}/pods/{pod}:{ADMIN_PORT}/proxy/hearth/v1/state"
    found: dict[str, Any] = json.loads(models.namespace.kubectl("get", "--raw", path))
    return found


def loaded(models: Models, pod: str) -> set[str]:
    """Names of the models that are ready there."""
    told = state(models, pod)["declared"]
    return {one["name"] for one in told if any(place["state"] == "loaded" for place in one["locations"])}


def hot(models: Models) -> list[str]:
    """Names in the published hot set, the most valuable first; []: there is none yet."""
    found = models.namespace.items("configmaps", "--field-selector", "metadata.name=hearth-pool-hotset")
    return [one.name for one in heat.decode(found[0]["data"][heat.HOTSET_FILE].encode(), HotSet).models] if found else []


def test_a_pod_from_zero_loads_what_was_hot_before_anybody_asks_and_with_its_controller_gone(models: Models) -> None:
    for number, name in enumerate((*ASKED, WAKES)):
        models.declare(name, models.shelf.affine(f"warm/{name}", 60.0 + number), 60.0 + number)
    for name in (*ASKED, WAKES):
        models.until(name, "Ready", lambda status: conditions(status).get("Ready") == "True")
    for name, times in ASKED.items():
        for _ in range(times):
            models.ask(name)
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)

    def published() -> bool | None:
        order = [name for name in hot(models) if name in ASKED]
        return True if order == list(ASKED) else None

    eventually(published, what=f"{list(ASKED)} in this order in the hot set", timeout_s=LOADED_TIMEOUT_S)
    assert WAKES not in hot(models)
    models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=0")
    try:
        models.namespace.kubectl("wait", "pods", "--selector", f"app.kubernetes.io/name={CONTROLLER}", "--for=delete")
        began_s = time.monotonic()
        woken = models.ask(WAKES)
        eventually(lambda: True if loaded(models, woken.pod) >= set(ASKED) else None, what="the hot set loaded", timeout_s=60)
        took_s = time.monotonic() - began_s
        told = state(models, woken.pod)["warm_up"]
        assert told["source"] == "mounted", told
        for name in ASKED:
            assert models.ask(name).response.headers["Hearth-Start"] == "hot"
    finally:
        models.namespace.kubectl("scale", f"deployment/{CONTROLLER}", "--replicas=1")
        models.namespace.kubectl("rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s", timeout_s=130)
    models.until("warm-often", "Loaded", lambda status: states(status)[0] == "Loaded")
    history = hearth("why", "warm-often", "--cluster", "--namespace", models.namespace.name)
    assert "hot set" in history, history
    print(f"\nwoken for {WAKES}: answered after {woken.took_s:.2f} s, all of the hot set loaded after {took_s:.2f} s; {told}")  # noqa: T201
    print(f"$ hearth why warm-often --cluster\n{history}")  # noqa: T201


def annotate(models: Models, **annotations: str) -> None:
    """Of the pool's ServingRuntime: on the InferenceService they would be a new Revision. An empty value removes one."""
    changes = [f"hearth.dev/{name.replace('_', '-')}{f'={value}' if value else '-'}" for name, value in annotations.items()]
    models.namespace.kubectl("annotate", "--overwrite", "servingruntime", "pool", *changes)


def test_a_calendar_brings_a_pod_before_its_time_and_lets_it_go(models: Models) -> None:
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    due = datetime.now(UTC) + timedelta(minutes=1)
    annotate(models, warm_at=f"{due.minute} {due.hour} * * * for 10m")
    try:
        eventually(lambda: True if ready_pods(models) else None, what="a pod for the calendar", timeout_s=READY_TIMEOUT_S)
        history = hearth("why", "pool", "--cluster", "--namespace", models.namespace.name)
        assert "calendar" in history, history
    finally:
        annotate(models, warm_at="")
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    print(f"\n$ hearth why pool --cluster\n{history}")  # noqa: T201


def test_a_pool_that_is_worth_it_keeps_its_last_pod_longer(models: Models) -> None:
    """Without its weight it goes to zero as Knative has it: every other test waits for that. The last test: this pod stays."""
    annotate(models, cold_start_weight="60")

    def retention() -> str | None:
        revisions = models.namespace.items("revisions", "--selector", f"serving.knative.dev/service={POOL}")
        told = [one["metadata"].get("annotations", {}).get("hearth.dev/retained") for one in revisions]
        return next(filter(None, told), None)

    models.ask("warm-often")  # so that what a start takes is known also where this test runs alone
    models.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    kept = eventually(retention, what="a retention on the Revision", timeout_s=60)
    asked = models.ask("warm-often")
    time.sleep(40)  # with the pool's window of 6 s it would have been gone after 15 to 25 s
    assert ready_pods(models) == [asked.pod]
    history = hearth("why", "pool", "--cluster", "--namespace", models.namespace.name)
    print(f"\nkept for {kept}\n$ hearth why pool --cluster\n{history}")  # noqa: T201
