"""What is learned of a pool from what its pods tell, second by second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmup.activity import (
    DEFAULT_START_S,
    FORMAT,
    MAX_GAPS,
    MAX_NOTES,
    MAX_STARTS,
    Activity,
    Seen,
    Watcher,
    decode,
    encode,
)
from warmup.forecast import SLOT_S, slot_of

NOW = 1_000_000.0


class Pod:
    """A pod that tells of itself what a real one would."""

    def __init__(self, name: str, created_s: float, serving_s: float) -> None:
        self.name = name
        self.created_s = created_s
        self.serving_s = serving_s
        self.requests: list[tuple[float, float]] = []
        self.answers = True

    def ask(self, at_s: float, lasts_s: float = 0.1) -> None:
        self.requests.append((at_s, at_s + lasts_s))

    def seen(self, now_s: float) -> Seen:
        came = [begin for begin, _ in self.requests if begin <= now_s]
        running = sum(begin <= now_s < end for begin, end in self.requests)
        ago = now_s - max(came) if came else None
        return Seen(self.name, self.created_s, self.answers, now_s >= self.serving_s, len(came), ago, running)


def watch(watcher: Watcher, pods: list[Pod], begin_s: float, end_s: float, target: float = 100) -> None:
    for second in range(int(end_s - begin_s)):
        now_s = begin_s + second
        watcher.look([pod.seen(now_s) for pod in pods if pod.created_s <= now_s], now_s, target=target)


def test_a_gap_is_from_the_end_of_one_request_to_the_next() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90)
    pod.ask(NOW + 10, 5)
    pod.ask(NOW + 100)
    pod.ask(NOW + 103)
    pod.ask(NOW + 200)
    watch(watcher, [pod], NOW, NOW + 210)
    assert watcher.activity.gaps_s == pytest.approx([85, 97], abs=2)


def test_gaps_reach_over_zero_to_the_creation_of_the_pod_that_a_request_made() -> None:
    watcher, first, second = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90), Pod("b", NOW + 500, NOW + 520)
    first.ask(NOW + 10)
    second.ask(NOW + 520.5)
    watch(watcher, [first], NOW, NOW + 100)
    watch(watcher, [], NOW + 100, NOW + 500)
    watch(watcher, [second], NOW + 500, NOW + 530)
    assert watcher.activity.gaps_s == pytest.approx([490], abs=2)
    assert watcher.activity.starts_s == pytest.approx([20], abs=1)


def test_a_pod_that_was_there_before_anybody_asked_moves_no_gap() -> None:
    watcher, first, second = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90), Pod("b", NOW + 500, NOW + 520)
    first.ask(NOW + 10)
    second.ask(NOW + 600)
    watch(watcher, [first], NOW, NOW + 100)
    watch(watcher, [], NOW + 100, NOW + 500)
    watch(watcher, [second], NOW + 500, NOW + 610)
    assert watcher.activity.gaps_s == pytest.approx([590], abs=2)


def test_the_pods_of_a_pool_are_one_in_this() -> None:
    watcher, first, second = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90), Pod("b", NOW - 100, NOW - 90)
    for begin in range(0, 100, 8):
        (first if begin % 16 else second).ask(NOW + begin + 5)
    first.ask(NOW + 195)
    watch(watcher, [first, second], NOW, NOW + 200)
    assert watcher.activity.gaps_s == pytest.approx([94], abs=2)


def test_slots_hold_the_most_pods_that_were_needed_at_once() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90)
    begin_s = (slot_of(NOW) + 1) * SLOT_S
    for number in range(25):
        pod.ask(begin_s + 10 + number, 100)
    watch(watcher, [pod], begin_s, begin_s + 2 * SLOT_S, target=10)
    slot = slot_of(begin_s)
    assert watcher.activity.slots.pods == {slot: 3, slot + 1: 0}


def test_what_a_pod_took_before_it_was_looked_at_is_no_news() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW - 1000, NOW - 990)
    pod.ask(NOW - 500)
    watch(watcher, [pod], NOW, NOW + 100)
    assert not watcher.activity.gaps_s
    assert watcher.activity.quiet_s == pytest.approx(NOW - 500)
    assert not watcher.activity.starts_s, "when it began to serve nobody saw"


def test_a_blank_in_the_watching_breaks_the_gap() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90)
    pod.ask(NOW + 10)
    watch(watcher, [pod], NOW, NOW + 50)
    for blank_s, gaps in ((30, 1), (3600, 0)):
        again = Watcher(decode(encode(watcher.activity)))
        after = Pod("b", NOW + 50 + blank_s + 100, NOW + 50 + blank_s + 110)
        after.ask(NOW + 50 + blank_s + 110.5)
        watch(again, [after], NOW + 50 + blank_s, NOW + 50 + blank_s + 120)
        assert len(again.activity.gaps_s) == gaps


def test_a_pod_that_is_silent_for_a_while_asks_nothing_anew_when_it_answers() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW + 1, NOW + 5)
    for begin in range(10, 20):
        pod.ask(NOW + begin)
    watch(watcher, [pod], NOW, NOW + 30)
    pod.answers = False
    watch(watcher, [pod], NOW + 30, NOW + 60)
    pod.answers = True
    watch(watcher, [pod], NOW + 60, NOW + 90)
    assert not watcher.activity.gaps_s
    assert watcher.activity.quiet_s == pytest.approx(NOW + 19, abs=2)


def test_another_process_under_the_same_name_counts_from_its_own_beginning() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW - 100, NOW - 90)
    pod.ask(NOW + 5)
    pod.ask(NOW + 6)
    watch(watcher, [pod], NOW, NOW + 30)
    pod.requests = [(NOW + 60, NOW + 61)]
    watch(watcher, [pod], NOW + 30, NOW + 90)
    assert watcher.activity.gaps_s == pytest.approx([54], abs=2)


def test_a_cold_start_is_the_start_and_the_first_load_in_that_pod() -> None:
    watcher, pod = Watcher(Activity()), Pod("a", NOW + 1, NOW + 21)
    assert watcher.activity.cold_start_s == DEFAULT_START_S
    watch(watcher, [pod], NOW, NOW + 30)
    assert watcher.activity.cold_start_s == pytest.approx(20, abs=1)
    watcher.loaded("a", 4)
    watcher.loaded("a", 400)
    watcher.loaded("nobody", 1)
    assert watcher.activity.cold_start_s == pytest.approx(24, abs=1)


def test_nine_of_ten_starts_take_no_longer() -> None:
    assert Activity().start_p90_s == DEFAULT_START_S
    assert Activity(starts_s=[float(seconds) for seconds in range(1, 11)]).start_p90_s == 9


def test_everything_is_bounded() -> None:
    watcher, pods = Watcher(Activity()), []
    for number in range(MAX_STARTS + 5):
        pods = [Pod(f"p{number}", NOW + 20 * number, NOW + 20 * number + 5)]
        watch(watcher, pods, NOW + 20 * number, NOW + 20 * number + 10)
        watcher.loaded(f"p{number}", 1)
        watcher.activity.note(NOW, "Warm", "x" * 10_000)
    activity = watcher.activity
    assert (len(activity.starts_s), len(activity.colds_s), len(activity.notes)) == (MAX_STARTS, MAX_STARTS, MAX_NOTES)
    assert len(watcher._pods) == 1
    busy = Watcher(Activity())
    for number in range(MAX_GAPS + 5):
        busy._gap(20.0 + number)
        busy._gap(1.0)
    assert (busy.activity.gaps_s[0], len(busy.activity.gaps_s)) == (25.0, MAX_GAPS)


@given(st.binary(max_size=50))
def test_what_is_no_history_is_a_value_error(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(document + b"\0")


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        decode(encode(Activity(format=FORMAT + 1)))


@given(
    st.lists(st.tuples(st.floats(0, 400), st.floats(0.05, 30)), max_size=30),
    st.integers(1, 3),
)
def test_gaps_are_those_of_the_requests_themselves(requests: list[tuple[float, float]], count: int) -> None:
    """Within what looking once a second can see."""
    pods = [Pod(f"p{number}", NOW - 100, NOW - 90) for number in range(count)]
    for number, (begin, lasts) in enumerate(sorted(requests)):
        pods[number % count].ask(NOW + 1 + begin, lasts)
    watcher = Watcher(Activity())
    watch(watcher, pods, NOW, NOW + 450)
    expected, busy_until = [], None
    for begin, end in sorted(pair for pod in pods for pair in pod.requests):
        if busy_until is not None and begin - busy_until > 12:
            expected.append(begin - busy_until)
        busy_until = max(busy_until or 0.0, end)
    found = [gap_s for gap_s in watcher.activity.gaps_s if gap_s > 13.5]
    surely = [gap_s for gap_s in expected if gap_s > 16]
    assert len(found) >= len(surely)
    for gap_s in surely:
        assert any(abs(gap_s - other) <= 2.5 for other in found), (gap_s, found)
