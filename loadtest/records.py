"""What a run leaves behind: run.json, and every request's raw record in Parquet. Locust's own percentiles are rounded.

Times are seconds from the common start of all processes. A request's latency is ``done_s - due_s``: from when it was due,
not from when the generator came to send it. ``sent_s - due_s`` is the send lag.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

FORMAT: Final = 1
CHUNK_ROWS: Final = 512
"""Rows that become Arrow at once: about 1 ms, in which nothing is sent."""
GROUP_ROWS: Final = 65_536


class Record(NamedTuple):
    """One request, from its due time to its judged answer. None: it never came so far.

    sent_s        of the first try
    start         hot, ram, disk or s3, as Hearth-Start says; "" where it says nothing
    status        of the last answer; 0: there was none
    error         "" where a right answer came, else the reason in few words
    retry_wait_s  spent waiting as Retry-After asked
    pod_up_s      since the answering pod's exec; None where no pod told
    """

    due_s: float
    sent_s: float | None = None
    first_byte_s: float | None = None
    done_s: float | None = None
    model: str = ""
    version: str = ""
    start: str = ""
    status: int = 0
    error: str = ""
    tries: int = 0
    retry_wait_s: float = 0.0
    pod: str = ""
    pod_up_s: float | None = None
    timing_queue_ms: float | None = None
    timing_fetch_ms: float | None = None
    timing_device_ms: float | None = None
    timing_build_ms: float | None = None
    timing_compute_ms: float | None = None
    tenant: str = ""
    priority: str = ""
    bytes_out: int = 0
    bytes_in: int = 0


_WORDS: Final = frozenset({"model", "version", "start", "error", "pod", "tenant", "priority"})
_TYPES: Final = {"status": pa.int16(), "tries": pa.int8(), "bytes_out": pa.int32(), "bytes_in": pa.int32()}
_MOMENTS: Final = frozenset({"due_s", "sent_s", "first_byte_s", "done_s"})

SCHEMA: Final = pa.schema(
    [
        (name, pa.string() if name in _WORDS else pa.float64() if name in _MOMENTS else _TYPES.get(name, pa.float32()))
        for name in Record._fields
    ]
)


class Book:
    """One process's records on their way into a file. Rows become columns in small steps, while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Record] = []
        self._batches: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None
        # Arrow's first conversion looks for pandas and more: 226 ms in which nothing would be sent, measured.
        pq.write_table(pa.Table.from_batches([_batch([Record(0.0)])], SCHEMA), pa.BufferOutputStream(), compression="zstd")

    def add(self, record: Record) -> None:
        """Keep one."""
        self._rows.append(record)
        if len(self._rows) >= CHUNK_ROWS:
            self._columns()

    def _columns(self) -> None:
        columns = list(zip(*self._rows, strict=True))
        self._rows = []
        self._batches.append(
            pa.record_batch(
                [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
            )
        )
        if len(self._batches) * CHUNK_ROWS >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self.path, SCHEMA, compression="zstd", compression_level=1)
        batches, self._batches = self._batches, []
        self._writer.write_table(pa.Table.from_batches(batches, SCHEMA), row_group_size=GROUP_ROWS)

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._columns()
        self._write()
        if self._writer is not None:
            self._writer.close()


def _batch(rows: Sequence[Record]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def read(folder: Path) -> pa.Table:
    """Every process's records of the run in ``folder``."""
    paths = sorted((folder / "requests").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(path, schema=SCHEMA) for path in paths]) if paths else SCHEMA.empty_table()


def write_run(folder: Path, told: Mapping[str, Any]) -> None:
    """Write, or write anew, run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"format": FORMAT, **told}, indent=1) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` wrote."""
    told: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return told


def nearest_rank(table: pa.Table, of: str, since: str, *, quantile: float) -> float:
    """A quantile (0 to 1) of ``of - since`` in seconds over the rows that have both; 0 where none has."""
    import pyarrow.compute as pc  # noqa: PLC0415 (50 ms, after the run)

    spans = pc.drop_null(pc.subtract(table[of], table[since]))
    if len(spans) == 0:
        return 0.0
    ordered = pc.sort_indices(spans)
    place = max(0, math.ceil(quantile * len(spans)) - 1)
    return float(spans[ordered[place].as_py()].as_py())
