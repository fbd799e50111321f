"""The demo's own S3: moto's server on 127.0.0.1, in a process of its own (``python -m predictor.demo.s3``).

Of its own, because it answers hundreds of ranged GETs while clients are being timed: sharing an interpreter with
them would bend the very latencies the demo shows. It ends when the pipe on its standard input closes, so it cannot
outlive the demo, however the demo ends.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET: Final = "hearth-demo"
PREFIX: Final = "models"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What moto accepts, which is anything; said explicitly, so that nobody's real credentials are ever looked at."""

START_TIMEOUT_S: Final = 60.0
"""Its imports take a second; this much on a machine that does ten other things."""

_PORT: Final = b"hearth demo s3 port "


def read_port(server: subprocess.Popen[bytes]) -> int:
    """The port the server process has bound; waits for it. 0: it ended first, or took too long."""
    assert server.stdout is not None, "the server was started without a pipe"
    pipe, told = server.stdout.fileno(), b""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))[0] and (chunk := os.read(pipe, 4096)):
        told += chunk
        *lines, _ = told.split(b"\n")
        for line in lines:
            if line.startswith(_PORT):
                return int(line.removeprefix(_PORT))
    return 0


def client(port: int) -> S3Client:
    """A boto3 client of the embedded server, with its bucket made."""
    import boto3  # noqa: PLC0415 (150 ms that the server's process does not need)
    from botocore.config import Config  # noqa: PLC0415

    made = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
        config=Config(proxies={}, connect_timeout=5, read_timeout=30, retries={"max_attempts": 3}),
    )
    made.create_bucket(Bucket=BUCKET)
    return made


def upload(to: S3Client, name: str, files: Mapping[str, bytes]) -> None:
    """Publish version 1 of a model, file by file in the order given: the manifest, which comes last, makes it eligible."""
    for path, content in files.items():
        to.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}/1/{path}", Body=content)


def _serve() -> None:
    """Serve until standard input ends."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 (1 s; the parent, which uploads, does without)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(f"{_PORT.decode()}{server.get_host_and_port()[1]}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()
