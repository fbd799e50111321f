"""Every metric, its unit and meaning, in one table; and the cold start's timeline.

Only counting happens here. The HTTP exposition of the same registry is the admin API's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metric(NamedTuple):
    """One row of the table. ``kind``: counter, gauge or histogram (of seconds)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


METRICS: Final = (
    Metric("hearth_requests_total", "counter", ("model", "version", "code"), "Inference requests answered, by HTTP status."),
    Metric("hearth_request_seconds", "histogram", ("model", "start"), "Whole request, first byte parsed to answer written."),
    Metric("hearth_compute_seconds", "histogram", ("model",), "Time inside the model."),
    Metric("hearth_loads_total", "counter", ("model", "tier", "outcome"), "Transfers that ended, by tier reached and outcome."),
    Metric("hearth_load_seconds", "histogram", ("tier",), "Transfers that succeeded, start to end."),
    Metric("hearth_drops_total", "counter", ("model", "tier"), "Copies dropped to make room or on request."),
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
    Metric("hearth_fetched_bytes_total", "counter", (), "Bytes of model files read from the model store."),
    Metric("hearth_store_requests_total", "counter", ("operation", "status"), "Requests to the model store."),
)


class Telemetry:
    """The table's metrics, alive: ``telemetry.counter("hearth_drops_total", "resnet", "ram").inc()``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)
            else:
                self._histograms[metric.name] = Histogram(
                    metric.name, metric.meaning, metric.labels, registry=self.registry, buckets=SECONDS
                )

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter of these label values, in the table's order. Callers on a hot path keep what this returns."""
        metric = self._counters[name]
        return metric.labels(*labels) if labels else metric

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge of these label values."""
        metric = self._gauges[name]
        return metric.labels(*labels) if labels else metric

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram of these label values; observe seconds."""
        metric = self._histograms[name]
        return metric.labels(*labels) if labels else metric


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
