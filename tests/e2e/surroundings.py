"""Where the end-to-end tests run: what HEARTH_E2E_... says, else a one-node cluster here. Which cluster: kubectl knows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def said(name: str, default: str) -> str:
    """Read one HEARTH_E2E_ variable."""
    return os.environ.get(f"HEARTH_E2E_{name}") or default


def ingress() -> str:
    """Address of Knative's ingress gateway, as seen from here."""
    return said("INGRESS", "http://127.0.0.1:31080")


def images() -> list[dict[str, str]]:
    """Name both images under test, ``registry:5000/name:tag`` or ``name@sha256:...``, in kustomize's words."""
    return [
        {"name": "hearth-predictor", **_image("IMAGE", "localhost:5000/hearth-predictor:dev")},
        {"name": "hearth-controller", **_image("CONTROLLER_IMAGE", "localhost:5000/hearth-controller:dev")},
    ]


def loadtest_image() -> dict[str, str] | None:
    """Name the load test's image in kustomize's words; None where no HEARTH_E2E_LOADTEST_IMAGE is given."""
    return {"name": "hearth-loadtest", **_image("LOADTEST_IMAGE", "")} if said("LOADTEST_IMAGE", "") else None


def _image(variable: str, default: str) -> dict[str, str]:
    reference = said(variable, default)
    name, at, digest = reference.partition("@")
    if at:
        return {"newName": name, "digest": digest}
    name, _, tag = reference.rpartition(":")
    assert name, f"HEARTH_E2E_{variable}={reference}: it needs a tag"
    return {"newName": name, "newTag": tag}


@dataclass(frozen=True)
class ObjectStore:
    """The cluster's S3, as seen from here and from inside."""

    endpoint: str = field(default_factory=lambda: said("S3_ENDPOINT", "http://127.0.0.1:31090"))
    endpoint_inside: str = field(default_factory=lambda: said("S3_ENDPOINT_INSIDE", "http://s3.s3.svc.cluster.local:9000"))
    access_key: str = field(default_factory=lambda: said("S3_ACCESS_KEY", "testkey"))
    secret_key: str = field(default_factory=lambda: said("S3_SECRET_KEY", "testsecret"))
    region: str = field(default_factory=lambda: said("S3_REGION", "us-east-1"))

    def client(self) -> S3Client:
        """Make a client that gives up soon."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 3}),
        )

    def environment(self, models: str) -> list[str]:
        """List what the pool's Secret holds, as NAME=value; ``models`` is the S3 URL below which they lie."""
        return [
            f"HEARTH_MODELS={models}",
            f"AWS_ENDPOINT_URL={self.endpoint_inside}",
            f"AWS_ACCESS_KEY_ID={self.access_key}",
            f"AWS_SECRET_ACCESS_KEY={self.secret_key}",
            f"AWS_REGION={self.region}",
        ]
