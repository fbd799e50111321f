"""Forked workers: whose children they are, what outlives what, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.wire import Frames, Hello, from_worker_decoder
from predictor.workers import scratch
from predictor.workers.output import Output
from predictor.workers.spawn import LOST, Child, Spawned
from predictor.workers.zygote import Zygote
from tests.predictor.test_confine import attempts
from tests.predictor.test_workers import Bench

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote(1)
    yield made
    made.close()


def hello(spawned: Spawned) -> Hello:
    """What a worker says first."""
    spawned.stream.settimeout(PATIENCE_S)
    frames = Frames()
    while True:
        data = spawned.stream.recv(1 << 16)
        assert data, "the worker ended before its Hello"
        for head, _ in frames.feed(data):
            message = from_worker_decoder.decode(head)
            assert isinstance(message, Hello)
            return message


def end(spawned: Spawned) -> int:
    """Let go of a worker, as a front does."""
    spawned.stream.close()
    spawned.control.close()
    spawned.page.close()
    os.close(spawned.output)
    return spawned.process.wait()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_forked_worker_is_our_child_and_ends_with_its_socket(zygote: Zygote) -> None:
    spawned = zygote.fork(0, 1, name="tenant red")
    pid = hello(spawned).pid
    assert spawned.process.poll() is None
    assert spawned.process.pid == pid
    assert parent(pid) == os.getpid()
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"hearth-worker tenant red"
    assert end(spawned) == 0


def test_a_worker_is_forked_whatever_the_length_of_its_name(zygote: Zygote) -> None:
    spawned = zygote.fork(0, 1, name="model:" + "ü" * 10_000)
    assert Path(f"/proc/{hello(spawned).pid}/cmdline").read_bytes().startswith("hearth-worker model:ü".encode())
    assert end(spawned) == 0


def test_how_a_worker_was_killed_is_told(zygote: Zygote) -> None:
    spawned = zygote.fork(0, 1, name="a")
    os.kill(hello(spawned).pid, signal.SIGABRT)
    assert spawned.process.wait() == -signal.SIGABRT
    assert spawned.process.poll() == -signal.SIGABRT
    spawned.process.kill()
    end(spawned)


def test_a_worker_that_is_yet_to_be_forked_can_be_killed() -> None:
    zygote = Zygote(1)
    begin_s = time.monotonic()
    spawned = zygote.fork(0, 1, name="a")
    assert time.monotonic() - begin_s < 0.5, "asking does not wait for torch"
    assert (spawned.process.poll(), spawned.process.pid) == (None, 0)
    spawned.process.kill()
    assert spawned.process.wait() == -signal.SIGKILL
    end(spawned)
    zygote.close()


async def test_what_a_zygote_prints_goes_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds: the front reads it, as it does its workers'."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    printed = bytearray()

    def write(found: bytes) -> int:
        printed.extend(found)
        return len(found)

    ours, theirs = os.pipe()
    zygote = Zygote(1, output=theirs)
    output = Output(ours, "zygote", write=write)
    output.start()
    spawned = zygote.fork(0, 1, name="a")
    assert (await asyncio.to_thread(hello, spawned)).pid
    await asyncio.to_thread(end, spawned)
    zygote.close()
    output.close()
    os.close(theirs)
    assert b" torch\n" in printed
    assert len(printed) > 64 << 10


def test_a_zygote_that_is_killed_takes_no_worker_along_and_is_replaced_at_the_next_fork() -> None:
    zygote = Zygote(1)
    before = zygote.fork(0, 1, name="before")
    pid = hello(before).pid
    first = zygote.pid
    os.kill(first, signal.SIGKILL)
    while zygote._process.poll() is None:  # until then it would take a request along
        os.sched_yield()
    after = zygote.fork(0, 1, name="after")
    hello(after)
    assert zygote.pid != first
    assert before.process.poll() is None
    assert parent(pid) == os.getpid()
    assert (end(before), end(after)) == (0, 0)
    zygote.close()


def test_a_zygote_that_keeps_dying_is_replaced_more_and_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    started: list[float] = []

    def execute(*_: object, **_known: object) -> int:
        started.append(now_s)
        return subprocess.Popen(["sleep", "1000"]).pid

    monkeypatch.setattr("predictor.workers.zygote.execute", execute)
    zygote = Zygote(1, clock=lambda: now_s)
    for _ in range(400):
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote.pid, signal.SIGKILL)
        while zygote._process.poll() is None:
            os.sched_yield()
        spawned = zygote.fork(0, 1, name="a")
        spawned.process.kill()
        end(spawned)
        now_s += 0.05
    gaps = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert gaps[0] == 0.0
    assert max(gaps) > 5.0
    assert gaps == sorted(gaps)
    zygote.close()


def test_a_zygote_that_is_stuck_is_killed_with_what_it_was_to_make_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictor.workers.spawn.MADE_S", 0.1)
    zygote = Zygote(1)
    before = zygote.fork(0, 1, name="before")
    hello(before)
    os.kill(zygote.pid, signal.SIGSTOP)
    stuck = zygote.fork(0, 1, name="stuck")
    stuck.process.kill()
    assert stuck.process.wait() == LOST
    assert before.process.poll() is None
    after = zygote.fork(0, 1, name="after")
    hello(after)
    assert (end(before), end(after), end(stuck)) == (0, 0, LOST)
    zygote.close()


def test_a_child_that_was_never_made_counts_as_ended() -> None:
    report, theirs = os.pipe()
    child = Child(report=report)
    assert child.poll() is None
    os.close(theirs)
    assert child.poll() == LOST
    assert child.wait() == LOST
    child.kill()


def test_fifty_forks_leave_nothing_behind(zygote: Zygote) -> None:
    end_of = zygote.fork(0, 1, name="warm")
    hello(end_of)
    end(end_of)

    def counted() -> tuple[int, int, int, int]:
        ours, its = Path("/proc/self"), Path(f"/proc/{zygote.pid}")
        children = sum(len((path / "children").read_text().split()) for path in (ours / "task").iterdir())
        return (
            len(list((ours / "fd").iterdir())),
            len(list((its / "fd").iterdir())),
            children,
            len(list(scratch._home[0].iterdir())),
        )

    def memory() -> int:
        lines = Path(f"/proc/{zygote.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    before, before_bytes = counted(), memory()
    for _ in range(10):
        five = [zygote.fork(0, 1, name="a") for _ in range(5)]
        for spawned in five:
            hello(spawned)
        assert [end(spawned) for spawned in five] == [0] * 5
    assert counted() == before
    assert memory() - before_bytes < 4 << 20


BUSY = """
import sys, threading
if "predictor.engine.zygote" in sys.orig_argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def test_a_zygote_with_a_second_thread_makes_workers_that_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    zygote = Zygote(1)
    spawned = zygote.fork(0, 1, name="a")
    pid = hello(spawned).pid
    assert spawned.process.poll() is None
    assert (spawned.process.pid, parent(pid)) == (pid, os.getpid())
    assert b"predictor.engine\0cpu" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert end(spawned) == 0
    zygote.close()


