"""Every metric, its unit and meaning, in one table; and the cold start's timeline.

Only counting happens here. The HTTP exposition of the same registry is the admin API's.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metric(NamedTuple):
    """One row of the table. ``kind``: counter, gauge or histogram, whose ``buckets`` are seconds unless it says otherwise."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = SECONDS


METRICS: Final = (
    Metric("hearth_requests_total", "counter", ("model", "version", "code"), "Inference requests answered, by HTTP status."),
    Metric("hearth_request_seconds", "histogram", ("model", "start"), "Whole request, first byte parsed to answer written."),
    Metric("hearth_queue_seconds", "histogram", ("model",), "Wait for the device, from the moment the model was ready."),
    Metric("hearth_compute_seconds", "histogram", ("model",), "Time inside the model, once for each batch."),
    Metric("hearth_batch_rows", "histogram", ("model",), "Rows that ran as one.", ROWS),
    Metric("hearth_queued_requests", "gauge", ("device",), "Requests waiting for a device."),
    Metric("hearth_loads_total", "counter", ("model", "tier", "outcome"), "Transfers that ended, by tier reached and outcome."),
    Metric("hearth_load_seconds", "histogram", ("tier",), "Transfers that succeeded, start to end."),
    Metric("hearth_drops_total", "counter", ("model", "tier"), "Copies dropped to make room or on request."),
    Metric(
        "hearth_preloads_total",
        "counter",
        ("outcome",),
        "Loads ahead of requests that ended: loaded, ram (no room on a device), skipped (no room, nothing colder) or failed.",
    ),
    Metric(
        "hearth_wakeup_models", "gauge", ("outcome",), "Models of the hot set, and of orders since, by what became of them."
    ),
    Metric("hearth_resident_bytes", "gauge", ("tier", "device"), "Bytes of ready copies."),
    Metric("hearth_reserved_bytes", "gauge", ("tier", "device"), "Bytes taken by copies in any state; never above the budget."),
    Metric("hearth_budget_bytes", "gauge", ("tier", "device"), "Bytes this pod may use."),
    Metric(
        "hearth_headroom_bytes", "gauge", ("tier", "device"), "Bytes kept free for the largest computation of any model there."
    ),
    Metric("hearth_churn_alarm", "gauge", ("tier", "device"), "1 while models push each other out in circles, else 0."),
    Metric("hearth_pool_touched_bytes", "gauge", (), "Bytes of the RAM pool that the kernel has given pages for."),
    Metric("hearth_disk_degraded", "gauge", (), "1 while nothing can be written to the disk tier, else 0."),
    Metric("hearth_disk_faults_total", "counter", ("kind",), "Models that could not be written to disk or read from it."),
    Metric("hearth_disk_bytes_total", "counter", ("direction",), "Bytes of models read from disk and written to it."),
    Metric("hearth_waiting_requests", "gauge", (), "Requests waiting for a model."),
    Metric("hearth_in_flight_requests", "gauge", (), "Requests inside the pod."),
    Metric("hearth_worker_deaths_total", "counter", ("device",), "Worker processes that ended unasked."),
    Metric("hearth_device_failed", "gauge", ("device",), "1 while the workers of a device do not start, else 0."),
    Metric("hearth_loop_lag_seconds", "histogram", (), "How late the front's event loop was, ten times a second."),
    Metric("hearth_log_dropped_total", "counter", (), "Log lines that were dropped because nobody read the log fast enough."),
    Metric("hearth_working_set_bytes", "gauge", (), "Memory of the container in use, without page cache that can be dropped."),
    Metric("hearth_memory_ends_total", "counter", (), "Workers ended because the container's memory ran out."),
    Metric("hearth_builds_waiting", "gauge", (), "Loads that wait for memory, because other workers are building."),
    Metric("hearth_scratch_bytes", "gauge", (), "What the workers' folders take of their volume."),
    Metric("hearth_scratch_ends_total", "counter", (), "Workers ended because their folder held too much."),
    Metric("hearth_model_deaths_total", "counter", ("model", "cause"), "Worker processes that a model ended, and by what."),
    Metric("hearth_quarantined", "gauge", (), "Models that have a worker of their own because they ended one, or may have."),
    Metric("hearth_fetched_bytes_total", "counter", (), "Bytes of model files read from the model store."),
    Metric("hearth_store_requests_total", "counter", ("operation", "status"), "Requests to the model store."),
)


