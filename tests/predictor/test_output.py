"""What workers print reaches the log, up to a bound, and never makes anybody wait."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from predictor.workers.output import BURST_BYTES, Output


class Printed(list[bytes]):
    def write(self, data: bytes) -> int:
        self.append(data)
        return len(data)


async def test_what_a_worker_prints_is_passed_on() -> None:
    printed, (theirs, ours) = Printed(), os.pipe()
    output = Output(theirs, "pool", write=printed.write)
    output.start()
    os.write(ours, b"hello\n")
    await asyncio.sleep(0.01)
    assert printed == [b"hello\n"]
    os.write(ours, b"last words\n")
    output.close()
    output.close()
    assert b"".join(printed) == b"hello\nlast words\n"
    os.close(ours)


async def test_a_flood_is_thrown_away_and_told(caplog: pytest.LogCaptureFixture) -> None:
    printed, (theirs, ours) = Printed(), os.pipe()
    output = Output(theirs, "model:m", write=printed.write)
    output.start()
    flood = 64 << 20
    code = f"import os\nfor _ in range(64): os.write({ours}, b'x' * (1 << 20))"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, pass_fds=(ours,))
    os.close(ours)
    async with asyncio.timeout(20):
        assert await child.wait() == 0
    output.close()
    passed = sum(map(len, printed))
    assert BURST_BYTES <= passed <= 3 * BURST_BYTES
    assert passed + output.dropped_bytes == flood
    assert "worker model:m prints too much" in caplog.text


async def test_a_flood_that_the_log_has_no_room_for_is_thrown_away_as_fast() -> None:
    theirs, ours = os.pipe()
    refused: list[int] = []

    def write(found: bytes) -> int:
        refused.append(len(found))
        return 0

    output = Output(theirs, "model:m", write=write)
    output.start()
    code = f"import os\nfor _ in range(64): os.write({ours}, b'x' * (1 << 20))"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, pass_fds=(ours,))
    os.close(ours)
    async with asyncio.timeout(20):
        assert await child.wait() == 0
    output.close()
    assert sum(refused) <= 3 * BURST_BYTES, "the rest is thrown away uncopied"
    assert output.dropped_bytes == 64 << 20


async def test_a_worker_that_closes_its_output_costs_nothing() -> None:
    theirs, ours = os.pipe()
    output = Output(theirs, "pool")
    output.start()
    os.close(ours)
    await asyncio.sleep(0.05)
    output.close()


async def test_a_worker_without_output_needs_nothing() -> None:
    output = Output(-1, "pool")
    output.start()
    output.close()
