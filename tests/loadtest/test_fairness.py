from __future__ import annotations

import json

import pytest

from loadtest.fairness.books import Compute, between, read, together
from loadtest.fairness.scenes import SCENES, WIDE, Flood, Seen, Shares, declares
from loadtest.fairness.stage import Load, asked_in, named
from loadtest.fairness.table import as_json, judge_flood, judge_shares, latencies, verdicts
from loadtest.fairness.verdicts import SAMPLES, fair, flood, needed_s, shares
from loadtest.peers.workloads import WORKLOADS, made
from loadtest.peers.wrk import Figures
from predictor.manifest import parse

EXPOSITION = """\
# HELP hearth_compute_seconds Time inside the model, once for each batch.
# TYPE hearth_compute_seconds histogram
hearth_compute_seconds_bucket{le="0.0005",model="quiet"} 0.0
hearth_compute_seconds_count{model="quiet"} 4.0
hearth_compute_seconds_sum{model="quiet"} 0.2
hearth_compute_seconds_count{model="flooded"} 10.0
hearth_compute_seconds_sum{model="flooded"} 2.5e+00
hearth_compute_seconds_created{model="flooded"} 1.7e+09
hearth_requests_total{code="200",model="quiet",version="1"} 4.0
"""
COUNTED = EXPOSITION + 'hearth_batch_rows_sum{model="flooded"} 80.0\nhearth_batch_rows_count{model="flooded"} 10.0\n'
EQUAL = SCENES["shares-equal-costs"]
RESNETS = SCENES["flood-resnet18"]


def _flood(p99_us: float, *, requests: int = 400, failed: int = 0, batch_s: float = 0.25) -> list[Seen]:
    had = {"flooded": Compute(40 * batch_s, 40, 320)}
    idle, under = Figures(20.0, 45_000.0, 50_000.0, 400), Figures(5.0, 200_000.0, p99_us, requests, failed)
    return [Seen(1, RESNETS.name, "idle", idle, {}), Seen(1, RESNETS.name, "under", under, had)]


def test_what_a_model_had_of_the_device_is_read_from_metrics() -> None:
    assert read(EXPOSITION) == {"quiet": Compute(0.2, 4.0, None), "flooded": Compute(2.5, 10.0, None)}
    flooded = read(COUNTED)["flooded"]
    assert (flooded.batch_s, flooded.batch_rows) == (0.25, 8.0)
    assert read(EXPOSITION)["quiet"].batch_rows is None
    assert Compute(0.0, 0.0, 0.0).batch_s == 0.0
    assert Compute(0.0, 0.0, 0.0).batch_rows is None


def test_a_window_is_what_came_between_two_readings_also_for_a_model_that_is_new() -> None:
    before = {"old": Compute(1.0, 2.0, 16.0)}
    after = {"old": Compute(1.5, 4.0, 32.0), "new": Compute(0.5, 1.0, 8.0)}
    assert between(before, after) == {"old": Compute(0.5, 2.0, 16.0), "new": Compute(0.5, 1.0, 8.0)}
    assert together(Compute(1.0, 2.0, 3.0), Compute(1.0, 2.0, None)) == Compute(2.0, 4.0, None)


def test_the_bar_of_a_flood_is_half_again_the_idle_p99_and_one_batch() -> None:
    bar_us = 1.5 * 50_000 + 250_000
    assert judge_flood(_flood(bar_us)).reached
    missed = judge_flood(_flood(bar_us + 1_000))
    assert not missed.reached
    assert missed.told == "p99 326.0 ms, bar 325.0 ms"


def test_a_flood_is_not_withstood_by_failing_or_never_answering_or_when_nothing_flooded() -> None:
    assert not judge_flood(_flood(50_000, failed=1)).reached
    assert not judge_flood(_flood(0, requests=0)).reached
    assert not judge_flood(_flood(50_000, batch_s=0.0)).reached


