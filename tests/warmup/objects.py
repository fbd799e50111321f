"""Objects as the API server has them, for the controller's tests."""

from __future__ import annotations

from typing import Any

Made = dict[str, Any]


def metadata(name: str, **more: Any) -> Made:
    return {"name": name, "namespace": "ns", "uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z", **more}


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> Made:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def model_service(name: str = "mnist", *, runtime: str | None = "gpu", predictor: Made | None = None, **model: Any) -> Made:
    """A model's InferenceService; ``predictor`` replaces spec.predictor whole."""
    spec = {"modelFormat": {"name": "onnx"}, **({"runtime": runtime} if runtime else {}), **model}
    if not {"storageUri", "storage"} & set(model):
        spec["storageUri"] = f"s3://models/{name}"
    return {
        "metadata": metadata(name, generation=1, annotations={"serving.kserve.io/deploymentMode": "ModelMesh"}),
        "spec": {"predictor": {"model": spec} if predictor is None else predictor},
    }


def pool_service(name: str = "gpu", *, pool: str | None = None, default: bool = False, **more: Any) -> Made:
    """A pool's InferenceService, ready at zero."""
    labels = {"hearth.dev/pool": pool or name, **({"hearth.dev/default-pool": "true"} if default else {})}
    return {
        "metadata": metadata(name, labels=labels, **more),
        "spec": {"predictor": {"serviceAccountName": "pool", "containers": [{"name": "kserve-container"}]}},
        "status": {
            "url": f"http://{name}-predictor.ns.example.com",
            "address": {"url": f"http://{name}-predictor.ns.svc.cluster.local"},
            "conditions": [condition("IngressReady"), condition("Ready")],
        },
    }


def knative_service(name: str = "gpu-predictor", *, owner: str = "", labels: Made | None = None, **more: Any) -> Made:
    """A Knative Service, ready at zero; ``owner``: the InferenceService it is beneath."""
    owners = (
        [{"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": owner, "uid": "u"}] if owner else []
    )
    return {
        "metadata": metadata(name, labels=labels or {}, ownerReferences=owners, **more),
        "spec": {"template": {"spec": {"serviceAccountName": "plain", "containers": [{"name": "user-container"}]}}},
        "status": {
            "url": f"http://{name}.ns.example.com",
            "address": {"url": f"http://{name}.ns.svc.cluster.local"},
            "latestReadyRevisionName": f"{name}-00001",
            "conditions": [condition("ConfigurationsReady"), condition("Ready"), condition("RoutesReady")],
        },
    }


def deployment(name: str = "cpu", *, available: str = "True", **more: Any) -> Made:
    return {
        "metadata": metadata(name, labels={"hearth.dev/pool": name}, **more),
        "spec": {"template": {"spec": {"containers": [{"name": "predictor"}]}}},
        "status": {"conditions": [condition("Available", available, "MinimumReplicasUnavailable", "none is there")]},
    }
