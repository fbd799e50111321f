"""What a server must be to take part: started on one core, asked over V2 REST, ended with everything it started."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Final, Protocol

from loadtest.peers.workloads import Case, Encoding, Request, answer, compare, request
from predictor.demo.children import Children

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 90.0
ANSWER_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
FINAL: Final = frozenset({413, 422, 500})
"""Statuses that waiting does not change; 400, 404 and 503 are also what a server says that is still loading."""


class PeerFailed(Exception):
    """A server did not start, ended, or answered with an error."""


@dataclass(frozen=True)
class Site:
    """Where servers run.

    folder       a temporary one, of this start alone
    server_core  all processes of the server
    client_core  the client, and whatever a server needs that is no part of it (Hearth's S3)
    peers_venv   what `make bench-overhead` installed for other servers
    """

    folder: Path
    server_core: int
    client_core: int
    peers_venv: Path


@dataclass(frozen=True)
class Started:
    """A server's first process and its port. ``admin_port``: where its /metrics are; 0: it was started without."""

    process: Popen[bytes]
    port: int
    log: str
    admin_port: int = 0


class Peer(Protocol):
    """One server with one configuration. It ends when the Children do that started it."""

    @property
    def name(self) -> str:
        """The table's column."""

    @property
    def settings(self) -> str:
        """The table's caption: how it was configured."""

    def missing(self, site: Site) -> str:
        """Why it cannot run here; "" when it can."""

    def start(self, children: Children, site: Site, cases: Sequence[Case]) -> Started:
        """Start it with these models; it need not be ready yet."""


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command on one core, and all that it starts with it."""
    return ["taskset", "--cpu-list", str(core), *command]


def path(case: Case) -> str:
    """Where a model is asked, on every server."""
    return f"/v2/models/{case.workload.name}/infer"


def wait_until_right(started: Started, children: Children, case: Case) -> None:
    """Ask until the server answers 200, then check every encoding's answer. PeerFailed, WrongAnswer."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    told = "nothing"
    while time.monotonic() < deadline_s and started.process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            told = _ask(started.port, case, "json" if "json" in case.workload.encodings else "binary")
            if not told:
                for encoding in case.workload.encodings:
                    told = _ask(started.port, case, encoding)
                    if told:
                        raise PeerFailed(f"{case.workload.name}, {encoding}: {told}")
                return
        time.sleep(POLL_S)
    raise PeerFailed(f"{case.workload.name} was not ready: {told}\n{children.last_words(started.log)}")


def _ask(port: int, case: Case, encoding: Encoding) -> str:
    """Send one request and compare the answer. Returns what is wrong with its status; "" when nothing is."""
    sent: Request = request(case.input, encoding)
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("POST", path(case), sent.body, sent.headers)
        got = connection.getresponse()
        body = got.read()
        if got.status in FINAL:
            raise PeerFailed(f"{case.workload.name}, {encoding}: {got.status} {body[:500].decode(errors='replace')}")
        if got.status != http.client.OK:
            return f"{got.status} {body[:500].decode(errors='replace')}"
        header = got.getheader("Inference-Header-Content-Length")
        compare(answer(body, int(header) if header else None), case.expected)
        return ""
    finally:
        connection.close()
