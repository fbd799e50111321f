"""Service level objectives as one writes them: ``p99<250ms``, ``errors<0.1%``, ``p99[s3]<2s``, ``p95{resnet-1}<=40ms``. Pure.

    GATE     = METRIC [ "[" TIER "]" ] [ "{" MODEL "}" ] ("<" | "<=" | ">" | ">=") NUMBER UNIT
    METRIC   = p50, p99, p99.9, ... (any percentile) | max | mean | lag.p50, lag.p99, ... | errors | wrong | cold
    TIER     = hot | ram | disk | s3 | pod | answered (right answers only, from wherever they started)
    UNIT     = ms or s for latencies and lags, % for errors, wrong and cold

`cold` is the share of all requests that waited for a model or a pod; `cold[s3]` of those that started from S3.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.report.figures import WRONG, latency_of, ranked
from loadtest.report.recorded import HOT, TIERS, UNTOLD, Requests, Run
from predictor import human

Rows = NDArray[np.bool_]

ANSWERED: Final = "answered"
SHARES: Final = ("errors", "wrong", "cold")
_GATE: Final = re.compile(
    r"\s*(?P<metric>[a-z]+(?:\.?p?[\d.]+)?)\s*(?:\[(?P<tier>[^\]]*)\])?\s*(?:\{(?P<model>[^}]*)\})?\s*"
    r"(?P<compare><=|>=|<|>)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>\S*)\s*"
)
_PERCENTILE: Final = re.compile(r"(?:lag\.)?p(\d+(?:\.\d+)?)")
_UNITS_S: Final = {"ms": 1e-3, "s": 1.0}
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WHOLE: Final = 100.0


class BadGate(Exception):
    """Not the language of gates. The message says what was read and what can be written."""


@dataclass(frozen=True)
class Gate:
    """One objective.

    percent  of a percentile, else 0
    tier     a word of `TIERS` or `ANSWERED`; "" : all
    model    "": all
    limit    seconds, or a fraction for errors, wrong and cold
    """

    text: str
    metric: str
    percent: float
    tier: str
    model: str
    compare: str
    limit: float

    @property
    def share(self) -> bool:
        """Whether it is about a share of the requests, not about a time."""
        return self.metric in SHARES


@dataclass(frozen=True)
class Verdict:
    """How a gate fared. ``found``: the value in words."""

    gate: str
    met: bool
    found: str


def parse(text: str) -> Gate:
    """Read a gate. Raises BadGate."""
    found = _GATE.fullmatch(text)
    if not found:
        raise BadGate(f"{text!r} is no gate: write METRIC<LIMIT, as in p99<250ms, errors<0.1%, cold[s3]<2%, p95{{model}}<1s")
    metric, tier, model = found["metric"], found["tier"], found["model"]
    percentile = _PERCENTILE.fullmatch(metric)
    percent = float(percentile[1]) if percentile else 0.0
    if not percentile and metric not in (*SHARES, "max", "mean"):
        raise BadGate(f"{text!r}: there is no {metric!r}; there are p50, p99.9, ..., max, mean, lag.p99, {', '.join(SHARES)}")
    if percentile and not 0 < percent < _WHOLE:
        raise BadGate(f"{text!r}: a percentile lies between 0 and 100; for the largest write max")
    if tier is not None and tier not in (*TIERS[:UNTOLD], ANSWERED):
        raise BadGate(f"{text!r}: [{tier}] is no start tier; there are {', '.join((*TIERS[:UNTOLD], ANSWERED))}")
    if model is not None and not model:
        raise BadGate(f"{text!r}: {{}} names no model")
    if metric.startswith("lag.") and (tier or model):
        raise BadGate(f"{text!r}: the generator's lag is one for all requests: leave out the tier and the model")
    if metric == "cold" and tier in ("hot", ANSWERED):
        raise BadGate(f"{text!r}: cold is the share of ram, disk, s3 and pod, or of one of them")
    return Gate(
        text, metric, percent, tier or "", model or "", found["compare"], _limit(text, metric, found["number"], found["unit"])
    )


def judge(gate: Gate, run: Run) -> Verdict:
    """Hold a run to a gate.

    What nobody can know (no request at all, a server that tells no tiers) is not met; that no request started from the tier is
    met: nothing was too slow.
    """
    requests = run.requests
    chosen = _model_rows(gate, requests)
    if not chosen.any():
        return Verdict(gate.text, met=False, found=f"no request for {gate.model}" if gate.model else "no request at all")
    if (gate.metric == "cold" or gate.tier not in ("", ANSWERED)) and not requests.told:
        return Verdict(gate.text, met=False, found="not known: this server does not say where requests start")
    value = _share(gate, requests, chosen) if gate.share else _seconds(gate, requests, chosen)
    if value is None and gate.tier == ANSWERED:
        return Verdict(gate.text, met=False, found="no request was answered")
    if value is None:
        return Verdict(gate.text, met=True, found=f"no request started from {gate.tier}")
    met = _COMPARE[gate.compare](value, gate.limit)
    told = f"{100 * value:.3g} %" if gate.share else human.span(value) if np.isfinite(value) else "never"
    return Verdict(gate.text, met=met, found=told)


def _limit(text: str, metric: str, number: str, unit: str) -> float:
    if metric in SHARES:
        if unit != "%":
            raise BadGate(f"{text!r}: {metric} is a share of the requests: write its limit in %")
        return float(number) / _WHOLE
    if unit not in _UNITS_S:
        raise BadGate(f"{text!r}: {metric} is a time: write its limit in ms or s")
    return float(number) * _UNITS_S[unit]


def _model_rows(gate: Gate, requests: Requests) -> Rows:
    names = requests.names["model"]
    if not gate.model:
        return np.ones(len(requests), np.bool_)
    chosen: Rows = requests.codes["model"] == (names.index(gate.model) if gate.model in names else -1)
    return chosen


def _share(gate: Gate, requests: Requests, chosen: Rows) -> float | None:
    total = int(chosen.sum())
    if gate.metric == "cold":
        cold = requests.tier == TIERS.index(gate.tier) if gate.tier else (requests.tier != HOT) & (requests.tier != UNTOLD)
        return int((cold & chosen).sum()) / total
    within = chosen & _started(gate, requests)
    if not within.any():
        return None
    if gate.metric == "wrong":
        wrong = [place for place, reason in enumerate(requests.failures) if reason.startswith(WRONG)]
        failed = np.isin(requests.failure, wrong)
    else:
        failed = ~np.isfinite(requests.latency_s)
    return int((failed & within).sum()) / int(within.sum())


def _seconds(gate: Gate, requests: Requests, chosen: Rows) -> float | None:
    """Infinite: a request that this quantile includes was never answered. None: there is no request to judge."""
    if gate.metric.startswith("lag."):
        lag_s = np.sort(requests.lag_s[np.isfinite(requests.lag_s)])
        found = ranked(lag_s, gate.percent)
        return np.inf if found is None else found
    within = requests.latency_s[chosen & _started(gate, requests)]
    if not within.size:
        return None
    if gate.percent:
        found = ranked(np.sort(within), gate.percent)
        return np.inf if found is None else found
    latency = latency_of(within)
    found = latency.max_s if gate.metric == "max" else latency.mean_s
    # One request that never ended has no largest latency below any limit; the mean is of those that did end.
    return np.inf if found is None or (gate.metric == "max" and latency.errors) else found


def _started(gate: Gate, requests: Requests) -> Rows:
    if gate.tier == ANSWERED:
        return np.isfinite(requests.latency_s)
    return requests.tier == TIERS.index(gate.tier) if gate.tier else np.ones(len(requests), np.bool_)
