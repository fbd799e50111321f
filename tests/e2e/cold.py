"""One cold start, measured: what happened when, in seconds after the request was sent, and a table of several of them.

All moments are on one clock although three machines took them: the answer says how long its process was up
(``Hearth-Pod: name;up=seconds``), so its start is known on the client's clock to a few milliseconds, and the pod's own
stages count from that start. Only `scheduled` is the cluster's clock, which must agree with the client's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx

from tests.e2e.kubernetes import Namespace, eventually

STAGES: Final = {
    "listening": "listening",
    "asked": "first byte of the model asked for",
    "fetched": "fetched from S3",
    "imported": "torch imported",
    "built": "model built",
    "answered": "answered",
}
"""What the pod's ``cold start:`` line calls its stages, and what a reader does."""


@dataclass(frozen=True)
class Answered:
    """A request's answer; moments are of the client's clock, seconds since the epoch."""

    response: httpx.Response
    sent_s: float
    received_s: float

    @property
    def took_s(self) -> float:
        """As the client felt it."""
        return self.received_s - self.sent_s

    @property
    def pod(self) -> str:
        """Who answered."""
        return self.response.headers["Hearth-Pod"].partition(";")[0]

    @property
    def up_s(self) -> float:
        """How long ago the process that answered was started."""
        found = re.search(r";\s*up=([0-9.]+)", self.response.headers["Hearth-Pod"])
        assert found, f"no age in Hearth-Pod: {self.response.headers['Hearth-Pod']}"
        return float(found[1])


@dataclass(frozen=True)
class ColdStart:
    """Seconds after the request was sent, in order of the table's lines."""

    name: str
    moments: Mapping[str, float]
    took_s: float


def timed(send: httpx.Client, request: httpx.Request) -> Answered:
    """Send once, no second try, and note both moments."""
    sent_s = time.time()
    response = send.send(request)
    return Answered(response, sent_s, time.time())


def cold_start(name: str, answered: Answered, namespace: Namespace) -> ColdStart:
    """Put the cluster's moments and those of the pod's own log on one line."""
    stages = stages_of(namespace, answered.pod)
    started_s = answered.took_s - answered.up_s
    moments = {
        "pod scheduled": scheduled_s(namespace, answered.pod) - answered.sent_s,
        "process started": started_s,
        **{STAGES[stage]: started_s + at_s for stage, at_s in stages.items()},
    }
    return ColdStart(name, moments, answered.took_s)


def scheduled_s(namespace: Namespace, pod: str) -> float:
    """When the pod got its node, seconds since the epoch. The scheduler's event knows microseconds, the pod only seconds."""

    def look() -> float | None:
        events = namespace.items("events.v1.events.k8s.io", "--field-selector", f"regarding.name={pod},reason=Scheduled")
        moments = [event["eventTime"] for event in events if event.get("eventTime")]
        return datetime.fromisoformat(moments[0]).timestamp() if moments else None

    try:
        return eventually(look, what=f"the event that {pod} was scheduled", timeout_s=5)
    except TimeoutError:
        (found,) = namespace.items("pods", "--field-selector", f"metadata.name={pod}")
        conditions = {condition["type"]: condition["lastTransitionTime"] for condition in found["status"]["conditions"]}
        return datetime.fromisoformat(conditions["PodScheduled"]).timestamp()


def stages_of(namespace: Namespace, pod: str) -> dict[str, float]:
    """What the pod's ``cold start:`` line says, stage → seconds since its process was started."""

    def look() -> str | None:
        log = namespace.kubectl("logs", pod)  # of the container that Knative calls the default one
        found = re.search(r"cold start: (.*)", log)
        return found[1] if found else None

    line = eventually(look, what=f"the line `cold start:` in the log of {pod}", timeout_s=10)
    return {stage: float(at_s) for stage, at_s in re.findall(r"(\w+)=([0-9.]+)", line)}


def table(starts: Sequence[ColdStart]) -> str:
    """All of them side by side, the first being what the others are compared with."""
    lines = ["", "seconds after the request was sent".ljust(36) + "".join(start.name.rjust(16) for start in starts)]
    for moment in ("pod scheduled", "process started", *STAGES.values()):
        cells = [start.moments.get(moment) for start in starts]
        lines.append(moment.ljust(36) + "".join(("" if cell is None else f"{cell:.2f}").rjust(16) for cell in cells))
    base = starts[0].took_s
    lines.append("answer received".ljust(36) + "".join(f"{start.took_s:.2f}".rjust(16) for start in starts))
    lines.append(f"beyond {starts[0].name}".ljust(36) + "".join(f"{start.took_s - base:+.2f}".rjust(16) for start in starts))
    lines.append(f"times {starts[0].name}".ljust(36) + "".join(f"{start.took_s / base:.2f}".rjust(16) for start in starts))
    return "\n".join(lines)
