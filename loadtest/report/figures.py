"""A run's figures: quantiles, shares, rates, and whether the run may be believed. Pure; numpy and nothing else.

A quantile is a latency that a request really had (nearest rank): at least that share of the requests was answered within it.
A request that failed counts as never answered, in every quantile it belongs to: otherwise a server that refuses its slow
requests would look faster than one that answers them. No figure depends on the order of the rows or on which file they are in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtest.report.recorded import HOT, STAGES, TIERS, UNTOLD, Codes, Floats, Requests, Run

FORMAT: Final = 1
PERCENTS: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
PARTS: Final = (*STAGES, "retry wait", "until a pod ran", "beyond")
"""What a cold request's latency is made of. ``beyond``: the rest, which nobody accounts for: network, gateway, a pod's own
start from its exec to the first byte it reads, and the generator's lag."""

SLOW_S: Final = (0.1, 1.0, 10.0)
WRONG: Final = "wrong answer"
GROUPED: Final = ("version", "tenant", "priority")
NOT_SENT: Final = "generator limit"
"""The reason that the generator itself gives: too many requests were in flight, this one was never sent."""


@dataclass(frozen=True)
class Latency:
    """The latencies of some requests, in seconds from their due times. None: no such request, or it was never answered.

    requests  how many
    errors    how many of them got no right answer
    mean_s    of those that got one, as is max_s
    """

    requests: int
    errors: int
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    p99_9_s: float | None
    max_s: float | None
    mean_s: float | None


@dataclass(frozen=True)
class Figures:
    """What a run comes to. Shares are fractions of all requests; rates are per second.

    duration_s     from the common start until the last request was due or done
    offered_per_s  what the schedule asked for, until its last request
    achieved_per_s right answers, over the whole duration
    answered       the latency of the right answers alone
    tiers          by start tier; only those that occur
    cold_share     None: the server does not say where requests start
    slower_than    how many requests took longer than so many seconds, or forever
    parts_s        by start tier: the mean seconds of each of `PARTS`, over the cold requests that were answered
    by             by version, tenant and priority, where there is more than one; a version is "model version"
    invalid        why the run must not be believed; ""
    """

    name: str
    requests: int
    duration_s: float
    offered_per_s: float
    achieved_per_s: float
    all: Latency
    answered: Latency
    tiers: Mapping[str, Latency]
    cold_share: float | None
    tier_shares: Mapping[str, float]
    errors: int
    wrong: int
    reasons: Mapping[str, int]
    retries: int
    slower_than: Mapping[str, int]
    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    max_send_lag_s: float
    parts_s: Mapping[str, Mapping[str, float]]
    models: Mapping[str, Latency]
    by: Mapping[str, Mapping[str, Latency]]
    invalid: str

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {"format": FORMAT, **asdict(self)}


def figures(run: Run) -> Figures:
    """Everything that is said of a run in numbers."""
    requests = run.requests
    latency_s = requests.latency_s
    total = len(requests)
    answered = np.isfinite(latency_s)
    last_due_s = float(requests.due_s.max(initial=0.0))
    duration_s = max(last_due_s, float(np.nanmax(requests.due_s + requests.took_s, initial=0.0)))
    sent_lag_s = np.sort(requests.lag_s[np.isfinite(requests.lag_s)])
    counts = np.bincount(requests.failure, minlength=len(requests.failures))
    reasons = {reason: int(count) for reason, count in zip(requests.failures, counts, strict=True) if reason and count}
    tier_counts = np.bincount(requests.tier, minlength=len(TIERS))
    lag_p99_s = ranked(sent_lag_s, 99.0)
    return Figures(
        name=run.name,
        requests=total,
        duration_s=duration_s,
        offered_per_s=total / last_due_s if last_due_s else 0.0,
        achieved_per_s=int(answered.sum()) / duration_s if duration_s else 0.0,
        all=latency_of(latency_s),
        answered=latency_of(latency_s[answered]),
        tiers={
            TIERS[tier]: latency_of(latency_s[requests.tier == tier]) for tier in np.flatnonzero(tier_counts) if tier != UNTOLD
        },
        cold_share=requests.cold_rows.size / total if total and requests.told else None,
        tier_shares={TIERS[tier]: int(count) / total for tier, count in enumerate(tier_counts) if count and tier != UNTOLD},
        errors=total - int(answered.sum()),
        wrong=sum(count for reason, count in reasons.items() if reason.startswith(WRONG)),
        reasons=dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
        retries=requests.retries,
        slower_than={f"{slow_s:g} s": int((latency_s > slow_s).sum()) for slow_s in SLOW_S},
        lag_p50_s=ranked(sent_lag_s, 50.0),
        lag_p99_s=lag_p99_s,
        lag_max_s=float(sent_lag_s[-1]) if sent_lag_s.size else None,
        max_send_lag_s=run.max_send_lag_ms / 1e3,
        parts_s={TIERS[tier]: _mean_parts(requests, latency_s, tier) for tier in range(HOT + 1, UNTOLD) if tier_counts[tier]},
        models=dict(_grouped(latency_s, requests.codes["model"], requests.names["model"])),
        by={column: dict(found) for column in GROUPED if len(found := _split(requests, latency_s, column)) > 1},
        invalid=_invalid(run, lag_p99_s),
    )


