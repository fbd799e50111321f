"""Which of the requests that wait for a device run next, and which of them run as one.

Three questions, answered each time the device is free:

1. *Which priority?* The highest that waits; but one that waited ``starvation_s`` for its turn gets it, so that a flood of
   urgent requests slows the others down and never stops them.
2. *Which model?* The one that got the least device time for its weight: start-time fair queueing (Goyal, Vin, Cheng:
   "Start-time Fair Queueing", SIGCOMM 1996), with measured seconds in place of packet lengths. One batch runs at a time, so
   what it took is known before the next is chosen. Having been idle earns a model nothing and costs it nothing.
3. *Which requests?* The one that came first, and behind it, in their order, those with the same ``key`` that still fit.

A device whose models have several workers has a lane for each of them: one batch at a time in a lane, and one at a time on
the device for as long as that takes no longer than it may (``patience_s``). Which models' lanes are busy is an argument.

Pure: time is an argument, and nothing here waits or sends (dispatch.py does). Whether a model may be on the device at all is
the ledger's question.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

REMEMBERED: Final = 4096
"""Models whose times and debts are remembered while none of their requests waits; beyond it, the oldest are forgotten."""

NEWEST: Final = 0.2
"""Weight of the newest batch in a model's mean seconds."""


HELD_TIMES: Final = 4.0
HELD_S: Final = (1.0, 5.0)
"""A batch has the device to itself for HELD_TIMES its model's mean, at least and at most so long: a model that hangs in a
worker of its own keeps models in other workers waiting no longer. Four: a batch is not the mean, and beside another one it
takes twice as long. At most: whoever knows itself to be slow cannot hold a device for that."""


class Priority(enum.IntEnum):
    """How urgent a request is. Lower goes first."""

    HIGH = 0
    NORMAL = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Terms:
    """How one model's requests are run.

    max_rows      rows of one batch; 0 or 1: each request runs alone
    max_elements  input elements of one batch: as many as its memory was measured with
    max_delay_s   how long a request may wait, with the device free, for others to run with it
    weight        the model's share of the device, relative to the other models that wait
    max_waiting   its requests that may wait for the device
    """

    max_rows: int = 1
    max_elements: int = 1 << 62
    max_delay_s: float = 0.0
    weight: float = 1.0
    max_waiting: int = 1 << 30


@dataclass(slots=True, eq=False)
class Entry:
    """One request that waits.

    key       requests of one model with equal keys can run as one; None: it runs alone
    rows      of the batch dimension, at least 1
    elements  of all its inputs
    """

    model: Hashable
    key: Hashable = None
    rows: int = 1
    elements: int = 0
    priority: Priority = Priority.NORMAL
    arrived_s: float = 0.0
    deadline_s: float = math.inf


class Batch(NamedTuple):
    """What runs as one, in order; told to ``ended`` when it has. ``start``: the virtual moment at which it was due."""

    entries: tuple[Entry, ...]
    terms: Terms
    start: float

    @property
    def rows(self) -> int:
        """Of all its requests."""
        return sum(entry.rows for entry in self.entries)


Busy = Callable[[Hashable], bool]
"""Whether a model's lane is busy, so that none of its requests may run now."""


@dataclass(slots=True)
class _Pace:
    """How many seconds a model's batches took: the shortest, and a moving mean."""

    least_s: float
    mean_s: float


@dataclass(slots=True, eq=False)
class _Flow:
    """One model's waiting requests of one priority, by key. ``start``: the virtual moment at which it is due."""

    terms: Terms
    start: float
    queues: dict[Hashable, deque[Entry]] = field(default_factory=dict)

    def due(self, now_s: float) -> deque[Entry] | None:
        """Of the queues that may run now the one whose head came first."""
        first: deque[Entry] | None = None
        for queue in self.queues.values():
            if (first is None or queue[0].arrived_s < first[0].arrived_s) and self.due_s(queue) <= now_s:
                first = queue
        return first

    def due_s(self, queue: deque[Entry]) -> float:
        """From when on the head may run: at once; where the model waits for others, when enough are there or its delay ends."""
        head, terms = queue[0], self.terms
        if not terms.max_delay_s or head.key is None:
            return head.arrived_s
        count = _fitting(queue, terms)
        full = count < len(queue) or sum(entry.rows for entry in queue) >= terms.max_rows
        return head.arrived_s if full else head.arrived_s + terms.max_delay_s


