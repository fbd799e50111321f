"""Whole runs: Locust as a process, a stand-in server beside it, and the folder that is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from loadtest import payloads, pods, records
from loadtest.command import LOCUSTFILE, main
from loadtest.conduct import Run
from loadtest.options import Options
from loadtest.plan import Plan
from loadtest.records import Book, Record
from loadtest.report.command import main as report
from loadtest.report.verdicts import INVALID, MISSED, OK
from loadtest.standin import QUESTION
from tests.fakes import tls
from warmup import cluster

STALL_S = float(os.environ.get("SOAK_STALL_S", "1"))
"""`make soak` stalls for 10 s: at 50 requests a second about 500 slow ones."""
RATE = 50.0
ANY_LAG = "--max-send-lag-ms=1e9"


@contextmanager
def serving(*flags: str) -> Iterator[tuple[str, IO[str]]]:
    """A stand-in server's address, and what else it prints."""
    serve = [sys.executable, "-m", "loadtest.standin", *flags]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}", server.stdout
        finally:
            server.terminate()


@contextmanager
def standin(*flags: str) -> Iterator[str]:
    with serving(*flags) as (host, _):
        yield host


@pytest.fixture
def deck(tmp_path: Path) -> Path:
    path = tmp_path / "deck.jsonl"
    payloads.write(path, [QUESTION])
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = records.read(folder).to_pylist()
    return found


def command(*arguments: str) -> list[str]:
    plain = ["-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--start-in-s=0.5"]
    return [sys.executable, *plain, *arguments]


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=100 + 2 * STALL_S)


def test_a_server_that_stalls_is_reported_as_slow_for_everything_that_was_due_meanwhile(tmp_path: Path, deck: Path) -> None:
    duration_s = STALL_S + 3.0  # a busy machine's first request may come late, and the stall with it
    folder = tmp_path / "run"
    with serving("--stall-after-s=0.3", f"--stall-s={STALL_S}") as (host, told):
        asked = [f"--rate={RATE}", f"--duration-s={duration_s}", f"--output={folder}", ANY_LAG]
        done = locust(f"--host={host}", f"--deck={deck}", *asked)
        stalled_unix_s = [float(moment) for moment in told.readline().split()]
    assert done.returncode == 0, done.stderr
    found = rows(folder)
    due = list(Plan.of(Options(deck=str(deck), rate=RATE, duration_s=duration_s)).events())
    assert sorted(row["due_s"] for row in found) == [event.due_s for event in due]
    start_unix_s = records.read_run(folder)["started_unix_s"]
    begin_s, end_s = (moment_s - start_unix_s for moment_s in stalled_unix_s)
    meanwhile = [row for row in found if begin_s < row["due_s"] < end_s]
    assert len(meanwhile) > 0.5 * RATE * STALL_S
    assert all(row["done_s"] >= end_s - 0.05 for row in meanwhile)  # clocks of two processes, and timers that ring early
    slow = [row for row in meanwhile if row["done_s"] > row["due_s"] + 0.5 * STALL_S]
    assert len(slow) >= sum(row["due_s"] < end_s - 0.55 * STALL_S for row in meanwhile)


def test_several_processes_share_one_schedule_and_start_at_one_instant(tmp_path: Path, deck: Path) -> None:
    folder = tmp_path / "run"
    with standin() as host:
        arguments = [
            f"--host={host}",
            f"--deck={deck}",
            "--processes=3",
            "--rate=60",
            "--duration-s=2",
            f"--output={folder}",
            ANY_LAG,
        ]
        done = locust(*arguments, "--priorities=high=1,normal=3", "--encoding=mixed", "--slo=cold<=0%")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "PASS cold<=0%: 0 %"
    told = records.read_run(folder)
    assert (told["format"], told["processes"], told["mode"], told["valid"]) == (1, 3, "open", True)
    assert len(told["generators"]) == 3
    assert len(list((folder / "requests").glob("*.parquet"))) == 3
    found = rows(folder)
    due = list(Plan.of(Options.of(told["settings"])).events())
    assert sorted((row["due_s"], row["priority"]) for row in found) == [(event.due_s, event.priority) for event in due]
    assert told["requests"] == len(found)
    assert not [row for row in found if row["error"]]


