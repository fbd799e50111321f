"""Models that do their worst, each beside healthy ones under steady load: who else notices, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.isolation.evil import EVILS, Evil, evil_files, healthy_files
from loadtest.isolation.load import warm
from loadtest.isolation.scene import Played, play
from tests.fakes.s3 import FakeS3
from tests.predictor.test_pod import Server, publish

HEALTHY = {f"healthy-{number}": 3.0 * number + 1 for number in range(1, 6)}
INSIDE = 2
"""Healthy requests that a dying worker may take along where all models share one: one batch computes, one model is built."""
EXECUTE_TIMEOUT_S = 1.0
BUILD_TIMEOUT_S = 2.5
"""The zygote's fork is up in 0.1 s, a busy machine's in one."""
SECONDS = 1.2
SPARE = 4
"""Connections that the pod keeps open for its next question: to the model store, and from the test's clients."""


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        for number, name in enumerate(HEALTHY, 1):
            publish(fake, name, healthy_files(float(number), tenant="good"))
        for evil in EVILS.values():
            publish(fake, evil.name, evil_files(evil, tenant="bad"))
        yield fake


@contextlib.contextmanager
def served(s3: FakeS3, isolation: str, tmp_path: Path) -> Iterator[Server]:
    """A pod whose limits keep the machine safe; afterwards nothing of what it started is left."""
    server = Server(
        s3,
        log=tmp_path / "log",
        isolation=isolation,
        execute_timeout_s=str(EXECUTE_TIMEOUT_S),
        build_timeout_s=str(BUILD_TIMEOUT_S),
        ram_budget_bytes=str(64 << 20),
        device_budget_bytes=str(256 << 20),
        max_body_bytes_in_flight=str(16 << 20),
        scratch_bytes=str(4 << 20),
        quarantine_backoff_s="0.2",
        drain_timeout_s="1",
    )
    try:
        yield server
    finally:
        before = _family(server.process.pid)
        status, logged = server.stop()
        assert status == 0, logged[-4000:]
        _until(lambda: not any(map(_alive, before)), 2, lambda: f"{list(filter(_alive, before))} outlived the pod")


@pytest.fixture(scope="module", params=["model", "tenant", "pool"])
def pod(request: pytest.FixtureRequest, s3: FakeS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    with served(s3, request.param, tmp_path_factory.mktemp("pod")) as server:
        asyncio.run(_warm(server))
        descriptors = _descriptors(server)
        yield request.param, server
        server.admin.post("/hearth/v1/unload", json={"models": list(EVILS)})
        _until(
            lambda: _descriptors(server).total() <= descriptors.total() + SPARE,
            20,
            lambda: f"more descriptors than before: {_descriptors(server) - descriptors}",
        )


async def _warm(server: Server) -> None:
    await warm(server.port, HEALTHY)


FEW = ("segfault", "hung-build", "fork", "close", "fill")


@pytest.mark.parametrize("evil", EVILS.values(), ids=EVILS)
def test_an_evil_model_harms_nobody_else(pod: tuple[str, Server], evil: Evil) -> None:
    isolation, server = pod
    if isolation != "model" and evil.name not in FEW:
        pytest.skip("the whole matrix is make bench-isolation's")
    played = asyncio.run(play(server.port, evil, HEALTHY, domain=isolation, seconds=SECONDS, pokes=2, pause_s=0.3))
    _judge(played, evil, isolation)
    _until(lambda: not _doubles(server), 2, lambda: f"left behind: {_doubles(server)}")


def _judge(played: Played, evil: Evil, isolation: str) -> None:
    allowed = INSIDE if isolation == "pool" else 0
    assert len(played.failed) <= allowed, [f"{one.model} {one.told}" for one in played.failed]
    assert played.asked >= len(HEALTHY)
    first = played.pokes[0]
    assert first.status > 0, f"{evil.name} had no answer: {first.told}"
    if evil.kills:
        assert first.status != 200


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _family(pid: int) -> list[int]:
    """The process's descendants."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found += [int(folder.name), *_family(int(folder.name))]
    return found


def _doubles(server: Server) -> list[str]:
    """Workers' names that several processes bear: what a worker forked bears its name, too."""
    names: Counter[str] = Counter()
    for pid in _family(server.process.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if words or parent == server.process.pid:  # what a living worker does not wait for is its own affair
                names[words or "dead"] += 1
    return [name for name, count in names.items() if count > 1 or name == "dead"]


def _descriptors(server: Server) -> Counter[str]:
    """How many there are of each kind."""
    found: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[re.sub(r"\d+", "#", str(descriptor.readlink()))] += 1
    return found


def _until(holds: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline_s, told()
        time.sleep(0.05)