def test_a_p99_of_few_requests_is_said_to_be_rough() -> None:
    assert "n = 299" in flood(idle_p99_us=1, flooded_p99_us=1, batch_s=1, requests=SAMPLES - 1, failed=0).told
    assert "n =" not in flood(idle_p99_us=1, flooded_p99_us=1, batch_s=1, requests=SAMPLES, failed=0).told


def test_shares_are_fair_within_five_percent_of_what_is_due() -> None:
    weights = {"a": 1.0, "b": 3.0}
    exact = shares({"a": 2.0, "b": 6.0, "without a weight": 9.0}, weights)
    assert exact["a"].had == exact["a"].due == 0.25
    assert fair(exact).reached
    assert fair(shares({"a": 0.26, "b": 0.74}, weights)).reached
    assert not fair(shares({"a": 0.27, "b": 0.73}, weights)).reached
    assert not fair(shares({"b": 1.0}, weights)).reached
    assert not fair(shares({}, weights)).reached


def test_rounds_are_judged_together() -> None:
    assert isinstance(EQUAL, Shares)
    seen = [
        Seen(number, EQUAL.name, name, Figures(1.0, 1.0, 1.0, 1), {name: Compute(weight + slip * (name == "weight4"), 1, None)})
        for number, slip in ((1, 0.5), (2, -0.5))
        for name, weight in EQUAL.weights.items()
    ]
    assert judge_shares(seen, EQUAL).reached
    assert not judge_shares(seen[:3], EQUAL).reached


def test_a_client_is_timed_until_it_has_enough_requests_but_not_for_ever() -> None:
    def seconds(requests: int) -> int:
        return needed_s(requests=requests, seconds=2.0, at_least_s=10, at_most_s=60)

    assert seconds(0) == seconds(1) == 60
    assert seconds(40) == 19
    assert seconds(10_000) == 10


def test_the_tables_tell_latencies_and_verdicts() -> None:
    seen = _flood(400_000)
    head, _, idle, under = latencies(seen).splitlines()
    assert head == "| scene | client | requests/s | p50 ms | p99 ms | n | failed |"
    assert idle == "| flood-resnet18 | idle | 20.0 | 45.00 | 50.00 | 400 | 0 |"
    assert under == "| flood-resnet18 | under | 5.0 | 200.00 | 400.00 | 400 | 0 |"
    (row,) = verdicts(seen, list(SCENES.values())).splitlines()[2:]
    assert row == "| flood-resnet18 | 40 batches of 8.0 rows, 250.00 ms each | MISSED: p99 400.0 ms, bar 325.0 ms |"
    assert "unknown | unknown" in latencies(_flood(0, requests=0))
    assert json.loads(json.dumps(as_json(seen)))[1]["computed"] == {"flooded": {"device_s": 10.0, "batches": 40, "rows": 320}}


def test_only_floods_of_what_the_device_limits_have_a_bar() -> None:
    assert [scene.name for scene in SCENES.values() if isinstance(scene, Flood) and scene.judged] == ["flood-resnet18"]


def test_a_priority_is_a_header_and_no_priority_is_none() -> None:
    case = named(made(asked_in(WIDE, "binary")), "asked")
    assert case.workload.name == "asked"
    assert Load(case, "binary", 1, "high").sent.headers["Hearth-Priority"] == "high"
    assert "Hearth-Priority" not in Load(case, "binary", 1).sent.headers


def test_what_models_declare_is_a_manifest() -> None:
    assert parse(json.dumps(declares(4, weight=2.0)).encode(), "here").max_batch_size == 4
    assert asked_in(WORKLOADS["mlp"], "json").encodings == ("json",)


@pytest.mark.parametrize("scene", [scene for scene in SCENES.values() if isinstance(scene, Shares)], ids=lambda it: it.name)
def test_every_model_has_more_connections_than_a_batch_has_rows(scene: Shares) -> None:
    assert all(scene.connections >= 4 * batch for _, _, batch in scene.models.values())
