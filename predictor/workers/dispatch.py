"""Requests to one device: they wait here until it is free, run as batches, and get their own rows of the answer.

One batch is in a worker at a time, so that who runs next is decided at the last moment and with everybody who came
meanwhile. A device with several workers has a lane for each: one batch at a time on the device, too, unless one takes longer
than it may; that one then shares the device with what other lanes run.
What stays out: who runs next (policy/batching.py), the frames (link.py), what an answer becomes (api/).
"""

from __future__ import annotations

import abc
import asyncio
import logging
import math
import struct
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias, cast

from predictor.errors import DeadlineExceeded, HearthError, TooManyRequests, WorkerDied
from predictor.model import ModelRef
from predictor.passage import Buffer
from predictor.policy.batching import Batch, Batching, Entry, Priority, Terms
from predictor.wire import Tensor

log = logging.getLogger(__name__)

SWEEP_S: Final = 0.02
"""How often those that wait are looked through for deadlines that cannot be met any more."""

REMEMBERED: Final = 4096
"""Models that are known not to batch."""

LENGTH: Final = struct.Struct("<I")


class Answer(NamedTuple):
    """What a model computed.

    parts       the outputs' bytes, one each
    compute_s   seconds inside the model, of the whole batch
    peak_bytes  as wire.Ran has it
    """

    outputs: tuple[Tensor, ...]
    parts: tuple[Buffer, ...]
    compute_s: float
    peak_bytes: int = -1


Outcome: TypeAlias = Answer | HearthError


class Job(Entry, abc.ABC):
    """A request for a device: what is asked, and who is told.

    body     the inputs' bytes, one each
    outputs  names of the wanted ones; empty: all
    alone    do not run it with others
    measure  have the answer tell what it took; such a request runs alone
    queued_s seconds it waited for the device
    shared   requests in its batch, itself included; 0: it did not run yet
    """

    __slots__ = ("alone", "body", "inputs", "measure", "outputs", "queued_s", "ref", "shared", "waits")

    def __init__(
        self,
        ref: ModelRef,
        inputs: tuple[Tensor, ...],
        body: Sequence[Buffer],
        outputs: tuple[str, ...],
        *,
        elements: int = 0,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = math.inf,
    ) -> None:
        super().__init__(ref, None, 1, elements, priority, 0.0, deadline_s)
        self.ref = ref
        self.inputs = inputs
        self.body = body
        self.outputs = outputs
        self.alone = False
        self.measure = False
        self.queued_s = 0.0
        self.shared = 0
        self.waits = False

    def join(self) -> None:
        """Let it run with others like it, if its inputs agree on how many rows it has."""
        first = self.inputs[0].shape if self.inputs else ()
        if not first or not first[0]:
            return
        rows = first[0]
        kind: list[object] = [self.outputs]
        for tensor in self.inputs:
            shape = tensor.shape
            if not shape or shape[0] != rows:
                return
            kind += (tensor.name, tensor.datatype, shape[1:])
        self.key = tuple(kind)
        self.rows = rows

    @abc.abstractmethod
    def done(self, outcome: Outcome) -> None:
        """Told what came of it, exactly once, unless it was withdrawn."""


class Work(NamedTuple):
    """One computation: what is sent to the device. ``body``: the inputs' bytes, in any number of pieces."""

    ref: ModelRef
    inputs: tuple[Tensor, ...]
    body: Sequence[Buffer]
    outputs: tuple[str, ...]
    measure: bool


Send: TypeAlias = Callable[[Work, Callable[[Outcome], None]], None]
"""Send work to the device; the second is told the outcome, and never before this returns."""


