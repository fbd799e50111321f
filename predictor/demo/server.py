"""The demo's ``hearth serve``: the same command a user types, as a child process, with small budgets."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from predictor.client import AdminClient, NoServer
from predictor.demo.children import Children, free_port
from predictor.demo.s3 import BUCKET, CREDENTIALS, PREFIX
from predictor.errors import HearthError

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
NOT_INHERITED: Final = ("HEARTH_", "AWS_")
PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class DemoFailed(HearthError):
    """Something the demo started did not do what it should."""


class Budgets(NamedTuple):
    """Room for weights."""

    device_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class Server:
    """The running server. ``command`` is what a user would type for the same."""

    process: subprocess.Popen[bytes]
    command: str
    port: int
    admin: AdminClient


def environment(endpoint: str = "") -> dict[str, str]:
    """What a child may know: nothing of the user's own S3 or Hearth settings; with ``endpoint``, the demo's S3."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED) and name.lower() not in PROXIES
    }
    if not endpoint:
        return kept
    nobody = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    return {**kept, **CREDENTIALS, **nobody, "AWS_ENDPOINT_URL": endpoint}


def serve(children: Children, endpoint: str, *, port: int, budgets: Budgets) -> Server:
    """Start ``hearth serve`` and wait until it says that it is ready. The admin port is the usual one if it is free."""
    admin_port = free_port(8082)
    flags = [
        *("--models", f"s3://{BUCKET}/{PREFIX}"),
        *("--port", str(port)),
        *("--admin-port", str(admin_port)),
        *("--trust", "code"),
        "--cpu-copy",
        *("--device-budget-bytes", str(budgets.device_bytes)),
        *("--ram-budget-bytes", str(budgets.ram_bytes)),
    ]
    process = children.start("serve", [sys.executable, "-m", "predictor.boot", "serve", *flags], environment(endpoint))
    server = Server(process, " ".join(["hearth serve", *flags]), port, AdminClient(f"http://{HOST}:{admin_port}"))
    _wait_until_ready(server, children)
    return server


def _wait_until_ready(server: Server, children: Children) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while server.process.poll() is None and time.monotonic() < deadline_s:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, server.port, timeout=START_TIMEOUT_S)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == http.client.OK:
                    return
            finally:
                connection.close()
        time.sleep(POLL_S)
    ended = server.process.poll()
    told = f"was not ready after {START_TIMEOUT_S:.0f} s" if ended is None else f"ended with status {ended}"
    raise DemoFailed(f"`{server.command}` {told}\n{children.last_words('serve')}")


def stages(server: Server) -> dict[str, float]:
    """When the pod did what for the first time; waits until the admin port, which comes last, answers."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return server.admin.timeline().stages
        except NoServer:
            if time.monotonic() > deadline_s or server.process.poll() is not None:
                raise
        time.sleep(POLL_S)
