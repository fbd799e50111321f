"""A pool on Knative, from zero and back: right answers at the first try, and what each cold start cost."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest

from tests.e2e import models
from tests.e2e.cold import Answered, cold_start
from tests.e2e.pool import HELLO, POOL, Pool

ZERO_TIMEOUT_S: Final = 90.0  # window 6 s, then Knative makes sure that nothing is on its way: 10 to 20 s seen


def assert_right(answered: Answered, model: models.Model) -> None:
    """Compare with what the model answers outside Hearth."""
    assert answered.response.status_code == 200, answered.response.text
    (output,) = answered.response.json()["outputs"]
    assert output["name"] == models.OUTPUT
    logits = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
    np.testing.assert_allclose(logits, model.expected, rtol=1e-4, atol=1e-4)


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
    assert_right(first, asked)
    assert first.response.headers["Hearth-Start"] == "s3"
    pool.starts.append(cold_start(asked.name, first, pool.namespace))

    second = pool.infer(asked.name, asked.images)
    assert_right(second, asked)
    assert second.response.headers["Hearth-Start"] == "hot"
    assert second.pod == first.pod


def test_an_unknown_model_is_a_404_in_json_also_through_the_ingress(pool: Pool) -> None:
    """The status and the words are the pool's, not the ingress's."""
    answered = pool.infer("nobody-put-it-there", pool.models[0].images)
    assert answered.response.status_code == 404
    assert "nobody-put-it-there" in answered.response.json()["error"]
