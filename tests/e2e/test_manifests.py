"""The manifests on a real cluster: it accepts all, the controller may do what it must and no more, pools of every kind answer.

Each kind has a namespace of its own, one after the other: they must fit a node with two cores.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from predictor.declared import CREDENTIAL_SHARDS, MODEL_SHARDS, credential_file, credential_secret, model_config_map
from tests.e2e import surroundings
from tests.e2e.conftest import Bucket
from tests.e2e.kubernetes import KubectlFailed, Namespace, eventually
from tests.e2e.pool import ANSWER_TIMEOUT_S, READY_TIMEOUT_S, ask, assert_right, question, write_kustomization

MANIFESTS: Final = Path(__file__).parents[2] / "manifests"
FOLDERS: Final = [
    Path("base"),
    *sorted(
        path.parent.relative_to(MANIFESTS)
        for top in ("overlays", "samples")
        for path in (MANIFESTS / top).glob("*/kustomization.yaml")
    ),
]
FILES: Final = sorted(
    path.relative_to(MANIFESTS) for path in (MANIFESTS / "samples").rglob("*.yaml") if path.name != "kustomization.yaml"
)
SCHEDULED_TIMEOUT_S: Final = 60.0
FEATURES: Final = ("kubernetes.podspec-nodeselector", "kubernetes.podspec-tolerations")

SMALL: Final = """
- {{op: replace, path: {containers}/0/resources/requests/cpu, value: 250m}}
- {{op: test, path: {containers}/0/env/0/name, value: HEARTH_TRUST}}
- {{op: replace, path: {containers}/0/env/0/value, value: code}}
"""
"""A pool that must fit a node with two cores beside one that still drains, and runs the test's model.py."""

ANY_NODE: Final = """
- {op: replace, path: /spec/predictor/nodeSelector, value: {kubernetes.io/os: linux}}
- {op: replace, path: /spec/predictor/containers/0/resources/requests, value: {cpu: 250m, memory: 1Gi}}
"""
"""Where the nodes with GPUs carry no label, and are as small as this."""

MAY: Final = (
    "watch inferenceservices.serving.kserve.io",
    "patch inferenceservices.serving.kserve.io/status",
    "watch servingruntimes.serving.kserve.io",
    "watch services.serving.knative.dev",
    "patch revisions.serving.knative.dev",
    "watch podautoscalers.autoscaling.internal.knative.dev",
    "watch deployments.apps",
    "patch pods",
    "watch configmaps",
    "update configmaps",
    "create secrets",
    "get secrets",
    "update secrets",
    "get serviceaccounts",
    "update leases.coordination.k8s.io",
    "create events",
)
MAY_NOT: Final = (
    "list secrets",
    "watch secrets",
    "delete secrets",
    "delete configmaps",
    "create pods",
    "delete pods",
    "create pods/exec",
    "patch inferenceservices.serving.kserve.io",
    "delete inferenceservices.serving.kserve.io",
    "patch services.serving.knative.dev",
    "patch deployments.apps",
    "create serviceaccounts/token",
    "create rolebindings.rbac.authorization.k8s.io",
    "get nodes",
)
"""What a controller that is broken into would like to do."""


