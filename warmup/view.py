"""What the models of a namespace ask for, from their InferenceServices as the API server's JSON has them.

Pure: nothing here reads, waits or looks at the clock. What stays out: pools themselves (pools.py), where a wish leads with
which credentials (credentials.py), and what is done about it (rollout.py, status.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from predictor.model import ModelFormat
from warmup.objects import Object, is_model, name_of, part, shown, text
from warmup.pools import DEFAULT_LABEL, POOL_LABEL, WARM_ANNOTATION, Owner, Pool, Variable, pools

__all__ = ["DEFAULT_LABEL", "POOL_LABEL", "WARM_ANNOTATION", "Object", "Owner", "Pool", "Variable", "pools"]
"""Of pools.py and objects.py: who wants to know what is there asks this module."""

TENANT_LABEL: Final = "hearth.dev/tenant"
PRIORITY_LABEL: Final = "hearth.dev/priority"
SECRET_ANNOTATION: Final = "serving.kserve.io/storageSecretName"  # noqa: S105 - an annotation's name

FORMATS: Final = tuple(sorted(kind.value for kind in ModelFormat))
PRIORITIES: Final = ("high", "normal", "batch")
FRAMEWORKS: Final = (
    "onnx", "pytorch", "sklearn", "xgboost", "tensorflow", "triton", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip
"""Fields of spec.predictor from before ``model``: each is a format."""

SECRET_PARAMETERS: Final = frozenset({"access_key_id", "secret_access_key", "session_token"})
MAX_KEY_BYTES: Final = 1024
_BUCKET: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")
_TENANT: Final = re.compile(r"[A-Za-z0-9._-]{0,63}")  # as hearth.json has them

Reason = Literal[
    "ModelLoadFailed",
    "RuntimeUnhealthy",
    "RuntimeDisabled",
    "NoSupportingRuntime",
    "RuntimeNotRecognized",
    "InvalidPredictorSpec",
]
"""KServe's FailureReason."""


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


def model(
    inference_service: Object, pools: Mapping[str, Pool], runtimes: Collection[str], *, annotation: str = SECRET_ANNOTATION
) -> Model | Stranger | None:
    """Whose an InferenceService is, and what it asks for. None: it is no model (a pool, a service of KServe's own, deleted).

    runtimes    names of the namespace's ServingRuntimes
    annotation  which one names a Secret: credentials.Config's
    """
    metadata = part(inference_service, "metadata")
    if not is_model(inference_service) or metadata.get("deletionTimestamp"):
        return None
    name, namespace, uid = name_of(inference_service), text(metadata, "namespace"), text(metadata, "uid")
    runtime = text(part(inference_service, "spec", "predictor", "model"), "runtime")
    pool = runtime or next((pool.name for pool in pools.values() if pool.is_default), "")
    if pool not in pools:
        return Stranger(name, namespace, uid, "" if not runtime or runtime in runtimes else runtime)
    wish = _wish(inference_service, annotation)
    generation = int(metadata.get("generation") or 0)
    return Model(name, namespace, uid, generation, pool, wish, inference_service.get("status") or {})


def models(
    inference_services: Iterable[Object],
    pools: Mapping[str, Pool],
    runtimes: Collection[str],
    *,
    annotation: str = SECRET_ANNOTATION,
) -> tuple[list[Model], list[Stranger]]:
    """``model`` of each."""
    found = [model(item, pools, runtimes, annotation=annotation) for item in inference_services]
    return [one for one in found if isinstance(one, Model)], [one for one in found if isinstance(one, Stranger)]


