"""Models as InferenceServices, for the tests: small ONNX models with known answers; how they are applied and asked."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from tests.e2e import surroundings
from tests.e2e.cold import Answered, ColdStart, timed
from tests.e2e.kubernetes import Namespace, eventually
from tests.e2e.pool import POOL
from tests.e2e.pulse import Pulse
from tests.fakes.zoo import affine_onnx

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONTROLLER: Final = "hearth-controller"
READER: Final = "models-reader"
STORAGE_KEY: Final = "own-bucket"
SETTLED_TIMEOUT_S: Final = 60.0
ADMIN_PORT: Final = 8082


@dataclass
class Shelf:
    """A bucket of the test's own. What is put there is removed with it."""

    name: str
    client: S3Client
    keys: list[str] = field(default_factory=list)

    def put(self, folder: str, files: Mapping[str, bytes]) -> str:
        """Upload a model, its hearth.json last, so that it is complete at once; its URI."""
        for path, contents in {**files, "hearth.json": b"{}"}.items():
            self.keys.append(f"{folder}/{path}")
            self.client.put_object(Bucket=self.name, Key=self.keys[-1], Body=contents)
        return f"s3://{self.name}/{folder}"

    def affine(self, folder: str, scale: float) -> str:
        """Upload y = scale * x + 1; its URI."""
        return self.put(folder, affine_onnx(scale=scale))


@contextmanager
def shelf() -> Iterator[Shelf]:
    """Make a bucket, and remove it with everything in it."""
    made = Shelf(f"hearth-e2e-{secrets.token_hex(4)}", surroundings.ObjectStore().client())
    made.client.create_bucket(Bucket=made.name)
    try:
        yield made
    finally:
        for key in dict.fromkeys(made.keys):
            made.client.delete_object(Bucket=made.name, Key=key)
        made.client.delete_bucket(Bucket=made.name)


def inference_service(
    name: str, *, storage: Mapping[str, Any], account: str = "", percent: int | None = None, format_: str = "onnx"
) -> dict[str, Any]:
    """Build one model's manifest.

    storage  ``{"storageUri": ...}`` or ``{"storage": {...}}``
    """
    predictor: dict[str, Any] = {"model": {"modelFormat": {"name": format_}, "runtime": "pool", **storage}}
    if account:
        predictor["serviceAccountName"] = account
    if percent is not None:
        predictor["canaryTrafficPercent"] = percent
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {"serving.kserve.io/deploymentMode": "ModelMesh"},
            "labels": {"of": "models"},
        },
        "spec": {"predictor": predictor},
    }


def credentials() -> list[dict[str, Any]]:
    """Build the cluster's S3 keys in both styles: a ServiceAccount with a Secret, and storage-config."""
    store = surroundings.ObjectStore()
    endpoint = store.endpoint_inside
    by_account = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": READER,
            "annotations": {
                "serving.kserve.io/s3-endpoint": endpoint.partition("://")[2],
                "serving.kserve.io/s3-usehttps": "1" if endpoint.startswith("https:") else "0",
                "serving.kserve.io/s3-region": store.region,
            },
        },
        "stringData": {"awsAccessKeyID": store.access_key, "awsSecretAccessKey": store.secret_key},
    }
    entry = {
        "type": "s3",
        "endpoint_url": endpoint,
        "access_key_id": store.access_key,
        "secret_access_key": store.secret_key,
        "region": store.region,
    }
    by_key = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "storage-config"},
        "stringData": {STORAGE_KEY: json.dumps(entry)},
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}, "secrets": [{"name": READER}]}
    return [by_account, by_key, account]


