"""One device's queue: batches joined and cut apart, spoiled batches, deadlines, limits; in virtual time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import DeadlineExceeded, ModelFailed, OutOfMemory, TooManyRequests, WorkerDied
from predictor.model import ModelRef
from predictor.policy.batching import Priority, Terms
from predictor.wire import Tensor
from predictor.workers.dispatch import Answer, Dispatcher, Job, Outcome, Work, split
from tests.fakes.jobs import AwaitedJob

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

A, B = ModelRef("default", "a", 1), ModelRef("default", "b", 1)
TOGETHER = Terms(max_rows=8)
POISON = 666.0


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def job(*values: float, ref: ModelRef = A, name: str = "x", **more: object) -> AwaitedJob:
    """One row of one value for each of ``values``."""
    data = floats(*values)
    return AwaitedJob(ref, (Tensor(name, "FP32", (len(values), 1), len(data)),), (data,), **more)  # type: ignore[arg-type]


class Doubler:
    """A device that doubles, a second a batch; and fails every batch that holds POISON."""

    def __init__(self, fault: Callable[[], Outcome] = lambda: ModelFailed("poisoned"), *, run_s: float = 1.0) -> None:
        self.fault = fault
        self.run_s = run_s
        self.batches: list[list[float]] = []
        self.counted: list[tuple[str, int, float]] = []
        self.dispatcher = Dispatcher(
            self._send, on_batch=lambda *told: self.counted.append(told), clock=lambda: asyncio.get_running_loop().time()
        )

    def _send(self, work: Work, done: Callable[[Outcome], None]) -> None:
        values = struct.unpack(f"<{work.inputs[0].shape[0]}f", b"".join(work.body))
        self.batches.append(list(values))
        asyncio.get_running_loop().call_later(self.run_s, lambda: done(self._outcome(values, work.inputs[0].shape)))

    def _outcome(self, values: Sequence[float], shape: tuple[int, ...]) -> Outcome:
        if POISON in values:
            return self.fault()
        data = floats(*(2 * value for value in values))
        return Answer((Tensor("y", "FP32", shape, len(data)),), (data,), self.run_s)

    def submit(self, *jobs: Job, terms: Terms = TOGETHER) -> None:
        for one in jobs:
            self.dispatcher.submit(one, terms)


async def doubled(one: AwaitedJob) -> list[float]:
    answer = await one.answer
    (part,) = answer.parts
    assert answer.outputs[0].shape == (len(part) // 4, 1)
    return list(struct.unpack(f"<{len(part) // 4}f", part))


async def test_what_came_while_the_device_was_busy_runs_as_one() -> None:
    device = Doubler()
    jobs = [job(1), job(2), job(3, 4), job(5)]
    device.submit(*jobs)
    assert [await doubled(one) for one in jobs] == [[2], [4], [6, 8], [10]]
    assert device.batches == [[1], [2, 3, 4, 5]]
    assert device.counted == [("a", 1, 1.0), ("a", 4, 1.0)]
    assert [one.shared for one in jobs] == [1, 3, 3, 3]
    assert [round(one.queued_s, 3) for one in jobs] == [0, 1, 1, 1]


async def test_after_a_batch_those_of_one_tick_are_waited_for() -> None:
    device = Doubler()
    first = [job(1), job(2), job(3)]
    device.submit(*first)
    await asyncio.gather(*(one.answer for one in first))
    later = [job(4), job(5)]
    device.submit(*later)
    await asyncio.gather(*(one.answer for one in later))
    assert device.batches == [[1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("shares_core", "batches"), [(False, [[1], [2], [3]]), (True, [[1], [2, 3]])])
async def test_on_a_shared_core_what_comes_while_answers_are_written_joins_the_next_batch(
    *, shares_core: bool, batches: list[list[float]]
) -> None:
    loop = asyncio.get_running_loop()
    device = Doubler()
    device.dispatcher = Dispatcher(device._send, shares_core=shares_core, clock=loop.time)
    second, third = job(2), job(3)

    class First(AwaitedJob):
        def done(self, outcome: Outcome) -> None:
            super().done(outcome)
            loop.call_soon(device.submit, third)

    device.submit(First(A, job(1).inputs, job(1).body), second)
    await second.answer
    await third.answer
    assert device.batches == batches


async def test_different_shapes_outputs_and_models_are_not_mixed() -> None:
    device = Doubler()
    wide = AwaitedJob(A, (Tensor("x", "FP32", (1, 2), 8),), (floats(7, 8),))
    narrow = AwaitedJob(A, (Tensor("x", "FP32", (2,), 8),), (floats(9, 10),), ("y",))
    jobs = [job(0), job(1), job(2, name="z"), wide, job(3, ref=B), job(4), narrow]
    seen: list[tuple[str, tuple[int, ...]]] = []
    device.dispatcher = Dispatcher(_echo(seen), clock=lambda: asyncio.get_running_loop().time())
    device.submit(*jobs)
    await asyncio.gather(*(one.answer for one in jobs))
    assert sorted(seen) == sorted([("a", (1, 1)), ("a", (2, 1)), ("a", (1, 1)), ("a", (1, 2)), ("b", (1, 1)), ("a", (2,))]), (
        "job(1) and job(4) run as one, all others alone"
    )


def _echo(seen: list[tuple[str, tuple[int, ...]]]) -> Callable[[Work, Callable[[Outcome], None]], None]:
    def send(work: Work, done: Callable[[Outcome], None]) -> None:
        seen.append((work.ref.name, work.inputs[0].shape))
        answer = Answer(work.inputs, (b"".join(work.body),), 0.1)
        asyncio.get_running_loop().call_later(0.1, done, answer)

    return send


async def test_one_bad_request_is_found_and_answered_alone() -> None:
    device = Doubler()
    jobs = [job(1), job(2), job(POISON), job(3)]
    device.submit(*jobs)
    assert await doubled(jobs[1]) == [4]
    assert await doubled(jobs[3]) == [6]
    with pytest.raises(ModelFailed, match="poisoned"):
        await jobs[2].answer
    assert device.batches == [[1], [2, POISON, 3], [2], [POISON], [3]]
    assert [one.told for one in jobs] == [1, 1, 1, 1]


async def test_a_batch_that_finds_no_memory_runs_one_by_one() -> None:
    device = Doubler(lambda: OutOfMemory("no room"))
    jobs = [job(1), job(2), job(POISON)]
    device.submit(*jobs)
    assert await doubled(jobs[1]) == [4]
    with pytest.raises(OutOfMemory):
        await jobs[2].answer


async def test_all_of_a_batch_that_had_begun_in_a_worker_that_died_are_told_so_and_none_is_run_again() -> None:
    device = Doubler(lambda: WorkerDied("killed by SIGSEGV"))
    jobs = [job(1), job(2), job(POISON)]
    device.submit(*jobs)
    answers = await asyncio.gather(*(one.answer for one in jobs), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Answer, WorkerDied, WorkerDied]
    assert answers[1] is not answers[2], "one exception raised in many tasks would collect all their tracebacks"
    assert device.batches == [[1], [2, POISON]]


class Lanes(Doubler):
    """Model A computes in one worker, all others in another one; a batch of A with POISON never ends by itself."""

    def __init__(self, **more: float) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.shares: list[tuple[str, bool]] = []
        self.hangs: list[Callable[[Outcome], None]] = []
        self.dispatcher = Dispatcher(
            self._hang_or_send,
            lane_of=lambda ref: ref == A,
            on_overdue=lambda ref, shares: self.shares.append((ref.name, shares)),
            clock=lambda: asyncio.get_running_loop().time(),
        )

    def _hang_or_send(self, work: Work, done: Callable[[Outcome], None]) -> None:
        if work.ref == A and floats(POISON) in work.body:
            self.hangs.append(done)
        else:
            self._send(work, done)


async def test_models_in_different_workers_take_turns_on_the_device() -> None:
    device = Lanes(run_s=0.3)
    jobs = [job(1), job(2, ref=B), job(3), job(4, ref=B)]
    device.submit(*jobs, terms=Terms())
    await asyncio.gather(*(one.answer for one in jobs))
    assert asyncio.get_running_loop().time() == pytest.approx(1.2, abs=0.01)
    assert device.shares == []


async def test_a_batch_that_hangs_in_its_own_worker_holds_the_others_up_for_a_second_and_once() -> None:
    device = Lanes(run_s=0.3)
    loop = asyncio.get_running_loop()
    hung, behind, first, second = job(POISON), job(1), job(2, ref=B), job(3, ref=B)
    device.submit(hung, behind, first, second, terms=Terms())
    await first.answer
    assert loop.time() == pytest.approx(1.3, abs=0.05)
    await second.answer
    assert loop.time() == pytest.approx(1.6, abs=0.05)
    device.submit(third := job(4, ref=B), terms=Terms())
    await third.answer
    assert loop.time() == pytest.approx(1.9, abs=0.05)
    assert not behind.answer.done()
    assert device.shares == [("a", True)]
    device.hangs[0](WorkerDied("it computed for too long"))
    with pytest.raises(WorkerDied):
        await hung.answer
    assert await doubled(behind) == [2]
    assert device.shares == [("a", True), ("a", False)]
    device.submit(job(POISON), last := job(5, ref=B), terms=Terms())
    began_s = loop.time()
    await last.answer
    assert loop.time() - began_s == pytest.approx(4 * 0.3 + 0.3, abs=0.05), "what hung says nothing of its pace"


async def test_within_one_worker_nothing_overtakes_what_hangs() -> None:
    device = Lanes()
    device.submit(job(POISON), job(1), job(2))
    await asyncio.sleep(100)
    assert (device.batches, device.shares, len(device.dispatcher)) == ([], [], 2)
    device.hangs[0](WorkerDied("ended"))
    await asyncio.sleep(10)
    assert device.batches == [[1, 2]]


async def test_a_model_that_does_not_answer_row_by_row_is_run_alone_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    batches: list[int] = []

    def send(work: Work, done: Callable[[Outcome], None]) -> None:
        batches.append(work.inputs[0].shape[0])
        answer = Answer((Tensor("mean", "FP32", (), 4),), (floats(1.0),), 0.1)
        asyncio.get_running_loop().call_later(0.1, done, answer)

    dispatcher = Dispatcher(send, clock=lambda: asyncio.get_running_loop().time())
    jobs = [job(1), job(2), job(3)]
    for one in jobs:
        dispatcher.submit(one, TOGETHER)
    await asyncio.gather(*(one.answer for one in jobs))
    assert batches == [1, 2, 1, 1]
    again = [job(1), job(2), job(3)]
    for one in again:
        dispatcher.submit(one, TOGETHER)
    await asyncio.gather(*(one.answer for one in again))
    assert batches == [1, 2, 1, 1, 1, 1, 1]
    assert caplog.text.count("does not batch") == 1


async def test_a_request_is_refused_as_soon_as_its_deadline_cannot_be_met() -> None:
    device = Doubler()
    loop = asyncio.get_running_loop()
    device.submit(first := job(1))
    await first.answer  # a second: as fast as it ever was
    with pytest.raises(DeadlineExceeded):
        device.submit(job(2, deadline_s=loop.time() + 0.9))
    busy, late = job(3), job(4, name="other", deadline_s=loop.time() + 1.5)
    device.submit(busy, late)
    with pytest.raises(DeadlineExceeded):
        await late.answer
    assert loop.time() < 1.0 + 0.6, "refused when it became hopeless, not when it was its turn"
    assert not busy.answer.done()
    await busy.answer
    assert device.batches == [[1], [3]], "what is refused is not computed"


async def test_what_has_become_hopeless_when_its_turn_comes_leaves_its_batch() -> None:
    device = Doubler(run_s=0.005)  # faster than those that wait are looked through
    loop = asyncio.get_running_loop()
    jobs = [job(1), job(2, deadline_s=loop.time() + 0.004), job(3)]
    device.submit(*jobs)
    assert await doubled(jobs[2]) == [6]
    with pytest.raises(DeadlineExceeded):
        await jobs[1].answer
    assert device.batches == [[1], [3]]


async def test_too_many_of_one_model_are_refused_and_others_are_not() -> None:
    device = Doubler()
    few = Terms(max_rows=1, max_waiting=2)
    device.submit(running := job(0), terms=few)
    await running.answer
    device.submit(job(1), job(2), job(3), terms=few)
    with pytest.raises(TooManyRequests) as caught:
        device.submit(job(4), terms=few)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 3.0, "one runs and two wait, a second each"
    device.submit(other := job(5, ref=B), terms=few)
    assert await doubled(other) == [10]


async def test_who_left_the_queue_is_not_computed_and_who_is_computed_cannot_leave() -> None:
    device = Doubler()
    jobs = [job(1), job(2), job(3)]
    device.submit(*jobs)
    assert not device.dispatcher.withdraw(jobs[0])
    assert device.dispatcher.withdraw(jobs[1])
    assert not device.dispatcher.withdraw(jobs[1])
    await asyncio.gather(jobs[0].answer, jobs[2].answer)
    assert device.batches == [[1], [3]]
    assert len(device.dispatcher) == 0
    assert jobs[1].told == 0


async def test_a_delay_gathers_a_batch_on_a_free_device_and_a_full_one_does_not_wait() -> None:
    device = Doubler()
    loop = asyncio.get_running_loop()
    patient = Terms(max_rows=3, max_delay_s=0.5)
    first, second = job(1), job(2)
    device.submit(first, terms=patient)
    await asyncio.sleep(0.2)
    device.submit(second, terms=patient)
    await asyncio.gather(first.answer, second.answer)
    assert loop.time() == pytest.approx(1.5, abs=0.01)
    full = [job(3), job(4), job(5)]
    device.submit(*full, terms=patient)
    await asyncio.gather(*(one.answer for one in full))
    assert loop.time() == pytest.approx(2.5, abs=0.01)
    assert device.batches == [[1, 2], [3, 4, 5]]


async def test_a_request_with_more_rows_than_a_batch_runs_alone_and_one_without_rows_too() -> None:
    device = Doubler()
    jobs = [job(0), job(*range(20)), job(1), AwaitedJob(A, (Tensor("x", "FP32", (0, 1), 0),), (b"",))]
    device.submit(*jobs)
    await asyncio.gather(*(one.answer for one in jobs))
    assert [len(batch) for batch in device.batches] == [1, 20, 1, 0]


async def test_urgent_requests_overtake() -> None:
    device = Doubler(run_s=0.1)
    jobs = [job(0), job(1, priority=Priority.BATCH), job(2), job(3, priority=Priority.HIGH)]
    device.submit(*jobs, terms=Terms())
    await asyncio.gather(*(one.answer for one in jobs))
    assert device.batches == [[0], [3], [2], [1]]


async def test_a_caller_that_fails_to_hear_its_answer_does_not_cost_the_others_theirs() -> None:
    class Deaf(AwaitedJob):
        def done(self, outcome: Outcome) -> None:
            raise RuntimeError("deaf")

    device = Doubler()
    jobs = [job(0), Deaf(A, job(1).inputs, job(1).body), job(2)]
    device.submit(*jobs)
    assert await doubled(jobs[2]) == [4]


async def test_an_answer_that_asks_again_at_once_is_served() -> None:
    """A pipelining client's next request is begun while the answers of its batch are still being told."""
    device = Doubler()
    follow = job(9)

    class Eager(AwaitedJob):
        def done(self, outcome: Outcome) -> None:
            super().done(outcome)
            device.submit(follow)

    device.submit(Eager(A, job(1).inputs, job(1).body))
    assert await doubled(follow) == [18]


