"""What a model's InferenceService says: conditions, states, URL, failures; and which changes of it become Events.

Pure: the moment is an argument. Fields and words are KServe's (v1beta1 InferenceServiceStatus).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from predictor.declared import Declared
from predictor.report import LocationReport
from warmup.objects import Object, condition, part, text
from warmup.rollout import ALL, Checked
from warmup.view import Invalid, Model, Pool

State = Literal["Pending", "Standby", "Loading", "Loaded", "FailedToLoad"]
Transition = Literal["UpToDate", "InProgress", "BlockedByFailedLoad", "InvalidSpec"]
Ready = Literal["True", "False", "Unknown"]

PERMANENT: Final = "FailedToLoad"
PASSING: Final = "LoadFailing"
"""Reasons of PredictorReady where pods could not load it: only the first is remembered when no pod tells it any more."""

MAX_MESSAGE_LENGTH: Final = 1000
"""Characters. A failure can be a page of a runtime's complaints, of which there may be thousands; an Event holds 1,024."""

_OURS: Final = ("IngressReady", "PredictorReady", "Ready")
_TOLD: Final = ("loaded", "loading", "failed")
_BEST_FIRST: Final[tuple[State, ...]] = ("Loaded", "Loading", "Standby", "FailedToLoad")
_MOMENTS: Final = frozenset({"lastTransitionTime", "time"})


class Told(NamedTuple):
    """What one running pod says of one location of the model."""

    pod: str
    location: LocationReport


class Occurrence(NamedTuple):
    """What becomes a Kubernetes Event. ``type``: Normal or Warning."""

    type: str
    reason: str
    message: str


class _Failure(NamedTuple):
    """``where``: a pod, or "" (the controller saw it itself); ``at_s`` None: it is seen now."""

    reason: str
    message: str
    number: int | None
    where: str = ""
    at_s: float | None = None


class _Standing(NamedTuple):
    """How a model stands. ``word`` and ``message`` are the reason and message of PredictorReady."""

    active: State
    target: State
    transition: Transition
    ready: Ready
    word: str
    message: str
    failure: _Failure | None = None


class _Copies(NamedTuple):
    """What pods say of one location. ``proven``: one of them had it loaded, whatever became of it since."""

    number: int
    loaded: tuple[Told, ...]
    loading: tuple[Told, ...]
    failed: tuple[Told, ...]
    proven: bool

    @property
    def state(self) -> State:
        """As pods have it; Standby where none has anything of it."""
        if self.loaded:
            return "Loaded"
        if self.loading:
            return "Loading"
        return "FailedToLoad" if self.failed else "Standby"


def status(  # noqa: PLR0917 - facts from six places, and the moment
    model: Model,
    pool: Pool,
    declared: Declared | None,
    finding: Checked | Invalid,
    told: Sequence[Told],
    previous: Object,
    now_s: float,
) -> dict[str, Any]:
    """The complete ``.status``.

    Ready is True where what the InferenceService asks for can be served: it is loaded, or would be by the first request.

    declared  what stands in the catalogue, written
    finding   of the present wish: what credentials or the model store say
    told      by running pods that go by ``declared``, of every location
    previous  as it stands in the cluster; what is not ours in it stays
    now_s     seconds since the epoch
    """
    standing = _standing(model, declared, finding, told, previous)
    address = {"url": pool.address} if pool.address else {}
    made = {
        **previous,
        "observedGeneration": model.generation,
        "conditions": _conditions(standing, pool, previous, _moment(now_s)),
        "components": {
            **part(previous, "components"),
            "predictor": _component(part(previous, "components", "predictor"), pool),
        },
        "modelStatus": _model_status(declared, standing, told) | _failure_info(model, pool, standing, previous, now_s),
    }
    for field_name, value in (("url", pool.url), ("address", address)):
        made.pop(field_name, None)
        if value:
            made[field_name] = value
    made.setdefault("deploymentMode", "ModelMesh")
    return made


