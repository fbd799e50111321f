"""What a controller asks every second, answered without FastAPI: its first question comes while the pod still starts.

Importing FastAPI takes 0.3 s of a core that torch's import needs then: with it, answers from zero came half a second later.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from predictor.api.pod import Pod
from predictor.report import PodReport


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
    )


@cache
def release() -> str:
    """The distribution's version. Looked up when first asked for: reading metadata takes 25 ms."""
    try:
        return version("hearth")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
