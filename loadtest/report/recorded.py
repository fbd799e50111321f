"""A run directory, read: run.json, requests/*.parquet and pods.parquet as arrays. Computes nothing but latencies and tiers.

Rows are read a batch at a time and kept as numbers, about 55 bytes a request: a report of five million took 16 s and 1.1 GB at
its peak, where sorting and grouping need copies.
The stages of Server-Timing are kept of cold requests only; nobody asks for a hot one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]

FORMAT: Final = 1
SUCCESS: Final = 2
"""The first digit of an HTTP status that is an answer."""

BATCH_ROWS: Final = 1 << 18

TIERS: Final = ("hot", "ram", "disk", "s3", "pod", "")
"""From where a request started, warmest first. ``pod``: the pod that answered did not run yet when the request was sent;
"" : the server does not say (no Hearth-Start), or there was no answer."""

HOT: Final = TIERS.index("hot")
POD: Final = TIERS.index("pod")
UNTOLD: Final = TIERS.index("")

STAGES: Final = ("queue", "fetch", "device", "build", "compute")
"""As Server-Timing names them, in the order in which they happen."""

GROUPS: Final = ("model", "version", "pod", "tenant", "priority")
"""Columns of words. They are kept as numbers: a place in `Requests.names`."""

DEFAULT_MAX_SEND_LAG_MS: Final = 20.0


class RunUnreadable(Exception):
    """A directory that holds no run, or one that this version cannot read. The message names the file and what to do."""


@dataclass(frozen=True)
class Requests:
    """Every request of a run, a column each; all of one length. Seconds count from the run's common start.

    due_s      when the schedule wanted it sent
    took_s     from due until its last byte: latency as a user sees it, the generator's own lag included; nan: never done
    lag_s      from due until it was sent, the first try; nan: never sent
    tier       a place in `TIERS`
    failure    a place in `failures`; 0: a right answer
    failures   why requests failed; the first is ""
    retries    tries beyond the first, of all requests
    codes      the columns of `GROUPS`; each number a place in `names`
    cold_rows  which rows started neither hot nor untold, ascending
    stages_s   for each of `cold_rows`: the five `STAGES`, the waits before retries, and the time from due until the pod that
               answered began to run (0 unless the tier is ``pod``); 0 where the server did not say
    """

    due_s: Floats
    took_s: Floats
    lag_s: Floats
    tier: NDArray[np.int8]
    failure: Codes
    failures: tuple[str, ...]
    retries: int
    codes: Mapping[str, Codes]
    names: Mapping[str, tuple[str, ...]]
    cold_rows: NDArray[np.int64]
    stages_s: NDArray[np.float32]

    def __len__(self) -> int:
        return self.due_s.size

    @cached_property
    def latency_s(self) -> Floats:
        """`took_s`, and infinite where there was no right answer: whoever got none still waits for it."""
        return np.where((self.failure == 0) & np.isfinite(self.took_s), self.took_s, np.inf)

    @property
    def told(self) -> bool:
        """Whether the server says where requests start (Hearth does; other V2 servers do not)."""
        return bool((self.tier != UNTOLD).any())


@dataclass(frozen=True)
class Pods:
    """How many pods there were, sampled. ``at_s`` counts from the run's common start."""

    at_s: Floats
    ready: Floats
    all: Floats


@dataclass(frozen=True)
class Run:
    """One run directory.

    about              run.json as it is
    max_send_lag_ms    above it the run says more about the generator than about the server
    pods               None: nobody sampled them
    """

    name: str
    about: Mapping[str, Any]
    requests: Requests
    pods: Pods | None
    max_send_lag_ms: float

    @property
    def closed(self) -> bool:
        """Users that wait for their answers: a request is due when it is sent, and there is no lag to judge."""
        return bool(self.about.get("mode") == "closed")


def read(directory: Path) -> Run:
    """Read a run directory. Raises RunUnreadable."""
    about = _about(directory / "run.json")
    files = sorted((directory / "requests").glob("*.parquet"))
    try:
        requests = _requests(files)
        pods = _pods(directory / "pods.parquet")
    except (pa.ArrowException, OSError) as broken:
        raise RunUnreadable(f"{directory}: {broken}; was the load test killed while it wrote?") from broken
    max_lag = float(about.get("max_send_lag_ms") or DEFAULT_MAX_SEND_LAG_MS)
    return Run(directory.resolve().name, about, requests, pods, max_lag)


