"""What a model's InferenceService says, in every situation; that it is KServe's, stands still, and what becomes an Event."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.declared import Declared, Location
from predictor.report import LocationReport
from tests.warmup.objects import Made, model_service, pool_service
from warmup.rollout import Checked, Target
from warmup.status import Told, events, patch, proven, status, unchanged
from warmup.view import Invalid, Model, Pool, model, pools

POOL = pools([pool_service()], [], [], [])["gpu"]
NOW_S = 1_800_000_000.0
A, B = Location("s3://m/a"), Location("s3://m/b", 2)
BY_KSERVE = {
    "conditions": [
        {"type": kind, "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("IngressReady", "PredictorReady", "Ready")
    ],
    "deploymentMode": "ModelMesh",
    "modelStatus": {"transitionStatus": ""},
}


def mnist() -> Model:
    found = model(model_service(), {"gpu": POOL}, ())
    assert isinstance(found, Model)
    return replace(found, generation=3)


MODEL = mnist()


def checked(
    at: Location = A, state: Literal["pending", "ok", "failed"] = "ok", message: str = "", *, passing: bool = False
) -> Checked:
    return Checked(Target(at.uri, at.scope, at.format), state, message, passing)


def told(number: int, state: str, failure: str = "", *, pod: str = "pod-1", permanent: bool = False) -> Told:
    at_s, has_been = NOW_S - 60 if failure else 0.0, state in {"loaded", "standby"}
    return Told(pod, LocationReport(number, state, failure=failure, permanent=permanent, at_s=at_s, proven=has_been))


def status_of(
    declared: Declared | None = None,
    finding: Checked | Invalid | None = None,
    *said: Told,
    previous: Made | None = None,
    pool: Pool = POOL,
    now_s: float = NOW_S,
) -> Made:
    return status(MODEL, pool, declared, finding or checked(), said, BY_KSERVE if previous is None else previous, now_s)


def condition(said: Made, kind: str) -> Made:
    (found,) = (one for one in said["conditions"] if one["type"] == kind)
    return dict(found)


def short(said: Made) -> tuple[str, str, str, str]:
    """Active and target state, transition, Ready."""
    states = said["modelStatus"]["states"]
    return (
        states["activeModelState"],
        states["targetModelState"],
        said["modelStatus"]["transitionStatus"],
        condition(said, "Ready")["status"],
    )


INVALID = Invalid("NoSupportingRuntime", "sklearn is not served")


@pytest.mark.parametrize(
    ("declared", "finding", "said", "expected", "word"),
    [
        pytest.param(
            None,
            checked(state="pending"),
            [],
            ("Pending", "Pending", "InProgress", "Unknown"),
            "Checking",
            id="new: it is looked for",
        ),
        pytest.param(
            None,
            checked(),
            [],
            ("Pending", "Pending", "InProgress", "Unknown"),
            "Checking",
            id="found, not written yet: not Ready",
        ),
        pytest.param(
            None,
            checked(state="failed", message="no such folder"),
            [],
            ("FailedToLoad", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "CheckFailed",
            id="new and not there",
        ),
        pytest.param(
            None, INVALID, [], ("Pending", "FailedToLoad", "InvalidSpec", "False"), "InvalidSpec", id="new and cannot be"
        ),
        pytest.param(Declared(A), checked(), [], ("Standby", "Standby", "UpToDate", "True"), "Standby", id="at zero: Ready"),
        pytest.param(
            Declared(A),
            checked(state="pending"),
            [],
            ("Standby", "Standby", "UpToDate", "True"),
            "Standby",
            id="the controller restarted and has not looked again: Ready",
        ),
        pytest.param(
            Declared(A),
            checked(state="failed", message="timeout", passing=True),
            [],
            ("Standby", "Standby", "UpToDate", "True"),
            "Standby",
            id="the model store is away: Ready",
        ),
        pytest.param(
            Declared(A),
            checked(state="failed", message="deleted"),
            [],
            ("FailedToLoad", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "CheckFailed",
            id="its files were deleted and nobody has it",
        ),
        pytest.param(
            Declared(A),
            checked(state="failed", message="deleted"),
            [told(1, "loaded")],
            ("Loaded", "Loaded", "UpToDate", "True"),
            "Loaded",
            id="its files were deleted and a pod has it: Ready",
        ),
        pytest.param(
            Declared(A),
            checked(),
            [told(1, "loading")],
            ("Loading", "Loading", "UpToDate", "True"),
            "Loading",
            id="a first request loads it: Ready, requests wait",
        ),
        pytest.param(
            Declared(A), checked(), [told(1, "loaded")], ("Loaded", "Loaded", "UpToDate", "True"), "Loaded", id="loaded"
        ),
        pytest.param(
            Declared(A),
            checked(),
            [told(1, "failed", "bad", permanent=True)],
            ("FailedToLoad", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "FailedToLoad",
            id="failed for good",
        ),
        pytest.param(
            Declared(A),
            checked(),
            [told(1, "failed", "busy")],
            ("FailedToLoad", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "LoadFailing",
            id="failed for now",
        ),
        pytest.param(
            Declared(A),
            checked(),
            [told(1, "failed", "bad"), told(1, "loaded", pod="pod-2")],
            ("Loaded", "Loaded", "UpToDate", "True"),
            "Loaded",
            id="failed in one pod, loaded in another: Ready",
        ),
        pytest.param(
            Declared(A),
            checked(),
            [told(1, "failed", "bad"), told(1, "loading", pod="pod-2")],
            ("Loading", "Loading", "UpToDate", "True"),
            "Loading",
            id="failed in one pod, another tries",
        ),
        pytest.param(
            Declared(A),
            checked(B, "pending"),
            [told(1, "loaded")],
            ("Loaded", "Pending", "InProgress", "Unknown"),
            "Checking",
            id="changed: the new one is looked for, the old one serves",
        ),
        pytest.param(
            Declared(A),
            checked(B, "failed", "no such folder"),
            [told(1, "loaded")],
            ("Loaded", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "CheckFailed",
            id="changed to what is not there: the old one serves",
        ),
        pytest.param(
            Declared(A),
            INVALID,
            [told(1, "loaded")],
            ("Loaded", "FailedToLoad", "InvalidSpec", "False"),
            "InvalidSpec",
            id="changed to what cannot be: the old one serves",
        ),
        pytest.param(
            Declared(A),
            INVALID,
            [told(1, "failed", "bad")],
            ("FailedToLoad", "FailedToLoad", "InvalidSpec", "False"),
            "InvalidSpec",
            id="changed to what cannot be, and the old one failed",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [],
            ("Standby", "Standby", "UpToDate", "True"),
            "Standby",
            id="changed at zero: Ready, the next request loads the new one",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(2, "loading")],
            ("Loading", "Loading", "UpToDate", "True"),
            "Loading",
            id="changed at zero, the first request loads it",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(1, "loaded")],
            ("Loaded", "Loading", "InProgress", "Unknown"),
            "RollingOut",
            id="changed while a pod serves the old one: not yet",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(1, "loaded"), told(2, "loading")],
            ("Loaded", "Loading", "InProgress", "Unknown"),
            "RollingOut",
            id="the pod loads the new one: not yet",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(1, "loaded"), told(2, "failed", "bad", permanent=True)],
            ("Loaded", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "FailedToLoad",
            id="the new one fails: the old one serves",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(2, "failed", "bad", permanent=True)],
            ("Standby", "FailedToLoad", "BlockedByFailedLoad", "False"),
            "FailedToLoad",
            id="the new one failed, nobody asked for the old one since",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(1, "loaded"), told(2, "loaded")],
            ("Loaded", "Loaded", "UpToDate", "True"),
            "Loaded",
            id="the new one is loaded: Ready",
        ),
        pytest.param(
            Declared(B, A, 10),
            checked(B),
            [told(1, "loaded"), told(2, "loaded")],
            ("Loaded", "Loaded", "UpToDate", "True"),
            "Canary",
            id="a canary beside the old one: Ready",
        ),
        pytest.param(
            Declared(B, A, 10),
            checked(B),
            [told(1, "loaded"), told(2, "standby")],
            ("Loaded", "Standby", "UpToDate", "True"),
            "Canary",
            id="a canary that made room for others: Ready",
        ),
        pytest.param(
            Declared(B, A),
            checked(B),
            [told(1, "loaded"), told(2, "standby")],
            ("Standby", "Standby", "UpToDate", "True"),
            "Standby",
            id="the new one took over, and made room for others: Ready",
        ),
        pytest.param(
            Declared(B, A, 0),
            checked(B),
            [told(1, "loaded")],
            ("Standby", "Standby", "UpToDate", "True"),
            "Standby",
            id="a canary that gets nothing is not waited for",
        ),
    ],
)
def test_how_a_model_stands(
    declared: Declared | None, finding: Checked | Invalid, said: list[Told], expected: tuple[str, ...], word: str
) -> None:
    made = status_of(declared, finding, *said)
    assert short(made) == expected
    predictor = condition(made, "PredictorReady")
    assert predictor["reason"] == word
    assert predictor["status"] == expected[3]
    assert condition(made, "IngressReady")["status"] == "True"
    failing = expected[3] == "False" or (word == "Loaded" and any(one.location.failure for one in said))
    assert ("lastFailureInfo" in made["modelStatus"]) is failing


def test_the_whole_status_of_a_model_at_zero() -> None:
    moment = "2027-01-15T08:00:00Z"
    assert status_of(Declared(A)) == {
        "observedGeneration": 3,
        "conditions": [
            {"type": "IngressReady", "status": "True", "lastTransitionTime": moment},
            {
                "type": "PredictorReady",
                "status": "True",
                "reason": "Standby",
                "message": "number 1 is loaded by its first request: s3://m/a",
                "lastTransitionTime": moment,
            },
            {"type": "Ready", "status": "True", "lastTransitionTime": moment},
        ],
        "url": "http://gpu-predictor.ns.example.com",
        "address": {"url": "http://gpu-predictor.ns.svc.cluster.local"},
        "components": {
            "predictor": {
                "url": "http://gpu-predictor.ns.example.com",
                "restUrl": "http://gpu-predictor.ns.example.com",
                "address": {"url": "http://gpu-predictor.ns.svc.cluster.local"},
            }
        },
        "deploymentMode": "ModelMesh",
        "modelStatus": {
            "transitionStatus": "UpToDate",
            "states": {"activeModelState": "Standby", "targetModelState": "Standby"},
            "copies": {"totalCopies": 0, "failedCopies": 0},
        },
    }


def test_a_failure_says_where_what_and_when() -> None:
    made = status_of(
        Declared(A), checked(), told(1, "failed", "no such operator", permanent=True), told(1, "failed", "x", pod="b")
    )
    assert made["modelStatus"]["lastFailureInfo"] == {
        "reason": "ModelLoadFailed",
        "message": "no such operator",
        "location": "pod-1",
        "modelRevisionName": "mnist-1",
        "time": "2027-01-15T07:59:00Z",
    }
    assert made["modelStatus"]["copies"] == {"totalCopies": 2, "failedCopies": 2}
    assert condition(made, "Ready")["message"] == "number 1: no such operator"


def test_an_invalid_wish_says_why_in_kserves_words_and_what_serves_meanwhile() -> None:
    made = status_of(Declared(A), INVALID)
    assert made["modelStatus"]["lastFailureInfo"]["reason"] == "NoSupportingRuntime"
    assert condition(made, "Ready")["reason"] == "InvalidSpec"
    assert condition(made, "Ready")["message"] == "sklearn is not served; number 1 is served meanwhile: s3://m/a"


def test_a_rollout_says_what_serves_meanwhile_and_the_address_stays_good() -> None:
    made = status_of(Declared(B, A), checked(B), told(1, "loaded"))
    assert condition(made, "Ready")["message"] == "number 2 is being loaded; number 1 is served meanwhile"
    assert condition(made, "IngressReady")["status"] == "True"
    assert made["url"] == POOL.url


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([], set(), id="no pod: none"),
        pytest.param([told(1, "loaded")], {1}, id="one is loaded: that one"),
        pytest.param([told(1, "loaded"), told(2, "loading")], {1}, id="the other is on its way: not yet"),
        pytest.param([told(1, "loaded"), told(2, "standby")], {1, 2}, id="the other was loaded: both"),
        pytest.param([told(1, "standby"), told(2, "standby")], {1, 2}, id="both were loaded: both"),
        pytest.param([told(1, "loaded", pod="p"), told(2, "loaded", pod="q")], set(), id="one here, one there: neither"),
        pytest.param(
            [told(1, "loaded", pod="p"), told(2, "loaded", pod="p"), told(1, "loaded", pod="q")],
            {1},
            id="not in every pod: not yet",
        ),
        pytest.param(
            [told(2, "loaded", pod="p"), told(1, "failed", "x", pod="q")], {2}, id="the other pod has neither: taken over"
        ),
    ],
)
def test_what_has_taken_over(said: list[Told], expected: set[int]) -> None:
    assert proven(said) == expected


@pytest.mark.parametrize("following", [[], [told(1, "loading")]])
def test_a_failure_for_good_is_remembered_when_its_pod_is_gone(following: list[Told]) -> None:
    failed = status_of(Declared(A), checked(), told(1, "failed", "bad", permanent=True))
    later = status_of(Declared(A), checked(), *following, previous=failed, now_s=NOW_S + 600)
    assert short(later) == ("FailedToLoad", "FailedToLoad", "BlockedByFailedLoad", "False")
    assert later["modelStatus"]["lastFailureInfo"] == failed["modelStatus"]["lastFailureInfo"]


def test_a_failure_for_good_ends_when_a_pod_loads_it_or_the_location_changes() -> None:
    failed = status_of(Declared(A), checked(), told(1, "failed", "bad", permanent=True))
    assert short(status_of(Declared(A), checked(), told(1, "loaded"), previous=failed))[3] == "True"
    changed = status_of(Declared(B, A), checked(B), previous=failed)
    assert short(changed) == ("Standby", "Standby", "UpToDate", "True")
    assert "lastFailureInfo" not in changed["modelStatus"]


def test_a_failure_for_now_ends_with_its_pod_but_not_with_the_next_attempt() -> None:
    failed = status_of(Declared(A), checked(), told(1, "failed", "busy"))
    again = status_of(Declared(A), checked(), told(1, "loading"), previous=failed)
    assert short(again)[3] == "False"
    assert short(status_of(Declared(A), checked(), previous=again))[0] == "Standby"


@pytest.mark.parametrize(
    ("readiness", "ready", "failure"), [("False", "False", "RuntimeUnhealthy"), ("Unknown", "Unknown", None)]
)
def test_a_pool_that_is_not_ready_takes_its_models_with_it_and_says_why(
    readiness: Literal["False", "Unknown"], ready: str, failure: str | None
) -> None:
    made = status_of(Declared(A), pool=replace(POOL, readiness=readiness, reason="NoGateway", message="none is there"))
    assert condition(made, "Ready")["status"] == ready
    assert condition(made, "Ready")["reason"] == "NoGateway"
    assert condition(made, "IngressReady")["message"] == "pool gpu: none is there"
    assert condition(made, "PredictorReady")["status"] == "True"
    assert made["modelStatus"].get("lastFailureInfo", {}).get("reason") == failure


def test_a_pool_without_a_url_yet_leaves_its_models_waiting() -> None:
    made = status_of(Declared(A), pool=replace(POOL, url="", address=""))
    assert condition(made, "Ready")["reason"] == "NoURL"
    assert not {"url", "address"} & set(made)


def test_a_moment_stays_while_a_conditions_status_does() -> None:
    first = status_of(Declared(A))
    second = status_of(Declared(A), checked(), told(1, "loaded"), previous=first, now_s=NOW_S + 60)
    assert condition(second, "PredictorReady")["reason"] == "Loaded"
    assert condition(second, "Ready")["lastTransitionTime"] == condition(first, "Ready")["lastTransitionTime"]
    third = status_of(Declared(A), INVALID, previous=second, now_s=NOW_S + 60)
    assert condition(third, "Ready")["lastTransitionTime"] == "2027-01-15T08:01:00Z"
    assert condition(third, "IngressReady")["lastTransitionTime"] == condition(first, "Ready")["lastTransitionTime"]


def test_what_others_wrote_stays() -> None:
    others: Made = {
        "conditions": [{"type": "Stopped", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "servingRuntimeName": "gpu",
        "components": {"predictor": {"latestReadyRevision": "r", "url": "old"}, "transformer": {"url": "x"}},
    }
    made = status_of(Declared(A), previous=others)
    assert others["conditions"][0] in made["conditions"]
    assert made["servingRuntimeName"] == "gpu"
    assert made["components"]["transformer"] == {"url": "x"}
    assert made["components"]["predictor"]["latestReadyRevision"] == "r"
    assert made["components"]["predictor"]["url"] == POOL.url


# ---- properties ------------------------------------------------------------------------------------------------

FINDINGS = st.one_of(
    st.just(INVALID),
    st.builds(
        checked, st.sampled_from([A, B]), st.sampled_from(["pending", "ok", "failed"]), st.just("why"), passing=st.booleans()
    ),
)
TOLD = st.lists(
    st.builds(
        told,
        st.sampled_from([1, 2, 3]),
        st.sampled_from(["loading", "loaded", "failed", "standby", "unheard-of"]),
        st.sampled_from(["", "bad", "bad " * 300]),
        pod=st.sampled_from(["p", "q"]),
        permanent=st.booleans(),
    ),
    max_size=4,
)
FACTS = st.tuples(
    st.sampled_from([None, Declared(A), Declared(B, A), Declared(B, A, 10), Declared(B), Declared(A, B)]),
    FINDINGS,
    TOLD,
    st.sampled_from([POOL, replace(POOL, readiness="False", reason="R", message="m"), replace(POOL, url="")]),
)


def merged(before: Any, change: Any) -> Any:
    """RFC 7386, as the API server does it."""
    if not isinstance(change, dict):
        return change
    base = dict(before) if isinstance(before, dict) else {}
    for key, value in change.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merged(base.get(key), value)
    return base


@given(st.lists(FACTS, min_size=1, max_size=5))
def test_for_every_history(history: list[tuple[Declared | None, Checked | Invalid, list[Told], Pool]]) -> None:
    before: Made = BY_KSERVE
    for moment, (declared, finding, said, pool) in enumerate(history):
        now_s = NOW_S + 60 * moment
        made = status_of(declared, finding, *said, pool=pool, previous=before, now_s=now_s)
        again = status_of(declared, finding, *said, pool=pool, previous=made, now_s=now_s + 30)
        assert again == made, "the same facts stand still"
        assert unchanged(made, again)
        assert events(MODEL, made, again) == []
        assert merged(before, patch(before, made)) == made, "the patch makes it"
        assert patch(made, made) == {}
        conditions = {one["type"]: one["status"] for one in made["conditions"]}
        both = {conditions["IngressReady"], conditions["PredictorReady"]}
        assert conditions["Ready"] == ("False" if "False" in both else "Unknown" if "Unknown" in both else "True")
        ready = made["modelStatus"]["states"]["targetModelState"] in {"Standby", "Loaded", "Loading"}
        if conditions["PredictorReady"] == "True":
            assert ready
            assert declared is not None
            assert isinstance(finding, Checked)
            assert finding.target.is_at(declared.target)
        assert list(foreign(made)) == []
        said_of_it = [one.get("message", "") for one in made["conditions"]] + [
            one.message for one in events(MODEL, before, made)
        ]
        assert max(map(len, said_of_it)) <= 1000
        before = made


KSERVE = importlib.import_module("kserve.models")


def foreign(said: Any, kind: str = "V1beta1InferenceServiceStatus") -> Iterator[str]:
    """What KServe's own Python models do not know. Its package lacks those of Knative that they name."""
    inner = re.fullmatch(r"(?:list\[|dict\(str, )(.*)[\])]", kind)
    if inner is not None:
        for value in said if isinstance(said, list) else said.values():
            yield from foreign(value, inner[1])
    elif kind in {"str", "int"}:
        if type(said).__name__ != kind:
            yield f"{said!r} is no {kind}"
    elif hasattr(KSERVE, kind):
        known = {json: attribute for attribute, json in getattr(KSERVE, kind).attribute_map.items()}
        for key, value in said.items():
            if key in known:
                yield from foreign(value, getattr(KSERVE, kind).openapi_types[known[key]])
            else:
                yield f"{kind} has no {key}"


