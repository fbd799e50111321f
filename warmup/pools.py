"""A namespace's pools, from the objects that are labelled as such and those beneath them.

Pure: nothing here reads, waits or looks at the clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from warmup import calendar
from warmup.calendar import NEVER, WARM_AT, WARM_TIMEZONE, Calendar
from warmup.objects import Object, condition, created, is_model, name_of, part, shown, text

POOL_LABEL: Final = "hearth.dev/pool"
DEFAULT_LABEL: Final = "hearth.dev/default-pool"
WARM_ANNOTATION: Final = "hearth.dev/warm-until"
WEIGHT_ANNOTATION: Final = "hearth.dev/cold-start-weight"
FORECAST_ANNOTATION: Final = "hearth.dev/forecast"
WISHES: Final = frozenset({WARM_ANNOTATION, WARM_AT, WARM_TIMEZONE, WEIGHT_ANNOTATION, FORECAST_ANNOTATION})
MAX_WEIGHT: Final = 1e6

Readiness = Literal["True", "False", "Unknown"]


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
    """One environment variable of the pool's container: a ``value``, or the ``key`` of a Secret or a ConfigMap.

    Without ``key`` it is all of that Secret or ConfigMap, each name with ``name`` before it (``envFrom``).
    """

    name: str
    value: str = ""
    secret: str = ""
    config_map: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an object's annotations say about pods that run before, or after, anybody asks.

    until_s    until when somebody wants a pod running, seconds since the epoch; None: nobody does
    calendar   when somebody wants pods running, again and again
    weight     idle seconds of a pod that one second of a waiting user is worth; None: it does not say
    forecasts  whether pods may be started because past days needed them
    """

    until_s: float | None = None
    calendar: Calendar = NEVER
    weight: float | None = None
    forecasts: bool = True


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
    wishes           when its pods are to run though nobody asks
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
    readiness: Readiness = "Unknown"
    reason: str = ""
    message: str = ""
    service: str = ""
    revision: str = ""
    wishes: Wishes = Wishes()
    service_account: str = "default"
    environment: tuple[Variable, ...] = ()
    remark: str = ""

    @property
    def ready(self) -> bool:
        """Whether requests get there."""
        return self.readiness == "True"

    @property
    def warm_until_s(self) -> float | None:
        """Until when somebody wants a pod running, seconds since the epoch; None: nobody does."""
        return self.wishes.until_s


def pools(
    inference_services: Iterable[Object],
    serving_runtimes: Iterable[Object],
    knative_services: Iterable[Object],
    deployments: Iterable[Object],
) -> dict[str, Pool]:
    """Every pool by its name. Of two objects that claim a name, and of two default pools, the oldest is it."""
    knative = {name_of(item): item for item in knative_services}
    runtimes = {name_of(item): item for item in serving_runtimes}
    claims = []
    for item in inference_services:
        if (claimed := _claims(item)) and not is_model(item):
            beneath = knative.get(f"{name_of(item)}-predictor", {})
            claims.append((created(item), name_of(item), _kserve_pool(claimed, item, beneath, runtimes.get(claimed, {}))))
    for item in knative.values():
        if (claimed := _claims(item)) and not _owned_by(item, "serving.kserve.io"):
            claims.append((created(item), name_of(item), _knative_pool(claimed, item)))  # noqa: PERF401 - as its neighbours
    for item in deployments:
        # Knative's and KServe's own Deployments carry the labels of what they were made for.
        if (claimed := _claims(item)) and not _owned_by(item, "serving.kserve.io", "serving.knative.dev"):
            claims.append((created(item), name_of(item), _deployment_pool(claimed, item)))  # noqa: PERF401 - as its neighbours
    return _settled(pool for _, _, pool in sorted(claims, key=lambda claim: claim[:2]))