def _about(path: Path) -> Mapping[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunUnreadable(f"{path.parent} holds no run.json: it is no directory that `hearth loadtest run` wrote") from None
    except ValueError as broken:
        raise RunUnreadable(f"{path}: {broken}") from broken
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RunUnreadable(f"{path}: format {about.get('format') if isinstance(about, dict) else '?'}; this reads {FORMAT}")
    return about


def _pods(path: Path) -> Pods | None:
    if not path.exists():
        return None
    table = pq.read_table(path, columns=["at_s", "ready_pods", "pods"]).sort_by("at_s")
    at_s, ready, everyone = (_floats(column) for column in table.columns)
    return Pods(at_s, ready, everyone)


class _Words:
    """Words that are numbered as they come; sorted at the end, so that no figure depends on which file was read first."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {"": 0}

    def numbered(self, column: Any) -> Codes:
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        places = [self._places.setdefault(word or "", len(self._places)) for word in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        codes: Codes = np.array([*places, 0], np.int32)[indices]
        return codes

    def sort(self, codes: Codes) -> tuple[Codes, tuple[str, ...]]:
        """The codes, renumbered in the words' alphabetic order, and the words; "" is the first."""
        words = sorted(self._places)
        places = np.empty(len(words), np.int32)
        for place, word in enumerate(words):
            places[self._places[word]] = place
        return places[codes], tuple(words)


@dataclass
class _Piece:
    """What is kept of one batch."""

    due_s: Floats
    took_s: Floats
    lag_s: Floats
    tier: NDArray[np.int8]
    failure: Codes
    retries: int
    codes: dict[str, Codes]
    cold_rows: NDArray[np.int64]
    stages_s: NDArray[np.float32]


def _requests(files: list[Path]) -> Requests:
    words = {name: _Words() for name in (*GROUPS, "error")}
    pieces: list[_Piece] = [_piece(batch, words) for path in files for batch in _batches(path)]
    starts = np.cumsum([0, *(piece.due_s.size for piece in pieces)])
    failure, failures = words["error"].sort(_joined([piece.failure for piece in pieces], np.int32))
    columns = {name: words[name].sort(_joined([piece.codes[name] for piece in pieces], np.int32)) for name in GROUPS}
    cold = [piece.cold_rows + start for piece, start in zip(pieces, starts, strict=False)]
    stages = [piece.stages_s for piece in pieces]
    return Requests(
        due_s=_joined([piece.due_s for piece in pieces], np.float64),
        took_s=_joined([piece.took_s for piece in pieces], np.float64),
        lag_s=_joined([piece.lag_s for piece in pieces], np.float64),
        tier=_joined([piece.tier for piece in pieces], np.int8),
        failure=failure,
        failures=failures,
        retries=sum(piece.retries for piece in pieces),
        codes={name: codes for name, (codes, _) in columns.items()},
        names={name: names for name, (_, names) in columns.items()},
        cold_rows=_joined(cold, np.int64),
        stages_s=np.concatenate(stages) if stages else np.zeros((0, len(STAGES) + 2), np.float32),
    )


def _batches(path: Path) -> Iterator[Any]:
    there = set(pq.read_schema(path).names)
    if missing := {"due_s", "done_s"} - there:
        raise RunUnreadable(f"{path} has no column {', '.join(sorted(missing))}")
    wanted = {"due_s", "sent_s", "first_byte_s", "done_s", "start", "status", "error", "tries", "retry_wait_s", "pod_up_s"}
    wanted |= {*GROUPS, *(f"timing_{stage}_ms" for stage in STAGES)}
    file = pq.ParquetFile(path, read_dictionary=sorted({*GROUPS, "start", "error"} & there))
    yield from file.iter_batches(BATCH_ROWS, columns=sorted(wanted & there))


def _piece(batch: Any, words: Mapping[str, _Words]) -> _Piece:
    there = set(batch.schema.names)

    def floats(name: str) -> Floats:
        return _floats(batch.column(name)) if name in there else np.full(batch.num_rows, np.nan)

    def coded(name: str) -> Codes:
        return words[name].numbered(batch.column(name)) if name in there else np.zeros(batch.num_rows, np.int32)

    due_s, sent_s, done_s = floats("due_s"), floats("sent_s"), floats("done_s")
    tries = floats("tries")
    tier = _tiers(batch.column("start")) if "start" in there else np.full(batch.num_rows, UNTOLD, np.int8)
    # up= was written into the head of the answer: its first byte is the nearest moment this clock knows.
    headed_s = np.where(np.isfinite(floats("first_byte_s")), floats("first_byte_s"), done_s)
    exec_s = headed_s - floats("pod_up_s")
    with np.errstate(invalid="ignore"):
        tier[exec_s > sent_s] = POD
    cold = np.flatnonzero((tier != HOT) & (tier != UNTOLD))
    columns = [floats(f"timing_{stage}_ms")[cold] / 1e3 for stage in STAGES]
    waits_s = np.nan_to_num(floats("retry_wait_s")[cold])
    until_exec_s = np.where(tier[cold] == POD, np.maximum(exec_s[cold] - due_s[cold] - waits_s, 0.0), 0.0)
    stages = np.stack([*columns, waits_s, until_exec_s], axis=1)
    return _Piece(
        due_s=due_s,
        took_s=done_s - due_s,
        lag_s=sent_s - due_s,
        tier=tier,
        failure=_failures(batch, words["error"], coded("error"), done_s),
        retries=int(np.nansum(np.maximum(tries - 1, 0))),
        codes={name: coded(name) for name in GROUPS},
        cold_rows=cold,
        stages_s=np.nan_to_num(stages, nan=0.0).astype(np.float32),
    )


def _tiers(column: Any) -> NDArray[np.int8]:
    """A word that is no tier counts as untold."""
    words = _Words()
    codes, names = words.sort(words.numbered(column))
    return np.array([TIERS.index(name) if name in TIERS else UNTOLD for name in names], np.int8)[codes]


def _failures(batch: Any, words: _Words, given: Codes, done_s: Floats) -> Codes:
    """The reasons as recorded; a request that names none, but was never done or has no 2xx, gets one here."""
    failure = given.copy()
    silent = (failure == 0) & ~np.isfinite(done_s)
    failure[silent] = words.numbered(pa.array(["no answer"]))[0]
    if "status" in batch.schema.names:
        status = _floats(batch.column("status"))
        refused = (failure == 0) & np.isfinite(status) & (status // 100 != SUCCESS)
        for code in np.unique(status[refused]):
            reason = f"HTTP {code:.0f}" if code > 0 else "no answer"
            failure[refused & (status == code)] = words.numbered(pa.array([reason]))[0]
    return failure


def _floats(column: Any) -> Floats:
    """As numbers; nan where there is none."""
    values: Floats = (
        column.cast(pa.float64()).to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    )
    return values.astype(np.float64)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