class Dispatcher:
    """One device's requests.

    send        reaches the device
    lane_of     which of the device's workers computes a model
    on_batch    told of every batch that ran: the model's name, rows, and the device's seconds
    on_overdue  told when a batch of a model begins to share the device with others, and when it ended
    shares_core  this process and the device's have one core between them: nothing is lost by letting the device wait until
                 answers are written and what their clients ask next is read, and larger batches are won
    """

    def __init__(
        self,
        send: Send,
        *,
        lane_of: Callable[[ModelRef], Hashable] = lambda _: None,
        starvation_s: float = 1.0,
        on_batch: Callable[[str, int, float], None] | None = None,
        on_overdue: Callable[[ModelRef, bool], None] | None = None,
        shares_core: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._lane_of = lane_of
        self._on_batch = on_batch
        self._on_overdue = on_overdue
        self._clock = clock
        self._batching = Batching(starvation_s)
        self._running: dict[Hashable, tuple[Batch, float]] = {}  # by lane, and since when
        self._sharing: set[Hashable] = set()  # lanes beside whose batches another one began: they have had their time
        self._held_until_s = math.nan  # by what began last; reckoned when somebody else comes
        self._shares_core = shares_core
        self._joined = False  # the last batch was more than one request
        self._whole: set[ModelRef] = set()  # models that turned out to answer with something else than a row for a row
        self._soon: asyncio.Handle | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests that wait for the device."""
        return self._batching.length

    def submit(self, job: Job, terms: Terms) -> None:
        """Have it computed. Raises TooManyRequests or DeadlineExceeded instead of letting it wait in vain."""
        if terms.max_rows > 1 and not job.alone and job.ref not in self._whole:
            job.join()
        job.arrived_s = now_s = self._clock()
        if self._batching.hopeless(job, now_s):
            raise _too_late(job)
        if not self._joined and (not self._running or (self._is_free(now_s) and not self._is_busy(job.ref))):
            batch = self._batching.at_once(job, terms, now_s)
            if batch is not None:
                self._run(batch, now_s)
                return
        if not self._batching.offer(job, terms):
            raise TooManyRequests(
                f"{terms.max_waiting} requests for model {job.ref} wait for its device already: try again later",
                retry_after_s=self._batching.wait_s(job.model, terms),
            )
        job.waits = True
        if self._soon is None and (not self._running or self._is_free(now_s)):  # others' bytes may come in the same tick
            self._soon = asyncio.get_running_loop().call_soon(self._pump)
        if self._sweeping is None and self._batching.length:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def withdraw(self, job: Job) -> bool:
        """Forget it, if it only waits. False: it is being computed, or is done."""
        if not job.waits:
            return False
        job.waits = False
        self._batching.withdraw(job)
        return True

    # ---- running ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what runs next, if the device is free and something may run."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        if not self._batching.length:
            return
        now_s = self._clock()
        if self._running and not self._is_free(now_s):
            return
        batch = self._next(now_s)
        if batch is not None:
            self._run(batch, now_s)
        elif self._batching.length:
            wake_s = self._batching.wake_s(self._busy)
            if wake_s < math.inf:  # else all that wait are in busy lanes, and a lane's end brings us back
                self._delay = asyncio.get_running_loop().call_later(max(wake_s - now_s, 0.0), self._pump)

    @property
    def _busy(self) -> Callable[[Hashable], bool] | None:
        """What is to be passed over; None, the usual case: nothing."""
        return self._is_busy if self._running else None

    def _is_busy(self, model: Hashable) -> bool:
        return self._lane_of(cast("ModelRef", model)) in self._running

    def _is_free(self, now_s: float) -> bool:
        """Whether another batch may begin beside what runs, in another lane: what began last has had its time, or is over."""
        if len(self._sharing) == len(self._running):
            return True
        if math.isnan(self._held_until_s):
            batch, began_s = next(reversed(self._running.values()))
            self._held_until_s = began_s + self._batching.patience_s(batch.entries[0].model)
        return now_s >= self._held_until_s

    def _next(self, now_s: float) -> Batch | None:
        """The next batch, without those of it that would end too late."""
        while (batch := self._batching.take(now_s, self._busy)) is not None:
            late = [entry for entry in batch.entries if self._batching.hopeless(entry, now_s)]
            if not late:
                return batch
            for job in _jobs(late):
                self._refuse(job)
            left = tuple(entry for entry in batch.entries if entry not in late)
            if left:
                return batch._replace(entries=left)
        return None

    def _run(self, batch: Batch, now_s: float) -> None:
        jobs = _jobs(batch.entries)
        for job in jobs:
            job.waits = False
            job.shared = len(jobs)
            job.queued_s = now_s - job.arrived_s
        first = jobs[0]
        lane = self._lane_of(first.ref)
        if self._running:
            self._share_device()
        self._running[lane] = batch, now_s
        inputs, body = (first.inputs, first.body) if len(jobs) == 1 else _joined(jobs, batch.rows)
        self._send(Work(first.ref, inputs, body, first.outputs, first.measure), partial(self._ended, lane))

    def _ended(self, lane: Hashable, outcome: Outcome) -> None:
        batch, began_s = self._running.pop(lane)
        if self._sharing and lane in self._sharing:
            self._sharing.remove(lane)
            self._tell_shares(batch, shares=False)
        else:
            self._held_until_s = math.nan
        jobs = _jobs(batch.entries)
        self._joined = len(jobs) > 1
        seconds = outcome.compute_s if isinstance(outcome, Answer) else self._clock() - began_s
        self._batching.ended(batch, seconds, answered=not isinstance(outcome, WorkerDied))
        outcomes = self._shared_out(outcome, jobs, batch.rows)
        if outcomes is None:
            for job in jobs:
                job.waits = True
            self._batching.again(batch)
        if not self._shares_core:
            self._pump()  # first of all: the device shall not wait for answers to be written
        if self._on_batch is not None:
            self._on_batch(jobs[0].ref.name, batch.rows, seconds)
        for job, own in zip(jobs, outcomes or (), strict=False):
            _tell(job, own)
        if self._shares_core and self._batching.length and self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._after_reading)

    def _share_device(self) -> None:
        """Another batch begins beside what runs."""
        for lane, (batch, _) in self._running.items():
            if lane not in self._sharing:
                self._sharing.add(lane)
                self._held_until_s = math.nan
                self._tell_shares(batch, shares=True)

    def _tell_shares(self, batch: Batch, *, shares: bool) -> None:
        if self._on_overdue is not None:
            self._on_overdue(_jobs(batch.entries)[0].ref, shares)

    def _after_reading(self) -> None:
        """In this tick of the loop sockets are read; in the next, what came is sent."""
        self._soon = asyncio.get_running_loop().call_soon(self._pump)

    def _shared_out(self, outcome: Outcome, jobs: Sequence[Job], rows: int) -> Sequence[Outcome] | None:
        """Each request's part; None: they shall run again, one by one, so that the one that spoils it is found."""
        if len(jobs) == 1:
            return (outcome,)
        if isinstance(outcome, Answer):
            parts = split(outcome, [job.rows for job in jobs])
            if parts is None:
                ref = jobs[0].ref
                if len(self._whole) >= REMEMBERED:
                    self._whole.clear()
                self._whole.add(ref)
                shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in outcome.outputs)
                log.warning("model %s does not batch: for %d rows it answered %s; its requests run alone", ref, rows, shapes)
            return parts
        if isinstance(outcome, WorkerDied):  # all of them had begun, or none had
            return [type(outcome)(outcome.message, retry_after_s=outcome.retry_after_s) for _ in jobs]
        return None

    # ---- those that wait in vain -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeping = None
        for job in _jobs(self._batching.late(self._clock())):
            self._batching.withdraw(job)
            self._refuse(job)
        if self._running and self._batching.length and self._soon is None and self._is_free(self._clock()):
            self._pump()  # what runs has had its time: other lanes go on beside it
        if self._batching.length:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _refuse(self, job: Job) -> None:
        """In the next tick: who is told may send something else at once, and that shall find things in order."""
        job.waits = False
        job.queued_s = self._clock() - job.arrived_s
        asyncio.get_running_loop().call_soon(_tell, job, _too_late(job))


