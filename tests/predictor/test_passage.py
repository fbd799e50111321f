"""Shared memory between front and worker: what is taken, what comes back, and what a real worker makes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from predictor.passage import STEPS, Buffer, FreeExtents, Passage, rounded, sealed_bytes, window
from predictor.wire import INLINE_BYTES, FromWorker, Ran, Run, Tensor, ToWorker
from predictor.workers.dispatch import Work
from predictor.workers.link import _shared
from predictor.workers.zygote import Zygote, starter
from tests.fakes.zoo import affine_pytorch
from tests.predictor.test_workers import Bench, alive

PAGE = 4096
MEGABYTE = 1 << 20
LARGE = 10_000_000


# ---- the memory


class Extents(RuleBasedStateMachine):
    """What is taken never overlaps, stays within bounds, and comes back whole."""

    taken = Bundle("taken")
    total = 64 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.free = FreeExtents(self.total)
        self.live: dict[int, int] = {}

    @rule(target=taken, pages=st.integers(1, 70))
    def take(self, pages: int) -> int | None:
        offset = self.free.take(pages * PAGE)
        if offset is not None:
            self.live[offset] = pages * PAGE
        return offset

    @rule(offset=consumes(taken))
    def give_back(self, offset: int | None) -> None:
        if offset is not None:
            self.free.give_back(offset, self.live.pop(offset))

    @invariant()
    def nothing_overlaps_or_leaves(self) -> None:
        end = 0
        for offset, size_bytes in sorted(self.live.items()):
            assert offset >= end
            end = offset + size_bytes
        assert end <= self.total

    def teardown(self) -> None:
        for offset, size_bytes in self.live.items():
            self.free.give_back(offset, size_bytes)
        assert self.free.take(self.total) == 0


TestExtents = Extents.TestCase


@given(st.integers(1, 1 << 30))
def test_what_is_rounded_up_are_pages_and_an_eighth_more_at_most(size_bytes: int) -> None:
    whole_bytes = rounded(size_bytes)
    assert whole_bytes % PAGE == 0
    assert size_bytes <= whole_bytes < size_bytes + max(PAGE, 2 * size_bytes / STEPS)


def pages_of(passage: Passage) -> int:
    return os.fstat(passage.reader).st_blocks * 512


def test_memory_is_free_when_the_last_slice_of_it_is_gone() -> None:
    passage = Passage(MEGABYTE, "test")
    view = passage.take(100_000)
    assert view is not None
    part = view[50_000:]
    del view
    assert passage.used_bytes == rounded(100_000)
    assert passage.find(part) == (50_000, 50_000)
    assert passage.find(bytes(5)) is passage.find(memoryview(bytearray(5))) is None
    del part
    assert passage.used_bytes == 0


def test_a_full_passage_says_so_and_recovers() -> None:
    passage = Passage(MEGABYTE, "test")
    views = [passage.take(MEGABYTE // 4) for _ in range(4)]
    assert all(view is not None for view in views)
    assert passage.take(1) is None
    assert passage.put([b"abc"]) is None
    views.clear()
    assert passage.take(MEGABYTE) is not None


def test_memory_does_not_stay_at_its_peak() -> None:
    passage = Passage(16 * MEGABYTE, "test")
    views = []
    for _ in range(16):
        view = passage.take(MEGABYTE)
        assert view is not None
        view[:] = b"x" * MEGABYTE
        views.append(view)
    del view
    assert pages_of(passage) == 16 * MEGABYTE
    views.clear()
    assert pages_of(passage) == 2 * MEGABYTE


def test_what_another_thread_drops_is_free_at_the_next_take() -> None:
    passage = Passage(MEGABYTE, "test")
    views = [passage.take(MEGABYTE)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert passage.take(MEGABYTE) is not None


def test_a_window_keeps_its_own_writes_and_the_passage_its_bytes() -> None:
    passage = Passage(MEGABYTE, "test")
    put = passage.put([b"abc", b"def"])
    assert put is not None
    (offset, size_bytes), place = put
    mapping, view = window(passage.reader, (offset + 1, size_bytes - 1), writable=True)
    view[0] = ord("X")
    assert (bytes(view), bytes(place)) == (b"Xcdef", b"abcdef")
    assert window(passage.reader, (offset, size_bytes))[1].readonly
    assert len(mapping) == size_bytes
    assert sealed_bytes(passage.reader) == MEGABYTE


def test_memory_that_its_maker_could_cut_short_is_not_read() -> None:
    descriptor = os.memfd_create("open")
    with pytest.raises(ValueError, match="not sealed"):
        sealed_bytes(descriptor)
    os.close(descriptor)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9000)), max_size=6))
def test_the_pieces_of_a_body_are_its_bytes_wherever_they_lay(parts: list[tuple[bool, int]]) -> None:
    passage = Passage(MEGABYTE, "test")
    whole = passage.take(100_000)
    assert whole is not None
    whole[:] = os.urandom(100_000)
    body: list[Buffer] = []
    for number, (inside, size_bytes) in enumerate(parts):
        begin = number * 10_000
        body.append(whole[begin : begin + size_bytes] if inside else bytes([number]) * size_bytes)
    shared = _shared(passage, body)
    assert shared is not None
    pieces, _held = shared
    assert b"".join(window(passage.reader, piece)[1] for piece in pieces) == b"".join(body)


# ---- with a real worker


STATEFUL = b"""
        if getattr(self, "kept", None) is None:
            self.kept = x
        first = self.kept[0, :1].clone()
        x.mul_(0).add_(first)
