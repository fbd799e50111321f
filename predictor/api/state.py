"""What a controller asks every second, answered without FastAPI: its first question comes while the pod still starts.

Importing FastAPI takes 0.3 s of a core that torch's import needs then: with it, answers from zero came half a second later.
"""

from __future__ import annotations

import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import msgspec

from predictor.api.pod import Pod
from predictor.errors import MalformedRequest
from predictor.heat import Heat
from predictor.report import Orders, PodReport


def report(pod: Pod, since: int) -> PodReport:
    """How this pod fares, which declarations it knows, and what happened after event ``since``. Loads nothing."""
    known = pod.declarations
    return PodReport(
        pod.name,
        release(),
        pod.state.value,
        pod.unready(),
        pod.timeline.up_s,
        known.serials if known is not None else {},
        known.scope_serials if known is not None else {},
        pod.catalogue.report(),
        pod.cache.chronicle.since(since),
        asked=pod.load.asked,
        asked_s_ago=time.monotonic() - pod.load.asked_s if pod.load.asked else None,
        running=pod.load.requests,
        warm_up=pod.warm_up(),
        ordered=pod.wakeup.ordered if pod.wakeup is not None else 0,
    )


async def own_heat(pod: Pod) -> Heat:
    """How much each model was asked for in this pod, and nothing that it was told by others."""
    return await pod.cache.remembered.heat(pod.name, release())


def take(pod: Pod, body: bytes) -> int:
    """Take the orders in ``body``; the highest number taken. Raises MalformedRequest: these are none, or nobody takes any."""
    if pod.wakeup is None:
        raise MalformedRequest("this pod takes no orders")
    try:
        orders = msgspec.json.decode(body, type=Orders)
    except ValueError as error:
        raise MalformedRequest(f"the orders cannot be read: {error}") from None
    return pod.wakeup.take(orders)


@cache
def release() -> str:
    """The distribution's version. Looked up when first asked for: reading metadata takes 25 ms."""
    try:
        return version("hearth")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