def orphaned(previous: Object, pool: str, now_s: float) -> dict[str, Any]:
    """The complete status of a model whose pool is gone: nobody serves it, whatever it said before."""
    message = f"there is no pool {pool} any more: apply it again, name another as runtime, or delete this InferenceService"
    bad = {"status": "False", "reason": "PoolGone", "message": message, "lastTransitionTime": _moment(now_s)}
    others = [one for one in previous.get("conditions") or [] if one.get("type") not in _OURS]
    return {key: value for key, value in previous.items() if key not in {"url", "address", "components"}} | {
        "conditions": sorted([*others, *({"type": kind, **bad} for kind in _OURS)], key=lambda one: str(one["type"])),
        "modelStatus": {
            "transitionStatus": "InvalidSpec",
            "states": {"activeModelState": "Pending", "targetModelState": "FailedToLoad"},
            "lastFailureInfo": {"reason": "RuntimeNotRecognized", "message": message, "time": _moment(now_s)},
        },
    }


def unchanged(previous: Object, new: Object) -> bool:
    """Whether they differ in moments alone: then there is nothing to write."""
    return bool(_timeless(previous) == _timeless(new))


def patch(previous: Object, new: Object) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes ``new`` of ``previous``: what went away is null in it."""
    made: dict[str, Any] = {key: None for key in previous if key not in new}
    for key, value in new.items():
        before = previous.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := patch(before, value):
                made[key] = inner
        elif value != before:
            made[key] = value
    return made


def events(model: Model, previous: Object, new: Object) -> list[Occurrence]:
    """What happened between two statuses and is worth an Event. That a model is loaded and dropped again is not."""
    before, after = _Seen.of(previous), _Seen.of(new)
    told = _cut(f"{model.name}: {after.message}")
    if after.transition == "InvalidSpec":
        same = (before.transition, before.failure) == (after.transition, after.failure)
        return [] if same else [Occurrence("Warning", "InvalidSpec", told)]
    if after.target == "FailedToLoad":
        kind = "FailedToLoad" if after.active in {"FailedToLoad", "Pending"} else "BlockedByFailedLoad"
        same = (before.transition, before.target, before.revision) == (after.transition, after.target, after.revision)
        return [] if same else [Occurrence("Warning", kind, told)]
    if after.target != "Loaded" or after.transition != "UpToDate":
        return []
    if before.target == "FailedToLoad":
        return [Occurrence("Normal", "Loaded", told)]
    rolled_out = before.transition == "InProgress" and before.active not in {"", "Pending"}
    if (rolled_out and after.word != "Canary") or (before.word, after.word) == ("Canary", "Loaded"):
        return [Occurrence("Normal", "RolledOut", told)]
    return []


def proven(told: Sequence[Told]) -> set[int]:
    """Numbers that have taken over, for rollout.next_declared: no pod would have to load one before it can go on answering.

    A pod had it loaded; and so had every pod that now has another location of the model loaded.
    """
    loaded = {one.pod for one in told if one.location.state == "loaded"}
    had: dict[int, set[str]] = {}
    for one in told:
        if one.location.proven or one.location.state == "loaded":
            had.setdefault(one.location.number, set()).add(one.pod)
    return {number for number, pods in had.items() if loaded <= pods}


# ---- how a model stands ----------------------------------------------------------------------------------------


def _standing(
    model: Model, declared: Declared | None, finding: Checked | Invalid, told: Sequence[Told], previous: Object
) -> _Standing:
    if isinstance(finding, Invalid):
        active = _served(declared, told)
        message = finding.message + _meanwhile(declared)
        invalid = _Failure(finding.reason, finding.message, None)
        return _Standing(active, "FailedToLoad", "InvalidSpec", "False", "InvalidSpec", message, invalid)
    if declared is None or not finding.target.is_at(declared.target):
        return _undeclared(declared, finding, told)
    copies = _copies(declared.target.number, told)
    failure = _remembered(model, copies, previous) or _failed(copies, finding)
    if failure is not None and not copies.loaded:
        return _blocked(declared, copies, told, failure)
    if declared.stable is not None and declared.percent > 0:
        rolling = _rolling(declared, copies, told)
        if rolling is not None:
            return rolling
    return _up_to_date(declared, copies, failure if copies.loaded else None)


def _undeclared(declared: Declared | None, finding: Checked, told: Sequence[Told]) -> _Standing:
    """The wish is not in the catalogue: it is being looked for, or was not found. What was declared before is served."""
    active, uri = _served(declared, told), finding.target.uri
    if finding.state == "failed":
        failure = _Failure("ModelLoadFailed", finding.message, None)
        active = "FailedToLoad" if declared is None else active
        message = finding.message + _meanwhile(declared)
        return _Standing(active, "FailedToLoad", "BlockedByFailedLoad", "False", "CheckFailed", message, failure)
    words = f"{uri} is there and is being declared" if finding.state == "ok" else f"{uri} is being looked for"
    return _Standing(active, "Pending", "InProgress", "Unknown", "Checking", words + _meanwhile(declared))


def _blocked(declared: Declared, copies: _Copies, told: Sequence[Told], failure: _Failure) -> _Standing:
    """The target fails. Whether that is for good is told by PredictorReady's reason, for the next pass."""
    word = failure.reason if failure.where else "CheckFailed"
    active: State = "FailedToLoad" if declared.stable is None else _copies(declared.stable.number, told).state
    message = f"number {copies.number}: {failure.message}"
    if declared.stable is not None:
        message += f"; number {declared.stable.number} is served"
    told_as = failure._replace(reason="ModelLoadFailed")
    return _Standing(active, "FailedToLoad", "BlockedByFailedLoad", "False", word, message, told_as)


