"""Every metric of the controller, its unit and meaning, in one table, as predictor/telemetry.py has the pods'."""

from __future__ import annotations

from typing import Final

from predictor.telemetry import Metric

METRICS: Final = (
    Metric(
        "hearth_controller_leader",
        "gauge",
        (),
        "1 while this controller is the one that writes, else 0: exactly one should be.",
    ),
    Metric("hearth_controller_synced", "gauge", (), "1 once every cache holds what the cluster has."),
    Metric("hearth_controller_passes_total", "counter", ("kind", "outcome"), "Passes over a model or a pool."),
    Metric("hearth_controller_pass_seconds", "histogram", ("kind",), "What a pass took, its writes included."),
    Metric("hearth_controller_waiting_passes", "gauge", (), "Models and pools that changed and wait for their pass."),
    Metric(
        "hearth_controller_writes_total",
        "counter",
        ("resource", "outcome"),
        "Writes to the API server. `conflict`: somebody else wrote meanwhile, it is read and written again.",
    ),
    Metric("hearth_controller_checks_total", "counter", ("outcome",), "Locations looked at in the model store."),
    Metric("hearth_controller_check_seconds", "histogram", (), "One look at a location: a listing, and hearth.json."),
    Metric(
        "hearth_controller_pod_requests_total",
        "counter",
        ("operation", "outcome"),
        "Requests to the pods' admin ports: `state` once a second, `declare` when a pod lacks something, `heat`: its demand, "
        "`residency` before orders, `orders`.",
    ),
    Metric(
        "hearth_controller_orders_total",
        "counter",
        ("pool", "reason"),
        "Models that a running pod was told to pre-load. `demand`: asked on another pod; `rhythm`, `calendar`: due soon.",
    ),
    Metric(
        "hearth_controller_hot_set_models", "gauge", ("pool",), "Models in the hot set that the pool's next pod begins with."
    ),
    Metric("hearth_controller_hot_set_bytes", "gauge", ("pool",), "The published hot set's size; 900,000 at most."),
    Metric(
        "hearth_controller_hot_set_timestamp_seconds",
        "gauge",
        ("pool",),
        "Moment of the published hot set's rates. It is written when demand is another: an old one is no fault by itself.",
    ),
    Metric(
        "hearth_controller_wanted_pods",
        "gauge",
        ("pool", "reason"),
        "Pods that shall run though nobody asks: `asked` (hearth warm), `calendar`, `forecast`; the strongest wish alone.",
    ),
    Metric("hearth_controller_retention_seconds", "gauge", ("pool",), "How long the last pod is kept after its last request."),
    Metric(
        "hearth_controller_forecast_precision",
        "gauge",
        ("pool",),
        "Of the pod-time that the forecast would have kept in the last day, the share that was needed; below 0.5 it is off.",
    ),
    Metric("hearth_controller_pods", "gauge", ("pool", "state"), "Running pods. `silent`: does not answer."),
    Metric("hearth_controller_models", "gauge", ("pool", "state"), "Model InferenceServices, by the state their status tells."),
    Metric(
        "hearth_controller_stale_seconds", "gauge", ("resource",), "How long a cache has heard nothing from the API server."
    ),
)
