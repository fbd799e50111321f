"""The watch over the container's memory, on cgroup files of both versions that the test writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from predictor.policy.pressure import LOOK_S
from predictor.workers.memory_watch import (
    CLAIM_S,
    OUT_OF_MEMORY,
    SETTLE_S,
    Candidate,
    MemoryKills,
    MemoryWatch,
    own_bytes,
    working_set,
)

MB = 1 << 20
PAGE = 4096


def cgroup2(root: Path, used: int, cache: int = 0, kills: int = 0) -> None:
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom 3\noom_kill {kills}\noom_group_kill 0\n")
    (folder / "memory.stat").write_text(f"anon 4096\ninactive_file {cache}\nactive_file 8192\n")


def cgroup1(root: Path, used: int, cache: int = 0, kills: int = 0) -> None:
    folder = root / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    (folder / "memory.stat").write_text(f"cache 1\ninactive_file 7\ntotal_inactive_file {cache}\n")


VERSIONS = pytest.mark.parametrize("write", [cgroup1, cgroup2])


def process(proc: Path, pid: int, resident: int, *, shared: int = 0, session: int | None = None) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "statm").write_text(f"999999 {resident // PAGE} {shared // PAGE} 1 0 1 0\n")
    (folder / "stat").write_text(f"{pid} (hearth) worker) S 1 {pid} {session or pid} 0 -1 0\n")


class Pod:
    """Workers by name, with what they have; those that were ended, and why."""

    def __init__(self, root: Path, limit: int = 1000 * MB) -> None:
        self.now_s = 100.0
        self.ended: list[tuple[str, str]] = []
        self.counted = 0
        self.workers: dict[str, int] = {}
        self.proc = root / "proc"
        self.proc.mkdir()
        self.watch = MemoryWatch(
            limit, 0.95, self._candidates, self._count, root=root, proc=self.proc, clock=lambda: self.now_s
        )

    def worker(self, name: str, pid: int, resident: int, *, shared: int = 0) -> None:
        self.workers[name] = pid
        process(self.proc, pid, resident, shared=shared)

    def _count(self) -> None:
        self.counted += 1

    def _candidates(self) -> list[Candidate]:
        def end(name: str) -> Callable[[str, str], None]:
            return lambda reason, cause: self.ended.append((name, f"{cause} | {reason}"))

        return [Candidate(name, pid, end(name)) for name, pid in self.workers.items()]


@VERSIONS
def test_page_cache_is_no_danger(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path, 900 * MB, cache=600 * MB)
    assert working_set(tmp_path) == 300 * MB


def test_without_a_cgroup_nothing_is_watched(tmp_path: Path) -> None:
    assert working_set(tmp_path) is None
    assert Pod(tmp_path).watch.look() is None


@VERSIONS
def test_the_worker_with_most_of_its_own_is_ended_before_the_limit(tmp_path: Path, write: Callable[..., None]) -> None:
    pod = Pod(tmp_path)
    pod.worker("lean", 11, 700 * MB, shared=650 * MB)  # weights that are everybody's
    pod.worker("fat", 12, 400 * MB)
    write(tmp_path, 990 * MB, cache=50 * MB)
    pod.watch.look()
    assert not pod.ended
    write(tmp_path, 990 * MB)
    pod.watch.look()
    ((name, told),) = pod.ended
    assert name == "fat"
    assert told.startswith(f"{OUT_OF_MEMORY} | out of memory: 1.0 GB of 1.0 GB are in use")
    assert pod.counted == 1


@VERSIONS
def test_a_death_is_the_kernels_doing_where_its_count_rose(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path, MB, kills=2)
    kills = MemoryKills(tmp_path)
    assert not kills.claim(), "those were before us"
    write(tmp_path, MB, kills=4)
    assert [kills.claim() for _ in range(3)] == [True, True, False]


@VERSIONS
def test_what_the_kernel_killed_long_ago_explains_no_death_of_today(tmp_path: Path, write: Callable[..., None]) -> None:
    now_s = 100.0
    write(tmp_path, MB)
    kills = MemoryKills(tmp_path, clock=lambda: now_s)
    write(tmp_path, MB, kills=1)  # a process that a model had forked
    kills.look()
    now_s += CLAIM_S + 1
    assert not kills.claim()
    write(tmp_path, MB, kills=2)
    kills.look()
    now_s += CLAIM_S - 1
    assert kills.claim()


def test_without_a_cgroup_the_kernel_killed_nobody(tmp_path: Path) -> None:
    kills = MemoryKills(tmp_path)
    kills.look()
    assert not kills.claim()
    cgroup2(tmp_path, MB, kills=7)
    assert not kills.claim(), "nobody knows when those were"
    (tmp_path / "sys/fs/cgroup/memory.events").write_text("oom_kill many\n")
    assert not kills.claim()


def test_the_next_one_is_only_ended_when_the_first_ones_memory_is_back(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.worker("a", 11, 300 * MB)
    cgroup2(tmp_path, 999 * MB)
    pod.watch.look()
    pod.now_s += SETTLE_S / 2
    pod.watch.look()
    assert len(pod.ended) == 1
    pod.now_s += SETTLE_S
    pod.watch.look()
    assert len(pod.ended) == 2


def test_no_worker_is_ended_for_what_it_does_not_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pod = Pod(tmp_path)
    pod.worker("lean", 11, 20 * MB)
    pod.worker("starting", 0, 500 * MB)
    cgroup2(tmp_path, 999 * MB)
    for _ in range(3):
        pod.watch.look()
        pod.now_s += 2
    assert not pod.ended
    assert [record.message for record in caplog.records if "no worker holds it" in record.message] == [
        "memory is short, and no worker holds it: 1.0 GB of 1.0 GB are in use (HEARTH_MEMORY_SHARE)"
    ]


def test_memory_that_grows_fast_is_looked_at_often(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pauses = []
    for used in (100, 101, 400, 800, 940, 940):
        cgroup2(tmp_path, used * MB)
        pauses.append(pod.watch.look())
        pod.now_s += 0.5
    assert pauses[1] == LOOK_S[1]
    assert pauses[4] == LOOK_S[0]
    assert pauses[5] == LOOK_S[1]


def test_what_a_worker_forked_is_its_own(tmp_path: Path) -> None:
    process(tmp_path, 11, 100 * MB, shared=60 * MB)
    process(tmp_path, 12, 50 * MB, session=11)
    process(tmp_path, 13, 70 * MB)
    assert own_bytes(11, tmp_path) == 90 * MB
    assert own_bytes(99, tmp_path) == 0


def test_a_real_process_has_what_it_allocated() -> None:
    code = "import sys; kept = b'x' * (64 << 20); print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 64 * MB <= own_bytes(child.pid) <= 128 * MB
        child.communicate()
