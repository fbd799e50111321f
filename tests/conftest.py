"""What holds for every test: how Hypothesis searches, whose settings count, and that no process outlives its tests."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A busy machine makes single examples slow: no deadline. In CI the same change gives the same verdict (derandomize);
# everywhere else each run looks at new examples. HEARTH_FUZZ=1 looks 50 times longer: for the night, not for `make test`.
COMMON = hypothesis.settings(deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("usual", COMMON)
hypothesis.settings.register_profile("ci-usual", COMMON, derandomize=True, database=None)
hypothesis.settings.register_profile("fuzz", COMMON, max_examples=5000)


def pytest_configure() -> None:
    """Choose the profile; forget the settings of a pod that somebody runs from this shell; heed Ctrl-C.

    A shell has what it starts in the background ignore SIGINT, and so would everything that the tests start there.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fuzz, ci = os.environ.pop("HEARTH_FUZZ", ""), os.environ.get("CI", "")
    hypothesis.settings.load_profile("fuzz" if fuzz else "ci-usual" if ci else "usual")
    for name in [name for name in os.environ if name.startswith("HEARTH_") and not name.startswith("HEARTH_E2E_")]:
        del os.environ[name]


@pytest.fixture(scope="module", autouse=True)
def no_process_outlives_its_tests() -> Iterator[None]:
    """Fail the module that leaves a child process, running or unreaped. A module, not a test: some share a server."""
    before = _children()
    yield
    left = _children() - before
    told = [f"{process}: {_command(process)}" for process in sorted(left)]
    for process in left:
        os.kill(process, signal.SIGKILL)  # our child, so the number cannot be another's by now
    assert not left, f"left behind: {'; '.join(told)}"


def _children() -> set[int]:
    """This process's children. Each thread lists its own."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile; so do idle pools' threads
            found |= {int(process) for process in (thread / "children").read_text().split()}
    return found


def _command(process: int) -> str:
    words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return words or "ended, but nobody waited for it"
