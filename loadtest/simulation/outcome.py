"""What came of a replay: every line served, every life of the pods, and the figures that the table shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from loadtest.simulation.arrivals import Arrivals, Floats
from loadtest.simulation.catalogue import Model
from loadtest.simulation.pod import Tally

STARTS: Final = ("hot", "ram", "disk", "s3", "pod")
_PLACES: Final = {start: place for place, start in enumerate(STARTS)}
PER: Final = 1_000
"""GPU-seconds are told for so many requests."""


@dataclass(frozen=True)
class Life:
    """Of the pool's pods, from zero to zero. ``tallies``: one each."""

    born_s: float
    gone_s: float
    tallies: Sequence[Tally]


@dataclass
class Record:
    """Lines as they were served, a column each, in the order in which they were."""

    models: int
    devices: int = 1
    model: list[int] = field(default_factory=list)
    due_s: list[float] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    begin_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)

    def note(self, model: int, due_s: float, *, count: int, start: str, begin_s: float, end_s: float) -> None:
        """One line, from its due moment to its answer. ``begin_s``: when it had its model."""
        self.model.append(model)
        self.due_s.append(due_s)
        self.count.append(count)
        self.start.append(_PLACES[start])
        self.begin_s.append(begin_s)
        self.end_s.append(end_s)

    def mean_load_s(self, models: Sequence[Model]) -> float:
        """What a model's load takes, before anything was seen of it: the mean of all."""
        return sum(model.load_s for model in models) / max(1, len(models))


