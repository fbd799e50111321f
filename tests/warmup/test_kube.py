"""The client of the Kubernetes API. The contract holds for the API server in memory and, when HEARTH_E2E_NAMESPACE names a
namespace of the cluster that KUBECONFIG means, for a real one."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import certifi
import pytest
from kubernetes.aio.config import incluster_config

from tests.e2e.surroundings import said
from tests.fakes.kube import FakeKube
from warmup import kube as api
from warmup import kubeconfig
from warmup.kube import CONFIG_MAPS, INFERENCE_SERVICES, SECRETS, Kube, KubeError, Object, Resource, name_of

REAL = said("NAMESPACE", "")
WATCH_S = 5.0


@pytest.fixture(params=["memory", "cluster"] if REAL else ["memory"])
async def kube(request: pytest.FixtureRequest) -> AsyncIterator[Kube]:
    if request.param == "cluster":
        async with await Kube.connect(REAL) as connected:
            yield connected
            for resource in (CONFIG_MAPS, SECRETS, INFERENCE_SERVICES):
                for found in (await connected.list(resource, labels="test=kube")).items:
                    with contextlib.suppress(api.NotFound):
                        await connected.delete(resource, name_of(found))
    else:
        async with FakeKube() as fake:
            yield fake.client()


@pytest.fixture
async def fake() -> AsyncIterator[FakeKube]:
    async with FakeKube() as running:
        yield running


def a_name() -> str:
    return f"kube-{uuid.uuid4().hex[:8]}"


def a_map(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": {"test": "kube"} | labels}, "data": {"a": "1", "b": "2"}}


def a_model(name: str) -> Object:
    spec = {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://bucket/model", "runtime": "pool"}}}
    mode = {"serving.kserve.io/deploymentMode": "ModelMesh"}
    return {"metadata": {"name": name, "labels": {"test": "kube"}, "annotations": mode}, "spec": spec}


async def test_what_was_created_is_read_back_and_carries_a_version(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(CONFIG_MAPS, a_map(name))
    read = await kube.get(CONFIG_MAPS, name)
    assert read["data"] == {"a": "1", "b": "2"}
    assert read["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert read["metadata"]["uid"]


async def test_creating_it_twice_is_a_conflict(kube: Kube) -> None:
    name = a_name()
    await kube.create(CONFIG_MAPS, a_map(name))
    with pytest.raises(api.Conflict):
        await kube.create(CONFIG_MAPS, a_map(name))


async def test_an_object_that_is_not_there_is_not_found_by_get_patch_and_delete(kube: Kube) -> None:
    for attempt in (
        kube.get(CONFIG_MAPS, "nothing"),
        kube.patch(CONFIG_MAPS, "nothing", {"data": {}}),
        kube.delete(CONFIG_MAPS, "nothing"),
    ):
        with pytest.raises(api.NotFound):
            await attempt


async def test_a_kind_that_the_cluster_does_not_have_is_not_found_and_has_no_api(kube: Kube) -> None:
    with pytest.raises(api.NotFound):
        await kube.list(Resource("nothing.example.com", "v1", "things", "Thing"))
    assert not await kube.has_api("nothing.example.com", "v1")
    assert await kube.has_api("serving.knative.dev", "v1")
    assert await kube.has_api("", "v1")


async def test_replacing_an_older_version_is_a_conflict(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(CONFIG_MAPS, a_map(name))
    await kube.replace(CONFIG_MAPS, made | {"data": {"a": "3"}})
    with pytest.raises(api.Conflict):
        await kube.replace(CONFIG_MAPS, made | {"data": {"a": "4"}})
    assert (await kube.get(CONFIG_MAPS, name))["data"] == {"a": "3"}


async def test_a_patch_merges_and_none_removes(kube: Kube) -> None:
    name = a_name()
    await kube.create(CONFIG_MAPS, a_map(name))
    patched = await kube.patch(CONFIG_MAPS, name, {"data": {"a": None, "c": "3"}, "metadata": {"annotations": {"x/y": "z"}}})
    assert patched["data"] == {"b": "2", "c": "3"}
    assert api.meta(patched, "x/y") == "z"


async def test_a_patch_that_names_an_older_version_is_a_conflict(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(CONFIG_MAPS, a_map(name))
    await kube.patch(CONFIG_MAPS, name, {"data": {"a": "3"}})
    version = made["metadata"]["resourceVersion"]
    with pytest.raises(api.Conflict):
        await kube.patch(CONFIG_MAPS, name, {"metadata": {"resourceVersion": version}, "data": {"a": "4"}})


async def test_a_patch_that_changes_nothing_makes_no_new_version(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(CONFIG_MAPS, a_map(name))
    again = await kube.patch(CONFIG_MAPS, name, {"data": {"a": "1"}})
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_status_is_written_through_its_subresource_only(kube: Kube) -> None:
    name = a_name()
    await kube.create(INFERENCE_SERVICES, a_model(name) | {"status": {"url": "http://ignored"}})
    model = await kube.patch_status(
        INFERENCE_SERVICES, name, {"url": "http://pool", "modelStatus": {"transitionStatus": "UpToDate"}}
    )
    assert model["status"]["url"] == "http://pool"
    patched = await kube.patch(INFERENCE_SERVICES, name, {"status": {"url": "http://other"}})
    assert patched["status"]["url"] == "http://pool"
    assert patched["status"]["modelStatus"]["transitionStatus"] == "UpToDate"


async def test_the_generation_counts_changes_of_the_spec_only(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(INFERENCE_SERVICES, a_model(name))
    told = await kube.patch_status(INFERENCE_SERVICES, name, {"url": "http://pool"})
    assert told["metadata"]["generation"] == made["metadata"]["generation"]
    moved = {"spec": {"predictor": {"model": {"storageUri": "s3://bucket/other"}}}}
    changed = await kube.patch(INFERENCE_SERVICES, name, moved)
    assert changed["metadata"]["generation"] == made["metadata"]["generation"] + 1


async def test_a_listing_selects_by_label_and_by_name_and_reads_every_page(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE", 2)
    group = uuid.uuid4().hex[:8]
    names = sorted(a_name() for _ in range(5))
    for name in names:
        await kube.create(CONFIG_MAPS, a_map(name, group=group))
    listing = await kube.list(CONFIG_MAPS, labels=f"group={group}")
    assert sorted(map(name_of, listing.items)) == names
    assert listing.resource_version
    only = await kube.list(CONFIG_MAPS, labels=f"group={group}", fields=f"metadata.name={names[3]}")
    assert [name_of(found) for found in only.items] == [names[3]]


async def test_more_pages_than_allowed_are_an_error(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE", 1)
    monkeypatch.setattr(api, "MAX_PAGES", 2)
    for _ in range(3):
        await kube.create(CONFIG_MAPS, a_map(a_name()))
    with pytest.raises(KubeError, match="too many"):
        await kube.list(CONFIG_MAPS)


async def test_a_watch_tells_what_happened_since_the_listing_and_ends(kube: Kube) -> None:
    group = uuid.uuid4().hex[:8]
    labels = f"group={group}"
    before, after = a_name(), a_name()
    await kube.create(CONFIG_MAPS, a_map(before, group=group))
    listing = await kube.list(CONFIG_MAPS, labels=labels)
    await kube.create(CONFIG_MAPS, a_map(after, group=group))
    await kube.patch(CONFIG_MAPS, before, {"data": {"a": "3"}})
    await kube.delete(CONFIG_MAPS, after)
    await kube.patch(CONFIG_MAPS, before, {"metadata": {"labels": {"group": "left"}}})
    stream = kube.watch(CONFIG_MAPS, listing.resource_version, labels=labels, timeout_s=1)
    told = [(event["type"], name_of(event["object"])) async for event in stream if event["type"] != "BOOKMARK"]
    assert told == [("ADDED", after), ("MODIFIED", before), ("DELETED", after), ("DELETED", before)]


async def test_a_watch_hears_of_a_change_while_it_is_open(kube: Kube) -> None:
    name = a_name()
    listing = await kube.list(CONFIG_MAPS)
    async with contextlib.aclosing(kube.watch(CONFIG_MAPS, listing.resource_version, timeout_s=WATCH_S)) as stream:
        create = asyncio.ensure_future(kube.create(CONFIG_MAPS, a_map(name)))
        async for event in stream:
            if event["type"] == "ADDED" and name_of(event["object"]) == name:
                break
        await create


async def test_a_watch_from_a_version_that_is_forgotten_is_gone(fake: FakeKube) -> None:
    fake.forget()
    with pytest.raises(api.Gone):
        async for _ in fake.client().watch(CONFIG_MAPS, "1", timeout_s=1):
            pass


@pytest.mark.skipif(not REAL, reason="needs a cluster")
async def test_the_cluster_too_says_gone_of_an_old_version() -> None:
    async with await Kube.connect(REAL) as kube:
        with pytest.raises(api.Gone):
            async for _ in kube.watch(CONFIG_MAPS, "1", timeout_s=1):
                pass


async def test_deleting_with_another_objects_uid_is_a_conflict(kube: Kube) -> None:
    name = a_name()
    made = await kube.create(CONFIG_MAPS, a_map(name))
    with pytest.raises(api.Conflict):
        await kube.delete(CONFIG_MAPS, name, uid=str(uuid.uuid4()))
    await kube.delete(CONFIG_MAPS, name, uid=made["metadata"]["uid"])
    with pytest.raises(api.NotFound):
        await kube.get(CONFIG_MAPS, name)


async def test_what_is_owned_goes_with_its_owner(kube: Kube) -> None:
    owner = await kube.create(CONFIG_MAPS, a_map(a_name()))
    owned = a_map(a_name())
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": name_of(owner), "uid": owner["metadata"]["uid"]}
    ]
    await kube.create(CONFIG_MAPS, owned)
    await kube.delete(CONFIG_MAPS, name_of(owner))

    async def gone() -> None:
        listing = await kube.list(CONFIG_MAPS)
        if all(name_of(found) != name_of(owned) for found in listing.items):
            return
        async for event in kube.watch(CONFIG_MAPS, listing.resource_version, timeout_s=20):
            if event["type"] == "DELETED" and name_of(event["object"]) == name_of(owned):
                return

    async with asyncio.timeout(30):
        await gone()


async def test_an_object_that_is_not_valid_is_refused(kube: Kube) -> None:
    with pytest.raises(api.Refused, match="configmaps"):
        await kube.create(CONFIG_MAPS, a_map("Not_A_Name"))


async def test_a_service_that_is_not_there_cannot_be_asked(kube: Kube) -> None:
    with pytest.raises(api.NotFound):
        await kube.ask("nothing", 8082, "hearth/v1/pools")


# What only the API server in memory can be told to do.


async def test_a_service_is_asked_through_the_api_server(fake: FakeKube) -> None:
    fake.services["team", "hearth-controller:8082"] = lambda path, query: (404, f'{{"path": "{path}?{query}"}}'.encode())
    answer = await fake.client().ask("hearth-controller", 8082, "/hearth/v1/models", {"pool": "gpu", "none": ""})
    assert answer.status == 404
    assert b"hearth/v1/models?{'pool': 'gpu'}" in answer.body


async def test_a_service_without_a_ready_pod_is_unreachable(fake: FakeKube) -> None:
    fake.put("services", {"apiVersion": "v1", "metadata": {"name": "hearth-controller"}})
    with pytest.raises(api.Unreachable, match="no endpoints"):
        await fake.client().ask("hearth-controller", 8082, "hearth/v1/pools")


async def test_what_is_forbidden_names_the_rule_that_a_role_needs(fake: FakeKube) -> None:
    fake.fail(403, plural="secrets")
    with pytest.raises(api.Forbidden, match=r'apiGroups: \[""\], resources: \["secrets"\], verbs: \["get"\]'):
        await fake.client().get(SECRETS, "aws")
    fake.fail(403, plural="inferenceservices")
    with pytest.raises(api.Forbidden, match=r'resources: \["inferenceservices/status"\], verbs: \["patch"\]'):
        await fake.client().patch_status(INFERENCE_SERVICES, "m", {})


async def test_too_many_requests_say_when_to_come_back(fake: FakeKube) -> None:
    fake.fail(429, retry_after_s=7)
    with pytest.raises(api.Unreachable) as raised:
        await fake.client().list(CONFIG_MAPS)
    assert raised.value.retry_after_s == 7


@pytest.mark.parametrize("what", [500, 503, "hang", "drop"])
async def test_a_server_that_fails_hangs_or_hangs_up_is_unreachable(fake: FakeKube, what: int | str) -> None:
    fake.fail(what, times=2)  # the HTTP client asks once more by itself when a connection is cut: a read may be repeated
    with pytest.raises(api.Unreachable, match="list configmaps"):
        await fake.client(timeout_s=0.2).list(CONFIG_MAPS)


async def test_no_server_at_all_is_unreachable(fake: FakeKube) -> None:
    client = fake.client()
    with fake.away(), pytest.raises(api.Unreachable):
        await client.list(CONFIG_MAPS)
    await client.list(CONFIG_MAPS)


async def test_an_error_about_a_secret_does_not_quote_it(fake: FakeKube) -> None:
    fake.fail(422, plural="secrets")
    with pytest.raises(api.Refused) as raised:
        await fake.client().create(SECRETS, {"metadata": {"name": "aws"}, "data": {"key": "c2VjcmV0"}})
    assert "fault" not in raised.value.message


async def test_without_a_kubeconfig_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    with pytest.raises(api.NoCluster, match="KUBECONFIG"):
        await Kube.connect()


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: here, context: {cluster: c, user: u, namespace: team}}, {name: there, context: {cluster: c, user: u}}]
current-context: here
"""


async def test_the_namespace_is_the_given_one_else_the_contexts_else_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("kube") / "config"
    file.write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(file))
    for given, context, expected in (("", "", "team"), ("mine", "", "mine"), ("", "there", "default")):
        async with await Kube.connect(given, context=context) as connected:
            assert connected.namespace == expected


async def test_the_kubeconfigs_token_is_sent(fake: FakeKube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG.replace("http://127.0.0.1:1", fake.url))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    async with await Kube.connect() as connected:
        await connected.list(CONFIG_MAPS)
    assert fake.asked[-1].authorization == "Bearer t"


async def test_in_a_pod_it_is_the_service_accounts_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("token", "t0ken"), ("namespace", "team\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setattr(kubeconfig, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    async with await Kube.connect() as connected:
        assert connected.namespace == "team"
    configuration, namespace = await kubeconfig.credentials()
    assert configuration.host == "https://10.0.0.1:443"
    assert await configuration.get_api_key_with_prefix("BearerToken") == "bearer t0ken"
    assert configuration.refresh_api_key_hook is not None  # the file is read anew once a minute
    assert namespace == "team"
