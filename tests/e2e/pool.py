"""The pool under test and its yardstick on the cluster: how they are applied, and how they are asked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.e2e import models, surroundings
from tests.e2e.cold import Answered, ColdStart, timed

if TYPE_CHECKING:
    import httpx
    import numpy as np
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
        tensor = {"name": models.INPUT, "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
        request = self.ingress.build_request(
            "POST", f"/v2/models/{name}/infer", json={"inputs": [tensor]}, headers={"Host": self.pool_host}
        )
        return timed(self.ingress, request)

    def greet(self) -> Answered:
        """One request to the hello service, one try."""
        return timed(self.ingress, self.ingress.build_request("GET", "/", headers={"Host": self.hello_host}))


def write_kustomization(folder: Path, *, namespace: str, models_url: str) -> None:
    """Make ``folder`` what ``kubectl apply -k`` takes: the overlay with namespace, image and the S3 Secret."""
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [os.path.relpath(OVERLAY, folder.resolve())],  # kustomize takes no absolute paths
        "images": [{"name": "hearth-predictor", **surroundings.image()}],
        "generatorOptions": {"disableNameSuffixHash": True},
        "secretGenerator": [{"name": "hearth-s3", "literals": surroundings.ObjectStore().environment(models_url)}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