@dataclass(frozen=True)
class Figures:
    """A row of the table.

    cold_rate          share of all requests that did not find their model on a device, ``from_zero`` not even a pod
    cold_rate_p75      of the models' own cold rates: three of four models are not worse
    added_*_s          waited for pods and loads, over all requests
    gpu_s              of pods that were there, whatever they did; ``wasted_gpu_s`` while no request ran; per 1,000 requests
    precision          of the models pre-loaded, the share that was asked in that life; nan: none was
    recall             of the models asked in a life, the share that had been pre-loaded or was on its way; nan: none was
    """

    policy: str
    requests: int
    cold_rate: float
    cold_rate_p75: float
    from_zero: float
    added_p50_s: float
    added_p95_s: float
    added_p99_s: float
    added_mean_s: float
    gpu_s: float
    wasted_gpu_s: float
    fetched_bytes: int
    load_s: float
    wakes: int
    precision: float
    recall: float

    def as_json(self) -> dict[str, Any]:
        """Plain, nan as None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}  # noqa: PLR0124 (nan)


def figures(policy: str, record: Record) -> Figures:
    """Count a record."""
    count = np.array(record.count, np.int64)
    model = np.array(record.model, np.int64)
    due_s, begin_s, end_s = (np.array(column, np.float64) for column in (record.due_s, record.begin_s, record.end_s))
    start = np.array(record.start, np.int64)
    requests = int(count.sum())
    cold = np.where(start > 0, count, 0)
    asked = np.bincount(model, count, record.models)
    colds = np.bincount(model, cold, record.models)
    rates = colds[asked > 0] / asked[asked > 0]
    added_s = np.maximum(begin_s - due_s, 0.0)
    tallies = [(life, tally) for life in record.lives for tally in life.tallies]
    up_s = sum(life.gone_s - life.born_s for life, _ in tallies) * record.devices
    pods = len(record.lives[0].tallies) if record.lives else 1
    busy_s = union_s(begin_s, end_s) * pods * record.devices
    preloads = sum(len(tally.preloaded) for _, tally in tallies)
    touched = sum(len(tally.touched) for _, tally in tallies)
    share = max(requests, 1) / PER
    return Figures(
        policy,
        requests,
        cold_rate=float(cold.sum()) / max(requests, 1),
        cold_rate_p75=weighted(rates, np.ones(rates.size), 0.75),
        from_zero=float(count[start == STARTS.index("pod")].sum()) / max(requests, 1),
        added_p50_s=weighted(added_s, count, 0.5),
        added_p95_s=weighted(added_s, count, 0.95),
        added_p99_s=weighted(added_s, count, 0.99),
        added_mean_s=float((added_s * count).sum()) / max(requests, 1),
        gpu_s=float(up_s) / share,
        wasted_gpu_s=float(max(0.0, up_s - busy_s)) / share,
        fetched_bytes=sum(tally.fetched_bytes for _, tally in tallies),
        load_s=sum(tally.load_s for _, tally in tallies),
        wakes=len(record.lives),
        precision=sum(tally.used for _, tally in tallies) / preloads if preloads else float("nan"),
        recall=sum(tally.ahead for _, tally in tallies) / touched if touched and preloads else float("nan"),
    )


def pod_per_model(arrivals: Arrivals, models: Sequence[Model], *, start_s: float, window_s: float) -> Figures:
    """What the same traffic costs where every model has a pod of its own: up from its first request until its window is over.

    Each gap longer than the window is a cold start of pod and model. Who comes while it starts waits for the rest.
    """
    order = np.lexsort((arrivals.due_s, arrivals.model))
    due_s, model, count = arrivals.due_s[order], arrivals.model[order], arrivals.count[order]
    serve_s = np.array([one.serve_s for one in models])[model]
    load_s = np.array([one.load_s for one in models])[model]
    end_s = due_s + np.maximum(serve_s, np.minimum(arrivals.span_s[order], serve_s * count))
    first = np.ones(due_s.size, bool)
    same = model[1:] == model[:-1]
    added_s = np.zeros(due_s.size)
    # A start delays the end, and so the next start: one model after the other, in a loop over what may be cold.
    cold = np.zeros(due_s.size, bool)
    up_s = busy_s = fetched = 0.0
    ready_s = gone_s = -np.inf
    first[1:] = ~same
    for line, (at_s, until_s, is_first) in enumerate(zip(due_s.tolist(), end_s.tolist(), first.tolist(), strict=True)):
        if is_first:
            gone_s = -np.inf
        if at_s > gone_s:
            ready_s = at_s + start_s + load_s[line]
            fetched += models[model[line]].size_bytes
            up_s += ready_s + (until_s - at_s) + window_s - at_s
            gone_s = ready_s + (until_s - at_s) + window_s
        cold[line] = at_s < ready_s
        added_s[line] = max(0.0, ready_s - at_s)
        last_s = until_s + added_s[line] + window_s
        if last_s > gone_s:
            up_s += last_s - gone_s
            gone_s = last_s
        busy_s += until_s - at_s
    requests = int(count.sum())
    # Of a line that begins before the model is ready, those requests are cold that come before it is.
    span_s = np.maximum(arrivals.span_s[order], 1e-9)
    colds = np.where(cold, np.ceil(np.minimum(1.0, added_s / span_s) * count), 0.0)
    asked = np.bincount(model, count, arrivals.models)
    rates = np.bincount(model, colds, arrivals.models)[asked > 0] / asked[asked > 0]
    spread_s, weights = np.concatenate([added_s, np.zeros(added_s.size)]), np.concatenate([colds, count - colds])
    share = max(requests, 1) / PER
    nan = float("nan")
    return Figures(
        "pod-per-model",
        requests,
        cold_rate=float(colds.sum()) / max(requests, 1),
        cold_rate_p75=weighted(rates, np.ones(rates.size), 0.75),
        from_zero=float(colds.sum()) / max(requests, 1),
        added_p50_s=weighted(spread_s, weights, 0.5),
        added_p95_s=weighted(spread_s, weights, 0.95),
        added_p99_s=weighted(spread_s, weights, 0.99),
        added_mean_s=float((spread_s * weights).sum()) / max(requests, 1),
        gpu_s=float(up_s) / share,
        wasted_gpu_s=float(max(0.0, up_s - busy_s)) / share,
        fetched_bytes=int(fetched),
        load_s=float(load_s[cold & (added_s >= start_s + load_s - 1e-9)].sum()),
        wakes=int((cold & (added_s >= start_s + load_s - 1e-9)).sum()),
        precision=nan,
        recall=nan,
    )


def weighted(values: Floats, weights: Any, quantile: float) -> float:
    """The value that at least ``quantile`` of the weight does not exceed (nearest rank); 0 where there is none."""
    if not values.size:
        return 0.0
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.asarray(weights, np.float64)[order])
    place = int(np.searchsorted(reached, quantile * reached[-1] * (1 - 1e-12)))
    return float(values[order][min(place, values.size - 1)])


def union_s(begin_s: Floats, end_s: Floats) -> float:
    """Seconds that at least one of the spans covers."""
    order = np.argsort(begin_s, kind="stable")
    begin_s, end_s = begin_s[order], np.maximum.accumulate(end_s[order]) if begin_s.size else end_s
    if not begin_s.size:
        return 0.0
    before_s = np.concatenate([[-np.inf], end_s[:-1]])
    return float(np.maximum(0.0, end_s - np.maximum(begin_s, before_s)).sum())