def _settled(claims: Iterable[Pool]) -> dict[str, Pool]:
    """One pool of each name and at most one default, of claims in their age's order."""
    found: dict[str, Pool] = {}
    default = ""
    for pool in claims:
        first = found.get(pool.name)
        if first is not None:
            claimant = f"{pool.owner.kind} {pool.owner.name}"
            remark = f"{claimant} is labelled {POOL_LABEL}: {pool.name} too, and counts for nothing: it is newer"
            found[pool.name] = replace(first, remark=_sentences(first.remark, remark))
        elif pool.is_default and default:
            remark = f"not the default pool, although labelled {DEFAULT_LABEL}: that is {default}, which is older"
            found[pool.name] = replace(pool, is_default=False, remark=_sentences(pool.remark, remark))
        else:
            found[pool.name] = pool
            default = default or (pool.name if pool.is_default else "")
    return found


def _kserve_pool(name: str, item: Object, beneath: Object, runtime: Object) -> Pool:
    status, spec = part(item, "status"), part(item, "spec", "predictor")
    ingress = condition(item, "IngressReady")
    if beneath and ingress.get("status") != "False":
        readiness, reason, message = _route(beneath)
    else:
        readiness, reason, message = _told(ingress if ingress.get("status") == "False" else condition(item, "Ready"))
    wishes, remark = _wishes(runtime, f"ServingRuntime {name}")
    if unheeded := sorted(WISHES & part(item, "metadata", "annotations").keys()):
        told = f"{', '.join(unheeded)} counts for nothing here, write it on ServingRuntime {name}"
        why = "KServe makes a new Revision of what changes here"
        remark = _sentences(remark, f"InferenceService {name_of(item)}: {told} ({why})")
    return Pool(
        name,
        text(part(item, "metadata"), "namespace"),
        "kserve",
        _owner(item, "serving.kserve.io/v1beta1", "InferenceService"),
        is_default=_is_default(item),
        url=text(status, "url"),
        address=text(part(status, "address"), "url") or (_local(beneath) if beneath else ""),
        readiness=readiness,
        reason=reason,
        message=message,
        service=name_of(beneath) if beneath else "",
        revision=text(part(beneath, "status"), "latestReadyRevisionName"),
        wishes=wishes,
        service_account=text(spec, "serviceAccountName") or "default",
        environment=_environment(part(beneath, "spec", "template", "spec") or spec),
        remark=remark,
    )


def _knative_pool(name: str, item: Object) -> Pool:
    readiness, reason, message = _route(item)
    wishes, remark = _wishes(item, f"Knative Service {name_of(item)}")
    pod = part(item, "spec", "template", "spec")
    return Pool(
        name,
        text(part(item, "metadata"), "namespace"),
        "knative",
        _owner(item, "serving.knative.dev/v1", "Service"),
        is_default=_is_default(item),
        url=text(part(item, "status"), "url"),
        address=_local(item),
        readiness=readiness,
        reason=reason,
        message=message,
        service=name_of(item),
        revision=text(part(item, "status"), "latestReadyRevisionName"),
        wishes=wishes,
        service_account=text(pod, "serviceAccountName") or "default",
        environment=_environment(pod),
        remark=remark,
    )


def _deployment_pool(name: str, item: Object) -> Pool:
    readiness, reason, message = _told(condition(item, "Available"))
    wishes, remark = _wishes(item, f"Deployment {name_of(item)}")
    if wishes.calendar.entries:
        remark = _sentences(remark, f"{WARM_AT} counts for nothing: a Deployment has the replicas that it says")
    pod = part(item, "spec", "template", "spec")
    return Pool(
        name,
        text(part(item, "metadata"), "namespace"),
        "deployment",
        _owner(item, "apps/v1", "Deployment"),
        is_default=_is_default(item),
        url=_local(item),
        address=_local(item),
        readiness=readiness,
        reason=reason,
        message=message,
        wishes=wishes,
        service_account=text(pod, "serviceAccountName") or "default",
        environment=_environment(pod),
        remark=remark,
    )


def _claims(item: Object) -> str:
    """The pool's name that an object's label tells; "": it is no pool's object, or on its way out."""
    metadata = part(item, "metadata")
    return "" if metadata.get("deletionTimestamp") else text(part(metadata, "labels"), POOL_LABEL)


def _is_default(item: Object) -> bool:
    return text(part(item, "metadata", "labels"), DEFAULT_LABEL) == "true"


