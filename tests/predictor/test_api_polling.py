"""Looking for the next request before sleeping: only while nobody is inside, never for long, and only while it pays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from predictor.api.polling import RAREST, Polling
from predictor.api.reader import Load

SPAN_S = 0.001


class Loop:
    """Runs what is called soon when it is told to; each time a tenth of SPAN_S passes."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.soon: list[Callable[[], None]] = []
        self.looks = 0

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.soon.append(lambda: callback(*arguments))

    def run(self) -> None:
        """Until the process would sleep."""
        while self.soon:
            self.looks += 1
            assert self.looks < 10_000, "it never sleeps"
            self.now_s += SPAN_S / 10
            self.soon.pop(0)()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def polling(loop: Loop, load: Load | None = None, span_s: float = SPAN_S) -> Polling:
    return Polling(load or Load(), span_s, lambda: loop.now_s)


def answered(poll: Polling, loop: Loop) -> int:
    """How often it looks after one answer."""
    loop.looks = 0
    poll.answered(cast("asyncio.AbstractEventLoop", loop))
    loop.run()
    return loop.looks


def test_it_looks_for_its_span_and_then_sleeps(loop: Loop) -> None:
    assert 9 <= answered(polling(loop), loop) <= 11


def test_it_does_not_look_while_others_are_inside_or_where_it_is_switched_off(loop: Loop) -> None:
    assert answered(polling(loop, Load(requests=1)), loop) == 0
    assert answered(polling(loop, span_s=0.0), loop) == 0


def test_a_client_that_never_comes_back_in_time_is_looked_for_less_and_less_often(loop: Loop) -> None:
    poll = polling(loop)
    looked = [answered(poll, loop) > 0 for _ in range(1000)]
    assert looked[:8] == [True, False, True, False, False, False, True, False]
    assert 1000 // RAREST <= sum(looked) <= 1000 // RAREST + 8


def test_it_looks_after_every_answer_again_once_that_has_paid(loop: Loop) -> None:
    load = Load()
    poll = polling(loop, load)
    for _ in range(200):
        answered(poll, loop)
    while not loop.soon:
        poll.answered(cast("asyncio.AbstractEventLoop", loop))
    load.requests = 1
    loop.run()
    load.requests = 0
    assert answered(poll, loop) > 0


def test_one_look_at_a_time(loop: Loop) -> None:
    poll = polling(loop)
    poll.answered(cast("asyncio.AbstractEventLoop", loop))
    poll.answered(cast("asyncio.AbstractEventLoop", loop))
    assert len(loop.soon) == 1