def location(uri: str) -> str | Invalid:
    """``s3://bucket/key`` in the one spelling that is compared and declared; Invalid: nothing is served from there."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme != "s3":
        return _invalid(f"storageUri {shown(uri)}: models are read from S3 alone; write s3://bucket/folder")
    if any(mark in uri for mark in "?#") or not uri.isprintable():
        return _invalid(f"storageUri {shown(uri)}: ?, # and control characters have no place in it; write s3://bucket/folder")
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if not _BUCKET.fullmatch(bucket):
        return _invalid(f"storageUri {shown(uri)}: {shown(bucket)} is no bucket's name; write s3://bucket/folder")
    if not key:
        return _invalid(f"storageUri {shown(uri)}: names a bucket; name the model's folder in it: s3://{bucket}/folder")
    if len(key.encode()) > MAX_KEY_BYTES or not {".", ".."}.isdisjoint(key.split("/")):
        return _invalid(f"storageUri {shown(uri)}: no S3 key: at most {MAX_KEY_BYTES} bytes, and no . or .. between slashes")
    return f"s3://{bucket}/{key}"


def _wish(item: Object, annotation: str) -> Wish | Invalid:
    predictor = part(item, "spec", "predictor")
    for component in ("transformer", "explainer"):
        if part(item, "spec").get(component):
            return _invalid(f"spec.{component}: a model in a pool has none; remove it, or serve the model by itself in KServe")
    written = _spec(predictor)
    if isinstance(written, Invalid):
        return written
    where, named, spec = written
    if named not in {"", *FORMATS}:
        return Invalid(
            "NoSupportingRuntime", f"modelFormat {shown(named)} is not served by a pool; served are {', '.join(FORMATS)}"
        )
    wish = Wish(
        service_account=text(predictor, "serviceAccountName"),
        secret=text(part(item, "metadata", "annotations"), annotation),
        format=named,
        format_version=text(part(spec, "modelFormat"), "version"),
        percent=predictor.get("canaryTrafficPercent"),
        tenant=text(part(item, "metadata", "labels"), TENANT_LABEL),
        priority=text(part(item, "metadata", "labels"), PRIORITY_LABEL),
    )
    return _faulty(wish) or _placed(wish, where, spec)


def _faulty(wish: Wish) -> Invalid | None:
    """What is wrong with how it is to be served; None: nothing."""
    if not _TENANT.fullmatch(wish.tenant):
        allowed = "1 to 63 letters, digits, dots, dashes, underscores"
        return _invalid(f"label {TENANT_LABEL}: {shown(wish.tenant)} is no tenant's name: {allowed}")
    if wish.priority not in {"", *PRIORITIES}:
        return _invalid(f"label {PRIORITY_LABEL}: {shown(wish.priority)} is none of {', '.join(PRIORITIES)}")
    if wish.percent is not None and not (isinstance(wish.percent, int) and 0 <= wish.percent <= 100):  # noqa: PLR2004 - per cent
        return _invalid(f"canaryTrafficPercent: {shown(str(wish.percent))} is not between 0 and 100")
    return None


def _spec(predictor: Object) -> tuple[str, str, Object] | Invalid:
    """The field that describes the model, its format, and what stands there.

    KServe's webhook turns the older fields (``onnx``, ...) into ``model``; where it does not run, they come as written.
    """
    if predictor.get("storageUris"):
        return _invalid("spec.predictor.storageUris: a model lies in one place; set storageUri of spec.predictor.model instead")
    given = [field_name for field_name in ("model", *FRAMEWORKS) if isinstance(predictor.get(field_name), Mapping)]
    if len(given) != 1:
        found = f"there are {' and '.join(given)}" if given else "there is none"
        return _invalid(f"spec.predictor needs one model, {found}: write spec.predictor.model with modelFormat and storageUri")
    spec = part(predictor, given[0])
    return f"spec.predictor.{given[0]}", given[0] if given[0] != "model" else text(part(spec, "modelFormat"), "name"), spec


def _placed(wish: Wish, where: str, spec: Object) -> Wish | Invalid:
    """The wish with where the model lies. As in KServe, ``storageUri`` may come with the key and parameters of ``storage``."""
    uri, storage = text(spec, "storageUri"), part(spec, "storage")
    path = text(storage, "path").strip("/")
    if uri and path:
        return _invalid(f"{where}: storageUri and storage.path both say where the model lies: remove one of them")
    if not uri and not path:
        return _invalid(f"{where} does not say where the model lies: set storageUri to s3://bucket/folder, or storage.path")
    parameters = part(storage, "parameters")
    if secrets := sorted(SECRET_PARAMETERS & set(parameters)):
        return _invalid(
            f"{where}.storage.parameters: {', '.join(secrets)} belong into a Secret, where not everybody reads them"
        )
    whole = uri or f"s3://bucket/{path}"  # the Secret names the bucket: until it is read, any does
    checked = location(whole)
    if isinstance(checked, Invalid):
        return (
            checked if uri else _invalid(checked.message.replace(f"storageUri {shown(whole)}", f"storage.path {shown(path)}"))
        )
    return replace(
        wish,
        storage_uri=checked if uri else "",
        storage_path=path,
        storage_key=text(storage, "key"),
        parameters=tuple(sorted((str(key), str(value)) for key, value in parameters.items())),
        by_storage=bool(storage),
    )


def _invalid(message: str) -> Invalid:
    return Invalid("InvalidPredictorSpec", message)
