"""Locust's side of a load test: ``locust -f loadtest/locustfile.py --deck deck.jsonl --host http://...``.

Works headless and with Locust's page, in one process, with ``--processes`` and with workers elsewhere. Locust's users are
only the places where dispatchers run, one in each process; how many requests are sent says the schedule.
"""

from __future__ import annotations

import gc
import logging
import resource
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import gevent
import gevent.ssl
from gevent.event import Event as Signal
from locust import FastHttpUser, LoadTestShape, events, runners, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from loadtest import conduct, options, trust
from loadtest.conduct import Run
from loadtest.drive import Driver, clock_from
from loadtest.options import Options
from loadtest.payloads import BadDeck
from loadtest.plan import Plan
from loadtest.records import Book
from loadtest.report.gates import BadGate, parse
from loadtest.traces import BadTrace
from loadtest.workloads import BadWorkload, share

log = logging.getLogger(__name__)

BADLY_ASKED: Final = 2
SPARE_CONNECTIONS: Final = 64
TINY_S: Final = 1e-3
COLLECTED_AFTER: Final = 100_000
"""Allocations between collections of the youngest objects: with Python's 700, thousands of greenlets cost pauses of 30 ms."""


runners.HEARTBEAT_LIVENESS = 10
"""Seconds without a word after which a process counts as lost. Locust's 3 were too few on a busy machine."""


class Part:
    """What this process plays: as the conductor's message said."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="hearth-loadtest-")
        deck = Path(self.folder.name) / "deck.jsonl"
        deck.write_bytes(told["deck"])
        self.options = Options.of({**told["options"], "deck": str(deck)})
        self.plan = Plan.of(self.options)
        self.host: str = told["host"]
        make = gevent.ssl.create_default_context
        self.contexts = trust.contexts(told["authority"], insecure=self.options.insecure, make=make)
        self.index: int = told["index"]
        self.processes: int = told["processes"]
        self.start_unix_s: float = told["start_unix_s"]
        self.book = Book(Path(self.folder.name) / "requests.parquet")
        self.played = False
        self._playing: gevent.Greenlet | None = None
        self._handed_in = Signal()

    def play(self, user: FastHttpUser) -> None:
        """Send this process's share, then hand in the records."""
        runner = user.environment.runner
        assert runner is not None, "a user without a runner"
        self._playing = gevent.getcurrent()
        clock = clock_from(self.start_unix_s)
        session: Any = user.client  # typed for text; a body in bytes goes through untouched
        session.client.cookiejar = None  # one session asks for everybody: a balancer's cookie would tie all of them to one pod
        fire = user.environment.events.request.fire
        driver = Driver(session.request, self.options, self.plan.deck, self.book, clock=clock, fire=fire)

        def tick_once() -> None:
            runner.send_message(conduct.TICK, driver.taken())

        def tick() -> None:
            while True:
                gevent.sleep(conduct.TICK_S)
                tick_once()

        ticking = gevent.spawn(tick)
        before = resource.getrusage(resource.RUSAGE_SELF)
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECTED_AFTER, 20, 100)
        try:
            if self.options.closed:
                clients = len(range(self.index, self.options.closed, self.processes))
                seed = self.options.seed + self.index
                driver.closed_loop(lambda: share(self.plan.events(), self.index, self.processes), clients, seed)
            else:
                driver.open_loop(share(self.plan.events(), self.index, self.processes))
        finally:
            self._playing = None  # from here on nobody may interrupt it
            ticking.kill()
            gc.unfreeze()
            tick_once()
            self.book.close()
            spent = resource.getrusage(resource.RUSAGE_SELF)
            cpu_s = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
            self._hand_in(runner, cpu_s / max(clock(), TINY_S), spent.ru_nivcsw - before.ru_nivcsw)

    def _hand_in(self, runner: Any, cpu_share: float, preempted: int) -> None:
        with self.book.path.open("rb") as file:
            while piece := file.read(conduct.PIECE_BYTES):
                runner.send_message(conduct.RECORDS, {"piece": piece})
                gevent.sleep(0)
        runner.send_message(conduct.DONE, {"cpu_share": round(cpu_share, 4), "preempted": preempted})
        self.folder.cleanup()
        self._handed_in.set()

    def end(self) -> None:
        """End early, and wait until the records are handed in."""
        playing, self._playing = self._playing, None
        if playing is not None:
            playing.kill(block=False)
        if self.played:
            self._handed_in.wait(conduct.HAND_IN_S)


class Stage:
    """What of a run this process holds: the conductor's run, its own part, or both."""

    run: Run | None = None
    part: Part | None = None
    ended = False
    verdict: ClassVar[list[str]] = []


class OpenLoop(FastHttpUser):
    """The place of one process's dispatcher."""

    host = ""
    concurrency = Options.max_outstanding + SPARE_CONNECTIONS
    connection_timeout = Options.timeout_s
    network_timeout = Options.timeout_s

    def __init__(self, environment: Environment) -> None:
        given = Stage.part
        if given is not None:
            self.host = given.host
            self.concurrency = given.options.max_outstanding + SPARE_CONNECTIONS
            self.connection_timeout = self.network_timeout = given.options.timeout_s
            self.insecure = given.options.insecure  # Locust's own default believes everybody
            self.ssl_context_factory = given.contexts
        super().__init__(environment)

    @task
    def dispatch(self) -> None:
        """Play this process's part, once."""
        part = Stage.part
        if part is None or part.played:
            gevent.sleep(conduct.TICK_S)
            return
        part.played = True
        part.play(self)
        raise StopUser