def test_failures_and_a_closed_loop_are_told_in_the_exit_status_and_in_the_run(tmp_path: Path) -> None:
    deck, folder = tmp_path / "deck.jsonl", tmp_path / "run"
    wrong = {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 0.0, 0.0, 0.0]}
    payloads.write(deck, [QUESTION, QUESTION | {"outputs": [wrong]}])
    with standin() as host:
        done = locust(
            f"--host={host}",
            f"--deck={deck}",
            "--closed=2",
            "--duration-s=3",
            f"--output={folder}",
            "--slo=errors[answered]<1%",
            "--slo=errors<1%",
        )
    assert done.returncode == MISSED, done.stderr
    assert "wrong answer" in done.stderr
    passed, failed = done.stdout.splitlines()[-2:]
    assert passed.startswith("PASS errors[answered]")
    assert failed.startswith("FAIL errors<1%: ")
    told = records.read_run(folder)
    assert (told["mode"], told["slo"]) == ("closed", ["errors[answered]<1%", "errors<1%"])
    assert any("closed loop" in note for note in told["notes"])
    assert {row["error"] for row in rows(folder)} == {"", "wrong answer"}


def test_a_run_with_an_unusable_deck_ends_before_it_begins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--host=http://127.0.0.1:1", f"--deck={tmp_path / 'none.jsonl'}"]) == 2
    assert "cannot be read" in capfd.readouterr().err
    assert main(["run", "--host=http://127.0.0.1:1"]) == 2
    assert "--deck" in capfd.readouterr().err


