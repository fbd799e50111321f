"""A simulated run in the files of a load test, and how far it is from what was recorded.

What is written is what ``hearth loadtest report`` reads, so that both can be drawn side by side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import records
from loadtest.records import Book
from loadtest.records import Record as Request
from loadtest.simulation.catalogue import BadCatalogue, Model
from loadtest.simulation.outcome import STARTS, Record


def write(folder: Path, record: Record, models: Sequence[Model]) -> None:
    """Write ``run.json`` and ``requests/``, a row for each line: of lines with many requests the first one only."""
    book = Book(folder / "requests" / "simulated.parquet")
    rows = zip(record.due_s, record.model, record.start, record.begin_s, record.end_s, strict=True)
    for due_s, number, start, begin_s, end_s in sorted(rows):
        told = STARTS[start]
        book.add(
            Request(
                due_s,
                due_s,
                end_s,
                end_s,
                models[number].name,
                "1",
                "s3" if told == "pod" else told,
                200,
                tries=1,
                pod="simulated",
                # The report knows a pod's start by its age: it began to run after the request was sent.
                pod_up_s=end_s - begin_s if told == "pod" else None,
                timing_queue_ms=1e3 * (begin_s - due_s),
            )
        )
    book.close()
    records.write_run(folder, {"mode": "open", "target": {"host": "simulated"}, "notes": ["simulated: nothing was sent"]})


def residuals(recorded: Path, simulated: Path) -> dict[str, Any]:
    """How far the two are apart. Requests are matched by model and order. Raises BadCatalogue: they do not match.

    agreement        share of requests that are hot in both or cold in both
    cold_rate        of each; a request is cold that did not start hot, or whose pod did not run yet
    added_p99_s      of each: from due to the first byte, less the median of that model's hot requests
    """
    real, made = (
        records.read(folder).sort_by([("model", "ascending"), ("due_s", "ascending")]) for folder in (recorded, simulated)
    )
    if real["model"].to_pylist() != made["model"].to_pylist():
        raise BadCatalogue(f"{simulated} has {made.num_rows} requests and {recorded} {real.num_rows}, or other models")
    cold = [_cold(table) for table in (real, made)]
    names = np.array(real["model"].to_pylist())
    added_s = [_added_s(table, names, own) for table, own in zip((real, made), cold, strict=True)]
    both = np.isfinite(added_s[0]) & np.isfinite(added_s[1])
    off_s = (added_s[1] - added_s[0])[both]
    return {
        "requests": int(names.size),
        "agreement": float((cold[0] == cold[1]).mean()),
        "cold_rate": [float(one.mean()) for one in cold],
        "only_recorded_cold": int((cold[0] & ~cold[1]).sum()),
        "only_simulated_cold": int((cold[1] & ~cold[0]).sum()),
        "added_p50_s": [float(np.quantile(one[both], 0.5, method="inverted_cdf")) for one in added_s],
        "added_p95_s": [float(np.quantile(one[both], 0.95, method="inverted_cdf")) for one in added_s],
        "added_p99_s": [float(np.quantile(one[both], 0.99, method="inverted_cdf")) for one in added_s],
        "residual_s": {f"p{place}": float(np.quantile(off_s, place / 100)) for place in (1, 5, 25, 50, 75, 95, 99)},
    }


def told(recorded: Path, simulated: Path) -> str:
    """The residuals in lines; also written as residuals.json beside the simulated run. Raises BadCatalogue: no match."""
    found = residuals(recorded, simulated)
    (simulated / "residuals.json").write_text(json.dumps(found, indent=1) + "\n")
    pair = "{:.2%} recorded, {:.2%} simulated".format(*found["cold_rate"])
    spans = "; ".join(
        "{}: {:.3f} s recorded, {:.3f} s simulated".format(name.split("_")[1], *found[name])
        for name in ("added_p50_s", "added_p95_s", "added_p99_s")
    )
    return f"hot or cold agrees for {found['agreement']:.2%} of {found['requests']} requests; cold: {pair}; added {spans}"


def _cold(table: Any) -> Any:
    start = np.array(table["start"].to_pylist(), dtype=object)
    done_s = table["first_byte_s"].to_numpy()
    up_s = np.array(table["pod_up_s"].to_pylist(), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (start != "hot") | (done_s - up_s > table["due_s"].to_numpy())


def _added_s(table: Any, names: Any, cold: Any) -> Any:
    """From due to the first byte, less what that model's hot requests take in the middle; its fastest where none was hot."""
    took_s = np.array(table["first_byte_s"].to_pylist(), np.float64) - table["due_s"].to_numpy()
    added_s = took_s.copy()
    for name in np.unique(names):
        own = names == name
        hot = own & ~cold & np.isfinite(took_s)
        usual_s = np.median(took_s[hot]) if hot.any() else 0.0
        added_s[own] = np.maximum(0.0, took_s[own] - usual_s)
    return added_s
