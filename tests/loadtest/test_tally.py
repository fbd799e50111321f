"""Live figures: they add up over processes and seconds, and travel."""

from __future__ import annotations

import msgpack
import pytest

from loadtest.tally import Tally, line, quantile_ms


def made(latencies_s: list[float], error: str = "") -> Tally:
    tally = Tally(offered=len(latencies_s), in_flight=1)
    for latency_s in latencies_s:
        tally.sent(0.001)
        tally.done(latency_s, cold=latency_s > 1, error=error, tries=2)
    return tally


def test_two_processes_figures_add_up_after_their_journey() -> None:
    whole = Tally()
    for part in (made([0.01] * 98), made([2.0, 3.0], "timeout")):
        whole.add(Tally.unpacked(msgpack.loads(msgpack.dumps(part.packed()), strict_map_key=False)))
    assert (whole.offered, whole.answered, whole.cold, whole.retries, whole.in_flight) == (100, 100, 2, 100, 2)
    assert whole.errors == {"timeout": 2}
    assert quantile_ms(whole.latencies, 0.5) == pytest.approx(10.0, rel=0.015)
    assert quantile_ms(whole.latencies, 0.99) == pytest.approx(2000.0, rel=0.015)


def test_nothing_counted_has_no_quantile_and_makes_a_line_all_the_same() -> None:
    assert quantile_ms({}, 0.99) == 0.0
    assert "errors 0" in line(1.0, Tally(), Tally(), over_s=1.0)


def test_a_request_that_was_never_sent_is_no_fast_one() -> None:
    tally = Tally()
    tally.done(None, cold=False, error="generator limit", tries=0)
    assert (tally.answered, tally.retries, len(tally.latencies)) == (1, 0, 0)


def test_the_line_says_which_error_is_the_most_frequent() -> None:
    whole = made([0.1, 0.1], "HTTP 503")
    assert "errors 2 (HTTP 503)" in line(2.0, whole, whole, over_s=2.0)
