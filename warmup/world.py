"""What the cluster has, as far as the controller watches it: one cache per kind, and who is told of which change.

What stays out: what an object means (view.py), and what is never watched (secrets.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from warmup import view
from warmup.kept import KEPT_LABEL
from warmup.kube import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    KNATIVE_SERVICES,
    PODS,
    SERVING_RUNTIMES,
    Kube,
    Object,
    meta,
    name_of,
)
from warmup.objects import created, is_model
from warmup.pods import PodRef
from warmup.view import POOL_LABEL, Pool
from warmup.watch import Pace, Watched, whole

OURS: Final = f"app.kubernetes.io/managed-by=hearth,{KEPT_LABEL}!=true"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
REFRESHED: Final = "hearth.dev/refreshed"


class Hearer(Protocol):
    """Who is told. Plain functions, called by the watches."""

    def model_changed(self, name: str) -> None:
        """An InferenceService in ModelMesh mode, or one that was, is other than before."""

    def pools_changed(self) -> None:
        """Something that may be a pool, or belong to one, is other than before."""

    def pods_changed(self) -> None:
        """A pod came, went, or has another address."""

    def config_map_changed(self, pool: str, name: str, version: str) -> None:
        """One of the pool's own documents was written, by whomever. ``version``: "": it is gone."""


class World:
    """The caches. ``run`` keeps them up to date."""

    def __init__(self, kube: Kube, hearer: Hearer, *, pace: Pace | None = None) -> None:
        self.inference_services = Watched(kube, INFERENCE_SERVICES, _slim, pace=pace)
        self.serving_runtimes = Watched(kube, SERVING_RUNTIMES, _slim, pace=pace)
        self.knative_services = Watched(kube, KNATIVE_SERVICES, _slim, pace=pace)
        self.deployments = Watched(kube, DEPLOYMENTS, _slim, labels=POOL_LABEL, pace=pace)
        self.pods = Watched(kube, PODS, _slim_pod, labels=POOL_LABEL, pace=pace)
        self.config_maps = Watched(kube, CONFIG_MAPS, _slim_config_map, labels=OURS, pace=pace)
        self._hearer = hearer
        self._no_models: dict[str, Object] = {}
        self.inference_services.on_change(self._on_inference_service)
        for watched in (self.serving_runtimes, self.knative_services, self.deployments):
            watched.on_change(lambda *_: hearer.pools_changed())
        self.pods.on_change(lambda *_: hearer.pods_changed())
        self.config_maps.on_change(self._on_config_map)

    @property
    def caches(self) -> tuple[Watched[Any], ...]:
        """All of them."""
        return (
            self.inference_services,
            self.serving_runtimes,
            self.knative_services,
            self.deployments,
            self.pods,
            self.config_maps,
        )

    @property
    def synced(self) -> bool:
        """Whether all that exists was read once."""
        return all(cache.synced for cache in self.caches)

    def stale_s(self) -> Mapping[str, float]:
        """By kind: how long nothing was heard. inf: never yet."""
        return {cache.resource.plural: cache.stale_s() for cache in self.caches}

    def troubles(self) -> list[str]:
        """What is wrong with a watch, in words."""
        return [f"{cache.resource.plural}: {cache.error}" for cache in self.caches if cache.error]

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each for ever."""
        return [cache.run() for cache in self.caches]

    async def until_synced(self) -> None:
        """Return once ``synced``."""
        await asyncio.gather(*(cache.until_synced() for cache in self.caches))

    def pools(self) -> dict[str, Pool]:
        """Every pool, by name, computed anew; models are not looked at for it."""
        return view.pools(
            self._no_models.values(),
            self.serving_runtimes.objects.values(),
            self.knative_services.objects.values(),
            self.deployments.objects.values(),
        )

    def models(self) -> list[str]:
        """Names of the InferenceServices that may be models."""
        return [name for name in self.inference_services.objects if name not in self._no_models]

    def pod_refs(self) -> list[PodRef]:
        """Pods that run and have an address."""
        return [
            PodRef(meta(pod, POOL_LABEL, "labels"), name_of(pod), str(pod["status"]["podIP"]))
            for pod in self.pods.objects.values()
            if pod["status"].get("phase") == "Running" and pod["status"].get("podIP")
        ]

    def ending(self) -> set[PodRef]:
        """Those of them that were told to end."""
        return {ref for ref in self.pod_refs() if self.pods.objects[ref.name]["metadata"]["deleting"]}

    def created_s(self, pod: str) -> float | None:
        """When a pod was made, seconds since the epoch; None: there is no such pod, or it does not say."""
        found = self.pods.objects.get(pod)
        try:
            return datetime.fromisoformat(created(found or {})).timestamp()
        except ValueError:
            return None

    def _on_inference_service(self, name: str, old: Object | None, new: Object | None) -> None:
        if new is not None and not is_model(new):
            self._no_models[name] = new
            self._hearer.pools_changed()
        elif self._no_models.pop(name, None) is not None:
            self._hearer.pools_changed()
        if any(found is not None and is_model(found) for found in (old, new)):
            self._hearer.model_changed(name)

    def _on_config_map(self, name: str, old: Object | None, new: Object | None) -> None:
        found = new or old
        assert found is not None, name
        version = str(new["metadata"]["resourceVersion"]) if new is not None else ""
        self._hearer.config_map_changed(meta(found, POOL_LABEL, "labels"), name, version)


def heard(stale_s: float) -> float:
    """For a metric: -1 where nothing was ever heard."""
    return stale_s if math.isfinite(stale_s) else -1.0


def _slim(found: Object) -> Object:
    """All but who wrote which field, and the copy that kubectl keeps of itself: together most of a small object."""
    kept = whole(found)
    annotations = {key: value for key, value in (kept["metadata"].get("annotations") or {}).items() if key != LAST_APPLIED}
    return kept | {"metadata": kept["metadata"] | {"annotations": annotations}}


def _slim_pod(found: Object) -> Object:
    metadata, status = found["metadata"], found.get("status") or {}
    refreshed = meta(found, REFRESHED)
    return {
        "metadata": {
            "name": metadata["name"],
            "labels": {POOL_LABEL: meta(found, POOL_LABEL, "labels")},
            "annotations": {REFRESHED: refreshed} if refreshed else {},
            "deleting": bool(metadata.get("deletionTimestamp")),
            "creationTimestamp": metadata.get("creationTimestamp", ""),
        },
        "status": {"phase": status.get("phase", ""), "podIP": status.get("podIP", "")},
    }


def _slim_config_map(found: Object) -> Object:
    metadata = found["metadata"]
    return {
        "metadata": {
            "name": metadata["name"],
            "labels": {POOL_LABEL: meta(found, POOL_LABEL, "labels")},
            "resourceVersion": metadata["resourceVersion"],
        }
    }
