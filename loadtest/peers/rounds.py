"""Rounds: every server in turn, alone on the machine, freshly started, checked, then timed; then all of them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from loadtest.peers.peer import Peer, Site, path, wait_until_right
from loadtest.peers.table import Cell, Taken
from loadtest.peers.workloads import SLOW_S, Case, Workload, request
from loadtest.peers.wrk import Wrk, url
from predictor.demo.children import Children

WARM_UP_S: Final = 1
LOOK_S: Final = 1.0
START_S: Final = 8.0
"""What it takes to start a server, check its answers and end it: three to eight here. For foretelling only."""
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (not for temporary files of ours)
STAT: Final = Path("/proc/stat")
LOADAVG: Final = Path("/proc/loadavg")


@dataclass(frozen=True)
class Plan:
    """How long, how often, where.

    seconds  of each run of wrk, after a second of warming up
    """

    rounds: int
    seconds: int
    server_core: int
    client_core: int
    peers_venv: Path


def run(plan: Plan, peers: Sequence[Peer], cases: Sequence[Case], wrk: Wrk, *, say: Callable[[str], None]) -> Iterator[Taken]:
    """Yield each run as it is done. The order of servers turns by one each round, so that none is always the first."""
    for number in range(plan.rounds):
        turned = number % len(peers)
        for peer in (*peers[turned:], *peers[:turned]):
            say(f"round {number + 1}, {peer.name}: {quiet()}")
            yield from _visit(plan, number, peer, cases, wrk)


def timed_s(plan: Plan, workload: Workload) -> int:
    """Seconds of one run of wrk."""
    return SLOW_S if workload.slow else plan.seconds


def planned_s(plan: Plan, peer_count: int, workloads: Sequence[Workload]) -> float:
    """About how long all rounds take."""
    visit_s = START_S + LOOK_S
    for workload in workloads:
        visit_s += len(workload.encodings) * len(workload.connections) * (WARM_UP_S + timed_s(plan, workload))
    return plan.rounds * peer_count * visit_s


@contextmanager
def place() -> Iterator[Path]:
    """A folder for one start. A server that was killed leaves shared memory behind; ours is named for the folder."""
    with TemporaryDirectory(prefix="hearth-bench-") as folder:
        try:
            yield Path(folder)
        finally:
            for left in SHARED_MEMORY.glob(f"{Path(folder).name}*"):
                left.unlink(missing_ok=True)


def _visit(plan: Plan, number: int, peer: Peer, cases: Sequence[Case], wrk: Wrk) -> Iterator[Taken]:
    with place() as folder, Children(folder) as children:
        site = Site(folder, plan.server_core, plan.client_core, plan.peers_venv)
        started = peer.start(children, site, cases)
        for case in cases:
            wait_until_right(started, children, case)
        for case in cases:
            for encoding in case.workload.encodings:
                sent = request(case.input, encoding)
                for connections in case.workload.connections:
                    # Nothing need be answered while warming up: 16 images in one batch take some servers longer.
                    for seconds, may_fail in ((WARM_UP_S, True), (timed_s(plan, case.workload), False)):
                        found = wrk.run(
                            folder,
                            url(started.port, path(case)),
                            sent,
                            core=plan.client_core,
                            connections=connections,
                            seconds=seconds,
                            may_fail=may_fail,
                        )
                    yield Taken(number + 1, peer.name, Cell(case.workload.name, encoding, connections), found)


def quiet() -> str:
    """What others do on this machine while nothing of ours runs: cores busy over a second, and the load averages.

    The averages still hold our own last minutes; the busy cores do not.
    """
    before = _busy()
    time.sleep(LOOK_S)
    cores = (_busy() - before) / LOOK_S / 100
    return f"{cores:.2f} cores busy, loadavg {LOADAVG.read_text().strip()}"


def _busy() -> int:
    """Hundredths of a second that all cores together worked since boot: user, nice, system, irq, softirq, steal."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, STAT.read_text().splitlines()[0].split()[1:])
    return user + nice + system + irq + softirq + steal
