"""The client: wrk with one thread, and the Lua script it needs to POST a body and tell its figures as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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
    """What one run of wrk found."""

    requests_per_s: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Wrk:
    """The binary and where its shared libraries lie, if not with the system's."""

    binary: Path
    libraries: Path | None = None

    def run(self, folder: Path, url: str, sent: Request, *, core: int, connections: int, seconds: int) -> Figures:
        """Send the same request over and over for ``seconds``. PeerFailed: any of them failed."""
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
        done = subprocess.run(  # noqa: S603 (our own command line)
            pinned(core, command), env=known, capture_output=True, text=True, check=False, timeout=seconds + SPARE_S
        )
        if done.returncode:
            raise PeerFailed(f"wrk ended with {done.returncode}: {done.stderr[-500:]}")
        return figures(done.stdout)


def script(body: Path, sent: Request) -> str:
    """The Lua script for one request."""
    lines = (f'wrk.headers["{name}"] = "{value}"' for name, value in sent.headers.items())
    return SCRIPT.format(body=body, headers="\n".join(lines))


def figures(printed: str) -> Figures:
    """What ``done`` of the script wrote, at the end of wrk's own output."""
    told = json.loads(printed.strip().splitlines()[-1])
    if told["failed"] or not told["requests"]:
        raise PeerFailed(f"{told['failed']} of {told['requests']} requests failed")
    return Figures(told["requests"] / told["duration_us"] * 1e6, told["p50_us"], told["p99_us"])


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
