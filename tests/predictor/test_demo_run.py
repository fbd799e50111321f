"""``hearth demo`` from end to end: the real command, as a user without a terminal runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 60.0


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def running(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo as a child; asked to end, not killed, if the test leaves early: it ends what it has started."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "predictor.boot", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts what it puts in the background with SIGINT ignored, and its children inherit that.
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 (there are no other threads yet)
    )
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(TIMEOUT_S)


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that were started with this temporary folder in their environment."""
    marker = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
    return found


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """What the demo has said up to the line with these words. Bounded by the test's own time limit."""
    assert demo.stdout is not None
    told = ""
    for line in demo.stdout:
        told += line
        if words in line:
            return told
    raise AssertionError(f"the demo ended without {words!r}:\n{told}")


def test_the_demo_answers_everything_rightly_evicts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(["--requests", "200", "--keep"], tmp_path) as demo:
        told = read_until(demo, "runs until Ctrl-C")
        assert "200 requests from 4 clients" in told
        assert " 0 errors" in told
        assert "no answer differs" in told
        evictions = re.search(r"(\d+) evictions from the device, (\d+) from RAM", told)
        assert evictions is not None, told
        assert all(int(count) > 0 for count in evictions.groups()), told

        invited = re.search(r"curl -s (http://127.0.0.1:\d+/\S+) -d @(\S+/(\d).json)", told)
        assert invited is not None, told
        url, payload, digit = invited.groups()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, Path(payload).read_bytes(), timeout=TIMEOUT_S) as response:
            logits = json.loads(response.read())["outputs"][0]["data"]
        assert logits.index(max(logits)) == int(digit)

        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=TIMEOUT_S)
        assert demo.returncode == 0, told + rest
    assert left_running(tmp_path) == []
    assert list(tmp_path.glob("hearth-*")) == []


def test_a_demo_that_is_told_to_end_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    with running([], tmp_path) as demo:
        told = read_until(demo, "imported torch")
        assert any("predictor.demo.s3" in command for command in left_running(tmp_path))
        demo.send_signal(signal.SIGTERM)
        rest, _ = demo.communicate(timeout=TIMEOUT_S)
        assert demo.returncode == 128 + signal.SIGTERM, told + rest
    assert left_running(tmp_path) == []
    assert list(tmp_path.glob("hearth-*")) == []