def split(answer: Answer, rows: Sequence[int]) -> list[Answer] | None:
    """An answer for ``rows`` of several requests, cut into theirs. None: it does not have a row for each of theirs."""
    total = sum(rows)
    cut: list[list[tuple[Tensor, Buffer]]] = [[] for _ in rows]
    for tensor, part in zip(answer.outputs, answer.parts, strict=True):
        if not tensor.shape or tensor.shape[0] != total:
            return None
        tail = tensor.shape[1:]
        view = memoryview(part)
        ends = _string_ends(view, math.prod(tail), rows) if tensor.datatype == "BYTES" else _ends(len(view) // total, rows)
        begin = 0
        for pieces, count, end in zip(cut, rows, ends, strict=True):
            pieces.append((Tensor(tensor.name, tensor.datatype, (count, *tail), end - begin), view[begin:end]))
            begin = end
    return [
        Answer(tuple(tensor for tensor, _ in pieces), tuple(part for _, part in pieces), answer.compute_s) for pieces in cut
    ]


def _ends(row_bytes: int, rows: Sequence[int]) -> Iterable[int]:
    return accumulate(count * row_bytes for count in rows)


def _string_ends(view: memoryview, row_elements: int, rows: Sequence[int]) -> Iterable[int]:
    """Where each request's strings end: each is a u32 length and its bytes."""
    at = 0
    for count in rows:
        for _ in range(count * row_elements):
            at += LENGTH.size + LENGTH.unpack_from(view, at)[0]
        yield at


def _joined(jobs: Sequence[Job], rows: int) -> tuple[tuple[Tensor, ...], list[Buffer]]:
    """Inputs of all rows, and their bytes: input by input, and of each request by request."""
    inputs = tuple(
        Tensor(one.name, one.datatype, (rows, *one.shape[1:]), sum(job.inputs[place].size_bytes for job in jobs))
        for place, one in enumerate(jobs[0].inputs)
    )
    return inputs, [job.body[place] for place in range(len(inputs)) for job in jobs]


def _jobs(entries: Sequence[Entry]) -> Sequence[Job]:
    """Nothing else is ever offered."""
    return cast("Sequence[Job]", entries)


def _tell(job: Job, outcome: Outcome) -> None:
    try:
        job.done(outcome)
    except Exception:  # a job's root: the others of its batch are to be told, too
        log.exception("telling the outcome of a request for model %s failed", job.ref)


def _too_late(job: Job) -> HearthError:
    return DeadlineExceeded(
        f"model {job.ref} has so much to do that this request cannot be answered before its deadline", retry_after_s=1.0
    )