def _rolling(declared: Declared, copies: _Copies, told: Sequence[Told]) -> _Standing | None:
    """The target is on its way while a pod serves what was before; None: it is there, or no pod has either."""
    assert declared.stable is not None, f"nothing is rolled: {declared}"
    stable = _copies(declared.stable.number, told)
    if copies.proven:
        if declared.percent == ALL:
            return None
        rest = f"number {stable.number} gets the rest"
        message = f"number {copies.number} was loaded and gets {declared.percent} % of the requests, {rest}"
        return _Standing(_served(declared, told), copies.state, "UpToDate", "True", "Canary", message)
    if stable.state not in {"Loaded", "Loading"}:
        return None
    message = f"number {copies.number} is being loaded; number {stable.number} is served meanwhile"
    return _Standing(stable.state, "Loading", "InProgress", "Unknown", "RollingOut", message)


def _up_to_date(declared: Declared, copies: _Copies, failure: _Failure | None) -> _Standing:
    state = copies.state
    words = {"Loaded": "is loaded", "Loading": "is being loaded, requests wait"}.get(state, "is loaded by its first request")
    message = f"number {copies.number} {words}: {declared.target.uri}"
    return _Standing(state, state, "UpToDate", "True", state, message, failure and failure._replace(reason="ModelLoadFailed"))


def _failed(copies: _Copies, finding: Checked) -> _Failure | None:
    """The newest failure of the target, unless a pod tries again; a store that is away fails nothing that was declared."""
    if copies.failed and not copies.loading:
        newest = max(copies.failed, key=lambda one: (one.location.permanent, one.location.at_s, one.pod))
        reason = PERMANENT if newest.location.permanent else PASSING
        return _Failure(reason, newest.location.failure, copies.number, newest.pod, newest.location.at_s)
    if finding.state == "failed" and not finding.passing and copies.state == "Standby":
        return _Failure(PASSING, finding.message, copies.number)
    return None


def _remembered(model: Model, copies: _Copies, previous: Object) -> _Failure | None:
    """A failure that no pod reports any more. A permanent one holds until the location changes, or a pod loads it.

    Any other holds while a pod tries again: a model that fails for an hour says so once, not at every attempt.
    """
    known = part(previous, "modelStatus", "lastFailureInfo")
    word = text(condition({"status": previous}, "PredictorReady"), "reason")
    holds = word == PERMANENT or (word == PASSING and copies.state == "Loading")
    if copies.proven or copies.failed or not holds or text(known, "modelRevisionName") != _revision(model, copies.number):
        return None
    return _Failure(word, text(known, "message"), copies.number, text(known, "location"))


def _copies(number: int, told: Sequence[Told]) -> _Copies:
    of = {state: tuple(one for one in told if one.location.number == number and one.location.state == state) for state in _TOLD}
    proven = any(one.location.number == number and one.location.proven for one in told)
    return _Copies(number, of["loaded"], of["loading"], of["failed"], proven or bool(of["loaded"]))


def _served(declared: Declared | None, told: Sequence[Told]) -> State:
    """What is declared, as a whole; Pending where nothing is."""
    if declared is None:
        return "Pending"
    states = [_copies(one.number, told).state for one in (declared.target, declared.stable) if one is not None]
    return next(state for state in _BEST_FIRST if state in states)


