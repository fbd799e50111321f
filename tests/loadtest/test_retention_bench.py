"""The bench of retention: that it counts what it says."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.simulation.retention_bench import HEADINGS, best_fixed, fixed, gaps_of, online, row, rows
from tests.warmup.test_retention import paid_s
from warmup.activity import LEAST_GAP_S


def test_gaps_are_those_of_a_pools_functions_together() -> None:
    due_s = np.array([0.0, 5.0, 40.0, 45.0, 100.0, 200.0])
    function = np.array([0, 1, 0, 1, 0, 1])
    (both,) = gaps_of(due_s, function, 2)
    assert both.tolist() == [35, 55, 100]
    assert sorted(gaps.tolist() for gaps in gaps_of(due_s, function, 1)) == [[40, 60], [40, 155]]


def test_what_a_fixed_time_pays_is_what_the_policy_says_it_pays() -> None:
    gaps = np.random.default_rng(3).pareto(1.2, 200) * 20 + LEAST_GAP_S
    for time_s in (LEAST_GAP_S, 77.0, 3600.0):
        paid = float(fixed(np.sort(gaps), np.array([time_s]), 300)[0])
        assert paid == pytest.approx(paid_s(gaps.tolist(), time_s, costs_s=300))
    time_s, least = best_fixed(gaps, 300)
    assert least == pytest.approx(paid_s(gaps.tolist(), time_s, costs_s=300))
    assert least <= paid


def test_the_policy_knows_only_what_was() -> None:
    """A first gap costs break-even, whatever comes later."""
    assert online(np.array([1000.0]), 300) == 600
    assert online(np.array([1000.0] * 50), 300) < 60 * 310


def test_a_row_weighs_costs_and_names_the_worst() -> None:
    found = row(1, [np.array([20.0] * 400), np.array([5000.0])], 300)
    assert found.paid == pytest.approx(8000 + 600)
    assert found.best == pytest.approx(8000 + 310)
    assert max(found.ratios) == pytest.approx(600 / 310)
    assert len(found.cells()) == len(HEADINGS)
    assert not row(1, [], 300).ratios


def test_all_sizes_and_prices_are_measured() -> None:
    due_s = np.sort(np.random.default_rng(1).uniform(0, 30_000, 300))
    made = list(rows(due_s, np.arange(300) % 6, sizes=(1, 2), costs_s=(60, 300)))
    assert [(one.size, one.costs_s, one.pools) for one in made] == [(1, 60, 6), (1, 300, 6), (2, 60, 3), (2, 300, 3)]
