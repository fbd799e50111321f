"""Run directories of load tests that never happened: rows with known truth, written as the generator writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_WORDS = ("model", "version", "start", "error", "pod", "tenant", "priority")
_WHOLE = {"status": pa.int16(), "tries": pa.int8(), "bytes_out": pa.int32(), "bytes_in": pa.int32()}
_SECONDS = ("due_s", "sent_s", "first_byte_s", "done_s")
_OTHER = ("retry_wait_s", "pod_up_s", *(f"timing_{stage}_ms" for stage in ("queue", "fetch", "device", "build", "compute")))

SCHEMA = pa.schema(
    [(name, pa.float64()) for name in _SECONDS]
    + [(name, pa.string()) for name in _WORDS]
    + list(_WHOLE.items())
    + [(name, pa.float32()) for name in _OTHER]
)

Row = Mapping[str, Any]


def row(due_s: float, latency_s: float | None, **more: Any) -> dict[str, Any]:
    """A request that was sent when due and answered rightly; ``latency_s`` None: never done."""
    done_s = None if latency_s is None else due_s + latency_s
    plain = {
        "due_s": due_s,
        "sent_s": due_s,
        "first_byte_s": done_s,
        "done_s": done_s,
        "model": "m",
        "version": "1",
        "start": "hot",
    }
    return {
        **dict.fromkeys(_WORDS, ""),
        **plain,
        "status": 200,
        "tries": 1,
        "bytes_out": 10,
        "bytes_in": 10,
        "retry_wait_s": 0.0,
        **more,
    }


def write(directory: Path, *files: Sequence[Row], without: Sequence[str] = (), pods: Sequence[Row] = (), **about: Any) -> Path:
    """A run directory with these files of requests. ``without``: columns left out; ``about``: more of run.json."""
    (directory / "requests").mkdir(parents=True)
    run = {
        "format": 1,
        "started_unix_s": 1.7e9,
        "hearth_version": "0",
        "target": {"host": "http://127.0.0.1:8080", "host_header": "", "server": "hearth"},
        "workload": {"name": "synthetic", "seed": 1},
        "mode": "open",
        "settings": {},
        "max_send_lag_ms": 20.0,
        "processes": max(len(files), 1),
        "slo": [],
        "notes": [],
    }
    (directory / "run.json").write_text(json.dumps({**run, **about}))
    kept = pa.schema([field for field in SCHEMA if field.name not in without])
    for number, rows in enumerate(files):
        columns = [pa.array([one.get(field.name) for one in rows], field.type) for field in kept]
        pq.write_table(pa.table(columns, schema=kept), directory / "requests" / f"{number}.parquet")
    if pods:
        table = pa.table({name: [float(one[name]) for one in pods] for name in ("at_s", "ready_pods", "pods")})
        pq.write_table(table, directory / "pods.parquet")
    return directory
