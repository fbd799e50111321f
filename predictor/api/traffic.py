"""One model's requests inside a pod: how many, how large, and the metrics that every one of them counts in.

What stays out: what becomes of a request (inference.py).
"""

from __future__ import annotations

from typing import Final

from predictor.api.message import Request
from predictor.api.pod import Pod
from predictor.model import ModelSpec
from predictor.policy.batching import Priority

PRIORITIES: Final = {priority.name.lower().encode("ascii"): priority for priority in Priority}


class Traffic:
    """One model's requests inside this pod, and its metrics, looked up once: `labels()` alone costs 1.5 µs each time.

    idempotent  a request that had begun may be begun again
    inside      requests, from the moment their model is known until they are answered
    body_bytes  of theirs
    """

    __slots__ = (
        "answered",
        "body_bytes",
        "hot_seconds",
        "idempotent",
        "inside",
        "max_inside",
        "name",
        "priority",
        "queue_seconds",
    )

    def __init__(self, pod: Pod, spec: ModelSpec) -> None:
        ref, telemetry, most = spec.ref, pod.telemetry, pod.settings.max_in_flight_per_model
        self.name = str(ref)
        self.idempotent = spec.idempotent
        self.inside = 0
        self.body_bytes = 0
        self.max_inside = min(most, spec.max_concurrency or most)
        self.priority = PRIORITIES[spec.priority.encode("ascii")]
        self.answered = telemetry.counter("hearth_requests_total", ref.name, str(ref.version), "200")
        self.hot_seconds = telemetry.histogram("hearth_request_seconds", ref.name, "hot")
        self.queue_seconds = telemetry.histogram("hearth_queue_seconds", ref.name)

    def leave(self, request: Request) -> None:
        """The request was answered, or its client is gone."""
        self.inside -= 1
        self.body_bytes -= request.body_bytes