class Length(LoadTestShape):
    """A user in every process, until every process has handed in its records."""

    def tick(self) -> tuple[int, float] | None:
        """(Users, users started a second); None: the run is over."""
        run = Stage.run
        if run is None:
            return (1, 1.0) if self._processes() == 0 else (self._processes(), float(self._processes()))
        run.show()
        _look_for_lost(run, self.runner)
        return None if run.finished or run.ending else (run.processes, float(run.processes))

    def _processes(self) -> int:
        return self.runner.worker_count if isinstance(self.runner, MasterRunner) else 1


def _look_for_lost(run: Run, runner: Any) -> None:
    if isinstance(runner, MasterRunner):
        there = {client.id for client in runner.clients.all if client.state != STATE_MISSING}
        if gone := sorted(run.pending - there):
            run.lose(gone, "is gone")


def _parser(parser: ArgumentParser) -> None:
    options.add(parser)


def _init(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    assert runner is not None, "Locust without a runner"
    if not isinstance(runner, WorkerRunner):
        # Locust's own handler comes only after a headless run with a shape is over: until then SIGTERM would just kill it.
        gevent.signal_handler(signal.SIGTERM, _end)
    else:
        # Fired in reverse: before the runner's own listener, which tells the master that this worker is gone.
        add: Callable[..., Any] = environment.events.quitting.add_listener
        add(_worker_quitting)
    runner.register_message(conduct.START, _on_start)
    runner.register_message(conduct.STOP, _on_stop)
    runner.register_message(conduct.TICK, _on_tick)
    runner.register_message(conduct.RECORDS, _on_records)
    runner.register_message(conduct.DONE, _on_done)


def _worker_quitting(**_: Any) -> None:
    if Stage.part is not None:
        Stage.part.end()


def _end() -> None:
    """End the run at the next tick; without one there is nothing to write."""
    if Stage.run is None:
        sys.exit(128 + signal.SIGTERM)
    Stage.run.ending = True


def _test_start(environment: Environment, **_: Any) -> None:
    """On the master and in a process by itself: begin a run. Workers hear of it in a message before this."""
    runner = environment.runner
    if runner is None or isinstance(runner, WorkerRunner):
        return
    try:
        given = Options.of(vars(environment.parsed_options))
        plan = Plan.of(given)
        trust.authority(given.ca_file)
        for gate in given.gates:
            parse(gate)
    except (BadDeck, BadGate, BadTrace, BadWorkload) as refusal:
        log.error("%s", refusal)  # noqa: TRY400 (what was asked was wrong: a message, no trace)
        environment.process_exit_code = BADLY_ASKED
        gevent.spawn(runner.quit)
        return
    names = sorted(client.id for client in runner.clients.ready) if isinstance(runner, MasterRunner) else ["local"]
    start_unix_s = time.time() + given.start_in_s
    run = Run(given, plan, conduct.folder(given), environment.host or "", set(names), len(names), start_unix_s)
    Stage.run, Stage.ended = run, False
    run.begin()
    for index, name in enumerate(names):
        runner.send_message(conduct.START, run.start_message(index), client_id=name)


def _test_stopping(environment: Environment, **_: Any) -> None:
    """A run that somebody ends: its workers hand in what they have before Locust ends them."""
    run, runner = Stage.run, environment.runner
    if run is None or not run.pending or Stage.ended:
        return
    Stage.ended = True  # Locust says so twice
    run.notes.append(f"ended by hand after {run.at_s:.0f} s of {run.options.duration_s:g} s")
    if not isinstance(runner, MasterRunner):
        return
    runner.send_message(conduct.STOP, {})
    patience = gevent.Timeout(conduct.HAND_IN_S, False)  # noqa: FBT003 (gevent's way to say: end the block, raise nothing)
    with patience:
        while run.pending:
            gevent.sleep(0.05)


def _test_stop(environment: Environment, **_: Any) -> None:
    run = Stage.run
    if run is None:
        return
    Stage.run = None
    status = run.conclude()
    if status or run.options.gates:  # with gates they alone decide: Locust's own 1 for any failed request does not count then
        environment.process_exit_code = status
    if environment.web_ui is None:
        Stage.verdict = run.verdict
    else:
        _say(run.verdict)


def _quit(**_: Any) -> None:
    """After Locust's tables: the last thing that is read is the verdict."""
    _say(Stage.verdict)


def _say(verdict: list[str]) -> None:
    for text in verdict:
        print(text, flush=True)


def _on_start(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001 (as Locust calls it)
    Stage.part = Part(msg.data)


def _on_stop(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001
    if Stage.part is not None:
        gevent.spawn(Stage.part.end)


def _on_tick(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001
    if Stage.run is not None:
        Stage.run.tick(msg.node_id, msg.data)


def _on_records(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001
    if Stage.run is not None:
        Stage.run.hand_in(msg.node_id, msg.data["piece"])


def _on_done(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001
    if Stage.run is not None:
        Stage.run.done(msg.node_id, msg.data)


def _listen() -> None:
    hooks: dict[EventHook, Callable[..., None]] = {
        events.init_command_line_parser: _parser,
        events.init: _init,
        events.test_start: _test_start,
        events.test_stopping: _test_stopping,
        events.test_stop: _test_stop,
        events.quit: _quit,
    }
    for hook, listener in hooks.items():
        add: Callable[..., Any] = hook.add_listener
        add(listener)


_listen()
