"""The client: wrk with one thread, and the Lua script it needs to POST a body and tell its figures as JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.peers.peer import HOST, PeerFailed, pinned
from loadtest.peers.workloads import Request

TIMEOUT_S: Final = 30
"""Of one request; wrk counts those that take longer."""

SPARE_S: Final = 60.0

SCRIPT: Final = """
local file = assert(io.open("{body}", "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "failed": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Figures:
    """What one run of wrk found. ``requests``: how many ended, ``failed`` ones among them; 0: the latencies are unknown."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    requests: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Wrk:
    """The binary and where its shared libraries lie, if not with the system's."""

    binary: Path
    libraries: Path | None = None

    def run(
        self, folder: Path, url: str, sent: Request, *, core: int, connections: int, seconds: int, may_fail: bool = False
    ) -> Figures:
        """Send the same request over and over for ``seconds``.

        PeerFailed: wrk did, or, unless ``may_fail``, one request failed or none was answered.
        """
        command, known = self._command(folder, url, sent, core=core, connections=connections, seconds=seconds)
        done = subprocess.run(  # noqa: S603 (our own command line)
            command, env=known, capture_output=True, text=True, check=False, timeout=seconds + SPARE_S
        )
        if done.returncode:
            raise PeerFailed(f"wrk ended with {done.returncode}: {done.stderr[-500:]}")
        found = figures(done.stdout)
        if (found.failed or not found.requests) and not may_fail:
            raise PeerFailed(f"{found.failed} of {found.requests} requests failed")
        return found

    @contextmanager
    def running(
        self, folder: Path, url: str, sent: Request, *, core: int, connections: int, longest_s: int
    ) -> Iterator[list[Figures]]:
        """Send while the context lasts, ``longest_s`` at most. What is yielded holds the figures once the context has ended.

        PeerFailed: wrk ended before the context did.
        """
        command, known = self._command(folder, url, sent, core=core, connections=connections, seconds=longest_s)
        found: list[Figures] = []
        child = subprocess.Popen(  # noqa: S603 (our own command line)
            command, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            yield found
            if child.poll() is not None:
                raise PeerFailed(f"wrk ended by itself with {child.returncode}")
            child.send_signal(signal.SIGINT)  # taskset became wrk; wrk stops, and tells what it has
            found.append(figures(child.communicate(timeout=SPARE_S)[0]))
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def _command(
        self, folder: Path, url: str, sent: Request, *, core: int, connections: int, seconds: int
    ) -> tuple[list[str], dict[str, str]]:
        body = folder / "body"
        body.write_bytes(sent.body)
        file = folder / "post.lua"
        file.write_text(script(body, sent))
        command = [
            str(self.binary),
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            f"--timeout={TIMEOUT_S}s",
            "-s",
            str(file),
            url,
        ]
        known = dict(os.environ) | ({"LD_LIBRARY_PATH": str(self.libraries)} if self.libraries else {})
        return pinned(core, command), known


def script(body: Path, sent: Request) -> str:
    """The Lua script for one request."""
    lines = (f'wrk.headers["{name}"] = "{value}"' for name, value in sent.headers.items())
    return SCRIPT.format(body=body, headers="\n".join(lines))


def figures(printed: str) -> Figures:
    """What ``done`` of the script wrote, at the end of wrk's own output."""
    told = json.loads(printed.strip().splitlines()[-1])
    if not told["requests"]:
        return Figures(0.0, 0.0, 0.0, 0, told["failed"])  # wrk's percentiles of nothing mean nothing
    rate = told["requests"] / told["duration_us"] * 1e6
    return Figures(rate, told["p50_us"], told["p99_us"], told["requests"], told["failed"])


def find(peers_venv: Path) -> Wrk | None:
    """The system's wrk, else the one that `make bench-overhead` unpacked from Debian's package; None: neither."""
    if installed := shutil.which("wrk"):
        return Wrk(Path(installed))
    unpacked = peers_venv / "wrk/usr/bin/wrk"
    libraries = sorted((peers_venv / "wrk/usr/lib").glob("*/libluajit*.so.2"))
    return Wrk(unpacked, libraries[0].parent) if unpacked.exists() and libraries else None


def url(port: int, path: str) -> str:
    """Where wrk sends to."""
    return f"http://{HOST}:{port}{path}"
