"""Which pictures a set of runs gets, and how each is to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtest.report import over_time, panels
from loadtest.report.canvas import Panel, png
from loadtest.report.figures import Figures
from loadtest.report.panels import MAX_MODELS, MAX_NAMED_MODELS, REASON_COLOURS, View
from loadtest.report.recorded import TIERS, UNTOLD, Run

MIN_STEPS: Final = 20
REQUESTS_A_STEP: Final = 20


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it. ``caption``: how to read it."""

    name: str
    title: str
    caption: str
    png: bytes


def views(runs: Sequence[Run], found: Sequence[Figures]) -> list[View]:
    """Of runs that will be seen side by side."""
    # Of steps with two or three requests a share or a p99 is noise, however much room there is.
    filled = max(one.requests for one in found) // REQUESTS_A_STEP
    axis = over_time.steps(max(one.duration_s for one in found), min(max(filled, MIN_STEPS), over_time.MAX_STEPS))
    tiers = tuple(tier for tier in range(UNTOLD) if any(TIERS[tier] in one.tiers for one in found))
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.reasons)
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    colours = dict(zip(reasons, REASON_COLOURS[:-1], strict=False))
    alone = len(runs) == 1
    return [View(run, one, axis, tiers, alone=alone, colours=colours) for run, one in zip(runs, found, strict=True)]


def pictures(views: Sequence[View]) -> Iterator[Picture]:
    """Every picture that these runs can fill."""
    kinds: list[tuple[_Kind, bool]] = [
        (_Kind("latency", "How long requests took, by where they started", _LATENCY, 4.6, panels.latency), True),
        (_Kind("latency-over-time", "Latency over time", _LATENCY_TIME, 3.6, panels.latency_over_time), True),
        (_Kind("rates", "Offered and achieved rate", _RATES, 3.4, panels.rates, from_zero=True), True),
        (
            _Kind("cold", "Requests that waited for a model", _COLD, 3.4, panels.cold, from_zero=True),
            any(v.run.requests.told for v in views),
        ),
        (_residency_kind(views), any(v.figures.models for v in views)),
        (_Kind("stages", "What cold requests waited for", _STAGES, 3.8, panels.stages), any(v.figures.parts_s for v in views)),
        (
            _Kind("errors", "Errors by reason", _ERRORS, 3.2, panels.errors, from_zero=True),
            any(v.figures.errors for v in views),
        ),
        (
            _Kind("send-lag", "Send lag: was the generator on time?", _LAG, 3.4, panels.lag),
            any(panels.judged(v) for v in views),
        ),
        (_Kind("pods", "Pods", _PODS, 3.2, panels.pods, from_zero=True), any(_has_pods(v) for v in views)),
    ]
    for kind, there in kinds:
        if there:
            drawn = [kind.panel(view) for view in views]
            yield Picture(
                kind.name, kind.title, kind.caption, png(drawn, kind.height_in, share=kind.share, from_zero=kind.from_zero)
            )


@dataclass(frozen=True)
class _Kind:
    name: str
    title: str
    caption: str
    height_in: float
    panel: Callable[[View], Panel]
    share: bool = True
    from_zero: bool = False


def _residency_kind(views: Sequence[View]) -> _Kind:
    rows = max(min(len(view.figures.models), MAX_MODELS) for view in views)
    height_in = 2.0 + (0.17 * rows if rows <= MAX_NAMED_MODELS else max(0.03 * rows, 0.17 * MAX_NAMED_MODELS / 2))
    return _Kind("residency", "Which models were there", _RESIDENCY, height_in, panels.residency, share=False)


def _has_pods(view: View) -> bool:
    return view.run.pods is not None or np.unique(view.run.requests.codes["pod"]).size > 1


_LATENCY: Final = (
    "Read a curve at 99 %: that share of the requests was answered within the time below it. Time counts from when a request "
    "was due, not from when it could be sent. Where a curve ends below 100 %, the rest failed."
)
_LATENCY_TIME: Final = (
    "Quantiles of the answered requests that were due in each step. A red mark on top: some that were due then failed."
)
_RATES: Final = (
    "Where the coloured line (right answers) falls below the black one (what the schedule asked for), the server was behind."
)
_COLD: Final = "The share of the requests due in each step that did not start hot, by where the model was found."
_STAGES: Final = (
    "Mean seconds of each part, of all cold requests and of the slowest tenth of them. `queue` to `compute` is what the pod "
    "says (Server-Timing); `until a pod ran` ends at the exec of the pod that answered; "
    "`beyond` is what the client saw on top of "
    "all that: network, gateway, a pod's own start, the generator's lag."
)
_ERRORS: Final = "Requests without a right answer, by the time they were due."
_LAG: Final = "How late requests left the generator. A late generator measures itself: above the red line the run is invalid."
_PODS: Final = (
    "Pods that the cluster had, if they were sampled, and how many different pods answered the requests due in each step."
)
_RESIDENCY: Final = (
    "A row is a model, the most asked on top; a column is a step of time. The colour is the coldest start in it. Pale green: "
    "not asked, but hot before and after. White: not asked, nobody knows."
)