@contextmanager
def namespace_of_its_own(request: pytest.FixtureRequest, suffix: str) -> Iterator[Namespace]:
    """Make one that admits only what is restricted; on a failure describe what is in it before it goes."""
    namespace = Namespace(f"hearth-e2e-{suffix}-{secrets.token_hex(3)}")
    failed_before = request.session.testsfailed
    ended_well = False
    namespace.create()
    namespace.kubectl("label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield namespace
        ended_well = True
    finally:
        if not ended_well or request.session.testsfailed != failed_before:
            print(namespace.description())  # noqa: T201 (gone a moment later)
        namespace.delete()


@pytest.fixture(scope="module")
def empty(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace with accounts and roles, but nothing that runs. Knative looks for a pod's account even in a dry run."""
    with namespace_of_its_own(request, "dry") as namespace:
        for file in ("service-accounts.yaml", "role.yaml"):
            namespace.kubectl("apply", "-f", str(MANIFESTS / "parts/controller" / file))
        yield namespace


@pytest.fixture
def ingress() -> Iterator[httpx.Client]:
    with httpx.Client(base_url=surroundings.ingress(), timeout=ANSWER_TIMEOUT_S) as client:
        yield client


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_cluster_would_take_every_overlay(empty: Namespace, tmp_path: Path, folder: Path) -> None:
    write_kustomization(tmp_path, namespace=empty.name, resource=MANIFESTS / folder)
    assert "(server dry run)" in empty.kubectl("apply", "--dry-run=server", "-k", str(tmp_path))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_cluster_would_take_every_sample(empty: Namespace, file: Path) -> None:
    try:
        told = empty.kubectl("apply", "--dry-run=server", "-f", str(MANIFESTS / file))
    except KubectlFailed as error:
        if file.name != "keda.yaml" or "no matches for kind" not in str(error):
            raise
        pytest.skip("the cluster has no KEDA")
    assert "(server dry run)" in told


@pytest.mark.parametrize(("folder", "name"), [("base", "pool"), ("overlays/knative", "pool"), ("samples/second-pool", "big")])
def test_a_pool_mounts_what_the_controller_writes_for_its_name(empty: Namespace, folder: str, name: str) -> None:
    rendered = empty.kubectl("kustomize", str(MANIFESTS / folder))
    mounted = re.findall(rf"name: (hearth-{name}-(?:models-\d+|credentials-\d+|hotset))$", rendered, re.MULTILINE)
    assert mounted == [
        *(model_config_map(name, shard) for shard in range(MODEL_SHARDS)),
        f"hearth-{name}-hotset",
        *(credential_secret(name, shard) for shard in range(CREDENTIAL_SHARDS)),
    ]
    assert re.search(rf"name: HEARTH_POOL\n +value: {name}$", rendered, re.MULTILINE)


def test_the_controller_may_do_what_it_must_and_no_more(empty: Namespace, tmp_path: Path) -> None:
    assert allowed(empty, "hearth-controller", MAY + MAY_NOT, tmp_path) == set(MAY)


def test_the_controller_may_nothing_in_other_namespaces(empty: Namespace, tmp_path: Path) -> None:
    assert not allowed(empty, "hearth-controller", MAY + MAY_NOT, tmp_path, in_namespace="default")


def test_the_pool_may_nothing(empty: Namespace, tmp_path: Path) -> None:
    assert not allowed(empty, "hearth-pool", MAY + MAY_NOT, tmp_path)


def allowed(namespace: Namespace, account: str, wishes: Sequence[str], folder: Path, *, in_namespace: str = "") -> set[str]:
    """Ask the API server which ``verb resource.group/subresource`` an account of the namespace may."""
    who = f"system:serviceaccount:{namespace.name}:{account}"
    reviews = []
    for wish in wishes:
        verb, resource, group, subresource = re.fullmatch(r"(\w+) (\w+)\.?([\w.]*)/?(\w*)", wish).groups()  # type: ignore[union-attr]
        asked = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
        reviews.append(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": who, "resourceAttributes": {**asked, "namespace": in_namespace or namespace.name}},
            }
        )
    file = folder / "reviews.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews}))
    told = namespace.kubectl("create", "-f", str(file), "-o", r'jsonpath={.status.allowed}{"\n"}').split()
    return {wish for wish, answer in zip(wishes, told, strict=True) if answer == "true"}


def test_a_pool_without_kserve_answers(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket, ingress: httpx.Client
) -> None:
    """A plain Knative Service; its models lie below a prefix."""
    with namespace_of_its_own(request, "knative") as namespace:
        patch = SMALL.format(containers="/spec/template/spec/containers")
        _apply(
            namespace,
            tmp_path,
            bucket,
            overlay="overlays/knative",
            target={"group": "serving.knative.dev", "kind": "Service"},
            patch=patch,
        )
        host = namespace.address("services.serving.knative.dev", "pool", timeout_s=READY_TIMEOUT_S)
        for model in bucket.models:
            answered = ask(ingress, host, model.name, model.images)
            assert answered.response.status_code == 200, answered.response.text
            assert_right(answered.response.json(), model)
        carrying = namespace.items("pods", "--selector", "hearth.dev/pool=pool")
        assert answered.pod in {pod["metadata"]["name"] for pod in carrying}, "by this label the controller knows the pods"


def test_a_pool_without_knative_answers(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> None:
    """A Deployment and its Service, asked through the API server's proxy."""
    with namespace_of_its_own(request, "deployment") as namespace:
        document = f"--from-literal={credential_file(0)}=whatever the controller makes of it"
        namespace.kubectl("create", "secret", "generic", credential_secret("pool", 0), document)
        patch = SMALL.format(containers="/spec/template/spec/containers")
        _apply(namespace, tmp_path, bucket, overlay="overlays/deployment", target={"kind": "Deployment"}, patch=patch)
        rollout(namespace, "pool")
        for model in bucket.models:
            (tmp_path / "question.json").write_text(json.dumps(question(model.images)))
            path = f"/api/v1/namespaces/{namespace.name}/services/pool:http/proxy/v2/models/{model.name}/infer"
            told = namespace.kubectl("create", "--raw", path, "-f", str(tmp_path / "question.json"))
            assert_right(json.loads(told), model)
        mounted = namespace.kubectl("exec", "deployment/pool", "--", "cat", f"/etc/hearth/credentials/{credential_file(0)}")
        assert mounted, "the pod's user can read what is mounted"


def test_a_gpu_pool_gets_a_gpu_with_knatives_two_features(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket
) -> None:
    """Scheduling only: whether the pod then finds CUDA is the node's business."""
    if not surroundings.said("FEATURES", ""):
        pytest.skip("it switches Knative's features for a moment: HEARTH_E2E_FEATURES=1 allows it")
    with namespace_of_its_own(request, "gpu") as namespace, features(*FEATURES):
        _apply(namespace, tmp_path, bucket, overlay="overlays/gpu", target={"kind": "InferenceService"}, patch=ANY_NODE)

        def look() -> dict[str, Any] | None:
            pods = namespace.items("pods", "--selector", "hearth.dev/pool=pool")
            return next((pod for pod in pods if pod["spec"].get("nodeName")), None)

        pod = eventually(look, what="a pod of the pool on a node", timeout_s=SCHEDULED_TIMEOUT_S)
        container = next(found for found in pod["spec"]["containers"] if found["name"] == "kserve-container")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}
        assert any(toleration.get("key") == "nvidia.com/gpu" for toleration in pod["spec"]["tolerations"])


@contextmanager
def features(*names: str) -> Iterator[None]:
    """Have Knative's optional features on for a while; put back what was there."""
    serving = Namespace("knative-serving")
    was = json.loads(serving.kubectl("get", "configmap", "config-features", "-o", "json"))["data"]

    def put(states: dict[str, str | None]) -> None:
        serving.kubectl("patch", "configmap", "config-features", "--type=merge", "--patch", json.dumps({"data": states}))

    put(dict.fromkeys(names, "enabled"))
    try:
        yield
    finally:
        put({name: was.get(name) for name in names})


def _apply(namespace: Namespace, folder: Path, bucket: Bucket, *, overlay: str, target: Mapping[str, str], patch: str) -> None:
    """Apply an overlay with the images under test, the bucket's models, and ``patch`` on its pool; wait for the controller."""
    write_kustomization(
        folder,
        namespace=namespace.name,
        models_url=f"s3://{bucket.name}/models",
        resource=MANIFESTS / overlay,
        patches=[{"target": {**target, "name": "pool"}, "patch": patch}],
    )
    namespace.apply(folder)
    rollout(namespace, "hearth-controller")


def rollout(namespace: Namespace, deployment: str) -> None:
    """Return when all pods of a Deployment are Ready."""
    limit = f"--timeout={READY_TIMEOUT_S:.0f}s"
    namespace.kubectl("rollout", "status", f"deployment/{deployment}", limit, timeout_s=READY_TIMEOUT_S + 10)
