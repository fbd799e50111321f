"""One Hearth on one core with several models, and clients of it on the other core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from loadtest.fairness import books
from loadtest.fairness.verdicts import needed_s
from loadtest.peers.hearth import Hearth
from loadtest.peers.peer import Site, Started, path, wait_until_right
from loadtest.peers.rounds import place
from loadtest.peers.workloads import Case, Encoding, Request, Workload, request
from loadtest.peers.wrk import Figures, Wrk, url
from predictor.client import AdminClient
from predictor.demo.children import Children
from predictor.demo.server import HOST

LOOK_S: Final = 2
"""Of a client that is timed next: it warms the server up and tells how many requests a second to expect."""
FLOOD_SPARE_S: Final = 60
PRIORITY: Final = "Hearth-Priority"


@dataclass(frozen=True)
class Plan:
    """How long, how often, where.

    seconds          of each run of wrk at least; more where fewer requests than a p99 needs came of it
    longest_seconds  of each run of wrk at most
    """

    rounds: int
    seconds: int
    longest_seconds: int
    server_core: int
    client_core: int
    peers_venv: Path


@dataclass(frozen=True)
class Load:
    """What one client does: closed loop, the same request over and over on each of its connections."""

    case: Case
    encoding: Encoding
    connections: int
    priority: str = ""

    @property
    def sent(self) -> Request:
        """The request; ``priority`` "": without the header."""
        plain = request(self.case.input, self.encoding)
        return Request(plain.body, plain.headers | ({PRIORITY: self.priority} if self.priority else {}))


def named(case: Case, name: str) -> Case:
    """The same model under another name."""
    return replace(case, workload=replace(case.workload, name=name))


def asked_in(workload: Workload, *encodings: Encoding) -> Workload:
    """The workload with only these bodies, so that only these are checked."""
    return replace(workload, encodings=encodings)


@dataclass(frozen=True)
class Stage:
    """The running server and the client's side of it."""

    plan: Plan
    wrk: Wrk
    folder: Path
    started: Started
    admin: AdminClient

    def books(self) -> dict[str, books.Compute]:
        """What every model had of the device until now."""
        return books.read(self.admin.metrics())

    def timed(self, load: Load) -> Figures:
        """The client's latencies, with as many requests as a p99 needs, if the time suffices."""
        longest = self.plan.longest_seconds
        looked = self._run(load, min(LOOK_S, longest))
        seconds = needed_s(
            requests=looked.requests, seconds=LOOK_S, at_least_s=min(self.plan.seconds, longest), at_most_s=longest
        )
        return self._run(load, seconds)

    def _run(self, load: Load, seconds: int) -> Figures:
        return self.wrk.run(
            self._own("timed"),
            url(self.started.port, path(load.case)),
            load.sent,
            core=self.plan.client_core,
            connections=load.connections,
            seconds=seconds,
            may_fail=True,
        )

    @contextmanager
    def under(self, loads: Sequence[Load]) -> Iterator[list[list[Figures]]]:
        """Clients that ask while the context lasts; their figures, in the order of ``loads``, are there when it has ended."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    self.wrk.running(
                        self._own(f"under-{place}"),
                        url(self.started.port, path(load.case)),
                        load.sent,
                        core=self.plan.client_core,
                        connections=load.connections,
                        longest_s=2 * self.plan.longest_seconds + FLOOD_SPARE_S,
                    )
                )
                for place, load in enumerate(loads)
            ]

    def _own(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder


@contextmanager
def stage(plan: Plan, wrk: Wrk, cases: Sequence[Case], declared: Mapping[str, Mapping[str, Any]]) -> Iterator[Stage]:
    """Start a server of its own with these models and check every answer. PeerFailed, WrongAnswer.

    declared  by model, what its hearth.json says: batching, weight, priority, limits
    """
    with place() as folder, Children(folder) as children:
        site = Site(folder, plan.server_core, plan.client_core, plan.peers_venv)
        started = Hearth(declared=declared).start(children, site, cases)
        for case in cases:
            wait_until_right(started, children, case)
        yield Stage(plan, wrk, folder, started, AdminClient(f"http://{HOST}:{started.admin_port}"))
