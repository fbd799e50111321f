"""The front's log is written by a thread: nobody waits for who reads it, and what is missing is told where it is missing."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.log_stream import CLOSE_TIMEOUT_S, LogStream
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_pytorch
from tests.predictor.test_pod import BUCKET, Server, _until, publish


class Pipe:
    """A small pipe with a stream in front of it."""

    def __init__(self) -> None:
        self.theirs, self.ours = os.pipe()
        fcntl.fcntl(self.ours, fcntl.F_SETPIPE_SZ, 16 << 10)
        self.stream = LogStream(self.ours, max_pieces=8)

    def fill(self) -> None:
        """Until lines are dropped, and nothing moves any more."""
        while not self.stream.dropped or self.stream._queue.qsize() < 8:
            self.stream.write("x" * 1023 + "\n")
            time.sleep(0.01)

    def read_all(self) -> bytes:
        """Once ``close`` has closed the other end."""
        found = b""
        while more := os.read(self.theirs, 1 << 16):
            found += more
        return found

    def close(self) -> None:
        self.stream.finish(0.2)
        os.close(self.ours)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.theirs)


def test_lines_come_in_order_and_unchanged(pipe: Pipe) -> None:
    for number in range(5):
        print(f"line {number} \udcff", file=pipe.stream)
        pipe.stream.relay(b"printed\n")
        pipe.stream.settle(5)
    pipe.close()
    assert pipe.read_all().decode() == "".join(f"line {number} \\udcff\nprinted\n" for number in range(5))


def test_a_pipe_that_nobody_reads_stops_nobody_and_what_is_missing_is_told_where_it_is(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    pipe.fill()
    for _ in range(9):
        pipe.stream.write("lost\n")
    found = b""
    while b"missing" not in found:
        found += os.read(pipe.theirs, 1 << 16)
    pipe.stream.write("it flows again\n")
    pipe.close()
    found += pipe.read_all()
    assert b"lost" not in found
    lines = found.decode().splitlines()
    assert lines.pop() == "it flows again"
    assert lines[-1].endswith(" lines are missing here: nobody read this log fast enough")
    assert sum(int(line.split()[0]) for line in lines if "missing" in line) == pipe.stream.dropped >= 10
    assert {line for line in lines if "missing" not in line} == {"x" * 1023}


def test_what_workers_print_leaves_room_for_lines_of_our_own(pipe: Pipe) -> None:
    printed = 1 << 20
    assert 0 < pipe.stream.relay(b"y" * printed) < printed
    assert not pipe.stream.dropped
    pipe.stream.write("ours\n")
    assert not pipe.stream.dropped
    pipe.close()


def test_the_end_waits_for_a_reader_but_not_for_ever(pipe: Pipe) -> None:
    pipe.fill()
    begin_s = time.monotonic()
    pipe.close()
    assert time.monotonic() - begin_s < CLOSE_TIMEOUT_S
    pipe.stream.write("too late\n")
    assert b"too late" not in pipe.read_all()


def test_a_log_whose_reader_is_gone_is_dropped() -> None:
    pipe = Pipe()
    os.close(pipe.theirs)
    for _ in range(100):
        pipe.stream.write("nobody\n")
    pipe.stream.settle(5)
    pipe.close()
    assert not pipe.stream._thread.is_alive()


def test_a_file_is_written_where_others_write_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b"before\n")
        stream = LogStream(file.fileno())
        stream.write("between\n")
        stream.finish()
        file.write(b"after\n")
    assert path.read_text() == "before\nbetween\nafter\n"


@pytest.mark.parametrize("how", ["logging.warning('told')", "raise ValueError('told')", "print('told', file=sys.stderr)"])
def test_whoever_speaks_in_the_front_is_heard_to_its_end(how: str) -> None:
    code = f"import logging, sys\nfrom predictor import log_stream\nlog_stream.install()\nlogging.basicConfig()\n{how}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr.strip().endswith("told")


def test_an_ending_process_is_not_held_by_who_does_not_read() -> None:
    code = """
import logging
from predictor import log_stream
log_stream.install()
logging.basicConfig()
for _ in range(3000):
    logging.warning("x" * 200)
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as child:
        assert child.wait(20) == 0


def test_the_notice_has_the_format_of_the_log(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    monkeypatch.setattr(logging.root, "handlers", [handler])
    pipe.fill()
    found = b""
    while b"missing" not in found:
        found += os.read(pipe.theirs, 1 << 16)
    assert b"\nWARNING predictor.log_stream: " in found
    pipe.close()


def test_a_pod_whose_log_nobody_reads_answers_on_and_ends_in_time() -> None:
    with FakeS3() as s3:
        publish(s3, "quick", affine_pytorch(scale=1.0))
        absent = [f"absent-{number:04}-{'x' * 20}" for number in range(2500)]
        server = Server(s3, preload=",".join(absent), drain_timeout_s="2")
        try:
            _until(lambda: "hearth_log_dropped_total" in server.admin.get("/metrics").text)
            _until(lambda: s3.lists(BUCKET, f"models/{absent[-1]}/") > 0, 60)
            assert server.http.get("/livez").status_code == 200
            assert server.infer("quick").status_code == 200
            _until(lambda: "hearth_log_dropped_total 0.0" not in server.admin.get("/metrics").text)
        finally:
            server.process.terminate()
            begin_s = time.monotonic()
            assert server.process.wait(20) == 0
            ended_s = time.monotonic() - begin_s
            _, logged = server.process.communicate()
            server.http.close()
            server.admin.close()
        assert ended_s < 2 + CLOSE_TIMEOUT_S + 2
        assert logged.count("pre-load of absent-") < len(absent)