@dataclass(slots=True, eq=False)
class _Class:
    """One priority.

    flows    by model; none is empty
    debts    of models that have nothing waiting: the virtual moments at which they are due, where that is later than ``now``
    now      virtual time: when the batch that was taken last was due
    since_s  when this priority got its last turn, or began to wait for one
    """

    flows: dict[Hashable, _Flow] = field(default_factory=dict)
    debts: dict[Hashable, float] = field(default_factory=dict)
    now: float = 0.0
    since_s: float = 0.0

    def next(self, now_s: float, busy: Busy | None) -> tuple[_Flow, deque[Entry]] | None:
        """Of the flows that may run now the one due first, and where two are equal the one whose head came first."""
        best: tuple[_Flow, deque[Entry]] | None = None
        first = (math.inf, math.inf)
        for model, flow in self.flows.items():
            if flow.start > first[0]:  # most of 200 models: what they wait for need not be looked at
                continue
            if busy is not None and busy(model):
                continue
            queue = flow.due(now_s)
            if queue is not None and (flow.start, queue[0].arrived_s) < first:
                best, first = (flow, queue), (flow.start, queue[0].arrived_s)
        return best


class Batching:
    """One device's waiting requests.

    starvation_s  a priority that waited so long for its turn gets the next one
    """

    def __init__(self, starvation_s: float = 1.0) -> None:
        assert starvation_s > 0, f"starved after {starvation_s} s"
        self._starvation_s = starvation_s
        self._classes = tuple(_Class() for _ in Priority)
        self._waiting: dict[Hashable, int] = {}
        self._paces: dict[Hashable, _Pace] = {}
        self.length = 0

    def __iter__(self) -> Iterator[Entry]:
        """Every request that waits."""
        for flow in self._flows():
            for queue in flow.queues.values():
                yield from queue

    def waiting(self, model: Hashable) -> int:
        """Requests of ``model`` that wait."""
        return self._waiting.get(model, 0)

    def wait_s(self, model: Hashable, terms: Terms) -> float:
        """About how long a request would wait behind the others of its model: what a Retry-After is made of."""
        pace = self._paces.get(model)
        return 0.0 if pace is None else pace.mean_s * (1 + self.waiting(model) // max(terms.max_rows, 1))

    def patience_s(self, model: Hashable) -> float:
        """How long a batch of the model may have the device to itself."""
        pace = self._paces.get(model)
        return HELD_S[0] if pace is None else min(max(HELD_TIMES * pace.mean_s, HELD_S[0]), HELD_S[1])

    def hopeless(self, entry: Entry, now_s: float) -> bool:
        """Whether no luck lets it end before its deadline: even the model's fastest run so far would take too long."""
        pace = self._paces.get(entry.model)
        return now_s + (0.0 if pace is None else pace.least_s) > entry.deadline_s

    # ---- events ----------------------------------------------------------------------------------------------

    def offer(self, entry: Entry, terms: Terms) -> bool:
        """Let a request wait. False: too many of its model do already, and nothing was noted."""
        waiting = self._waiting.get(entry.model, 0)
        if waiting >= terms.max_waiting:
            return False
        flow = self._flow(entry, terms)
        queue = flow.queues.get(entry.key)
        if queue is None:
            queue = flow.queues[entry.key] = deque()
        queue.append(entry)
        self._waiting[entry.model] = waiting + 1
        self.length += 1
        return True

    def at_once(self, entry: Entry, terms: Terms, now_s: float) -> Batch | None:
        """What ``offer`` and ``take`` come to where nobody else waits and the device is free. None: it has to be offered."""
        if self.length or (terms.max_delay_s and entry.key is not None and entry.rows < terms.max_rows):
            return None
        group = self._classes[entry.priority]
        group.now = max(group.debts.pop(entry.model, 0.0), group.now)
        group.since_s = now_s
        return Batch((entry,), terms, group.now)

    def take(self, now_s: float, busy: Busy | None = None) -> Batch | None:
        """What the free device runs now. None: nothing may; ``wake_s`` tells when to ask again.

        busy  None: every lane is free
        """
        chosen = self._choose(now_s, busy)
        if chosen is None:
            return None
        group, flow, queue = chosen
        entries = tuple([queue.popleft() for _ in range(_fitting(queue, flow.terms))])
        flow.start = group.now = max(flow.start, group.now)  # earlier only where it waited for others: that earns nothing
        group.since_s = now_s
        self._left(group, flow, entries[0], len(entries))
        return Batch(entries, flow.terms, flow.start)

    def ended(self, batch: Batch, seconds: float, *, answered: bool = True) -> None:
        """The batch took ``seconds`` of the device.

        answered  how long it took tells how long others of its model will take; not so where its worker died
        """
        first = batch.entries[0]
        group = self._classes[first.priority]
        due = batch.start + seconds / batch.terms.weight
        flow = group.flows.get(first.model)
        if flow is not None:
            flow.start = max(flow.start, due)
        else:
            _remember(group.debts, first.model, due)
        if not group.flows:  # all are idle, and nobody owes: virtual time is the latest finish, as in the paper
            group.now = max(group.now, *group.debts.values())
            group.debts.clear()
        if not answered:
            return
        pace = self._paces.pop(first.model, None) or _Pace(seconds, seconds)
        pace.least_s = min(pace.least_s, seconds)
        pace.mean_s += NEWEST * (seconds - pace.mean_s)
        _remember(self._paces, first.model, pace)

    def again(self, batch: Batch) -> None:
        """The batch failed as a whole: its requests wait once more, before those that came later, each to run alone."""
        first = batch.entries[0]
        waits = self._classes[first.priority].flows.get(first.model)
        flow = self._flow(first, waits.terms if waits else batch.terms)
        queue = flow.queues.setdefault(None, deque())
        for entry in reversed(batch.entries):
            entry.key = None
            queue.appendleft(entry)
        self._waiting[first.model] = self._waiting.get(first.model, 0) + len(batch.entries)
        self.length += len(batch.entries)

    def withdraw(self, entry: Entry) -> None:
        """A waiting request will not run: its client went, or its time is over."""
        group = self._classes[entry.priority]
        flow = group.flows[entry.model]
        flow.queues[entry.key].remove(entry)
        self._left(group, flow, entry, 1)

    def late(self, now_s: float) -> list[Entry]:
        """Those that wait in vain, because they are hopeless; to be withdrawn."""
        return [entry for entry in self if self.hopeless(entry, now_s)]

    def wake_s(self, busy: Busy | None = None) -> float:
        """The first moment at which one that waits in a free lane may run; inf: none does."""
        free = (flow for group in self._classes for model, flow in group.flows.items() if busy is None or not busy(model))
        return min((flow.due_s(queue) for flow in free for queue in flow.queues.values()), default=math.inf)

    # ---- small print -----------------------------------------------------------------------------------------

    def _flow(self, entry: Entry, terms: Terms) -> _Flow:
        """Where the request waits; under the newest terms."""
        group = self._classes[entry.priority]
        if not group.flows:
            group.since_s = max(group.since_s, entry.arrived_s)  # later than its arrival where it runs again
        flow = group.flows.get(entry.model)
        if flow is None:
            flow = group.flows[entry.model] = _Flow(terms, max(group.debts.pop(entry.model, 0.0), group.now))
        flow.terms = terms
        return flow

    def _flows(self) -> Iterator[_Flow]:
        for group in self._classes:
            yield from group.flows.values()

    def _choose(self, now_s: float, busy: Busy | None) -> tuple[_Class, _Flow, deque[Entry]] | None:
        """By priority, unless a lower one starves: then the one that waited longest for its turn."""
        best: tuple[_Class, _Flow, deque[Entry]] | None = None
        starved_s = now_s - self._starvation_s
        for group in self._classes:
            if not group.flows or (best is not None and group.since_s > starved_s):
                continue
            found = group.next(now_s, busy)
            if found is not None:
                best = (group, *found)
                starved_s = min(starved_s, group.since_s)
        return best

    def _left(self, group: _Class, flow: _Flow, entry: Entry, count: int) -> None:
        """``count`` requests like ``entry`` wait no more."""
        self.length -= count
        left = self._waiting[entry.model] - count
        if left:
            self._waiting[entry.model] = left
        else:
            del self._waiting[entry.model]
        if not flow.queues[entry.key]:
            del flow.queues[entry.key]
            if not flow.queues:
                del group.flows[entry.model]
                if flow.start > group.now:
                    _remember(group.debts, entry.model, flow.start)


def _fitting(queue: deque[Entry], terms: Terms) -> int:
    """How many of the queue's first requests make a batch; the head always does, however large it is."""
    head = queue[0]
    if head.key is None or len(queue) == 1:
        return 1
    rows, elements, count = head.rows, head.elements, 1
    for entry in islice(queue, 1, None):
        rows += entry.rows
        elements += entry.elements
        if rows > terms.max_rows or elements > terms.max_elements:
            break
        count += 1
    return count


def _remember(known: dict[Hashable, float] | dict[Hashable, _Pace], model: Hashable, value: float | _Pace) -> None:
    """As the newest; the oldest makes room."""
    known.pop(model, None)
    known[model] = value  # type: ignore[assignment]
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