@dataclass
class Models:
    """A pool with a controller, and what the tests do with its models.

    host    of the pool behind the ingress; ``hello_host``: of the service that it is compared with
    scales  name → the scale that is right for it now
    starts  cold starts measured so far
    """

    namespace: Namespace
    shelf: Shelf
    ingress: httpx.Client
    host: str
    hello_host: str
    folder: Path
    scales: dict[str, float] = field(default_factory=dict)
    starts: list[ColdStart] = field(default_factory=list)

    def apply(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """``kubectl apply`` all at once."""
        file = self.folder / "objects.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        self.namespace.kubectl("apply", "-f", str(file))

    def declare(self, name: str, uri: str, scale: float, *, percent: int | None = None, account: str = "") -> None:
        """Apply one model by its URI."""
        self.scales[name] = scale
        self.apply([inference_service(name, storage={"storageUri": uri}, percent=percent, account=account)])

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Name → status, of every model."""
        items = self.namespace.items("inferenceservices", "--selector", "of=models")
        return {item["metadata"]["name"]: item.get("status", {}) for item in items}

    def until(
        self, name: str, what: str, holds: Callable[[dict[str, Any]], bool], timeout_s: float = SETTLED_TIMEOUT_S
    ) -> None:
        """Wait for a model's status, about what was applied last."""
        last: dict[str, Any] = {}

        def look() -> bool | None:
            (found,) = self.namespace.items("inferenceservices", "--field-selector", f"metadata.name={name}")
            last.clear()
            last.update(found.get("status", {}))
            is_current = last.get("observedGeneration") == found["metadata"]["generation"]
            return True if is_current and holds(last) else None

        try:
            eventually(look, what=f"{name}: {what}", timeout_s=timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it says {json.dumps(last)}") from None

    def post(self, name: str, client: httpx.Client | None = None) -> httpx.Response:
        """One inference through the ingress."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
        return (client or self.ingress).post(f"/v2/models/{name}/infer", json=body, headers={"Host": self.host})

    def ask(self, name: str) -> Answered:
        """One inference, timed; the answer has to be right."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
        request = self.ingress.build_request("POST", f"/v2/models/{name}/infer", json=body, headers={"Host": self.host})
        answered = timed(self.ingress, request)
        assert answered.response.status_code == 200, answered.response.text
        assert scale_of(answered.response) == self.scales[name]
        return answered

    def pulse(self, name: str, client: httpx.Client, *, scales: Iterable[float] = (), every_s: float = 0.1) -> Pulse:
        """Ask again and again; right are answers with one of these scales, else the model's own."""
        allowed = set(scales) or {self.scales[name]}

        def judge(response: httpx.Response) -> tuple[str, str]:
            if response.status_code != 200:
                return str(response.status_code), f"{response.status_code} {response.text[:300]}"
            scale = scale_of(response)
            return f"x{scale:g}", "" if scale in allowed else f"y = {scale:g} x + 1, not one of {sorted(allowed)}"

        return Pulse(lambda: self.post(name, client), judge, every_s)

    def controller(self, path: str) -> httpx.Response:
        """Ask the controller's port, through the API server's proxy: it is not behind the ingress."""
        service = f"/api/v1/namespaces/{self.namespace.name}/services/hearth-controller:{ADMIN_PORT}/proxy{path}"
        return httpx.Response(200, text=self.namespace.kubectl("get", "--raw", service))


def scale_of(response: httpx.Response) -> float:
    """Of y = scale * x + 1, from the answer to 1, 2, 3, 4. All four must agree."""
    values = response.json()["outputs"][0]["data"]
    scales = {(value - 1) / x for x, value in enumerate(values, 1)}
    assert len(scales) == 1, values
    return float(scales.pop())


def conditions(status: Mapping[str, Any]) -> dict[str, str]:
    """Condition → True, False or Unknown."""
    return {condition["type"]: condition["status"] for condition in status.get("conditions", ())}


def states(status: Mapping[str, Any]) -> tuple[str, str, str]:
    """Active state, target state, transition."""
    told = status.get("modelStatus", {})
    revisions = told.get("states", {})
    return revisions.get("activeModelState", ""), revisions.get("targetModelState", ""), told.get("transitionStatus", "")


def hearth(*arguments: str) -> str:
    """Run the command; its output."""
    ended = subprocess.run(
        [sys.executable, "-m", "predictor.boot", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, f"hearth {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout


def standing(models: Models) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The pool's pods that were not told to end, Ready or not, by UID; and its Revisions' annotations about scaling."""
    of_pool = ("--selector", f"serving.knative.dev/service={POOL}")
    pods = [pod["metadata"] for pod in models.namespace.items("pods", *of_pool)]
    revisions = sorted(models.namespace.items("revisions", *of_pool), key=lambda one: str(one["metadata"]["name"]))
    alive = {pod["uid"]: pod["name"] for pod in pods if "deletionTimestamp" not in pod}
    ours = ("autoscaling.knative.dev/", "hearth.dev/")
    told = [one["metadata"].get("annotations", {}) for one in revisions]
    return alive, [{key: value for key, value in one.items() if key.startswith(ours)} for one in told]


def ready_pods(models: Models) -> list[str]:
    """Names of the pool's pods that are Ready."""
    pods = models.namespace.items("pods", "--selector", f"serving.knative.dev/service={POOL}")
    return [
        pod["metadata"]["name"]
        for pod in pods
        if any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))
        and "deletionTimestamp" not in pod["metadata"]
    ]
