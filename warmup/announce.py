"""Tells the cluster: models' statuses and Events. Nothing that it says already is written again; slowly, if there is much.

What stays out: what a status says (status.py), and when it is to be looked at (reconcile.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from predictor.telemetry import Telemetry
from warmup.kube import EVENTS, INFERENCE_SERVICES, Conflict, Kube, KubeError, NotFound, Object
from warmup.status import Occurrence
from warmup.work import Bucket

log = logging.getLogger(__name__)

COMPONENT: Final = "hearth-controller"
MAX_MESSAGE_CHARS: Final = 1024
"""As the API server takes them in an Event."""


class Announcer:
    """Writes. Everything goes through one bucket, and only while ``may_write``."""

    def __init__(
        self,
        kube: Kube,
        bucket: Bucket,
        *,
        identity: str,
        may_write: Callable[[], bool],
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._bucket = bucket
        self._identity = identity
        self._may_write = may_write
        self._telemetry = telemetry
        self._clock = clock
        self._latest: dict[str, tuple[str, Object]] = {}

    def latest(self, found: Object) -> Object:
        """The InferenceService, as we wrote it if the watch does not tell of that yet."""
        name, version = found["metadata"]["name"], str(found["metadata"].get("resourceVersion", ""))
        based_on, written = self._latest.get(name, ("", {}))
        if based_on == version:
            return written
        self._latest.pop(name, None)
        return found

    def forget(self, name: str) -> None:
        """It is gone."""
        self._latest.pop(name, None)

    async def allowed(self) -> bool:
        """Wait for a turn; whether there is one."""
        await self._bucket.take()
        return self._may_write()

    async def write_status(self, found: Object, patch: dict[str, Any]) -> None:
        """Merge into the status. NotFound is no error: it was deleted meanwhile. Raises KubeError."""
        name = found["metadata"]["name"]
        try:
            written = await self._kube.patch_status(INFERENCE_SERVICES, name, patch)
        except NotFound:
            self.count("inferenceservices", "gone")
            return
        except KubeError as error:
            self.count("inferenceservices", "conflict" if isinstance(error, Conflict) else "failed")
            raise
        self.count("inferenceservices", "ok")
        self._latest[name] = (str(found["metadata"].get("resourceVersion", "")), written)

    async def record(self, about: Object, occurrence: Occurrence, cause: str) -> None:
        """Write an Event, once: the same object, reason and ``cause`` make the same name. Its loss is no error."""
        metadata = about["metadata"]
        digest = hashlib.sha256("\0".join((metadata["uid"], occurrence.reason, cause)).encode()).hexdigest()[:16]
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "metadata": {"name": f"{metadata['name'][:200]}.{digest}", "namespace": self._kube.namespace},
            "involvedObject": {
                "apiVersion": about.get("apiVersion", INFERENCE_SERVICES.api_version),
                "kind": about.get("kind", INFERENCE_SERVICES.kind),
                "name": metadata["name"],
                "namespace": self._kube.namespace,
                "uid": metadata["uid"],
            },
            "type": occurrence.type,
            "reason": occurrence.reason,
            "message": occurrence.message[:MAX_MESSAGE_CHARS],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity,
        }
        try:
            await self._kube.create(EVENTS, event)
            self.count("events", "ok")
        except Conflict:
            self.count("events", "conflict")  # it was told before a restart
        except KubeError as error:
            self.count("events", "failed")
            log.warning("event %s about %s is lost: %s", occurrence.reason, metadata["name"], error.message)

    def count(self, resource: str, outcome: str) -> None:
        """One write, whoever made it."""
        self._telemetry.counter("hearth_controller_writes_total", resource, outcome).inc()