""".strip()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench() -> AsyncIterator[Bench]:
    zygote = Zygote(1)
    bench = Bench(starter(zygote))
    await bench.worker.start()
    yield bench
    await bench.worker.stop(5.0)
    bench.close()
    zygote.close()


def received(bench: Bench, rows: int, value: bytes = b"\0\0\x80?") -> memoryview:
    """A body as the HTTP layer receives it: FP32 ones by default."""
    view = bench.passage.take(rows * 16)
    assert view is not None
    view[:] = value * 4 * rows
    return view


def spy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every message from now on."""
    seen: list[object] = []
    link = bench.worker._link
    assert link is not None
    write, answer = link._write, link._answer

    def writes(message: ToWorker, *rest: Any) -> None:
        seen.append(message)
        write(message, *rest)

    def answers(message: FromWorker, body: memoryview) -> None:
        seen.append(message)
        answer(message, body)

    monkeypatch.setattr(link, "_write", writes)
    monkeypatch.setattr(link, "_answer", answers)
    return seen


@pytest.mark.asyncio(loop_scope="module")
async def test_ten_megabytes_go_there_and_back_where_they_lie(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = await bench.load("large", affine_pytorch(scale=2.0))
    seen = spy(bench, monkeypatch)
    rows = LARGE // 16
    body = received(bench, rows)
    where = bench.passage.find(body)
    answer = await bench.run(Work(ref, (Tensor("x", "FP32", (rows, 4), rows * 16),), [body], (), measure=False))

    ran = next(message for message in seen if isinstance(message, Ran))
    assert next(message for message in seen if isinstance(message, Run)).pieces == (where,)
    assert ran.place == (0, rows * 16)
    assert set(memoryview(answer.parts[0]).cast("f")) == {3.0}
    assert bytes(body[:4]) == b"\0\0\x80?"
    del body, answer
    assert bench.passage.used_bytes == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("size_bytes", [0, 16, INLINE_BYTES - 16, INLINE_BYTES, INLINE_BYTES + 16])
async def test_odd_sizes_arrive_whole_beside_small_and_empty_ones(bench: Bench, size_bytes: int) -> None:
    files = affine_pytorch(scale=1.0)
    code = files["model.py"].replace(b"def forward(self, x):", b"def forward(self, x, a=None, b=None):")
    ref = await bench.load(f"odd-{size_bytes}", {**files, "model.py": code})
    tensors = [
        Tensor("a", "UINT8", (3,), 3),
        Tensor("x", "FP32", (size_bytes // 16, 4), size_bytes),
        Tensor("b", "INT8", (0,), 0),
    ]
    answer = await bench.run(Work(ref, tuple(tensors), [b"abc", b"\0\0\x80?" * (size_bytes // 4), b""], (), measure=False))

    assert list(memoryview(answer.parts[0]).cast("f")) == [2.0] * (size_bytes // 4)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_may_write_into_its_inputs_and_keep_them(bench: Bench) -> None:
    files = affine_pytorch(scale=1.0)
    code = files["model.py"].replace(b"time.sleep(self.sleep_s)", STATEFUL)
    ref = await bench.load("keeper", {**files, "model.py": code})
    rows = LARGE // 16
    for value in (b"\0\0\x80?", b"\0\0\0A", b"\0\0\0B"):
        body = received(bench, rows, value)
        answer = await bench.run(Work(ref, (Tensor("x", "FP32", (rows, 4), rows * 16),), [body], (), measure=False))
        assert memoryview(answer.parts[0]).cast("f")[0] == 2.0
        assert bytes(body[:4]) == value
        del body


@pytest.mark.asyncio(loop_scope="module")
async def test_without_room_everything_goes_over_the_socket(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = await bench.load("full", affine_pytorch(scale=2.0))
    seen = spy(bench, monkeypatch)
    rows = LARGE // 16
    occupied = [bench.passage.take(8 * MEGABYTE) for _ in range(8)]
    work = Work(ref, (Tensor("x", "FP32", (rows, 4), rows * 16),), [bytes(rows * 16)], (), measure=False)
    held = [await bench.run(work) for _ in range(8)]

    assert all(set(memoryview(answer.parts[0]).cast("f")) == {1.0} for answer in held)
    assert {message.pieces for message in seen if isinstance(message, Run)} == {()}
    assert [message.place is None for message in seen if isinstance(message, Ran)] == [False] * 6 + [True] * 2
    assert len(occupied) == 8


@pytest.mark.asyncio(loop_scope="module")
async def test_the_memory_of_answers_comes_round_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = await bench.load("round", affine_pytorch(scale=2.0))
    seen = spy(bench, monkeypatch)
    rows = LARGE // 16
    for _ in range(12):
        answer = await bench.run(Work(ref, (Tensor("x", "FP32", (rows, 4), rows * 16),), [bytes(rows * 16)], (), measure=False))
        del answer
        await asyncio.sleep(0)  # in which the worker is told
    assert None not in {message.place for message in seen if isinstance(message, Ran)}


@pytest.mark.asyncio(loop_scope="module")
async def test_memory_is_held_until_a_killed_worker_is_gone_and_answers_outlive_it(bench: Bench) -> None:
    ref = await bench.load("kept", affine_pytorch(scale=2.0))
    rows = LARGE // 16
    tensor = Tensor("x", "FP32", (rows, 4), rows * 16)
    answer = await bench.run(Work(ref, (tensor,), [received(bench, rows)], (), measure=False))
    slow = await bench.load("slow", affine_pytorch(scale=1.0), sleep_s=2.0)
    request = bench.run(Work(slow, (tensor,), [received(bench, rows)], (), measure=False))
    await bench.until_it_computes()
    pid, link = bench.pid, bench.worker._link
    assert link is not None
    request.cancel()  # its client went away
    assert bench.passage.used_bytes > 0
    os.kill(pid, signal.SIGKILL)
    await link.ended
    assert not alive(pid)
    while link.pending:  # noqa: ASYNC110 (the link's end is handled in the next step of another task)
        await asyncio.sleep(0)

    assert bench.passage.used_bytes == 0
    assert set(memoryview(answer.parts[0]).cast("f")) == {3.0}
    again = await bench.load("again", affine_pytorch(scale=1.0))
    answer = await bench.run(Work(again, (tensor,), [received(bench, rows)], (), measure=False))
    assert memoryview(answer.parts[0]).cast("f")[0] == 2.0