def test_two_workers_of_one_zygote_draw_different_numbers(zygote: Zygote) -> None:
    async def drawn() -> dict[str, str]:
        bench = Bench(lambda device, kind, threads, name: zygote.fork(device, threads, name=name))
        await bench.worker.start()
        told = await attempts(
            bench,
            torch="torch.rand(1).item()",
            python="__import__('random').random()",
            numpy="__import__('numpy').random.rand()",
            hash="__import__('uuid').uuid4()",
        )
        await bench.worker.stop(5.0)
        bench.close()
        return told

    one, other = asyncio.run(drawn()), asyncio.run(drawn())
    assert len({*one.values(), *other.values()}) == 8


FRONT = """
import os, sys, threading, time
from predictor.workers.zygote import Zygote
zygote = Zygote(1)
spawned = [zygote.fork(0, 1, name=str(number)) for number in range(2)]
for one in spawned:
    one.stream.recv(1)
    one.process.poll()
threading.Thread(target=os.getpid).start()  # a thread that ends is no front that ends
time.sleep(0.1)
print(zygote.pid, *(one.process.pid for one in spawned), *(one.process.poll() for one in spawned), flush=True)
time.sleep(1000)
"""


def test_a_front_that_is_killed_takes_zygote_and_workers_along() -> None:
    front = subprocess.Popen([sys.executable, "-c", FRONT], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    *pids, one, other = front.stdout.readline().split()
    assert (one, other) == ("None", "None")
    assert all(alive(int(pid)) for pid in pids)
    front.kill()
    front.wait()
    front.stdout.close()
    give_up_s = time.monotonic() + PATIENCE_S
    while any(alive(int(pid)) for pid in pids):
        assert time.monotonic() < give_up_s, "orphans"
        os.sched_yield()
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(pid), 0)  # ours by now, if a zygote of these tests lives


def alive(pid: int) -> bool:
    """And no zombie: those are of whoever adopted them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("stale", [True, False])
def test_folders_of_dead_fronts_go_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stale: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "_home", [])
    pid = 2**22 + 1 if stale else os.getppid()
    left = tmp_path / f"hearth-{pid}-{'0' * 16}" / "0"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    strange = tmp_path / "hearth-cache"
    strange.mkdir()
    made = Path(scratch.make())
    assert made.parent.parent == tmp_path
    assert made.stat().st_mode & 0o777 == 0o700
    give_up_s = time.monotonic() + PATIENCE_S
    while stale and left.parent.exists():
        assert time.monotonic() < give_up_s
        os.sched_yield()
    assert left.exists() != stale
    assert strange.exists()
    scratch.remove(str(made))
    assert not made.exists()


def test_without_a_place_for_it_a_worker_gets_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    monkeypatch.setattr(scratch, "_home", [])
    assert scratch.make() == ""


def test_a_closed_zygote_forks_no_more() -> None:
    zygote = Zygote(1)
    zygote.close()
    spawned = zygote.fork(0, 1, name="a")
    assert spawned.process.wait() == LOST
    assert spawned.stream.recv(1) == b""
    assert isinstance(spawned.stream, socket.socket)
    end(spawned)
