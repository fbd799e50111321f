"""A loop that stands still is noticed, told, and in the end not endured."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading
import time

import pytest

from predictor import descriptors
from predictor.descriptors import TooFewDescriptors
from predictor.health import BEAT_S, STUCK_STATUS, Ailment, Lateness, Pulse


class Lags(list[float]):
    def observe(self, value: float) -> None:
        self.append(value)


def test_a_minute_later_a_stall_is_forgotten() -> None:
    lateness = Lateness()
    lateness.note(BEAT_S, 1.0)
    lateness.note(20.0, 10.0)
    lateness.note(15.0, 40.0)
    assert lateness.seconds(41.0) == 35.0
    assert lateness.seconds(71.0) == 15.0
    assert lateness.seconds(101.0) == 0.0


async def test_a_stall_is_counted_and_makes_the_pod_not_live() -> None:
    lags = Lags()
    pulse = Pulse(lags, max_late_s=0.3, stuck_log_s=0, stuck_exit_s=0)
    pulse.start()
    try:
        await asyncio.sleep(2.5 * BEAT_S)
        assert not pulse.stalled()
        time.sleep(0.6)  # noqa: ASYNC251 (the stall)
        await asyncio.sleep(2 * BEAT_S)
        assert max(lags) >= 0.5
        assert "HEARTH_MAX_LATE_S" in pulse.stalled()
    finally:
        pulse.stop()


def test_a_loop_that_stays_stuck_ends_the_process() -> None:
    ended: list[int] = []
    over = threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        over.set()

    async def stuck() -> None:
        pulse = Pulse(Lags(), max_late_s=30, stuck_log_s=0, stuck_exit_s=1.0, end=end)
        pulse.start()
        await asyncio.sleep(2 * BEAT_S)
        assert over.wait(10)  # which blocks the loop
        pulse.stop()

    asyncio.run(stuck())
    assert ended == [STUCK_STATUS]


def test_the_stacks_of_a_stall_are_in_the_log_once() -> None:
    code = """
import asyncio, time
from predictor.health import Pulse
class Lag:
    def observe(self, value): pass
async def main():
    pulse = Pulse(Lag(), max_late_s=30, stuck_log_s=0.3, stuck_exit_s=0)
    pulse.start()
    await asyncio.sleep(0.25)
    stand_still()
    await asyncio.sleep(0.25)
    pulse.stop()
def stand_still():
    time.sleep(1.5)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.count("in stand_still") == 1


def test_stacks_that_nobody_reads_stop_nobody() -> None:
    """faulthandler writes with the GIL held: a full pipe would be the end of every thread."""
    code = """
import asyncio, sys, time
from predictor import log_stream
from predictor.health import Pulse
class Lag:
    def observe(self, value): pass
async def main():
    log_stream.install()
    for _ in range(3000):
        print("x" * 100, file=sys.stderr)
    pulse = Pulse(Lag(), max_late_s=30, stuck_log_s=0.3, stuck_exit_s=0)
    pulse.start()
    await asyncio.sleep(0.25)
    time.sleep(2.5)
    await asyncio.sleep(0.25)
    pulse.stop()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as child:
        assert child.wait(30) == 0


def test_a_process_that_was_stopped_as_a_whole_is_not_stuck() -> None:
    """Three seconds of SIGSTOP would be more than the second after which it ends."""
    code = """
import asyncio, os, signal, subprocess
from predictor.health import Pulse
class Lag:
    def observe(self, value): pass
async def main():
    pulse = Pulse(Lag(), max_late_s=1.9, stuck_log_s=0, stuck_exit_s=2.0)
    pulse.start()
    await asyncio.sleep(0.25)
    waker = subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    await asyncio.sleep(0.7)
    waker.wait()
    print(pulse.stalled() or "well")
    pulse.stop()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "well\n"


def test_what_stays_wrong_is_hopeless_after_a_while_and_forgotten_when_it_ends() -> None:
    ailment = Ailment(60.0)
    assert ailment.hopeless("no device", 0.0) == ""
    assert ailment.hopeless("no device", 59.0) == ""
    assert ailment.hopeless("no device", 61.0) == "for 1 min already: no device"
    assert ailment.hopeless("", 62.0) == ""
    assert ailment.hopeless("no device", 100.0) == ""


def test_connections_are_as_many_as_descriptors_allow() -> None:
    assert descriptors.connections(1 << 20, 4096, workers=64, parts=8) == 4096
    assert descriptors.connections(1024, 4096, workers=1, parts=8) == 436
    with pytest.raises(TooFewDescriptors, match="ulimit -Hn"):
        descriptors.connections(128, 4096, workers=1, parts=8)


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource; from predictor.descriptors import raise_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512));"
        "print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "512 512\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