@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=6), tail=st.lists(st.integers(0, 3), max_size=2), data=st.data())
async def test_an_answer_is_cut_where_its_requests_meet(rows: list[int], tail: list[int], data: st.DataObject) -> None:
    total = sum(rows)
    each = 1
    for length in tail:
        each *= length
    numbers = bytes(range(256)) * (total * each // 32 + 1)
    texts = data.draw(st.lists(st.binary(max_size=4), min_size=total * each, max_size=total * each))
    joined = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    shape = (total, *tail)
    answer = Answer(
        (Tensor("n", "FP64", shape, 8 * total * each), Tensor("t", "BYTES", shape, len(joined))),
        (numbers[: 8 * total * each], joined),
        0.5,
    )
    parts = split(answer, rows)
    assert parts is not None
    for place, whole in enumerate(answer.parts):
        assert b"".join(bytes(part.parts[place]) for part in parts) == bytes(whole)
    for part, count in zip(parts, rows, strict=True):
        assert [tensor.shape for tensor in part.outputs] == [(count, *tail)] * 2
        assert part.outputs[0].size_bytes == len(part.parts[0]) == 8 * count * each
        assert part.outputs[1].size_bytes == len(part.parts[1])
    begun = sum(rows[:-1]) * each
    last = b"".join(struct.pack("<I", len(text)) + text for text in texts[begun:])
    assert bytes(parts[-1].parts[1]) == last
