"""Steady load on healthy models, and pokes at an evil one: what was asked, when, and how it was answered.

An open loop of plain HTTP/1.1 on asyncio: a model that is slow does not slow the others' questions. What stays out: whose
answers count as failures of whom (scene.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from loadtest.isolation.evil import WIDTH, body

HOST: Final = "127.0.0.1"
OK: Final = 200
LONGEST_S: Final = 30.0
"""A question that nobody answers counts as failed then."""
PATIENCE_S: Final = 4.0
"""More than the limits that a server with limits is given here."""
ASKED: Final = 3.0
"""What healthy models are asked: any number that is no poke."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One question. ``status``: 0 where none came; ``told``: what was wrong, "" if nothing was."""

    model: str
    at_s: float
    seconds: float
    status: int
    told: str


class Asker:
    """One connection, opened again whenever it broke. ``path``: a URL with the model's name in braces."""

    def __init__(self, port: int, model: str) -> None:
        self.model = model
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, value: float, expected: float | None, others: float | None = None) -> Seen:
        """Send a row: see ``body``. ``expected``: every number of the right answer; None: whatever comes."""
        at_s = time.monotonic()
        status, told = 0, ""
        try:
            async with asyncio.timeout(LONGEST_S):
                status, content = await self._exchange(body(value, others))
            told = wrong(status, content, expected)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            told = f"{type(error).__name__}: {error}"
            await self.close()
        return Seen(self.model, at_s, time.monotonic() - at_s, status, told)

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, content: bytes) -> tuple[int, bytes]:
        reader, writer = self._streams = self._streams or await asyncio.open_connection(HOST, self._port)
        head = f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        answer = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return int(lines[0].split()[1]), answer


def wrong(status: int, content: bytes, expected: float | None) -> str:
    """What is wrong with an answer; "" if nothing is. ``expected``: None if any numbers will do."""
    if status != OK:
        return f"{status} {content[:300].decode(errors='replace')}"
    found = json.loads(content)["outputs"][0]["data"]
    return "" if expected is None or found == [expected] * WIDTH else f"answered {found}, not {expected}"


@dataclass
class Load:
    """Questions to ``models`` (name → the right answer), each ``rate`` times a second, until ``stop``."""

    port: int
    models: Mapping[str, float]
    rate: float
    seen: list[Seen] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Begin, each model at a moment of its own."""
        for place, (model, expected) in enumerate(self.models.items()):
            begin_s = place / len(self.models) / self.rate
            self._tasks.append(asyncio.create_task(self._ask(model, expected, begin_s), name=f"load {model}"))

    async def stop(self) -> list[Seen]:
        """End when what was asked is answered. All that was seen."""
        self._over.set()
        await asyncio.gather(*self._tasks)
        return sorted(self.seen, key=lambda one: one.at_s)

    async def _ask(self, model: str, expected: float, begin_s: float) -> None:
        asker, due_s = Asker(self.port, model), time.monotonic() + begin_s
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(max(due_s - time.monotonic(), 0)):
                    await self._over.wait()
            if not self._over.is_set():
                self.seen.append(await asker.ask(ASKED, expected))
                due_s = max(due_s + 1 / self.rate, time.monotonic() - 1 / self.rate)
        await asker.close()


async def order(port: int, path: str) -> None:
    """POST an empty body, and do not care what comes of it."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LONGEST_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n".encode())
                await reader.readline()
            finally:
                writer.close()


async def warm(port: int, models: Mapping[str, float], timeout_s: float = 60.0) -> None:
    """Ask each until its answer is right. TimeoutError: one does not come."""
    for model, expected in models.items():
        asker = Asker(port, model)
        async with asyncio.timeout(timeout_s):
            while (await asker.ask(ASKED, expected)).told:  # noqa: ASYNC110 (nothing here would tell)
                await asyncio.sleep(0.05)
        await asker.close()


async def poke(port: int, model: str, value: float, *, times: int, seconds: float, pause_s: float) -> list[Seen]:
    """Ask the evil model for it, up to ``times`` times in ``seconds``, with a pause in between.

    What it answered; a last question without an answer has PATIENCE_S more.
    """
    asker, end_s = Asker(port, model), time.monotonic() + seconds
    seen: list[Seen] = []
    while len(seen) < times and (left_s := end_s - time.monotonic()) > 0:
        at_s = time.monotonic()
        try:
            async with asyncio.timeout(left_s + PATIENCE_S):
                # Never twice the same: a server may know again what ended its worker.
                seen.append(await asker.ask(value, None, float(len(seen))))
        except TimeoutError:
            seen.append(Seen(model, at_s, time.monotonic() - at_s, 0, "no answer"))
        await asyncio.sleep(min(pause_s, max(end_s - time.monotonic(), 0)))
    await asker.close()
    return seen


def failures(seen: Sequence[Seen]) -> list[Seen]:
    """Those that were not answered rightly."""
    return [one for one in seen if one.told]
