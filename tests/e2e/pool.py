"""The pool under test and its yardstick on the cluster: how they are applied, and how they are asked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.e2e import models, surroundings
from tests.e2e.cold import Answered, ColdStart, timed

if TYPE_CHECKING:
    import httpx
    from numpy.typing import NDArray

    from tests.e2e.kubernetes import Namespace

OVERLAY: Final = Path(__file__).parent / "overlay"
POOL: Final = "pool-predictor"  # what KServe calls the Knative Service of an InferenceService named pool
HELLO: Final = "hello"
READY_TIMEOUT_S: Final = 300.0  # a node that never ran the image pulls some 3 GB first
ANSWER_TIMEOUT_S: Final = 120.0


@dataclass
class Pool:
    """Both at their addresses behind the ingress.

    starts  the cold starts measured so far
    """

    namespace: Namespace
    models: tuple[models.Model, ...]
    ingress: httpx.Client
    pool_host: str
    hello_host: str
    starts: list[ColdStart] = field(default_factory=list)

    def infer(self, name: str, images: NDArray[np.float32]) -> Answered:
        """One inference through the ingress, one try."""
        return ask(self.ingress, self.pool_host, name, images)

    def greet(self) -> Answered:
        """One request to the hello service, one try."""
        return timed(self.ingress, self.ingress.build_request("GET", "/", headers={"Host": self.hello_host}))


def question(images: NDArray[np.float32]) -> dict[str, Any]:
    """Build a V2 request's body."""
    tensor = {"name": models.INPUT, "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [tensor]}


def ask(ingress: httpx.Client, host: str, name: str, images: NDArray[np.float32]) -> Answered:
    """Send one inference to a service behind the ingress, one try."""
    path = f"/v2/models/{name}/infer"
    return timed(ingress, ingress.build_request("POST", path, json=question(images), headers={"Host": host}))


def assert_right(answer: Mapping[str, Any], model: models.Model) -> None:
    """Compare with what the model answers outside Hearth."""
    (output,) = answer["outputs"]
    assert output["name"] == models.OUTPUT
    logits = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
    np.testing.assert_allclose(logits, model.expected, rtol=1e-4, atol=1e-4)


def write_kustomization(
    folder: Path, *, namespace: str, models_url: str = "", resource: Path = OVERLAY, patches: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Make ``folder`` what ``kubectl apply -k`` takes: ``resource`` in the namespace, with the images under test.

    models_url  what the S3 Secret says; empty: no Secret
    patches     as kustomize has them
    """
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [os.path.relpath(resource, folder.resolve())],  # kustomize takes no absolute paths
        "images": surroundings.images(),
        "patches": list(patches),
    }
    if models_url:
        kustomization["generatorOptions"] = {"disableNameSuffixHash": True}
        kustomization["secretGenerator"] = [
            {"name": "hearth-s3", "literals": surroundings.ObjectStore().environment(models_url)}
        ]
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