def _meanwhile(declared: Declared | None) -> str:
    return "" if declared is None else f"; number {declared.target.number} is served meanwhile: {declared.target.uri}"


# ---- how it is told --------------------------------------------------------------------------------------------


def _conditions(standing: _Standing, pool: Pool, previous: Object, now: str) -> list[dict[str, Any]]:
    """Ours and, untouched, everybody else's. Ready says what the others say, the worst first."""
    predictor = {"type": "PredictorReady", "status": standing.ready, "reason": standing.word, "message": _cut(standing.message)}
    ingress = {"type": "IngressReady", "status": pool.readiness}
    if not pool.ready:
        ingress |= {"reason": pool.reason or "PoolNotReady", "message": _cut(f"pool {pool.name}: {pool.message}")}
    elif not pool.url:
        ingress |= {"status": "Unknown", "reason": "NoURL", "message": f"pool {pool.name} has no URL yet"}
    ready = {"type": "Ready", "status": "True"}
    worst = next((one for bad in ("False", "Unknown") for one in (predictor, ingress) if one["status"] == bad), None)
    if worst is not None:
        ready = {**worst, "type": "Ready"}
    others = [one for one in previous.get("conditions") or [] if one.get("type") not in _OURS]
    for made in (ingress, predictor, ready):
        known = condition({"status": previous}, made["type"])
        since = text(known, "lastTransitionTime") if known.get("status") == made["status"] else ""
        made["lastTransitionTime"] = since or now
    return sorted([*others, ingress, predictor, ready], key=lambda one: str(one.get("type")))


def _component(previous: Object, pool: Pool) -> dict[str, Any]:
    made = {key: value for key, value in previous.items() if key not in {"url", "restUrl", "address"}}
    if pool.url:
        made |= {"url": pool.url, "restUrl": pool.url}
    return made | ({"address": {"url": pool.address}} if pool.address else {})


def _model_status(declared: Declared | None, standing: _Standing, told: Sequence[Told]) -> dict[str, Any]:
    numbers = {one.number for one in (declared.target, declared.stable) if one is not None} if declared is not None else set()
    copies = [one for one in told if one.location.number in numbers and one.location.state in _TOLD]
    failed = sum(one.location.state == "failed" for one in copies)
    return {
        "transitionStatus": standing.transition,
        "states": {"activeModelState": standing.active, "targetModelState": standing.target},
        "copies": {"totalCopies": len(copies), "failedCopies": failed},
    }


def _failure_info(model: Model, pool: Pool, standing: _Standing, previous: Object, now_s: float) -> dict[str, Any]:
    failure = standing.failure
    if failure is None and pool.readiness == "False":
        failure = _Failure("RuntimeUnhealthy", pool.message, None, pool.owner.name)
    if failure is None:
        return {}
    made = {"reason": failure.reason, "message": _cut(failure.message)}
    if failure.where:
        made["location"] = failure.where
    if failure.number is not None:
        made["modelRevisionName"] = _revision(model, failure.number)
    known = part(previous, "modelStatus", "lastFailureInfo")
    same = {key: value for key, value in known.items() if key != "time"} == made
    since = text(known, "time") if same and not failure.at_s else ""
    return {"lastFailureInfo": made | {"time": since or _moment(failure.at_s or now_s)}}


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 3] + "..."


def _revision(model: Model, number: int) -> str:
    return f"{model.name}-{number}"


def _moment(at_s: float) -> str:
    """RFC 3339, to the second: as Kubernetes writes it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(inner) for key, inner in value.items() if key not in _MOMENTS}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


class _Seen(NamedTuple):
    """A status, as far as Events go."""

    transition: str
    active: str
    target: str
    word: str
    message: str
    failure: str
    revision: str

    @classmethod
    def of(cls, said: Object) -> _Seen:
        states, failure = part(said, "modelStatus", "states"), part(said, "modelStatus", "lastFailureInfo")
        predictor = condition({"status": said}, "PredictorReady")
        return cls(
            text(part(said, "modelStatus"), "transitionStatus"),
            text(states, "activeModelState"),
            text(states, "targetModelState"),
            text(predictor, "reason"),
            text(predictor, "message"),
            text(failure, "message"),
            text(failure, "modelRevisionName"),
        )