def latency_of(latency_s: Floats) -> Latency:
    """The figures of these latencies; infinite ones are failures."""
    ordered = np.sort(latency_s)
    finite = ordered[: np.searchsorted(ordered, np.inf)]
    quantiles_s = (ranked(ordered, percent) for percent in PERCENTS)
    return Latency(
        ordered.size,
        int(ordered.size - finite.size),
        *quantiles_s,  # type: ignore[call-arg]  # as many as there are PERCENTS
        float(finite[-1]) if finite.size else None,
        float(finite.mean()) if finite.size else None,
    )


def ranked(ordered: Floats, percent: float) -> float | None:
    """The nearest-rank quantile of ascending values; None if there are none, or if it is infinite: never."""
    if not ordered.size:
        return None
    # 99.9 % of 1000 is 999.0000000000001 in binary: a rank too high without the little that is taken off.
    value = float(ordered[max(math.ceil(ordered.size * percent / 100 - 1e-9) - 1, 0)])
    return value if math.isfinite(value) else None


def cold_parts(requests: Requests, latency_s: Floats, tier: int) -> tuple[Floats, NDArray[np.float32]]:
    """The latency of each answered request that started from ``tier``, and its `PARTS` in seconds, a row each."""
    chosen = (requests.tier[requests.cold_rows] == tier) & np.isfinite(latency_s[requests.cold_rows])
    took_s = latency_s[requests.cold_rows[chosen]]
    known = requests.stages_s[chosen]
    beyond = np.maximum(took_s - known.sum(axis=1), 0.0)[:, None].astype(np.float32)
    return took_s, np.concatenate([known, beyond], axis=1)


def _mean_parts(requests: Requests, latency_s: Floats, tier: int) -> Mapping[str, float]:
    _, parts = cold_parts(requests, latency_s, tier)
    if not len(parts):
        return {}
    return dict(zip(PARTS, (math.fsum(column) / len(parts) for column in parts.T.astype(float)), strict=True))


def _grouped(latency_s: Floats, codes: Codes, names: tuple[str, ...]) -> Iterator[tuple[str, Latency]]:
    """The latencies of each group that has requests, in the order of ``names``."""
    order = np.lexsort((latency_s, codes))
    edges = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names)))])
    for name, start, end in zip(names, edges[:-1], edges[1:], strict=True):
        if start < end:
            yield name, latency_of(latency_s[order[start:end]])


def _split(requests: Requests, latency_s: Floats, column: str) -> list[tuple[str, Latency]]:
    """By the words of a column, leaving out what has none. Versions: only of models that answered with several."""
    codes, names = requests.codes[column], requests.names[column]
    if column != "version":
        return [(name, latency) for name, latency in _grouped(latency_s, codes, names) if name]
    models = requests.names["model"]
    pairs = requests.codes["model"].astype(np.int64) * len(names) + codes
    seen = [(int(pair) // len(names), int(pair) % len(names)) for pair in np.unique(pairs)]
    versions = np.bincount([model for model, version in seen if names[version]], minlength=len(models))
    wanted = [(model, version) for model, version in seen if names[version] and versions[model] > 1]
    return [
        (f"{models[model]} {names[version]}", latency_of(latency_s[pairs == model * len(names) + version]))
        for model, version in wanted
    ]


def _invalid(run: Run, lag_p99_s: float | None) -> str:
    """The lag is judged here; what only the generator can know (a process of it died), it wrote down as ``valid: false``."""
    if run.closed or lag_p99_s is None or lag_p99_s * 1e3 <= run.max_send_lag_ms:
        notes = "; ".join(str(note) for note in run.about.get("notes") or [])
        return "" if run.about.get("valid", True) else f"the generator says so itself: {notes or 'it does not say why'}"
    return (
        f"the generator was late: 1 % of the requests were sent {lag_p99_s * 1e3:.1f} ms or more after they were due "
        f"(allowed: {run.max_send_lag_ms:g} ms). Give it a core of its own or more processes, or raise --max-send-lag-ms"
    )
