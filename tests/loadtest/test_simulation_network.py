"""Fetches that share a network, with hand-computed moments."""

from __future__ import annotations

import math

import pytest

from loadtest.simulation.network import Fetch, Network
from loadtest.simulation.pod import Clock


class Line:
    """A network of 100 bytes a second, and when what was fetched over it came."""

    def __init__(self, bytes_per_s: float = 100.0) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, bytes_per_s)
        self.came_s: dict[str, float] = {}
        self.background: set[str] = set()

    def fetch(self, name: str, size_bytes: int, own_s: float) -> Fetch:
        return self.network.begin(
            size_bytes,
            own_s,
            is_background=lambda: name in self.background,
            done=lambda now_s: self.came_s.__setitem__(name, now_s),
        )


def test_one_fetch_takes_its_own_time_where_the_network_is_fast_enough() -> None:
    line = Line()
    line.fetch("a", 100, own_s=4.0)
    line.clock.run(math.inf)
    assert line.came_s == {"a": pytest.approx(4.0)}


def test_two_that_would_fill_the_network_share_it_and_the_longer_one_speeds_up_afterwards() -> None:
    line = Line()
    line.fetch("a", 100, own_s=1.0)  # 100 bytes a second each, if they were alone
    line.fetch("b", 200, own_s=2.0)
    line.clock.run(math.inf)
    assert line.came_s == {"a": pytest.approx(2.0), "b": pytest.approx(3.0)}


def test_a_pre_load_gets_what_is_left_and_all_of_it_once_nobody_waits() -> None:
    line = Line()
    line.background = {"pre-load"}
    line.fetch("pre-load", 100, own_s=1.0)
    line.fetch("a", 75, own_s=1.0)
    line.clock.run(math.inf)
    assert line.came_s == {"a": pytest.approx(1.0), "pre-load": pytest.approx(1.75)}


def test_a_pre_load_that_is_asked_for_goes_first_from_then_on() -> None:
    line = Line()
    line.background = {"b"}
    line.fetch("a", 200, own_s=2.0)
    line.fetch("b", 100, own_s=1.0)
    line.clock.run(1.0)
    line.background.clear()
    line.network.changed()
    line.clock.run(math.inf)
    assert line.came_s == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}


def test_what_is_stopped_is_told_to_nobody_and_leaves_its_share() -> None:
    line = Line()
    stopped = line.fetch("a", 100, own_s=1.0)
    line.fetch("b", 100, own_s=1.0)
    line.clock.run(1.0)
    line.network.stop(stopped)
    line.network.stop(stopped)
    line.clock.run(math.inf)
    assert line.came_s == {"b": pytest.approx(1.5)}
