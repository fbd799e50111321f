"""Which requests run next, and which as one: never lost, never twice, in order, fairly, and none forever last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from predictor.policy import batching
from predictor.policy.batching import Batch, Batching, Entry, Priority, Terms

MODELS = ("a", "b", "c")
KEYS = (None, "x", "y")
TERMS = {
    "a": Terms(max_rows=4, max_elements=20, max_delay_s=0.5, weight=1.0, max_waiting=6),
    "b": Terms(max_rows=8, max_elements=30, weight=3.0, max_waiting=8),
    "c": Terms(max_waiting=5),
}
ROUNDING_S = 1e-9
SECONDS = st.integers(0, 12).map(lambda eighths: eighths / 8)


class Books(RuleBasedStateMachine):
    """A plain list of what waits, beside the real thing."""

    def __init__(self) -> None:
        super().__init__()
        self.batching = Batching(starvation_s=2.0)
        self.now_s = 0.0
        self.waiting: list[Entry] = []
        self.running: Batch | None = None
        self.least_s: dict[Hashable, float] = {}

    def of(self, like: Entry) -> list[Entry]:
        return [e for e in self.waiting if (e.model, e.priority, e.key) == (like.model, like.priority, like.key)]

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        model=st.sampled_from(MODELS),
        key=st.sampled_from(KEYS),
        rows=st.integers(1, 10),
        elements=st.integers(0, 40),
        priority=st.sampled_from(Priority),
        patience_s=st.one_of(st.just(math.inf), SECONDS),
    )
    def offer(self, *, model: str, key: str | None, rows: int, elements: int, priority: Priority, patience_s: float) -> None:
        entry = Entry(model, key, rows, elements, priority, self.now_s, self.now_s + patience_s)
        room = sum(other.model == model for other in self.waiting) < TERMS[model].max_waiting
        before_s = self.batching.wait_s(model, TERMS[model])
        assert self.batching.offer(entry, TERMS[model]) is room
        assert self.batching.wait_s(model, TERMS[model]) >= before_s
        if room:
            self.waiting.append(entry)

    @precondition(lambda self: self.running is None)
    @rule()
    def take(self) -> None:
        due = self.batching.wake_s() <= self.now_s
        batch = self.batching.take(self.now_s)
        assert (batch is not None) is due
        if batch is None:
            assert all(e.model == "a" and e.key is not None for e in self.waiting), "only those with a delay are held back"
            assert all(e.arrived_s + 0.5 > self.now_s for e in self.waiting), "and none for longer than that"
            return
        self.is_lawful(batch)
        self.waiting = [e for e in self.waiting if e not in batch.entries]
        self.running = batch

    def is_lawful(self, batch: Batch) -> None:
        entries, terms = batch.entries, TERMS[str(batch.entries[0].model)]
        queue = self.of(entries[0])
        assert batch.terms == terms
        assert queue[: len(entries)] == list(entries), "the first of one model, priority and key, in order"
        assert batch.rows == sum(e.rows for e in entries)
        if entries[0].key is None:
            assert len(entries) == 1
            return
        assert len(entries) == 1 or fits(entries, terms)
        assert len(entries) == len(queue) or not fits(queue[: len(entries) + 1], terms), "maximal"

    @precondition(lambda self: self.running is not None)
    @rule(seconds=SECONDS, failed=st.booleans(), again_first=st.booleans())
    def end(self, *, seconds: float, failed: bool, again_first: bool) -> None:
        batch, self.running = self.running, None
        assert batch is not None
        self.now_s += seconds
        if failed and again_first:
            self.batching.again(batch)
        self.batching.ended(batch, seconds)
        if failed and not again_first:
            self.batching.again(batch)
        if failed:
            self.waiting = [*batch.entries, *self.waiting]
            assert all(e.key is None for e in batch.entries)
        model = batch.entries[0].model
        self.least_s[model] = min(seconds, self.least_s.get(model, math.inf))

    @precondition(lambda self: self.waiting)
    @rule(choice=st.integers(0, 1000))
    def withdraw(self, choice: int) -> None:
        self.batching.withdraw(self.waiting.pop(choice % len(self.waiting)))

    @rule()
    def withdraw_the_late(self) -> None:
        late = self.batching.late(self.now_s)
        hopeless = [e for e in self.waiting if self.now_s + self.least_s.get(e.model, 0.0) > e.deadline_s]
        assert set(map(id, late)) == set(map(id, hopeless))
        for entry in late:
            self.batching.withdraw(entry)
        self.waiting = [e for e in self.waiting if e not in late]

    @invariant()
    def the_books_agree(self) -> None:
        listed = list(self.batching)
        assert self.batching.length == len(listed) == len(self.waiting)
        assert set(map(id, listed)) == set(map(id, self.waiting))
        for model in MODELS:
            assert self.batching.waiting(model) == sum(e.model == model for e in self.waiting)
        for entry in self.waiting:
            assert [e for e in listed if (e.model, e.priority, e.key) == (entry.model, entry.priority, entry.key)] == self.of(
                entry
            )


def fits(entries: tuple[Entry, ...] | list[Entry], terms: Terms) -> bool:
    return sum(e.rows for e in entries) <= terms.max_rows and sum(e.elements for e in entries) <= terms.max_elements


Books.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


def run(device: Batching, now_s: float, seconds: float) -> Batch:
    batch = device.take(now_s)
    assert batch is not None
    device.ended(batch, seconds)
    return batch


# ---- fairness ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from((0.5, 1.0, 2.0, 5.0)), st.floats(0.01, 2.0)), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
def test_models_that_always_wait_share_the_device_by_weight_within_one_batch_each(
    models: list[tuple[float, float]], random: object
) -> None:
    """In every interval |W_i/w_i - W_j/w_j| <= d_i/w_i + d_j/w_j (Goyal et al., theorem 1)."""
    draw: Callable[[float, float], float] = random.uniform  # type: ignore[attr-defined]
    device, now_s = Batching(), 0.0
    terms = [Terms(weight=weight) for weight, _ in models]
    for model in range(len(models)):
        for _ in range(2):
            device.offer(Entry(model), terms[model])
    served = [[0.0] * len(models)]
    for _ in range(60):
        batch = device.take(now_s)
        assert batch is not None
        model = int(str(batch.entries[0].model))
        seconds = draw(0.0, models[model][1])
        now_s += seconds
        device.offer(Entry(model, arrived_s=now_s), terms[model])
        device.ended(batch, seconds)
        served.append([w + (seconds / models[m][0] if m == model else 0.0) for m, w in enumerate(served[-1])])
    for i, j in itertools.combinations(range(len(models)), 2):
        apart = [row[i] - row[j] for row in served]
        bound = sum(longest_s / weight for weight, longest_s in (models[i], models[j]))
        assert max(apart) - min(apart) <= bound + ROUNDING_S


def test_a_model_with_one_request_at_a_time_waits_for_at_most_one_batch_of_a_flood() -> None:
    device = Batching()
    for _ in range(1000):
        device.offer(Entry("flood"), Terms())
    order = []
    device.offer(Entry("small"), Terms())
    for now in range(40):
        model = run(device, float(now), 1.0).entries[0].model
        order.append(model)
        if model == "small":
            device.offer(Entry("small", arrived_s=now + 1.0), Terms())
    assert "flood flood" not in " ".join(map(str, order[1:]))


@pytest.mark.parametrize("others", [1, 2, 5])
def test_one_that_comes_back_runs_after_at_most_one_batch_of_each_other_and_is_not_paid_for_its_idling(others: int) -> None:
    device = Batching()
    for model in range(others):
        for _ in range(200):
            device.offer(Entry(model), Terms())
    device.offer(Entry("back"), Terms())
    now_s = 0.0
    for _ in range(50 * others):
        run(device, now_s, 1.0)
        now_s += 1.0
    for _ in range(10):
        device.offer(Entry("back", arrived_s=now_s), Terms())
    order = [run(device, now_s + step, 1.0).entries[0].model for step in range(4 * (others + 1))]
    assert order.index("back") <= others
    assert 3 <= order.count("back") <= 5, "its share, whatever it did not use before"


def test_what_waits_for_others_by_its_own_wish_earns_nothing_meanwhile() -> None:
    device, now_s = Batching(), 0.0
    patient = Terms(max_rows=8, max_delay_s=1.5)
    for _ in range(300):
        device.offer(Entry("busy"), Terms())
    for key in range(100):  # one or two always wait, so that the model is never idle
        device.offer(Entry("patient", key=key, arrived_s=now_s), patient)
        batch = device.take(now_s)
        while batch is not None and batch.entries[0].model == "patient":
            device.ended(batch, 0.01)
            now_s += 0.01
            batch = device.take(now_s)
        assert batch is not None
        device.ended(batch, 1.0)
        now_s += 1.0
    assert device.waiting("patient")
    for _ in range(50):
        device.offer(Entry("patient", arrived_s=now_s), patient)
    order = [run(device, now_s + 2.0 + step, 1.0).entries[0].model for step in range(30)]
    assert 14 <= order.count("patient") <= 17


def test_virtual_time_never_runs_back_so_that_a_newcomer_is_not_owed_the_past() -> None:
    device = Batching()
    device.offer(Entry("patient", key="x"), Terms(max_rows=8, max_delay_s=10.0))
    for _ in range(40):
        device.offer(Entry("busy"), Terms())
    for now in range(10):
        run(device, float(now), 1.0)
    assert run(device, 10.0, 1.0).entries[0].model == "patient"
    for _ in range(20):
        device.offer(Entry("new", arrived_s=11.0), Terms())
    order = [run(device, 11.0 + step, 1.0).entries[0].model for step in range(10)]
    assert 4 <= order.count("new") <= 6


def test_a_model_that_had_the_device_for_itself_owes_nothing_once_all_were_idle() -> None:
    device = Batching()
    device.offer(Entry("a"), Terms())
    run(device, 0.0, 10.0)
    for arrived_s in (100.0, 100.1):
        device.offer(Entry("a", arrived_s=arrived_s), Terms())
        device.offer(Entry("b", arrived_s=arrived_s + 0.05), Terms())
    assert [run(device, 101.0, 1.0).entries[0].model for _ in range(4)] == ["a", "b", "a", "b"]


def test_one_that_withdraws_and_returns_still_owes_what_it_had() -> None:
    device = Batching()
    second = Entry("a")
    for entry in (Entry("a"), second, Entry("b"), Entry("b")):
        device.offer(entry, Terms())
    assert run(device, 0.0, 1.5).entries[0].model == "a"
    device.withdraw(second)
    device.offer(Entry("a"), Terms())
    assert [run(device, 2.0, 1.0).entries[0].model for _ in range(3)] == ["b", "b", "a"]


# ---- priorities ----------------------------------------------------------------------------------------------


def test_high_goes_before_normal_before_batch() -> None:
    device = Batching()
    for priority in reversed(Priority):
        device.offer(Entry("a", priority=priority), Terms())
    assert [run(device, 0.0, 0.1).entries[0].priority for _ in Priority] == list(Priority)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1.5), min_size=40, max_size=120), st.floats(0.1, 3.0))
def test_no_priority_waits_longer_for_its_turn_than_starvation_and_three_batches(
    spans: list[float], starvation_s: float
) -> None:
    """The batch that runs when it starves, and one of each other priority that waited even longer."""
    device, now_s = Batching(starvation_s), 0.0
    last_s = dict.fromkeys(Priority, 0.0)
    for priority in Priority:
        for _ in range(len(spans)):
            device.offer(Entry("a", priority=priority), Terms())
    for seconds in spans:
        priority = run(device, now_s, seconds).entries[0].priority
        assert priority is Priority.HIGH or now_s - last_s[priority] >= starvation_s - ROUNDING_S, "no sooner either"
        last_s[priority] = now_s
        now_s += seconds
        assert now_s - seconds - min(last_s.values()) <= starvation_s + 3 * max(spans) + ROUNDING_S


def test_what_failed_has_had_its_turn_and_starves_only_from_then_on() -> None:
    device = Batching(starvation_s=1.0)
    device.offer(Entry("a", priority=Priority.BATCH), Terms())
    failed = run(device, 5.0, 0.1)
    device.offer(Entry("b", priority=Priority.HIGH, arrived_s=5.1), Terms())
    device.again(failed)
    assert run(device, 5.1, 0.1).entries[0].priority is Priority.HIGH


# ---- the rest ------------------------------------------------------------------------------------------------


def test_all_that_wait_are_told_and_those_that_wait_in_vain_withdrawn() -> None:
    device = Batching()
    entries = [Entry("a"), Entry("a", "x", deadline_s=3.0), Entry("b", priority=Priority.HIGH, deadline_s=1.0)]
    for entry in entries:
        assert device.offer(entry, Terms())
    assert sorted(device, key=entries.index) == entries
    assert device.late(1.0) == []
    assert device.late(2.0) == [entries[2]]
    device.withdraw(entries[2])
    assert sorted(device, key=entries.index) == entries[:2]
    assert device.late(4.0) == [entries[1]]


def test_more_than_may_wait_are_not_taken_in() -> None:
    device, terms = Batching(), Terms(max_waiting=2)
    assert [device.offer(Entry("a"), terms) for _ in range(3)] == [True, True, False]
    assert device.offer(Entry("b"), terms), "whose queue is another one"
    assert (device.waiting("a"), device.length) == (2, 3)


def test_what_finds_others_waiting_or_waits_for_others_itself_does_not_run_at_once() -> None:
    device, waits = Batching(), Terms(max_rows=4, max_delay_s=1.0)
    assert device.at_once(Entry("a", "x"), waits, 0.0) is None
    assert device.at_once(Entry("a", "x", rows=waits.max_rows), waits, 0.0) is not None, "full"
    assert device.at_once(Entry("a"), waits, 0.0) is not None, "alone in any case"
    device.offer(Entry("b"), Terms())
    assert device.at_once(Entry("a"), Terms(), 0.0) is None


def test_what_failed_waits_under_the_terms_that_are_newest() -> None:
    device, newest = Batching(), Terms(weight=7.0)
    device.offer(Entry("a"), Terms())
    failed = run(device, 0.0, 1.0)
    device.offer(Entry("a"), newest)
    device.again(failed)
    assert run(device, 1.0, 1.0).terms is newest


def test_a_full_batch_does_not_wait_for_others_and_one_that_is_not_does() -> None:
    device, terms = Batching(), Terms(max_rows=4, max_delay_s=1.0)
    assert device.wake_s() == math.inf
    device.offer(Entry("a", "x", rows=3), terms)
    assert device.take(0.5) is None
    assert device.wake_s() == 1.0
    device.offer(Entry("a", "x", rows=1, arrived_s=0.5), terms)
    assert run(device, 0.5, 1.0).rows == 4


def test_hopeless_is_only_what_the_fastest_run_so_far_could_not_save() -> None:
    device = Batching()
    entry = Entry("a", deadline_s=10.0)
    assert not device.hopeless(entry, 10.0)
    for seconds in (4.0, 2.0, 6.0):
        device.offer(Entry("a"), Terms())
        run(device, 0.0, seconds)
    assert not device.hopeless(entry, 8.0)
    assert device.hopeless(entry, 8.1)


def test_however_many_models_come_by_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "REMEMBERED", 5)
    device = Batching()
    device.offer(Entry("stays"), Terms())
    for model in range(50):
        device.offer(Entry(model, priority=Priority.HIGH), Terms())
        device.offer(Entry("busy", priority=Priority.HIGH), Terms())
        run(device, 0.0, 1.0)
        run(device, 0.0, 1.0)
        assert all(len(group.debts) <= 5 for group in device._classes)
        assert len(device._paces) <= 5
    assert device.wait_s(0, Terms()) == 0.0
    assert device.wait_s(49, Terms()) == 1.0


@given(
    before=st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(Priority), SECONDS), max_size=6),
    model=st.sampled_from(MODELS),
    key=st.sampled_from(KEYS),
    rows=st.integers(1, 10),
    priority=st.sampled_from(Priority),
    waits=st.booleans(),
)
def test_running_at_once_is_what_offering_and_taking_come_to(
    *, before: list[tuple[str, Priority, float]], model: str, key: str | None, rows: int, priority: Priority, waits: bool
) -> None:
    short, long = Batching(), Batching()
    for name, urgency, seconds in before:
        for each in (short, long):
            each.offer(Entry(name, priority=urgency), TERMS[name])
            batch = each.take(0.0)
            assert batch is not None
            each.ended(batch, seconds)
    for each in (short, long):
        if waits:
            each.offer(Entry("a", "x", arrived_s=1.0), TERMS["a"])
    entry = Entry(model, key, rows, priority=priority, arrived_s=1.0)

    batch = short.at_once(entry, TERMS[model], 1.0)

    delayed = model == "a" and key is not None and rows < TERMS["a"].max_rows
    assert (batch is None) is (waits or delayed)
    if batch is not None:
        assert long.offer(entry, TERMS[model])
        assert long.take(1.0) == batch
        for each in (short, long):
            each.ended(batch, 0.5)
        assert short._classes[priority].now == long._classes[priority].now
        assert short._classes[priority].debts == long._classes[priority].debts
        assert short._classes[priority].since_s == long._classes[priority].since_s
        assert (short.length, short._waiting) == (long.length, long._waiting)


@pytest.mark.parametrize(("terms", "count"), [(Terms(max_rows=3), 3), (Terms(max_rows=8, max_elements=20), 2)])
def test_a_batch_ends_before_the_first_request_that_does_not_fit(terms: Terms, count: int) -> None:
    device = Batching()
    for _ in range(5):
        device.offer(Entry("a", "x", elements=10), terms)
    batch = device.take(0.0)
    assert batch is not None
    assert len(batch.entries) == count


def test_models_whose_lane_is_busy_are_passed_over_and_wake_nobody() -> None:
    device = Batching()
    for model in ("a", "b"):
        assert device.offer(Entry(model), Terms())

    def busy(model: Hashable) -> bool:
        return model == "a"

    assert device.wake_s(busy) == 0.0
    batch = device.take(0.0, busy)
    assert batch is not None
    assert batch.entries[0].model == "b"
    assert device.take(0.0, busy) is None
    assert (device.wake_s(busy), device.wake_s()) == (math.inf, 0.0)
    assert device.take(0.0) is not None


def test_a_batch_has_the_device_for_a_few_times_its_models_mean_within_bounds() -> None:
    device = Batching()
    assert device.patience_s("a") == 1.0
    for seconds, patience_s in ((0.001, 1.0), (0.5, 2.0), (60.0, 5.0)):
        device = Batching()
        batch = device.at_once(Entry("a"), Terms(), 0.0)
        assert batch is not None
        device.ended(batch, seconds)
        assert device.patience_s("a") == patience_s
        device.ended(batch, 1000.0, answered=False)
        assert device.patience_s("a") == patience_s


@given(
    entries=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(Priority)), min_size=1, max_size=20),
    lanes=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_with_some_lanes_busy_everything_else_runs_and_nothing_of_theirs(
    entries: list[tuple[str, Priority]], lanes: list[bool]
) -> None:
    device = Batching()
    for number, (model, priority) in enumerate(entries):
        assert device.offer(Entry(model, priority=priority, arrived_s=float(number)), Terms())

    def busy(model: Hashable) -> bool:
        return lanes["abc".index(str(model))]

    ran: list[Hashable] = []
    while (batch := device.take(100.0, busy)) is not None:
        ran += [entry.model for entry in batch.entries]
        device.ended(batch, 0.1)
    assert sorted(map(str, ran)) == sorted(model for model, _ in entries if not busy(model))
    assert device.length == len(entries) - len(ran)
