"""Fixtures of the end-to-end tests: models in S3, and a namespace with the pool. Nothing of either stays."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from tests.e2e import models, surroundings
from tests.e2e.cold import table
from tests.e2e.declared import CONTROLLER, Models, credentials, shelf
from tests.e2e.kubernetes import Namespace
from tests.e2e.pool import ANSWER_TIMEOUT_S, HELLO, READY_TIMEOUT_S, Pool, write_kustomization

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bucket(NamedTuple):
    """A bucket of the test's own, with models below ``models/``."""

    name: str
    models: tuple[models.Model, ...]


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """Upload both models; remove them with their bucket afterwards."""
    store, name = surroundings.ObjectStore().client(), f"hearth-e2e-{secrets.token_hex(4)}"
    both = models.both()
    keys: list[str] = []
    store.create_bucket(Bucket=name)
    try:
        for model in both:
            for path, content in model.files.items():
                keys.append(f"models/{model.name}/1/{path}")
                store.put_object(Bucket=name, Key=keys[-1], Body=content)
        yield Bucket(name, both)
    finally:
        for key in keys:
            store.delete_object(Bucket=name, Key=key)
        store.delete_bucket(Bucket=name)


@pytest.fixture(scope="session")
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Iterator[Pool]:
    """Apply pool and hello service, wait until both are Ready. On a failure, describe the cluster before cleaning up."""
    namespace = Namespace(bucket.name)
    folder = tmp_path_factory.mktemp("kustomization")
    write_kustomization(folder, namespace=bucket.name, models_url=f"s3://{bucket.name}/models")
    namespace.create()
    ready = False
    try:
        namespace.apply(folder)
        pool_host = namespace.address("inferenceservice", "pool", timeout_s=READY_TIMEOUT_S)
        hello_host = namespace.address("services.serving.knative.dev", HELLO, timeout_s=READY_TIMEOUT_S)
        ready = True
        with httpx.Client(base_url=surroundings.ingress(), timeout=ANSWER_TIMEOUT_S) as ingress:
            running = Pool(namespace, bucket.models, ingress, pool_host, hello_host)
            yield running
            if running.starts:
                print(table(running.starts))  # noqa: T201 (what the run is for)
    finally:
        if not ready or request.session.testsfailed:
            print(namespace.description())  # noqa: T201 (gone a moment later)
        namespace.delete()


@pytest.fixture(scope="session", name="models")
def inference_services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Pool and controller, and a bucket with the models' files. On a failure, describe the cluster before cleaning up."""
    failed_before = request.session.testsfailed
    with shelf() as bucket, httpx.Client(base_url=surroundings.ingress(), timeout=ANSWER_TIMEOUT_S) as ingress:
        namespace = Namespace(bucket.name)
        folder = tmp_path_factory.mktemp("models")
        write_kustomization(folder, namespace=bucket.name, models_url=f"s3://{bucket.name}/root")
        namespace.create()
        ready = False
        try:
            namespace.apply(folder)
            host = namespace.address("inferenceservice", "pool", timeout_s=READY_TIMEOUT_S)
            namespace.kubectl("rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s", timeout_s=130)
            hello_host = namespace.address("services.serving.knative.dev", HELLO, timeout_s=READY_TIMEOUT_S)
            running = Models(namespace, bucket, ingress, host, hello_host, folder)
            running.apply(credentials())
            ready = True
            yield running
            if running.starts:
                print(table(running.starts))  # noqa: T201 (what the run is for)
        finally:
            if not ready or request.session.testsfailed != failed_before:
                print(namespace.description())  # noqa: T201 (gone a moment later)
                print(namespace.kubectl("logs", f"deployment/{CONTROLLER}", "--tail=200"))  # noqa: T201
            namespace.delete()
