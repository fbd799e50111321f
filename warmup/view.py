"""What lies in the namespace: pools, models and what each model asks for, from objects as the API server's JSON has them.

Pure: nothing here reads, waits or looks at the clock. What stays out: where a wish leads with which credentials
(credentials.py), and what is done about it (rollout.py, status.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Object = Mapping[str, Any]
"""A Kubernetes object, as its JSON says."""

POOL_LABEL: Final = "hearth.dev/pool"
DEFAULT_LABEL: Final = "hearth.dev/default-pool"
TENANT_LABEL: Final = "hearth.dev/tenant"
PRIORITY_LABEL: Final = "hearth.dev/priority"
WARM_ANNOTATION: Final = "hearth.dev/warm-until"
MODE_ANNOTATION: Final = "serving.kserve.io/deploymentMode"
SECRET_ANNOTATION: Final = "serving.kserve.io/storageSecretName"
MODEL_MODE: Final = "ModelMesh"

Reason = Literal[
    "ModelLoadFailed", "RuntimeUnhealthy", "RuntimeDisabled", "NoSupportingRuntime", "RuntimeNotRecognized", "InvalidPredictorSpec"
]
"""KServe's FailureReason."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A pool's object, as an owner reference names it: what it owns is deleted with it."""

    api_version: str
    kind: str
    name: str
    uid: str

    def reference(self) -> dict[str, str]:
        """For ``metadata.ownerReferences``."""
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the pool's container: a ``value``, or the ``key`` of a Secret or a ConfigMap."""

    name: str
    value: str = ""
    secret: str = ""
    config_map: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """Pods that serve models, behind one address.

    kind             ``kserve``: an InferenceService; ``knative``: a Knative Service; ``deployment``
    is_default       the pool of models that name no runtime
    url              where clients outside reach it; "" while it has none
    address          the same inside the cluster
    readiness        ``True``, ``False`` or ``Unknown``: whether its address leads to pods, or to what would start one. It stays
                     True while a new Revision is tried: the one before serves
    reason, message  why, unless it is True
    service          the Knative Service's name; "": it has none
    revision         the latest ready Revision's name; "": there is none
    warm_until_s     until when somebody wants a pod running, seconds since the epoch; None: nobody does
    service_account  its pods' own
    environment      of its container, as far as the object tells; for what it may do (HEARTH_TRUST) and where it reads (AWS_*)
    remark           what its owner should know, as a sentence; "": nothing
    """

    name: str
    namespace: str
    kind: Literal["kserve", "knative", "deployment"]
    owner: Owner
    is_default: bool = False
    url: str = ""
    address: str = ""
    readiness: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    service: str = ""
    revision: str = ""
    warm_until_s: float | None = None
    service_account: str = "default"
    environment: tuple[Variable, ...] = ()
    remark: str = ""

    @property
    def ready(self) -> bool:
        """Whether requests get there."""
        return self.readiness == "True"


@dataclass(frozen=True, slots=True)
class Invalid:
    """What a model asks for cannot be. ``passing``: something outside its InferenceService is missing, and may still come."""

    reason: Reason
    message: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What a model's InferenceService asks for.

    storage_uri      ``s3://bucket/key`` without a slash at its end; "": ``storage_path`` says where
    storage_path     behind the bucket that the storage Secret names
    storage_key      entry of the storage Secret; "": the default one
    parameters       of ``storage``, sorted: they go before what the Secret says
    by_storage       ``storage`` is given: credentials come from the storage Secret, else from the ServiceAccount's
    service_account  "": none named
    secret           the Secret that an annotation names; "": none
    format           onnx or pytorch; "": recognised from the files
    percent          ``canaryTrafficPercent``; None: not given
    """

    storage_uri: str = ""
    storage_path: str = ""
    storage_key: str = ""
    parameters: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    by_storage: bool = False
    service_account: str = ""
    secret: str = ""
    format: str = ""
    format_version: str = ""
    percent: int | None = None
    tenant: str = ""
    priority: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One InferenceService that is ours. ``status``: as it stands in the cluster."""

    name: str
    namespace: str
    uid: str
    generation: int
    pool: str
    wish: Wish | Invalid
    status: Object = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Stranger:
    """An InferenceService in ModelMesh mode that is not ours. ``unknown_runtime``: named by it and by nobody; "": another's."""

    name: str
    namespace: str
    uid: str
    unknown_runtime: str = ""


def pools(
    inference_services: Iterable[Object],
    serving_runtimes: Iterable[Object],
    knative_services: Iterable[Object],
    deployments: Iterable[Object],
) -> dict[str, Pool]:
    """Every pool by its name. Of two objects that claim a name, and of two default pools, the oldest is it."""
    raise NotImplementedError


def model(
    inference_service: Object, pools: Mapping[str, Pool], runtimes: Collection[str], *, annotation: str = SECRET_ANNOTATION
) -> Model | Stranger | None:
    """Whose an InferenceService is, and what it asks for. None: it is no model (a pool, a service of KServe's own, deleted).

    runtimes    names of the namespace's ServingRuntimes
    annotation  which one names a Secret: credentials.Config's
    """
    raise NotImplementedError


def models(
    inference_services: Iterable[Object], pools: Mapping[str, Pool], runtimes: Collection[str], *, annotation: str = SECRET_ANNOTATION
) -> tuple[list[Model], list[Stranger]]:
    """``model`` of each."""
    raise NotImplementedError


def location(uri: str) -> str | Invalid:
    """``s3://bucket/key`` in the one spelling that is compared and declared; Invalid: nothing is served from there."""
    raise NotImplementedError
