"""A pool on Knative, from zero and back: right answers at the first try, and what each cold start cost."""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.e2e.cold import cold_start
from tests.e2e.kubernetes import Namespace
from tests.e2e.pool import HELLO, POOL, Pool, assert_right

ZERO_TIMEOUT_S: Final = 90.0  # window 6 s, then Knative makes sure that nothing is on its way: 10 to 20 s seen


def test_the_hello_service_answers_from_zero(pool: Pool) -> None:
    """The yardstick: what Knative and the container runtime cost by themselves."""
    pool.namespace.wait_for_zero(HELLO, timeout_s=ZERO_TIMEOUT_S)
    answered = pool.greet()
    assert answered.response.text == "hello"
    pool.starts.append(cold_start(HELLO, answered, pool.namespace))


@pytest.mark.parametrize("model", [0, 1], ids=["pytorch", "onnx"])
def test_a_request_at_zero_is_held_and_answered_right_at_the_first_try(pool: Pool, model: int) -> None:
    """Twice, once for each format: the pool went back to zero in between, so it also wakes again."""
    asked = pool.models[model]
    pool.namespace.wait_for_zero(POOL, timeout_s=ZERO_TIMEOUT_S)
    first = pool.infer(asked.name, asked.images)
    assert first.response.status_code == 200, first.response.text
    assert_right(first.response.json(), asked)
    assert first.response.headers["Hearth-Start"] == "s3"
    pool.starts.append(cold_start(asked.name, first, pool.namespace))

    carrying = pool.namespace.items("pods", "--selector", "hearth.dev/pool=pool")
    assert first.pod in {pod["metadata"]["name"] for pod in carrying}, "by this label the controller knows the pool's pods"

    second = pool.infer(asked.name, asked.images)
    assert second.response.status_code == 200, second.response.text
    assert_right(second.response.json(), asked)
    assert second.response.headers["Hearth-Start"] == "hot"
    assert second.pod == first.pod


def test_an_unknown_model_is_a_404_in_json_also_through_the_ingress(pool: Pool) -> None:
    """The status and the words are the pool's, not the ingress's."""
    answered = pool.infer("nobody-put-it-there", pool.models[0].images)
    assert answered.response.status_code == 404
    assert "nobody-put-it-there" in answered.response.json()["error"]


def test_a_pool_as_base_has_it_needs_none_of_knatives_optional_features(pool: Pool) -> None:
    """It came up, or the fixture would have failed: with these all off."""
    features = json.loads(Namespace("knative-serving").kubectl("get", "configmap", "config-features", "-o", "json"))
    enabled = {name for name, state in features["data"].items() if "podspec" in name and state == "enabled"}
    if enabled:
        pytest.skip(f"this cluster has {', '.join(sorted(enabled))}")