def test_kserves_own_models_know_every_field() -> None:
    failed = status_of(Declared(A), checked(), told(1, "failed", "bad"))
    assert list(foreign(failed)) == []
    assert list(foreign(failed | {"wrong": 1})) == ["V1beta1InferenceServiceStatus has no wrong"]


@pytest.mark.parametrize(
    ("same", "other"),
    [
        pytest.param({"a": [{"lastTransitionTime": 1}]}, {"a": [{"lastTransitionTime": 2}]}, id="moments in conditions"),
        pytest.param({"a": {"time": 1, "b": 1}}, {"a": {"time": 2, "b": 1}}, id="the moment of a failure"),
    ],
)
def test_moments_alone_are_no_change(same: Made, other: Made) -> None:
    assert unchanged(same, other)
    assert not unchanged(same, {**other, "c": 1})
    assert not unchanged({**same, "c": 1}, other)


# ---- Events ----------------------------------------------------------------------------------------------------

NEW = status_of(None, checked(state="pending"))
STANDBY = status_of(Declared(A))
LOADED = status_of(Declared(A), checked(), told(1, "loaded"))
LOADING = status_of(Declared(A), checked(), told(1, "loading"))
FAILED = status_of(Declared(A), checked(), told(1, "failed", "bad"))
MISSING = status_of(None, checked(state="failed", message="no such folder"))
ROLLING = status_of(Declared(B, A), checked(B), told(1, "loaded"))
BLOCKED = status_of(Declared(B, A), checked(B), told(1, "loaded"), told(2, "failed", "bad"))
CANARY = status_of(Declared(B, A, 10), checked(B), told(1, "loaded"), told(2, "loaded"))
ROLLED = status_of(Declared(B), checked(B), told(2, "loaded"))
WRONG = status_of(None, INVALID)
WRONG_STILL = status_of(None, replace(INVALID, message="tensorflow is not served"))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, NEW, [], id="a new model"),
        pytest.param(NEW, STANDBY, [], id="it becomes Ready"),
        pytest.param(STANDBY, LOADING, [], id="a request loads it"),
        pytest.param(LOADING, LOADED, [], id="it is loaded"),
        pytest.param(LOADED, STANDBY, [], id="it is dropped"),
        pytest.param(LOADING, FAILED, ["Warning FailedToLoad"], id="it fails"),
        pytest.param(FAILED, FAILED, [], id="it fails still"),
        pytest.param(FAILED, LOADED, ["Normal Loaded"], id="it is loaded after all"),
        pytest.param(NEW, MISSING, ["Warning FailedToLoad"], id="it is not there"),
        pytest.param(LOADED, ROLLING, [], id="a change begins"),
        pytest.param(ROLLING, ROLLED, ["Normal RolledOut"], id="a change is done"),
        pytest.param(ROLLING, BLOCKED, ["Warning BlockedByFailedLoad"], id="a change fails"),
        pytest.param(BLOCKED, ROLLED, ["Normal Loaded"], id="a change is done after all"),
        pytest.param(BLOCKED, LOADED, ["Normal Loaded"], id="a change is taken back"),
        pytest.param(ROLLING, CANARY, [], id="a canary begins"),
        pytest.param(CANARY, ROLLED, ["Normal RolledOut"], id="a canary becomes all"),
        pytest.param({}, WRONG, ["Warning InvalidSpec"], id="a wish that cannot be"),
        pytest.param(WRONG, WRONG, [], id="the same wish that cannot be"),
        pytest.param(WRONG, WRONG_STILL, ["Warning InvalidSpec"], id="another wish that cannot be"),
        pytest.param(WRONG, STANDBY, [], id="the wish is put right"),
    ],
)
def test_what_becomes_an_event(before: Made, after: Made, expected: list[str]) -> None:
    found = events(MODEL, before, after)
    assert [f"{one.type} {one.reason}" for one in found] == expected
    assert all(one.message.startswith("mnist: ") and len(one.message) < 1000 for one in found)
