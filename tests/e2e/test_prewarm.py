"""A pool is kept warm on real Knative, also when Knative's autoscaler does not do what the Revision asks of it.

The controller's part runs here, in the test's process, so that the pool can be a hello service: what is tested is between
it and Knative. Restarts the autoscaler: nothing else may be measured beside this.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e import surroundings
from tests.e2e.kubernetes import Namespace
from tests.e2e.pool import HELLO, READY_TIMEOUT_S
from warmup.kube import POD_AUTOSCALERS, REVISIONS, Kube
from warmup.prewarm import MARK, MIN_SCALE, VERIFY_S, Tell
from warmup.warming import Warming

OVERLAY: Final = Path(__file__).parent / "overlay"
ZERO_TIMEOUT_S: Final = 90.0
WARM_TIMEOUT_S: Final = 90.0
LONG: Final = 2 * VERIFY_S


@dataclass
class Wished:
    """The hello service as a pool."""

    namespace: str
    revision: str
    name: str = HELLO
    kind: str = "knative"
    service: str = HELLO
    warm_until_s: float | None = None


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """The hello service, Ready."""
    namespace = Namespace(f"hearth-e2e-warm-{secrets.token_hex(3)}")
    namespace.create()
    try:
        namespace.kubectl("create", "configmap", HELLO, f"--from-file={OVERLAY / 'hello.py'}")
        image = surroundings.image()
        reference = f"{image['newName']}@{image['digest']}" if "digest" in image else f"{image['newName']}:{image['newTag']}"
        manifest = (OVERLAY / "hello.yaml").read_text().replace("image: hearth-predictor", f"image: {reference}")
        subprocess.run(["kubectl", "-n", namespace.name, "apply", "-f", "-"], input=manifest, text=True, check=True, timeout=60)
        namespace.address("services.serving.knative.dev", HELLO, timeout_s=READY_TIMEOUT_S)
        yield namespace
    finally:
        if request.session.testsfailed:
            print(namespace.description())  # noqa: T201 (gone a moment later)
        namespace.delete()


class Keeper:
    """What the controller would do for the hello pool, and what it told."""

    def __init__(self, kube: Kube, namespace: Namespace) -> None:
        (service,) = namespace.items("services.serving.knative.dev")
        self.pool = Wished(namespace.name, service["status"]["latestReadyRevisionName"])
        self.host = service["status"]["url"].partition("://")[2]
        self.told: list[Tell] = []
        self.warming = Warming(
            kube, pools=lambda: [self.pool], may_act=lambda: True, announce=self._announce, clock=time.time, wake=self._wake
        )

    async def until(self, state: str) -> float:
        """Seconds until it is so."""
        started_s = time.monotonic()
        async with asyncio.timeout(WARM_TIMEOUT_S):
            while self.warming.states.get(HELLO) != state:  # noqa: ASYNC110 (a cluster is waited for by looking)
                await asyncio.sleep(0.1)
        return time.monotonic() - started_s

    async def _announce(self, told: Tell) -> None:
        self.told.append(told)

    async def _wake(self, _url: str) -> str:
        """From outside the cluster its own address cannot be had: the ingress's, with the Service's host."""
        async with httpx.AsyncClient(base_url=surroundings.ingress(), timeout=60) as ingress:
            return f"HTTP {(await ingress.get('/readyz', headers={'Host': self.host})).status_code}"


@contextlib.asynccontextmanager
async def keeping(namespace: Namespace) -> AsyncIterator[tuple[Keeper, Kube]]:
    """Run it, beginning at zero."""
    await asyncio.to_thread(namespace.wait_for_zero, HELLO, timeout_s=ZERO_TIMEOUT_S)
    async with await Kube.connect(namespace.name) as kube:
        keeper = Keeper(kube, namespace)
        jobs = [asyncio.create_task(job) for job in keeper.warming.jobs()]
        try:
            yield keeper, kube
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)


async def released(namespace: Namespace, keeper: Keeper, kube: Kube) -> None:
    """The wish ends: the pool is back at zero and its Revision as it was."""
    keeper.pool.warm_until_s = None
    await asyncio.to_thread(namespace.wait_for_zero, HELLO, timeout_s=ZERO_TIMEOUT_S)
    annotations = (await kube.get(REVISIONS, keeper.pool.revision))["metadata"]["annotations"]
    assert not {MARK, MIN_SCALE} & annotations.keys()


async def test_a_warm_pool_has_a_pod_that_stays_until_the_wish_ends(namespace: Namespace) -> None:
    async with keeping(namespace) as (keeper, kube):
        keeper.pool.warm_until_s = time.time() + 600
        print(f"pre-warm: a ready pod after {await keeper.until('warm'):.1f} s")  # noqa: T201 (what the run is for)
        await asyncio.sleep(LONG)  # more than the window after which an idle pod goes
        assert (await kube.get(POD_AUTOSCALERS, keeper.pool.revision))["status"]["actualScale"] == 1
        assert [told.reason for told in keeper.told] == ["Warm"]
        await released(namespace, keeper, kube)


async def test_after_a_restart_of_knatives_autoscaler_a_request_does_what_the_annotation_does_not(namespace: Namespace) -> None:
    async with keeping(namespace) as (keeper, kube):
        knative = Namespace("knative-serving")
        await asyncio.to_thread(knative.kubectl, "rollout", "restart", "deployment/autoscaler")
        await asyncio.to_thread(knative.kubectl, "rollout", "status", "deployment/autoscaler", "--timeout=50s")
        await asyncio.sleep(5)  # the new one holds its lease
        keeper.pool.warm_until_s = time.time() + 600
        print(f"pre-warm after a restart of the autoscaler: a ready pod after {await keeper.until('warm'):.1f} s")  # noqa: T201
        # Should a later Knative do what it is asked at once, the first Event is not there: then say so in docs/decisions.
        assert [told.reason for told in keeper.told] == ["WakingPool", "Warm"]
        await released(namespace, keeper, kube)
