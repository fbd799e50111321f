"""One process's requests: sent when they are due, whatever the server does, judged, and written down.

One dispatcher walks the schedule and starts a greenlet per request. Nothing in the way of a due request can wait: not for
a connection (the session's own limit is above ``max_outstanding``), not for an answer, not for room. What cannot be sent
is an error of the generator and in the records, never a later request. Latency counts from the due time.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import gevent
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from geventhttpclient.useragent import ConnectionError as UserAgentError

from loadtest.draws import Draw
from loadtest.options import Options
from loadtest.payloads import BINARY_LENGTH, Body, Deck, Target
from loadtest.records import Book, Record
from loadtest.tally import Tally
from loadtest.workloads import Event

SPAWNED_AT_ONCE: Final = 32
"""A dispatcher that is behind lets others run after so many: they would not be sent before it catches up."""
NAMED_TARGETS: Final = 500
"""Of more than these, Locust's page shows the sum alone: each name costs it a line a report."""
STAGES: Final = ("queue", "fetch", "device", "build", "compute")
RETRIED: Final = frozenset({429, 503})
DRAIN_POLL_S: Final = 0.02
BROKEN: Final = (OSError, UserAgentError, HTTPConnectionClosed, HTTPParseError, zlib.error)
"""What reading an answer may raise. Of Locust nothing is imported here: its import patches the standard library."""
LIMIT: Final = "generator limit"
UNANSWERED: Final = "unanswered at the end"