class Distribution:
    """A histogram of one set of label values. Counted on the event loop alone: without a lock, a tenth of the time."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Histogram(Collector):
    """One row of the table and all its label values, as Prometheus reads them."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        self._metric = metric
        self._of: dict[tuple[str, ...], Distribution] = {}
        registry.register(self)

    def labels(self, *labels: str) -> Distribution:
        """Of these label values, made if need be."""
        found = self._of.get(labels)
        if found is None:
            assert len(labels) == len(self._metric.labels), f"{self._metric.name} has {self._metric.labels}, not {labels}"
            found = self._of[labels] = Distribution(self._metric.buckets)
        return found

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """By these names a scrape can choose it."""
        return [HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called by whoever scrapes."""
        (family,) = self.describe()
        bounds = [*map(floatToGoString, self._metric.buckets), "+Inf"]
        for labels, found in self._of.items():
            family.add_metric(labels, list(zip(bounds, accumulate(found.counts), strict=True)), found.total)
        yield family


class Telemetry:
    """A table's metrics, alive: ``telemetry.counter("hearth_drops_total", "resnet", "ram").inc()``."""

    def __init__(self, metrics: Sequence[Metric] = METRICS) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, _Histogram] = {}
        for metric in metrics:
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)
            else:
                self._histograms[metric.name] = _Histogram(metric, self.registry)

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter of these label values, in the table's order. Callers on a hot path keep what this returns."""
        metric = self._counters[name]
        return metric.labels(*labels) if labels else metric

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge of these label values."""
        metric = self._gauges[name]
        return metric.labels(*labels) if labels else metric

    def histogram(self, name: str, *labels: str) -> Distribution:
        """The histogram of these label values; observe seconds, or rows."""
        return self._histograms[name].labels(*labels)


class Batches:
    """Counts what ran as one; the metrics of each model are looked up once."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._of: dict[str, tuple[Distribution, Distribution]] = {}

    def __call__(self, model: str, rows: int, seconds: float) -> None:
        """A batch of ``rows`` of ``model`` took ``seconds`` of its device."""
        of = self._of.get(model)
        if of is None:
            telemetry = self._telemetry
            of = self._of[model] = (
                telemetry.histogram("hearth_compute_seconds", model),
                telemetry.histogram("hearth_batch_rows", model),
            )
        of[0].observe(seconds)
        of[1].observe(rows)


class Timeline:
    """When this pod did what for the first time, in seconds since its process was executed.

    The stages of a cold start: ``listening``, ``asked`` (first byte of a model asked for), ``fetched``,
    ``imported`` (torch, in the worker), ``built``, ``answered``.
    """

    def __init__(self) -> None:
        self._exec_s = _exec_moment_s()
        self.stages: dict[str, float] = {}

    def mark(self, stage: str, at_s: float | None = None) -> bool:
        """Note the stage if it is the first of its kind; True when it was. ``at_s``: a moment of CLOCK_BOOTTIME."""
        if stage in self.stages:
            return False
        self.stages[stage] = (time.clock_gettime(time.CLOCK_BOOTTIME) if at_s is None else at_s) - self._exec_s
        return True

    @property
    def up_s(self) -> float:
        """Seconds since exec."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._exec_s


def _exec_moment_s() -> float:
    """Start of this process on CLOCK_BOOTTIME, from field 22 of proc_pid_stat(5), in clock ticks."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
