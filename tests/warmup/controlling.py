"""A whole controller against the fake API server, a fake pod and a scripted model store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from predictor.declared import Declared, ModelShard, decode, model_config_map, model_file, model_shard
from tests.fakes.kube import FakeKube
from tests.warmup.objects import condition
from warmup.__main__ import Built, build
from warmup.checks import Finding, Question
from warmup.kube import Kube
from warmup.leader import Terms
from warmup.settings import ControllerSettings
from warmup.watch import Pace

NAMESPACE = "ns"
BRISK = Pace(first_s=0.01, most_s=0.05, healthy_s=30.0, watch_s=5.0, absent_s=0.05)
TERMS = Terms(duration_s=1.0, renew_s=0.8, retry_s=0.05)
LIMIT_S = 20.0

Made = dict[str, Any]


@dataclass
class Store:
    """What every location comes to. ``findings``: by URI; all others are well."""

    findings: dict[str, Finding] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)

    async def check(self, question: Question) -> Finding:
        self.asked.append(question)
        return self.findings.get(question.uri, Finding(ok=True))

    async def close(self) -> None:
        """Nothing runs."""


@dataclass
class Running:
    """A controller at work, and the cluster it works on."""

    built: Built
    fake: FakeKube
    store: Store

    async def until(self, holds: Callable[[], Any]) -> None:
        """Return once it holds; looked at after every write to the cluster and every pass."""
        async with asyncio.timeout(LIMIT_S):
            while not holds():  # noqa: ASYNC110 - it looks at an API server, a pod and queues together
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Return when nothing waits for a pass, but what waits for time to go by."""

        def quiet() -> bool:
            works = self.built.controller
            return all(
                not work.pressing() for work in (works.models_work, works.pools_work, works.status_work, works.view_work)
            )

        async with asyncio.timeout(LIMIT_S):
            calm = 0
            while calm < 3:
                await asyncio.sleep(0.02)
                calm = calm + 1 if quiet() else 0


def settings(**more: Any) -> ControllerSettings:
    given = {
        "namespace": NAMESPACE, "identity": "one", "poll_s": 0.1, "flush_s": 0.01, "pending_s": 0.3, "check_retry_s": 0.05,
        "check_retry_max_s": 0.2, "write_rate_per_s": 1000, "secret_refresh_s": 1, "defer_s": 0,
    }  # fmt: skip
    return ControllerSettings(**{**given, **more})


@contextlib.asynccontextmanager
async def running(
    fake: FakeKube, store: Store | None = None, *, kube: Kube | None = None, **more: Any
) -> AsyncIterator[Running]:
    """Start it; end it as a process that is killed would: nothing is said goodbye to, but connections are closed."""
    store = store or Store()
    client = kube or fake.client(NAMESPACE, timeout_s=2.0)
    chosen = settings(**more)
    built = build(chosen, client, store, pace=BRISK, terms=TERMS)
    jobs = [asyncio.create_task(job) for job in (*built.jobs(), built.leader.run())]
    try:
        yield Running(built, fake, store)
        for job in jobs:
            assert not job.done(), job
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await built.close()
        if kube is None:
            await client.close()


def put_pool(fake: FakeKube, name: str = "gpu", *, default: bool = False, ready: bool = True) -> None:
    """A pool as a Deployment with a Service: the smallest kind."""
    labels = {"hearth.dev/pool": name, **({"hearth.dev/default-pool": "true"} if default else {})}
    fake.put(
        "deployments",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {"template": {"spec": {"containers": [{"name": "predictor"}]}}},
            "status": {
                "conditions": [condition("Available", "True" if ready else "False", "MinimumReplicasUnavailable", "no")]
            },
        },
        namespace=NAMESPACE,
    )


def put_pod(fake: FakeKube, address: str, *, name: str = "pod-1", pool: str = "gpu") -> None:
    """A running pod of the pool."""
    fake.put(
        "pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"hearth.dev/pool": pool}},
            "status": {"phase": "Running", "podIP": address},
        },
        namespace=NAMESPACE,
    )


def put_model(
    fake: FakeKube, name: str, *, uri: str = "", runtime: str | None = "gpu", generation: int = 1, **more: Any
) -> None:
    """A model's InferenceService; the status that it has stays."""
    old = fake.object("inferenceservices", name, namespace=NAMESPACE) or {}
    spec = {"modelFormat": {"name": "onnx"}, "storageUri": uri or f"s3://models/{name}", **more.pop("model", {})}
    if runtime:
        spec["runtime"] = runtime
    fake.put(
        "inferenceservices",
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": name,
                "generation": generation,
                "annotations": {"serving.kserve.io/deploymentMode": "ModelMesh"},
                **({"uid": old["metadata"]["uid"]} if old else {}),
            },
            "spec": {"predictor": {"model": spec, **more}},
            **({"status": old["status"]} if "status" in old else {}),
        },
        namespace=NAMESPACE,
    )


def declared(fake: FakeKube, name: str, pool: str = "gpu") -> Declared | None:
    """What the cluster's catalogue says of a model."""
    return shard_of(fake, name, pool).models.get(name)


def shard_of(fake: FakeKube, name: str, pool: str = "gpu") -> ModelShard:
    """The shard that a model belongs to."""
    number = model_shard(name)
    found = fake.object("configmaps", model_config_map(pool, number), namespace=NAMESPACE)
    return ModelShard(0) if found is None else decode(found["data"][model_file(number)].encode(), ModelShard)


def ready(fake: FakeKube, name: str) -> str:
    """The status of its condition Ready; "": it has none."""
    found = fake.object("inferenceservices", name, namespace=NAMESPACE) or {}
    return next((each["status"] for each in _conditions(found) if each["type"] == "Ready"), "")


def model_status(fake: FakeKube, name: str) -> Mapping[str, Any]:
    """``status.modelStatus``."""
    found = fake.object("inferenceservices", name, namespace=NAMESPACE) or {}
    return (found.get("status") or {}).get("modelStatus") or {}


def writes(fake: FakeKube, plural: str = "") -> list[tuple[str, str, str]]:
    """Verb, plural and name of every request that wrote something; Leases left out."""
    return [
        (asked.verb, asked.plural, asked.name)
        for asked in fake.asked
        if asked.verb in ("create", "update", "patch", "delete") and asked.plural != "leases" and plural in ("", asked.plural)
    ]


def catalogue(fake: FakeKube, pool: str = "gpu") -> dict[str, Any]:
    """Everything declared, without serials: those are moments."""
    models: dict[str, Any] = {}
    for number in range(64):
        found = fake.object("configmaps", model_config_map(pool, number), namespace=NAMESPACE)
        if found is not None:
            models |= msgspec.to_builtins(decode(found["data"][model_file(number)].encode(), ModelShard).models)
    return models


def _conditions(found: Made) -> list[Made]:
    return (found.get("status") or {}).get("conditions") or []