class Answer(NamedTuple):
    """What one try brought. status 0: nothing; ``error`` "" as long as nobody judged it otherwise."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    first_byte_s: float | None
    error: str


class Clock(Protocol):
    """Seconds since the common start; below 0 before it."""

    def __call__(self) -> float:
        """Now."""


def clock_from(start_unix_s: float) -> Clock:
    """A clock that starts at a wall clock's moment and goes on without wall clocks' jumps."""
    zero_s = time.perf_counter() + (start_unix_s - time.time())
    return lambda: time.perf_counter() - zero_s


class Driver:
    """Sends one process's share of a schedule through one session.

    request  ``FastHttpSession.request``, or what does the same
    fire     of Locust's request event
    """

    def __init__(
        self,
        request: Callable[..., Any],
        options: Options,
        deck: Deck,
        book: Book,
        *,
        clock: Clock,
        fire: Callable[..., None],
    ) -> None:
        self._request = request
        self._options = options
        self._deck = deck
        self._book = book
        self._now = clock
        self._fire = fire
        self._under_way: dict[int, tuple[Event, gevent.Greenlet]] = {}
        self._sent_s: dict[int, float] = {}
        self._headers = {"Host": options.host_header} if options.host_header else {}
        if options.deadline_ms and options.server == "hearth":
            self._headers["Hearth-Deadline-Ms"] = str(options.deadline_ms)
        few = len(deck.targets) <= NAMED_TARGETS
        self._names = [_name(target) if few else "all models" for target in deck.targets]
        self._urls = [target.path for target in deck.targets]
        self.tally = Tally()
        self._taken_s = 0.0

    def taken(self) -> dict[str, Any]:
        """What happened since this was last asked, as ``Run.tick`` takes it."""
        tally, self.tally = self.tally, Tally()
        tally.in_flight = len(self._under_way)
        since_s, self._taken_s = self._taken_s, max(0.0, self._now())
        return {"tally": tally.packed(), "span_s": self._taken_s - since_s}

    def open_loop(self, events: Iterator[Event]) -> None:
        """Send every event when it is due, then wait for what is under way: at most one try and its retries long."""
        try:
            in_a_row = 0
            for number, event in enumerate(events):
                wait_s = event.due_s - self._now()
                in_a_row = 0 if wait_s > 0 else in_a_row + 1
                if wait_s > 0 or in_a_row % SPAWNED_AT_ONCE == 0:
                    gevent.sleep(max(0.0, wait_s))
                self._send(number, event)
            self._drain(self._options.timeout_s + self._options.max_retry_wait_s)
        finally:
            self._abandon()

    def closed_loop(self, events: Callable[[], Iterator[Event]], clients: int, seed: int) -> None:
        """Keep ``clients`` busy for the run's duration, each with its next request when it was answered and has thought.

        events  the schedule, whose models and questions are asked in order, over and over; its due times mean nothing
        """
        numbers = iter(range(1 << 62))
        source = _endless(events)

        def client(name: int) -> None:
            draw = Draw(seed, "thinking", name)
            while self._now() < self._options.duration_s:
                event = next(source)._replace(due_s=self._now())
                self.tally.offered += 1
                number = next(numbers)
                self._under_way[number] = (event, gevent.getcurrent())
                self._ask_guarded(number, event)
                if self._options.think_time_s:
                    gevent.sleep(self._options.think_time_s * draw.exponential())

        gevent.sleep(max(0.0, -self._now()))
        greenlets = [gevent.spawn(client, name) for name in range(clients)]
        try:
            left_s = self._options.duration_s + self._options.timeout_s + self._options.max_retry_wait_s
            gevent.joinall(greenlets, timeout=left_s)
        finally:
            self._abandon()
            gevent.killall(greenlets, block=False)

    def _send(self, number: int, event: Event) -> None:
        self.tally.offered += 1
        if len(self._under_way) >= self._options.max_outstanding:
            self._give_up(event, LIMIT)
            return
        self._under_way[number] = (event, gevent.spawn(self._ask_guarded, number, event))

    def _drain(self, timeout_s: float) -> None:
        deadline_s = self._now() + timeout_s
        while self._under_way and self._now() < deadline_s:
            gevent.sleep(DRAIN_POLL_S)

    def _abandon(self) -> None:
        """Write down what was never answered; the run is over."""
        left = list(self._under_way.items())
        self._under_way.clear()
        for number, (event, greenlet) in left:
            greenlet.kill(block=False)
            self._give_up(event, UNANSWERED, sent_s=self._sent_s.get(number), until_s=self._now())

    def _give_up(self, event: Event, error: str, *, sent_s: float | None = None, until_s: float | None = None) -> None:
        """Note a request without an answer. ``until_s``: until when it was waited for; None: nobody did."""
        target = self._deck.targets[event.target]
        record = Record(event.due_s, sent_s, model=target.model, version=target.version, error=error, tenant=target.tenant)
        self._note(record._replace(priority=event.priority), self._names[event.target], until_s)

    def _ask_guarded(self, number: int, event: Event) -> None:
        try:
            self._ask(number, event)
        except Exception as fault:  # noqa: BLE001 (a request's root: what nobody foresaw is an error in the records, too)
            self._give_up(event, f"generator fault: {type(fault).__name__}")
        finally:
            self._under_way.pop(number, None)
            self._sent_s.pop(number, None)

    def _ask(self, number: int, event: Event) -> None:
        target = self._deck.targets[event.target]
        question, body = self._deck.question(event.target, event.pick)
        headers = {**body.headers, **self._headers}
        if event.priority and self._options.server == "hearth":
            headers["Hearth-Priority"] = event.priority
        self._sent_s[number] = sent_s = self._now()
        self.tally.sent(sent_s - event.due_s)
        tries, waited_s = 0, 0.0
        while True:
            tries += 1
            answer = self._once(event.target, body, headers)
            wait_s = self._retry_wait_s(answer, tries)
            if wait_s is None:
                break
            waited_s += wait_s
            gevent.sleep(wait_s)
        done_s = self._now()
        error = answer.error or question.judge(answer.content, answer.headers.get(BINARY_LENGTH))
        told = _told(answer.headers) if self._options.server == "hearth" else {}
        record = Record(
            due_s=event.due_s,
            sent_s=sent_s,
            first_byte_s=answer.first_byte_s,
            done_s=done_s,
            model=target.model,
            status=answer.status,
            error=error,
            tries=tries,
            retry_wait_s=waited_s,
            tenant=target.tenant,
            priority=event.priority,
            bytes_out=len(body.content),
            bytes_in=len(answer.content),
            **({"version": target.version} | told),
        )
        self._note(record, self._names[event.target], done_s)

    def _once(self, target: int, body: Body, headers: dict[str, str]) -> Answer:
        """One try. Never raises for what network or server do."""
        with gevent.Timeout(self._options.timeout_s, TimeoutError):
            try:
                response = self._request(
                    "POST", self._urls[target], data=body.content, headers=headers, catch_response=True, stream=True
                )
                first_byte_s = self._now() if response.status_code else None
                content = bytes(response.content or b"")
            except BROKEN as problem:  # the body broke off, or came too late
                return Answer(0, {}, b"", None, _reason(problem))
            failure: BaseException | None = getattr(response, "error", None)
            status = response.status_code or 0
            error = f"HTTP {status}" if status and failure else _reason(failure) if failure else ""
            return Answer(status, response.headers or {}, content, first_byte_s, error)

    def _retry_wait_s(self, answer: Answer, tries: int) -> float | None:
        """How long a good client waits before it asks again; None: it does not."""
        if answer.status not in RETRIED or tries > self._options.retries:
            return None
        with suppress(ValueError):
            wait_s = float(answer.headers.get("Retry-After", ""))
            return wait_s if 0 <= wait_s <= self._options.max_retry_wait_s else None
        return None

    def _note(self, record: Record, name: str, done_s: float | None) -> None:
        """Into the book, the live figures, and Locust's own statistics: from the due time everywhere.

        done_s  None: there is no latency, and a small number instead of one would flatter
        """
        self._book.add(record)
        latency_s = None if done_s is None else done_s - record.due_s
        cold = record.start not in ("", "hot")
        self.tally.done(latency_s, cold=cold, error=record.error, tries=record.tries)
        self._fire(
            request_type="POST",
            name=name,
            response_time=None if latency_s is None else 1e3 * latency_s,
            response_length=record.bytes_in,
            exception=RequestFailed(record.error) if record.error else None,
            context={},
            response=None,
        )


class RequestFailed(Exception):
    """Why, in few words: Locust counts failures by their text."""


def _endless(events: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    while True:
        some = False
        for event in events():
            some = True
            yield event
        assert some, "a schedule without events"


def _name(target: Target) -> str:
    return f"{target.model}:{target.version}" if target.version else target.model


def _reason(problem: BaseException) -> str:
    """Few reasons, not one per port number: they are counted."""
    problem = getattr(problem, "original", None) or problem
    if isinstance(problem, (TimeoutError, gevent.Timeout)):
        return "timeout"
    if isinstance(problem, ssl.SSLError):
        return "TLS: certificate not believed" if isinstance(problem, ssl.SSLCertVerificationError) else "TLS"
    if isinstance(problem, ConnectionRefusedError):
        return "connection refused"
    if isinstance(problem, OSError):
        return "connection"
    return f"connection: {type(problem).__name__}"


def _told(headers: Mapping[str, str]) -> dict[str, Any]:
    """What Hearth's headers say, as a record's fields."""
    told: dict[str, Any] = {"start": headers.get("Hearth-Start", "")}
    if version := headers.get("Hearth-Version", ""):
        told["version"] = version
    pod, _, up = headers.get("Hearth-Pod", "").partition(";up=")
    told["pod"] = pod
    with suppress(ValueError):
        told["pod_up_s"] = float(up)
    for stage in headers.get("Server-Timing", "").split(","):
        name, _, duration_ms = stage.strip().partition(";dur=")
        if name in STAGES:
            with suppress(ValueError):
                told[f"timing_{name}_ms"] = float(duration_ms)
    return told
