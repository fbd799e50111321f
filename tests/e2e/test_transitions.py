"""Zero → one → zero, with a request every 100 ms around each transition: none may fail, neither held nor drained away."""

from __future__ import annotations

import os
import time
from typing import Final

import httpx
import numpy as np

from tests.e2e import models
from tests.e2e.kubernetes import eventually
from tests.e2e.pool import ANSWER_TIMEOUT_S, POOL, Pool
from tests.e2e.pulse import Pulse
from tests.e2e.test_pool_from_zero import ZERO_TIMEOUT_S

TRANSITIONS: Final = int(os.environ.get("HEARTH_E2E_TRANSITIONS", "2"))
BEAT_S: Final = 3.0
"""Beyond the moment that is looked at."""


def pulse(pool: Pool, client: httpx.Client, model: models.Model) -> Pulse:
    """The same question again and again; only the right answer with 200 is none to complain about."""
    tensor = {
        "name": models.INPUT,
        "datatype": "FP32",
        "shape": list(model.images.shape),
        "data": model.images.ravel().tolist(),
    }
    headers = {"Host": pool.pool_host}

    def ask() -> httpx.Response:
        return client.post(f"/v2/models/{model.name}/infer", json={"inputs": [tensor]}, headers=headers)

    def judge(response: httpx.Response) -> tuple[str, str]:
        if response.status_code != 200:
            return str(response.status_code), f"{response.status_code} {response.text[:300]}"
        logits = np.array(response.json()["outputs"][0]["data"], np.float32).reshape(model.expected.shape)
        return response.headers["Hearth-Pod"].partition(";")[0], "" if np.allclose(
            logits, model.expected, 1e-4, 1e-4
        ) else "wrong"

    return Pulse(ask, judge)


def test_no_request_fails_at_any_point_of_zero_one_zero(pool: Pool) -> None:
    """Once from rest, and once in the very moment in which Knative ends the last pod, each time with all that follows."""
    limits = httpx.Limits(max_connections=600, max_keepalive_connections=20)
    pods: set[str] = set()
    with httpx.Client(base_url=str(pool.ingress.base_url), timeout=ANSWER_TIMEOUT_S, limits=limits) as client:
        beat = pulse(pool, client, pool.models[1])

        def answered_by_another() -> bool | None:
            return True if set(beat.answers) - pods else None

        for turn in range(TRANSITIONS):
            pool.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
            with beat.beating():
                eventually(answered_by_another, what=f"turn {turn}: an answer from zero", timeout_s=ANSWER_TIMEOUT_S)
                time.sleep(BEAT_S)
            pods |= set(beat.answers)
            eventually(
                lambda: None if pool.namespace.live_pods(POOL) else True,
                what="the last pod told to end",
                timeout_s=ZERO_TIMEOUT_S,
            )
            with beat.beating():  # while it drains
                eventually(
                    answered_by_another, what=f"turn {turn}: an answer while the last drains", timeout_s=ANSWER_TIMEOUT_S
                )
                time.sleep(BEAT_S)
            pods |= set(beat.answers)
            beat.check()
    slowest = max(seen.took_s for seen in beat.seen)
    print(f"\n{TRANSITIONS} turns, {len(pods)} pods, {len(beat.seen)} requests, none failed; the slowest took {slowest:.2f} s")  # noqa: T201
