"""One run over all its processes: the common start, everybody's share, the live line, the records, the verdict.

It lives where Locust's master is, or in the only process there is. Locust's messages carry everything, so that workers
may be processes of this machine or pods elsewhere: the start and each one's share with the deck out, figures and records back.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from loadtest import pods, records, trust
from loadtest.options import Options
from loadtest.plan import Plan
from loadtest.report import recorded
from loadtest.report.verdicts import exit_code, own_gates, verdicts
from loadtest.report.verdicts import line as verdict_line
from loadtest.tally import Tally, line

START: Final = "hearth-start"
TICK: Final = "hearth-tick"
RECORDS: Final = "hearth-records"
DONE: Final = "hearth-done"
STOP: Final = "hearth-stop"

TICK_S: Final = 1.0
PIECE_BYTES: Final = 1 << 20
MAX_DECK_BYTES: Final = 256 << 20
HAND_IN_S: Final = 15.0
"""How long a run that somebody ended waits for its workers' records."""
OVERTIME_S: Final = 60.0
"""How long after the last possible answer a process may take to hand in its records."""
LAG_QUANTILE: Final = 0.99


@dataclass
class Run:
    """One run, as its conductor sees it.

    pending  processes whose records are not all here; what they are called is Locust's business
    ending   somebody wants it to end early
    verdict  a line for each gate, once the run is over, and one if it is invalid
    """

    options: Options
    plan: Plan
    folder: Path
    host: str
    pending: set[str]
    processes: int
    start_unix_s: float
    whole: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    _now: Tally = field(default_factory=Tally)
    _in_flight: dict[str, int] = field(default_factory=dict)
    _spans_s: dict[str, float] = field(default_factory=dict)
    generators: list[dict[str, Any]] = field(default_factory=list)
    _files: dict[str, Any] = field(default_factory=dict)
    ending: bool = False
    verdict: list[str] = field(default_factory=list)
    _counting: subprocess.Popen[bytes] | None = None
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    @property
    def at_s(self) -> float:
        """Seconds since the common start."""
        return time.time() - self.start_unix_s

    @property
    def finished(self) -> bool:
        """Everybody has handed in, or will not any more."""
        options = self.options
        latest_s = options.duration_s + options.timeout_s + options.max_retry_wait_s + OVERTIME_S
        if self.pending and self.at_s > latest_s:
            self.lose(sorted(self.pending), "did not hand in its records in time")
        return not self.pending

    def lose(self, names: list[str], why: str) -> None:
        """Go on without these processes. Their share of the schedule is missing: the run is invalid."""
        for name in names:
            self.pending.discard(name)
            self.lost.append(name)
            self.notes.append(f"process {name} {why}: its share of the requests is missing")
            self.say(self.notes[-1])

    def start_message(self, index: int) -> dict[str, Any]:
        """What a process must know to play its part."""
        deck = Path(self.options.deck)
        size_bytes = deck.stat().st_size
        if size_bytes > MAX_DECK_BYTES:
            raise ValueError(f"the deck {deck} has {size_bytes} bytes; a message to a worker takes {MAX_DECK_BYTES}")
        return {
            "options": asdict(self.options),
            "deck": deck.read_bytes(),
            "authority": trust.authority(self.options.ca_file),
            "host": self.host,
            "start_unix_s": self.start_unix_s,
            "index": index,
            "processes": self.processes,
        }

    def tick(self, name: str, told: Mapping[str, Any]) -> None:
        """A process's figures of the last second."""
        tally = Tally.unpacked(told["tally"])
        self._in_flight[name], tally.in_flight = tally.in_flight, 0
        self._spans_s[name] = self._spans_s.get(name, 0.0) + float(told["span_s"])
        self._now.add(tally)
        self.whole.add(tally)

    def show(self) -> None:
        """Print the progress line."""
        over_s = max(self._spans_s.values(), default=0.0)
        self._now.in_flight = sum(self._in_flight.values())
        if over_s > 0:
            self.say(line(self.at_s, self._now, self.whole, over_s=over_s))
            self._now, self._spans_s = Tally(), {}

    def hand_in(self, name: str, piece: bytes) -> None:
        """A piece of a process's record file, in order."""
        if name not in self._files:
            path = self.folder / "requests" / f"{len(self._files):04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = path.open("wb")
        self._files[name].write(piece)

    def done(self, name: str, spent: Mapping[str, Any]) -> None:
        """A process has handed in everything. ``spent``: its share of a core, and how often others took it away."""
        self.generators.append(dict(spent))
        if name in self._files:
            self._files[name].close()
        self.pending.discard(name)

    def begin(self) -> None:
        """Write what is known before the first request: a run that is killed can still be read. Begin to count pods."""
        self._write()
        options = self.options
        self._counting = pods.begin(self.folder, admin=options.admin, namespace=options.pods_from, every_s=options.pods_every_s)

    def conclude(self) -> int:
        """Write what the run was, say how it went, hold it to its gates.

        The exit code: as the report's. INVALID: the generator was late, or a part is missing.
        """
        for name in sorted(self.pending):
            self.lose([name], "was ended before it handed in")
        for file in self._files.values():
            file.close()
        pods.finish(self.folder, self._counting, self.start_unix_s)
        table = records.read(self.folder)
        limit_ms = self.options.max_send_lag_ms
        lag_ms = 1e3 * records.nearest_rank(table, "sent_s", "due_s", quantile=LAG_QUANTILE)
        late = self.options.mode == "open" and lag_ms > limit_ms
        if late:
            self.notes.append(f"invalid: p99 send lag {lag_ms:.1f} ms is above --max-send-lag-ms {limit_ms:g}")
        self._write(
            send_lag_p99_ms=round(lag_ms, 3), valid=not (late or self.lost), requests=table.num_rows, generators=self.generators
        )
        self.say(
            f"{table.num_rows} requests, p99 send lag {lag_ms:.1f} ms, {sum(self.whole.errors.values())} errors: {self.folder}"
        )
        for error, count in self.whole.errors.most_common():
            self.say(f"  {count} x {error}")
        for note in self.notes:
            self.say(f"  note: {note}")
        judged = []
        if self.options.gates:  # read back from the records: what is judged here is what the report will judge
            run = recorded.read(self.folder)
            judged = verdicts(own_gates(run), run)
            self.verdict = [verdict_line(verdict) for verdict in judged]
        if late or self.lost:
            self.verdict.append(
                "INVALID: " + ("the generator was late" if late else "a process is lost") + ", gates mean nothing"
            )
        return exit_code([judged], invalid=bool(late or self.lost))

    def _write(self, **more: Any) -> None:
        options = self.options
        records.write_run(
            self.folder,
            {
                "started_unix_s": self.start_unix_s,
                "hearth_version": _release(),
                "target": {"host": self.host, "host_header": options.host_header, "server": options.server},
                "workload": self.plan.told(),
                "mode": options.mode,
                "settings": {name: value for name, value in asdict(options).items() if name != "slo"},
                "max_send_lag_ms": options.max_send_lag_ms,
                "processes": self.processes,
                "slo": options.gates,
                "notes": [*_told(options), *self.notes],
                **more,
            },
        )


def _told(options: Options) -> list[str]:
    """What a reader of the report has to know."""
    told = []
    if options.max_send_lag_ms != Options.max_send_lag_ms:
        told.append(
            f"the limit of the send lag was set to {options.max_send_lag_ms:g} ms ({Options.max_send_lag_ms:g} is usual)"
        )
    if options.compress != 1.0:
        told.append(
            f"time was compressed {options.compress:g} times; who ran it says that keep-alive settings were, too. "
            "Loading and computing were not: rates of cold starts and queues are not those of the trace"
        )
    if options.closed:
        told.append(f"closed loop with {options.closed} clients: latency hides what a stalled server kept from being sent")
    return told


def folder(options: Options) -> Path:
    """Where the run goes. Never where one is already."""
    if not options.output:
        return _free(Path(f"loadtest-{datetime.now(UTC):%Y%m%d-%H%M%S}"))
    return _free(Path(options.output))


def _free(wanted: Path) -> Path:
    """``wanted``, or with a number behind: Locust's page may start several runs."""
    path, number = wanted, 2
    while (path / "run.json").exists():
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return path


def _release() -> str:
    try:
        return version("hearth")
    except PackageNotFoundError:
        return "unknown"
