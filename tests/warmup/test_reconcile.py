"""The whole controller: what the cluster and running pods come to, whatever fails on the way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

import pytest

from predictor.declared import CredentialShard, credential_secret, credential_shard, decode
from tests.fakes.admin_pod import AdminPod
from tests.fakes.kube import FakeKube
from tests.warmup.controlling import (
    NAMESPACE,
    Running,
    Store,
    catalogue,
    declared,
    model_status,
    put_model,
    put_pod,
    put_pool,
    ready,
    running,
    shard_of,
    writes,
)
from warmup.checks import Finding
from warmup.kube import Kube, Object, Resource, Unreachable
from warmup.view import Invalid

BROKEN = Finding(ok=False, reason="InvalidModel", message="holds no model")
AWAY = Finding(ok=False, reason="StoreUnavailable", message="the store is away", passing=True)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as running_:
        put_pool(running_)
        yield running_


def all_ready(fake: FakeKube, names: list[str]) -> bool:
    return all(ready(fake, name) == "True" for name in names)


def event_reasons(fake: FakeKube) -> list[str]:
    return [event["reason"] for event in fake.objects("events", namespace=NAMESPACE).values()]


def put_secret(fake: FakeKube, name: str, key: str, **annotations: str) -> None:
    values = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": f"{key}-secret"}
    data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "annotations": annotations}, "data": data}
    fake.put("secrets", body, namespace=NAMESPACE)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}, "secrets": [{"name": name}]}
    fake.put("serviceaccounts", account, namespace=NAMESPACE)


def scope_of(fake: FakeKube, scope: str) -> dict[str, str] | None:
    number = credential_shard(scope)
    found = fake.object("secrets", credential_secret("gpu", number), namespace=NAMESPACE)
    if found is None:
        return None
    document = base64.b64decode(found["data"][f"credentials-{number}.json"])
    return decode(document, CredentialShard).scopes.get(scope)


# ---- from apply to Ready -----------------------------------------------------------------------------------------


async def test_models_are_ready_at_zero_and_each_status_is_written_once_and_after_the_catalogue(fake: FakeKube) -> None:
    names = [f"m{number}" for number in range(40)]
    for name in names:
        put_model(fake, name)
    async with running(fake) as it:
        await it.until(lambda: all_ready(fake, names))
        await it.settle()
        assert {model_status(fake, name)["states"]["targetModelState"] for name in names} == {"Standby"}
        assert len(writes(fake, "inferenceservices")) == 40
        order = [asked for asked in fake.asked if asked.verb in ("create", "update", "patch") and asked.plural != "leases"]
        told = {asked.name: place for place, asked in enumerate(order) if asked.plural == "inferenceservices"}
        for place, asked in enumerate(order):
            if asked.plural == "configmaps":
                for name in names:
                    assert f'"{name}"' not in str(asked.body["data"]) or place < told[name]


async def test_nothing_is_written_when_nothing_changed_nor_looked_at_again_after_a_restart(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        await it.settle()
        count = len(writes(fake))
        fake.put("inferenceservices", fake.object("inferenceservices", "m", namespace=NAMESPACE) or {}, namespace=NAMESPACE)
        await it.settle()
        assert len(writes(fake)) == count
    async with running(fake) as it:
        await it.until(lambda: "m" in it.built.controller.state.tracked)
        await it.settle()
        assert it.store.asked == []
        assert len(writes(fake)) == count


async def test_a_model_whose_check_fails_is_not_declared_and_says_why_until_it_is_well(fake: FakeKube) -> None:
    put_model(fake, "m")
    store = Store({"s3://models/m": BROKEN})
    async with running(fake, store) as it:
        await it.until(lambda: ready(fake, "m") == "False")
        assert "holds no model" in model_status(fake, "m")["lastFailureInfo"]["message"]
        assert declared(fake, "m") is None
        store.findings.clear()
        await it.until(lambda: ready(fake, "m") == "True")
        assert declared(fake, "m") is not None


async def test_a_model_may_come_before_its_pool(fake: FakeKube) -> None:
    fake.remove("deployments", "gpu", namespace=NAMESPACE)
    put_model(fake, "m")
    async with running(fake) as it:
        await it.settle()
        assert writes(fake) == []
        put_pool(fake)
        await it.until(lambda: ready(fake, "m") == "True")


async def test_a_model_without_a_runtime_is_the_default_pools(fake: FakeKube) -> None:
    put_model(fake, "m", runtime=None)
    async with running(fake) as it:
        await it.settle()
        assert writes(fake) == []
        put_pool(fake, "other", default=True)
        await it.until(lambda: ready(fake, "m") == "True")
        assert declared(fake, "m", "other") is not None


async def test_a_model_that_moves_to_another_pool_leaves_the_first(fake: FakeKube) -> None:
    put_pool(fake, "other")
    put_model(fake, "m")
    async with running(fake) as it:
        await it.until(lambda: declared(fake, "m") is not None)
        put_model(fake, "m", runtime="other", generation=2)
        await it.until(lambda: declared(fake, "m") is None and declared(fake, "m", "other") is not None)


async def test_others_inference_services_are_left_alone(fake: FakeKube) -> None:
    runtime = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "mlserver"}}
    fake.put("servingruntimes", runtime, namespace=NAMESPACE)
    put_model(fake, "theirs", runtime="mlserver")
    put_model(fake, "lost", runtime="nobodys")
    async with running(fake) as it:
        it.built.controller._pauses = type(it.built.controller._pauses)(flush_s=0.01, unknown_s=0.05)
        await it.until(lambda: event_reasons(fake) == ["UnknownRuntime"])
        await it.settle()
        assert {(plural, verb) for verb, plural, _ in writes(fake)} == {("events", "create")}
        assert it.store.asked == []


# ---- running pods ------------------------------------------------------------------------------------------------


async def test_a_running_pod_gets_what_is_declared_and_the_status_says_what_it_makes_of_it(fake: FakeKube) -> None:
    async with AdminPod(loads="loaded") as pod:
        put_pod(fake, pod.address)
        put_model(fake, "m")
        async with running(fake) as it:
            await it.until(lambda: model_status(fake, "m").get("states", {}).get("targetModelState") == "Loaded")
            assert "m" in pod.models
            put_model(fake, "n")
            await it.until(lambda: "n" in pod.models)
            fake.remove("inferenceservices", "m", namespace=NAMESPACE)
            await it.until(lambda: "m" not in pod.models)
            assert set(catalogue(fake)) == {"n"}


async def test_a_change_keeps_the_old_place_until_a_pod_has_loaded_the_new_one(fake: FakeKube) -> None:
    async with AdminPod(loads="loaded") as pod:
        put_pod(fake, pod.address)
        put_model(fake, "m")
        async with running(fake) as it:
            await it.until(lambda: model_status(fake, "m").get("states", {}).get("targetModelState") == "Loaded")
            pod.loads = "loading"
            put_model(fake, "m", uri="s3://models/new", generation=2)
            await it.until(lambda: ready(fake, "m") == "Unknown")
            both = declared(fake, "m")
            assert both is not None
            assert both.stable is not None
            assert (both.target.uri, both.target.number, both.stable.uri) == ("s3://models/new", 2, "s3://models/m")
            pod.loads = "loaded"
            await it.until(lambda: ready(fake, "m") == "True")
            await it.until(lambda: (new := declared(fake, "m")) is not None and new.stable is None)


async def test_a_change_that_cannot_be_served_leaves_the_catalogue_as_it_was(fake: FakeKube) -> None:
    put_model(fake, "m")
    store = Store({"s3://models/new": BROKEN})
    async with running(fake, store) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        before = shard_of(fake, "m")
        put_model(fake, "m", uri="s3://models/new", generation=2)
        await it.until(lambda: ready(fake, "m") == "False")
        assert model_status(fake, "m")["transitionStatus"] == "BlockedByFailedLoad"
        assert shard_of(fake, "m") == before


async def test_a_pod_that_hangs_keeps_nobody_from_being_served(fake: FakeKube) -> None:
    async with AdminPod("bad", misbehaves="hang") as bad, AdminPod("good", loads="loaded") as good:
        put_pod(fake, bad.address, name="bad")
        put_pod(fake, good.address, name="good")
        put_model(fake, "m")
        async with running(fake) as it:
            await it.until(lambda: model_status(fake, "m").get("states", {}).get("targetModelState") == "Loaded")
            assert {pod.ref.name: pod.state for pod in it.built.pods.of()}["good"] == "answering"


async def test_what_happened_in_a_pod_is_known_when_the_pod_is_gone(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with AdminPod() as pod, running(fake) as it:
        put_pod(fake, pod.address)
        pod.happen("m", "loaded")
        await it.until(lambda: any(noted.source for noted in it.built.controller.parts.history.of("m")))
        fake.remove("pods", "pod-1", namespace=NAMESPACE)
        await it.until(lambda: not it.built.pods.of())
        assert [noted.what for noted in it.built.summary.why("m") if noted.source] == ["loaded"]


async def test_a_model_whose_pool_is_deleted_says_so_and_is_well_again_when_the_pool_returns(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        fake.remove("deployments", "gpu", namespace=NAMESPACE)
        await it.until(lambda: ready(fake, "m") == "False")
        assert model_status(fake, "m")["lastFailureInfo"]["reason"] == "RuntimeNotRecognized"
        assert "url" not in (fake.object("inferenceservices", "m", namespace=NAMESPACE) or {})["status"]
        put_pool(fake)
        await it.until(lambda: ready(fake, "m") == "True")


# ---- credentials -------------------------------------------------------------------------------------------------


async def test_credentials_are_written_before_the_model_that_needs_them_and_go_with_it(fake: FakeKube) -> None:
    put_secret(fake, "team", "key-1")
    put_model(fake, "m", serviceAccountName="team")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        found = declared(fake, "m")
        assert found is not None
        assert found.target.scope == "secret/team"
        variables = scope_of(fake, "secret/team")
        assert variables is not None
        assert variables["AWS_ACCESS_KEY_ID"] == "key-1"
        assert it.store.asked[0].variables["AWS_SECRET_ACCESS_KEY"] == "key-1-secret"
        plurals = [plural for _, plural, _ in writes(fake)]
        assert plurals.index("secrets") < plurals.index("configmaps") < plurals.index("inferenceservices")
        fake.remove("inferenceservices", "m", namespace=NAMESPACE)
        await it.until(lambda: scope_of(fake, "secret/team") is None)
        assert catalogue(fake) == {}


async def test_a_rotated_secret_is_noticed_written_looked_at_and_the_pods_mounts_are_refreshed(fake: FakeKube) -> None:
    async with AdminPod(loads="loaded") as pod:
        put_pod(fake, pod.address)
        put_secret(fake, "team", "key-1")
        put_model(fake, "m", serviceAccountName="team")
        async with running(fake) as it:
            await it.until(lambda: ready(fake, "m") == "True")
            await it.until(lambda: "patch" in {verb for verb, _, _ in writes(fake, "pods")})
            put_secret(fake, "team", "key-2")
            await it.until(lambda: (scope_of(fake, "secret/team") or {}).get("AWS_ACCESS_KEY_ID") == "key-2")
            await it.until(lambda: it.store.asked[-1].variables["AWS_ACCESS_KEY_ID"] == "key-2")
            await it.settle()
            assert declared(fake, "m") is not None
            assert ready(fake, "m") == "True"


async def test_a_secret_that_is_missing_is_told_and_used_once_it_is_there(fake: FakeKube) -> None:
    put_model(fake, "m", serviceAccountName="team")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "False")
        assert "ServiceAccount team" in model_status(fake, "m")["lastFailureInfo"]["message"]
        put_secret(fake, "team", "key-1")
        await it.until(lambda: ready(fake, "m") == "True")


async def test_a_secret_that_the_controller_may_not_read_is_told_with_the_rule_that_lacks(fake: FakeKube) -> None:
    put_secret(fake, "team", "key-1")
    put_model(fake, "m", serviceAccountName="team")
    fake.fail(403, verb="get", plural="serviceaccounts", times=1000)
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "False")
        assert 'resources: ["serviceaccounts"], verbs: ["get"]' in model_status(fake, "m")["lastFailureInfo"]["message"]


async def test_no_secret_is_in_a_config_map_a_status_or_an_event(fake: FakeKube, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    put_secret(fake, "team", "hidden-key")
    put_model(fake, "m", serviceAccountName="team")
    store = Store({"s3://models/m": BROKEN})
    async with running(fake, store) as it:
        await it.until(lambda: ready(fake, "m") == "False")
        store.findings.clear()
        await it.until(lambda: ready(fake, "m") == "True")
    for asked in fake.asked:
        assert asked.plural == "secrets" or "hidden-key" not in str(asked.body)
    assert "hidden-key" not in caplog.text


# ---- thousands ---------------------------------------------------------------------------------------------------


async def test_one_pods_news_of_a_few_models_costs_passes_of_those_alone(fake: FakeKube) -> None:
    names = [f"m{number}" for number in range(300)]
    for name in names:
        put_model(fake, name)
    async with AdminPod() as pod, running(fake) as it:
        put_pod(fake, pod.address)
        await it.until(lambda: len(it.built.controller.state.tracked) == 300 and len(pod.models) == 300)
        await it.until(lambda: all_ready(fake, names))
        await it.settle()

        def passes() -> float:
            return float(it.built.telemetry.counter("hearth_controller_passes_total", "model", "ok")._value.get())

        before = passes()
        await pod.until_asked(3)
        assert passes() == before
        pod.loads, pod.only = "loaded", {"m1", "m2"}
        await it.until(lambda: all(model_status(fake, name)["states"]["targetModelState"] == "Loaded" for name in ("m1", "m2")))
        await it.settle()
        assert passes() - before <= 6


async def test_a_catalogue_for_which_there_is_no_room_says_so_and_keeps_what_it_has(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        books = it.built.controller.state.books["gpu"]
        books._left_out["m"] = Invalid("InvalidPredictorSpec", "the catalogue is full", passing=True)
        it.built.controller.status_work.add("m")
        await it.until(lambda: ready(fake, "m") == "False")
        assert "full" in model_status(fake, "m")["lastFailureInfo"]["message"]


# ---- what fails --------------------------------------------------------------------------------------------------


async def test_one_shard_that_cannot_be_written_keeps_no_other_model_from_being_ready(fake: FakeKube) -> None:
    for name in ("m", "n", "o", "p"):
        put_model(fake, name)
    fake.fail(500, verb="create", plural="configmaps", times=1)
    async with running(fake, flush_s=0.2) as it:
        await it.until(lambda: all_ready(fake, ["m", "n", "o", "p"]))


@pytest.mark.parametrize(
    ("what", "verb", "plural"),
    [
        (409, "create", "configmaps"),
        (500, "create", "configmaps"),
        ("drop", "create", "configmaps"),
        (409, "patch", "inferenceservices"),
        (500, "patch", "inferenceservices"),
        (429, "patch", "inferenceservices"),
        (500, "get", "configmaps"),
        (500, "get", "serviceaccounts"),
        (410, "watch", "inferenceservices"),
        (500, "list", "inferenceservices"),
        ("drop", "watch", "inferenceservices"),
        ("hang", "get", "secrets"),
    ],
)
async def test_an_api_server_that_fails_now_and_then_only_delays(
    what: int | str, verb: str, plural: str, fake: FakeKube
) -> None:
    fake.fail(what, verb=verb, plural=plural, times=2)
    for name in ("m", "n"):
        put_model(fake, name)
    async with running(fake) as it:
        await it.until(lambda: all_ready(fake, ["m", "n"]))
        assert set(catalogue(fake)) == {"m", "n"}


async def test_while_the_api_server_is_away_pods_are_asked_and_questions_answered_and_then_it_goes_on(fake: FakeKube) -> None:
    async with AdminPod(loads="loaded") as pod:
        put_pod(fake, pod.address)
        put_model(fake, "m")
        async with running(fake) as it:
            await it.until(lambda: model_status(fake, "m").get("states", {}).get("targetModelState") == "Loaded")
            with fake.away():
                await it.until(lambda: not it.built.leader.is_leader())
                await pod.until_asked(3)
                assert [model["name"] for model in it.built.summary.of_models()] == ["m"]
                assert [len(told["pods"]) for told in it.built.summary.of_pools()] == [1]
            put_model(fake, "n")
            await it.until(lambda: "n" in pod.models)
            await it.until(lambda: ready(fake, "n") == "True")


async def test_of_two_controllers_one_writes_and_the_other_takes_over(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake, identity="b") as second:
        await second.until(lambda: ready(fake, "m") == "True")
        async with running(fake, identity="a") as first:
            await first.until(lambda: first.built.world.synced)
            put_model(fake, "n")
            await first.until(lambda: ready(fake, "n") == "True")
            assert first.store.asked == []
            second.built.leader._until_s = 0.0
            count = len(writes(fake))
            lease = fake.object("leases", "hearth-controller", namespace=NAMESPACE)
            assert lease is not None
            fake.put("leases", lease | {"spec": lease["spec"] | {"holderIdentity": "a"}}, namespace=NAMESPACE)
            await first.until(first.built.leader.is_leader)
            await first.settle()
            assert len(writes(fake)) == count
            put_model(fake, "o")
            await first.until(lambda: ready(fake, "o") == "True")
            assert [question.uri for question in first.store.asked] == ["s3://models/o"]


async def test_a_config_map_that_somebody_deleted_or_changed_is_written_again(fake: FakeKube) -> None:
    put_model(fake, "m")
    async with running(fake) as it:
        await it.until(lambda: ready(fake, "m") == "True")
        await it.settle()
        (name,) = fake.objects("configmaps", namespace=NAMESPACE)
        serial = shard_of(fake, "m").serial
        fake.remove("configmaps", name, namespace=NAMESPACE)
        await it.until(lambda: declared(fake, "m") is not None)
        assert shard_of(fake, "m").serial > serial
        found = fake.object("configmaps", name, namespace=NAMESPACE)
        assert found is not None
        fake.put("configmaps", found | {"data": dict.fromkeys(found["data"], "{}")}, namespace=NAMESPACE)
        await it.until(lambda: "models" in next(iter(fake.objects("configmaps", namespace=NAMESPACE)[name]["data"].values())))
        await it.until(lambda: declared(fake, "m") is not None)


class Killed(Exception):
    """The process ended."""


class Mortal:
    """A client that ends the controller behind the so-manieth write: nothing it asks after that is answered."""

    def __init__(self, kube: Kube, after: int) -> None:
        self._kube = kube
        self._left = after
        self.dead = asyncio.Event()
        self.namespace = kube.namespace

    def __getattr__(self, name: str) -> object:
        return getattr(self._kube, name)

    async def _write(self, what: str, resource: Resource, *rest: object) -> Object:
        if self.dead.is_set():
            raise Unreachable("it is dead")
        made: Object = await getattr(self._kube, what)(resource, *rest)
        if resource.plural != "leases":
            self._left -= 1
            if self._left == 0:
                self.dead.set()
                await asyncio.Event().wait()
        return made

    async def create(self, resource: Resource, body: Object) -> Object:
        return await self._write("create", resource, body)

    async def replace(self, resource: Resource, body: Object) -> Object:
        return await self._write("replace", resource, body)

    async def patch(self, resource: Resource, name: str, patch: Object) -> Object:
        return await self._write("patch", resource, name, patch)

    async def patch_status(self, resource: Resource, name: str, status: Object) -> Object:
        return await self._write("patch_status", resource, name, status)


async def _story(fake: FakeKube, it: Running) -> None:
    """Models come, one changes, one breaks, one goes, and one has a Secret of its own."""
    put_secret(fake, "team", "key-1")
    put_model(fake, "a")
    put_model(fake, "b", serviceAccountName="team")
    put_model(fake, "c")
    await it.until(lambda: all_ready(fake, ["a", "b", "c"]))
    put_model(fake, "a", uri="s3://models/new", generation=2)
    put_model(fake, "b", uri="s3://models/broken", generation=2, serviceAccountName="team")
    fake.remove("inferenceservices", "c", namespace=NAMESPACE)
    await it.until(lambda: ready(fake, "b") == "False" and (new := declared(fake, "a")) is not None and new.target.number == 2)
    await it.until(lambda: declared(fake, "c") is None)


async def _end(fake: FakeKube) -> tuple[object, list[str], dict[str, str]]:
    return catalogue(fake), sorted(event_reasons(fake)), {name: ready(fake, name) for name in ("a", "b")}


async def test_a_controller_that_ends_after_any_write_is_succeeded_by_one_that_comes_to_the_same(fake: FakeKube) -> None:
    store = Store({"s3://models/broken": BROKEN})
    async with running(fake, store) as it:
        await _story(fake, it)
        await it.settle()
        expected = await _end(fake)
    total = len(writes(fake))
    assert total > 8
    for after in range(1, total + 1):
        async with FakeKube() as again:
            put_pool(again)
            mortal = Mortal(again.client(NAMESPACE, timeout_s=2.0), after)
            story: asyncio.Task[None] | None = None
            with contextlib.suppress(Killed):
                async with running(again, Store(dict(store.findings)), kube=mortal) as it:  # type: ignore[arg-type]
                    story = asyncio.create_task(_story(again, it))
                    dead = asyncio.create_task(mortal.dead.wait())
                    await asyncio.wait([story, dead], return_when=asyncio.FIRST_COMPLETED)
                    dead.cancel()
            assert story is not None
            async with running(again, Store(dict(store.findings)), identity="two", lease_name="second") as it:
                await story
                await it.settle()
                assert await _end(again) == expected, f"after write {after}"
