"""One process's requests over a session that is scripted: late, refused, broken, wrong, too many."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal

from loadtest import payloads, records
from loadtest.drive import LIMIT, UNANSWERED, Driver, clock_from
from loadtest.options import Options
from loadtest.payloads import Encoding
from loadtest.records import Book
from loadtest.standin import ANSWER, QUESTION
from loadtest.workloads import Event

HEARTH = {
    "Hearth-Start": "disk",
    "Hearth-Version": "7",
    "Hearth-Pod": "pod-a;up=12.500",
    "Server-Timing": "queue;dur=1.5, fetch;dur=20.25, compute;dur=0.30",
}


@dataclass
class Response:
    """As FastHttpSession gives it with ``catch_response``."""

    status_code: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(HEARTH))
    content: bytes = ANSWER
    error: BaseException | None = None


def refused(status: int, **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}", RuntimeError(status))


class Session:
    """Answers as its script says, then rightly; remembers what it was asked."""

    def __init__(self, *script: Response | Callable[[], Response]) -> None:
        self._script = list(script)
        self.asked: list[dict[str, Any]] = []

    def request(self, method: str, url: str, **given: Any) -> Response:
        self.asked.append({"url": url, **given})
        step = self._script.pop(0) if self._script else Response()
        return step() if callable(step) else step


class Scene:
    """A driver with its session and its book."""

    def __init__(self, tmp_path: Path, session: Session, **options: Any) -> None:
        path = tmp_path / "deck.jsonl"
        payloads.write(path, [QUESTION | {"tenant": "acme"}])
        self.session = session
        self.fired: list[dict[str, Any]] = []
        self.folder = tmp_path
        self._book = Book(tmp_path / "requests" / "0.parquet")
        self.driver = Driver(
            session.request,
            Options(**({"timeout_s": 5.0} | options)),
            payloads.read(path, Encoding.JSON),
            self._book,
            clock=clock_from(time.time()),
            fire=lambda **told: self.fired.append(told),
        )

    def rows(self) -> list[dict[str, Any]]:
        self._book.close()
        rows: list[dict[str, Any]] = records.read(self.folder).to_pylist()
        return rows


def events(count: int, gap_s: float = 0.001, priority: str = "") -> Iterator[Event]:
    return iter([Event(gap_s * number, 0, number, priority) for number in range(count)])


def test_a_record_holds_everything_that_hearths_headers_say(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(), deadline_ms=2500, host_header="m.example")
    scene.driver.open_loop(events(1, priority="high"))
    (row,) = scene.rows()
    assert row["error"] == ""
    assert (row["model"], row["version"], row["start"], row["status"], row["tries"]) == ("standin", "7", "disk", 200, 1)
    assert (row["pod"], row["pod_up_s"], row["tenant"], row["priority"]) == ("pod-a", 12.5, "acme", "high")
    assert (row["timing_queue_ms"], row["timing_fetch_ms"], row["timing_device_ms"]) == (1.5, 20.25, None)
    assert row["due_s"] <= row["sent_s"] <= row["first_byte_s"] <= row["done_s"]
    sent = scene.session.asked[0]["headers"]
    assert (sent["Hearth-Priority"], sent["Hearth-Deadline-Ms"], sent["Host"]) == ("high", "2500", "m.example")


def test_another_server_is_sent_and_believed_none_of_hearths_headers(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(), deadline_ms=2500, server="v2")
    scene.driver.open_loop(events(1, priority="high"))
    assert not [name for name in scene.session.asked[0]["headers"] if name.startswith("Hearth-")]
    (row,) = scene.rows()
    assert (row["start"], row["version"], row["pod"], row["priority"]) == ("", "", "", "high")


def test_a_stalled_request_holds_up_none_that_are_due_after_it(tmp_path: Path) -> None:
    everybody = Signal()

    def stall() -> Response:
        if len(scene.session.asked) == 20:
            everybody.set()
        everybody.wait(5)
        return Response()

    scene = Scene(tmp_path, Session(*[stall] * 20))
    scene.driver.open_loop(events(20))
    rows = scene.rows()
    assert [row["error"] for row in rows] == [""] * 20
    first_done_s = min(row["done_s"] for row in rows)
    assert all(row["sent_s"] < first_done_s for row in rows)
    assert all(
        told["response_time"] >= 1e3 * (first_done_s - row["due_s"]) for told, row in zip(scene.fired, rows, strict=True)
    )


def test_what_the_generator_has_no_room_for_is_an_error_and_not_a_later_request(tmp_path: Path) -> None:
    def stall() -> Response:
        while scene.driver.tally.offered < 10:
            gevent.sleep(0.001)
        return Response()

    scene = Scene(tmp_path, Session(stall, stall, stall), max_outstanding=3)
    scene.driver.open_loop(events(10))
    rows = scene.rows()
    assert len(rows) == 10
    assert len(scene.session.asked) == 3
    limited = [row for row in rows if row["error"] == LIMIT]
    assert len(limited) == 7
    assert all(row["sent_s"] is None and row["done_s"] is None and row["status"] == 0 for row in limited)
    assert sum(told["response_time"] is None for told in scene.fired) == 7


def test_a_503_with_retry_after_is_tried_again_and_counted(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(refused(503, Retry_After="0.05"), refused(503, Retry_After="0")), retries=2)
    scene.driver.open_loop(events(1))
    (row,) = scene.rows()
    assert (row["error"], row["status"], row["tries"]) == ("", 200, 3)
    assert row["retry_wait_s"] == pytest.approx(0.05)
    assert row["done_s"] - row["sent_s"] >= 0.05
    assert scene.driver.tally.retries == 2


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (refused(503), 1),
        (refused(503, Retry_After="100"), 1),
        (refused(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 1),
        (refused(500, Retry_After="0"), 1),
        (refused(429, Retry_After="0"), 3),
    ],
)
def test_retries_are_bounded_and_only_where_the_server_says_when(tmp_path: Path, answer: Response, tries: int) -> None:
    scene = Scene(tmp_path, Session(*[answer] * 5), retries=2)
    scene.driver.open_loop(events(1))
    (row,) = scene.rows()
    assert (row["error"], row["tries"]) == (f"HTTP {answer.status_code}", tries)


def test_a_wrong_answer_is_a_failure(tmp_path: Path) -> None:
    wrong = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4}]}).encode()
    scene = Scene(tmp_path, Session(Response(content=wrong), Response(content=b"<html>")))
    scene.driver.open_loop(events(3))
    assert [row["error"] for row in scene.rows()] == ["wrong answer", "unreadable answer", ""]
    assert [str(told["exception"]) for told in scene.fired if told["exception"]] == ["wrong answer", "unreadable answer"]


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(), "connection refused"),
        (ConnectionResetError(), "connection"),
        (KeyError("x"), "generator fault: KeyError"),
    ],
)
def test_what_breaks_has_a_reason_that_can_be_counted(tmp_path: Path, problem: Exception, told: str) -> None:
    def broken() -> Response:
        raise problem

    scene = Scene(tmp_path, Session(broken, Response(0, {}, b"", problem)))
    scene.driver.open_loop(events(1))
    (row,) = scene.rows()
    assert (row["error"], row["status"]) == (told, 0)


def test_a_try_is_given_up_after_its_timeout_however_slowly_bytes_come(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(lambda: Signal().wait() or Response()), timeout_s=0.05)
    scene.driver.open_loop(events(1))
    assert [row["error"] for row in scene.rows()] == ["timeout"]


def test_a_run_that_is_ended_writes_down_what_was_never_answered(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(*[lambda: Signal().wait() or Response()] * 4), timeout_s=60.0)
    running = gevent.spawn(scene.driver.open_loop, events(4))
    gevent.spawn_later(0.1, running.kill)
    running.join()
    rows = scene.rows()
    assert [row["error"] for row in rows] == [UNANSWERED] * 4
    assert all(row["sent_s"] is not None and row["done_s"] is None for row in rows)


def test_closed_clients_ask_one_after_another_until_the_duration_is_over(tmp_path: Path) -> None:
    inside, most = 0, 0

    def slow() -> Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        gevent.sleep(0.005)
        inside -= 1
        return Response()

    scene = Scene(tmp_path, Session(*[slow] * 10_000), closed=3, duration_s=0.2)
    scene.driver.closed_loop(lambda: events(5), 3, seed=1)
    rows = scene.rows()
    assert most == 3
    assert len(rows) > 5
    assert all(row["due_s"] < 0.2 for row in rows)


def test_the_live_figures_are_those_since_the_last_look(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Session(refused(500)))
    scene.driver.open_loop(events(4))
    told = scene.driver.taken()["tally"]
    assert told["counts"] == [4, 4, 3, 0, 0]
    assert told["errors"] == {"HTTP 500": 1}
    assert scene.driver.taken()["tally"]["counts"] == [0, 0, 0, 0, 0]