def _owned_by(item: Object, *groups: str) -> bool:
    owners = part(item, "metadata").get("ownerReferences") or []
    return any(str(owner.get("apiVersion", "")).partition("/")[0] in groups for owner in owners)


def _owner(item: Object, api_version: str, kind: str) -> Owner:
    return Owner(
        text(item, "apiVersion") or api_version, text(item, "kind") or kind, name_of(item), text(part(item, "metadata"), "uid")
    )


def _local(item: Object) -> str:
    """The cluster-local URL that an object tells, else that of the Service of its name."""
    told = text(part(item, "status", "address"), "url")
    return told or f"http://{name_of(item)}.{text(part(item, 'metadata'), 'namespace')}.svc.cluster.local"


def _route(knative_service: Object) -> tuple[Readiness, str, str]:
    """Of a Knative Service's route, not of the Service: that one is not Ready while a new Revision is tried, or failed."""
    if not text(part(knative_service, "status"), "latestReadyRevisionName"):
        return _told(condition(knative_service, "Ready"))
    return _told(condition(knative_service, "RoutesReady"))


def _told(condition: Object) -> tuple[Readiness, str, str]:
    said = condition.get("status")
    if said == "True":
        return "True", "", ""
    reason, message = text(condition, "reason"), text(condition, "message")
    return "False" if said == "False" else "Unknown", reason or "PoolNotReady", message or "the pool is not ready yet"


def _wishes(item: Object, named: str) -> tuple[Wishes, str]:
    """What the annotations say, and what is wrong with them, in sentences."""
    annotations = part(item, "metadata", "annotations")
    remarks: list[str] = []
    until_s = _moment(text(annotations, WARM_ANNOTATION), remarks)
    dates = calendar.parse(text(annotations, WARM_AT), text(annotations, WARM_TIMEZONE))
    remarks += dates.remarks
    weight = _weight(text(annotations, WEIGHT_ANNOTATION), remarks)
    forecasts = text(annotations, FORECAST_ANNOTATION) or "auto"
    if forecasts not in ("auto", "off"):
        remarks.append(f"{FORECAST_ANNOTATION} is {shown(forecasts)}; it can be auto or off, and counts as off")
    found = Wishes(until_s, replace(dates, remarks=()), weight, forecasts == "auto")
    return found, _sentences(*(f"{named}: {remark}" for remark in remarks))


def _moment(told: str, remarks: list[str]) -> float | None:
    if not told:
        return None
    try:
        moment = datetime.fromisoformat(told)
        datetime.fromtimestamp(moment.timestamp(), UTC)  # with its offset it may lie outside the years 1 to 9999
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        remarks.append(f"{WARM_ANNOTATION} is {shown(told)}, no RFC 3339 moment such as 2030-01-31T12:00:00Z")
        return None
    return moment.timestamp()


def _weight(told: str, remarks: list[str]) -> float | None:
    if not told:
        return None
    try:
        weight = float(told)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        remarks.append(f"{WEIGHT_ANNOTATION} is {shown(told)}, no number from 0 to {MAX_WEIGHT:.0f}; it counts for nothing")
        return None
    return weight


def _environment(pod: Object) -> tuple[Variable, ...]:
    """Of the container that serves; those of ``envFrom`` first, as they count less."""
    containers = pod.get("containers") or [pod.get("model") or {}]
    container = next((one for one in containers if one.get("name") == "kserve-container"), containers[0])
    found = []
    for source in container.get("envFrom") or []:
        secret, config_map = text(part(source, "secretRef"), "name"), text(part(source, "configMapRef"), "name")
        found.append(Variable(text(source, "prefix"), secret=secret, config_map=config_map))
    for told in container.get("env") or []:
        in_secret, in_map = part(told, "valueFrom", "secretKeyRef"), part(told, "valueFrom", "configMapKeyRef")
        key = text(in_secret, "key") or text(in_map, "key")
        found.append(Variable(text(told, "name"), text(told, "value"), text(in_secret, "name"), text(in_map, "name"), key))
    return tuple(found)


def _sentences(*parts: str) -> str:
    return "; ".join(one for one in parts if one)