def test_a_gate_that_cannot_be_read_is_refused_before_the_run(deck: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--host=http://127.0.0.1:1", f"--deck={deck}", "--slo=p99<1 parsec"]) == 2
    assert "write its limit in ms or s" in capfd.readouterr().err


def test_a_schedule_can_be_looked_at_without_sending_it(deck: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", f"--deck={deck}", "--rate=20", "--duration-s=100"]) == 0
    told = capfd.readouterr().out
    assert "for 1 of 1 models" in told
    assert told.count("/s") == 10


@contextmanager
def under_way(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run of two processes that would take minutes, as a terminal starts one, when its first requests are answered.

    place  for its temporary files: who is killed leaves some
    """
    given = command(*arguments, "--processes=2", "--rate=50", "--duration-s=120", ANY_LAG)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(given, **pipes, start_new_session=True, env=os.environ | {"TMPDIR": str(place)}) as run:
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if "answered" in line and "answered    0.0/s" not in line:
                    break
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def test_a_run_that_is_ended_by_hand_keeps_its_records_and_judges_them(tmp_path: Path, deck: Path) -> None:
    folder = tmp_path / "run"
    with (
        standin() as host,
        under_way(tmp_path, f"--host={host}", f"--deck={deck}", f"--output={folder}", "--slo=errors<=0%") as run,
    ):
        os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C does: master and workers alike
        said, told = run.communicate(timeout=60)
    cut_off = [row["error"] for row in rows(folder) if row["error"]]  # what was under way in that moment, most often nothing
    assert set(cut_off) <= {"unanswered at the end"}
    assert run.returncode == (MISSED if cut_off else OK), told
    assert said.splitlines()[-1].startswith("FAIL errors<=0%" if cut_off else "PASS errors<=0%: 0 %")
    about = records.read_run(folder)
    assert about["valid"]
    assert any("ended by hand" in note for note in about["notes"])
    assert len(list((folder / "requests").glob("*.parquet"))) == 2
    assert report([str(folder)]) == run.returncode


def test_a_run_whose_worker_was_killed_goes_on_and_is_invalid(tmp_path: Path, deck: Path) -> None:
    folder = tmp_path / "run"
    with (
        standin() as host,
        under_way(tmp_path, f"--host={host}", f"--deck={deck}", f"--output={folder}", "--slo=errors<=0%") as run,
    ):
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(workers[0]), signal.SIGKILL)
        assert run.stderr is not None
        seen = []
        for line in run.stderr:
            seen.append(line)
            if "is gone" in line:
                break
        os.killpg(run.pid, signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == INVALID, (seen, told)
    assert records.read_run(folder)["valid"] is False
    assert rows(folder)
    assert report([str(folder)]) == INVALID


def test_over_tls_only_an_authority_that_is_named_is_believed(tmp_path: Path, deck: Path) -> None:
    trusted, secret = tls.certificate(tmp_path)
    with standin(f"--certificate={trusted}", f"--key={secret}") as host:
        secure = host.replace("http:", "https:")
        asked = [f"--host={secure}", f"--deck={deck}", "--rate=20", "--duration-s=0.5", ANY_LAG]
        for number, (flags, errors) in enumerate(
            (
                ([], {"TLS: certificate not believed"}),
                ([f"--ca-file={trusted}"], {""}),
                (["--insecure"], {""}),
            )
        ):
            folder = tmp_path / str(number)
            done = locust(*asked, f"--output={folder}", *flags)
            assert {row["error"] for row in rows(folder)} == errors, done.stderr
    assert main(["run", f"--host={host}", f"--deck={deck}", f"--ca-file={secret}"]) == 2


def finished(tmp_path: Path, deck: Path, *lags_s: float, **options: Any) -> Run:
    folder = tmp_path / "run"
    book = Book(folder / "requests" / "0000.parquet")
    for number, lag_s in enumerate(lags_s):
        book.add(Record(float(number), number + lag_s, number + lag_s, number + lag_s + 0.1, status=200))
    book.close()
    asked = Options(deck=str(deck), **options)
    return Run(asked, Plan.of(asked), folder, "http://host", set(), 1, 0.0, say=lambda _: None)


def test_a_run_whose_generator_was_late_is_invalid(tmp_path: Path, deck: Path) -> None:
    assert finished(tmp_path, deck, *[0.001] * 98, 0.021, 0.5).conclude() == INVALID
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not told["valid"]
    assert any("send lag" in note for note in told["notes"])


def test_the_limit_of_the_lag_can_be_raised_and_the_run_says_so(tmp_path: Path, deck: Path) -> None:
    assert finished(tmp_path, deck, *[0.3] * 9, max_send_lag_ms=400.0).conclude() == 0
    assert any("400 ms" in note for note in records.read_run(tmp_path / "run")["notes"])


@pytest.mark.parametrize(
    ("slo", "status", "told"),
    [
        ("p99<150ms,errors<=0%", OK, ["PASS p99<150ms: 102 ms", "PASS errors<=0%: 0 %"]),
        ("p50<1s,max<50ms", MISSED, ["PASS p50<1s: 101 ms", "FAIL max<50ms: 102 ms"]),
    ],
)
def test_a_run_ends_with_a_verdict_on_its_gates(tmp_path: Path, deck: Path, slo: str, status: int, told: list[str]) -> None:
    run = finished(tmp_path, deck, 0.001, 0.001, 0.002, slo=slo)
    assert run.conclude() == status
    assert run.verdict == told


def test_the_gates_of_an_invalid_run_decide_nothing(tmp_path: Path, deck: Path) -> None:
    run = finished(tmp_path, deck, 0.5, slo="errors<1%")
    assert run.conclude() == INVALID
    assert run.verdict == ["PASS errors<1%: 0 %", "INVALID: the generator was late, gates mean nothing"]


def test_a_run_that_lost_a_process_is_invalid_and_says_which(tmp_path: Path, deck: Path) -> None:
    run = finished(tmp_path, deck, 0.001)
    run.pending = {"worker-1"}
    run.lose(["worker-1"], "is gone")
    assert run.finished
    assert run.conclude() == INVALID
    assert any("worker-1 is gone" in note for note in records.read_run(run.folder)["notes"])


def test_a_pod_that_was_told_to_end_counts_as_a_pod_but_not_as_ready() -> None:
    pools = (
        cluster.Pool("one", pods=(cluster.Pod("one-a", "ending"), cluster.Pod("one-b", "serving"))),
        cluster.Pool("two", pods=(cluster.Pod("two-a", "new"),)),
    )
    assert pods.counted(pools, 5.0) == (5.0, 1, 3)


def test_many_rows_reach_the_file_in_order(tmp_path: Path) -> None:
    book = Book(tmp_path / "requests" / "0.parquet")
    for number in range(70_000):
        book.add(Record(float(number), error="x" if number % 2 else ""))
    book.close()
    assert records.read(tmp_path)["due_s"].to_pylist() == [float(number) for number in range(70_000)]
