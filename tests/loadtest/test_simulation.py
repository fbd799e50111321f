"""A pool in virtual time, on traffic that is small enough to be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.report.recorded import read
from loadtest.simulation import compare
from loadtest.simulation.arrivals import Arrivals, earlier, of_run, of_trace, ordered
from loadtest.simulation.catalogue import GB, BadCatalogue, Model, Span, drawn, measured, sizes_of
from loadtest.simulation.command import main
from loadtest.simulation.eviction_bench import replay
from loadtest.simulation.fleet import Fleet, Pool
from loadtest.simulation.outcome import STARTS, Record, figures, pod_per_model, union_s, weighted
from loadtest.simulation.policies import POLICIES
from loadtest.simulation.table import answer, table
from loadtest.traces import Slot, Trace

POOL = Pool(device_bytes=2 * GB, ram_bytes=4 * GB, start_s=10.0, window_s=60.0, weight=1.0)


def asked(*lines: tuple[float, int], models: int = 3) -> Arrivals:
    due_s, model = (np.array(column) for column in zip(*lines, strict=True))
    ones = np.ones(due_s.size, np.int64)
    return ordered(due_s.astype(float), model.astype(np.int64), ones, np.zeros(due_s.size), models=models)


def of_size(*sizes_gb: float) -> tuple[Model, ...]:
    return tuple(Model(f"m{number}", int(size * GB), 1.0, 0.5, 0.1) for number, size in enumerate(sizes_gb))


def run(arrivals: Arrivals, policy: str = "hearth", pool: Pool = POOL, models: tuple[Model, ...] = of_size(1, 1, 1)) -> Record:
    return Fleet(pool, models, POLICIES[policy], arrivals).replay()


def starts(record: Record) -> list[str]:
    rows = sorted(zip(record.due_s, record.model, record.start, strict=True))
    return [STARTS[start] for _, _, start in rows]


def waits_s(record: Record) -> list[float]:
    rows = sorted(zip(record.due_s, record.model, record.begin_s, strict=True))
    return [begin_s - due_s for due_s, _, begin_s in rows]


def test_the_first_request_waits_for_the_pod_and_its_model_and_the_next_one_for_nothing() -> None:
    record = run(asked((0, 0), (20, 0)))
    assert starts(record) == ["pod", "hot"]
    assert waits_s(record) == pytest.approx([10.0 + 1.0 + 0.5, 0.0])


def test_a_model_that_is_dropped_from_the_device_comes_back_from_ram() -> None:
    record = run(asked((0, 0), (20, 1), (40, 2), (60, 0), (80, 1), (100, 2)), "lru")
    assert starts(record) == ["pod", "s3", "s3", "ram", "ram", "ram"]
    assert waits_s(record)[3] == pytest.approx(0.5)


def test_a_model_that_is_dropped_from_ram_comes_back_from_disk_and_is_not_fetched_twice() -> None:
    pool = replace(POOL, device_bytes=1 * GB, ram_bytes=2 * GB, disk_bytes=3 * GB, disk_bytes_per_s=4e9)
    record = run(asked((0, 0), (20, 1), (40, 2), (60, 0)), "lru", pool)
    assert starts(record) == ["pod", "s3", "s3", "disk"]
    assert waits_s(record)[3] == pytest.approx(0.25 + 0.5)
    assert figures("lru", record).fetched_bytes == 3 * GB
    assert starts(run(asked((0, 0), (20, 1), (40, 2), (60, 0)), "lru", replace(pool, disk_bytes=0)))[3] == "s3"


def test_pods_go_after_the_window_and_what_they_cost_is_counted() -> None:
    record = run(asked((0, 0), (200, 0)), "none")
    assert starts(record) == ["pod", "pod"]
    life_s = 10.0 + 1.5 + 0.1 + 60.0
    assert [life.gone_s - life.born_s for life in record.lives] == pytest.approx([life_s, life_s])
    found = figures("none", record)
    assert found.gpu_s == pytest.approx(1000 * life_s)
    assert found.wasted_gpu_s == pytest.approx(1000 * (life_s - 0.1))
    assert (found.cold_rate, found.from_zero, found.wakes) == (1.0, 1.0, 2)


def test_a_hot_set_brings_back_what_was_asked_before_anybody_asks_again() -> None:
    lines = asked(*((5.0 * turn, turn % 2) for turn in range(10)), (400, 0), (415, 1))
    without, with_hot_set = run(lines, "none"), run(lines)
    assert starts(without)[-1] == "s3"
    assert starts(with_hot_set)[-1] == "hot"
    found = figures("hearth", with_hot_set)
    assert found.precision == 1.0
    assert found.recall == pytest.approx(1 / 4)


def test_a_hot_set_stops_where_nothing_colder_would_make_room_for_more() -> None:
    pool = replace(POOL, device_bytes=2 * GB, ram_bytes=2 * GB, weight=0.0)
    models = of_size(1, 1, *[1] * 30)
    lines = asked(*((1.0 * turn, turn % 32) for turn in range(320)), (1000, 0), (1020, 1), models=32)
    record = run(lines, pool=pool, models=models)
    assert len(record.lives[-1].tallies[0].preloaded) <= 2
    assert record.lives[-1].tallies[0].fetches <= 4


def test_what_a_load_took_is_what_the_next_pod_is_told() -> None:
    fleet = Fleet(POOL, of_size(1, 2), POLICIES["hearth"], asked((0, 0), (20, 1), models=2))
    fleet.replay()
    assert {one.name: one.load_s for one in fleet._hot_set(100.0)} == pytest.approx({"m0": 1.5, "m1": 1.5})


def test_pods_that_never_go_have_no_start_to_wait_for() -> None:
    record = run(asked((100, 0), (5000, 0)), "always-on")
    assert starts(record) == ["s3", "hot"]
    assert [life.born_s for life in record.lives] == [0.0]


def test_a_pool_whose_gaps_are_short_is_kept_over_them() -> None:
    lines = asked(*((100.0 * turn, 0) for turn in range(30)))
    pool = replace(POOL, weight=20.0)
    assert figures("hearth", run(lines, pool=pool)).wakes < figures("none", run(lines, "none", pool=pool)).wakes


def test_a_line_of_many_requests_is_cold_only_until_its_model_is_there() -> None:
    lines = Arrivals(np.array([0.0]), np.array([0]), np.array([100]), np.array([50.0]), 1)
    record = run(lines, models=of_size(1))
    assert sum(record.count) == 100
    cold = sum(count for count, start in zip(record.count, record.start, strict=True) if start)
    assert 10 < cold < 40  # of a hundred requests in 50 s, those of the first 11.5 s; in eighths


def test_a_pod_per_model_pays_a_window_for_every_visit_of_every_model() -> None:
    found = pod_per_model(asked((0, 0), (30, 0), (300, 1), models=2), of_size(1, 1), start_s=10.0, window_s=60.0)
    assert found.cold_rate == pytest.approx(2 / 3)
    assert found.gpu_s == pytest.approx(1000 / 3 * ((30 + 0.1 + 60) + (10 + 1.5 + 0.1 + 60)))


LINES = st.lists(st.tuples(st.floats(0.0, 2000.0), st.integers(0, 4)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(LINES, st.sampled_from(sorted(POLICIES)), st.integers(1, 2), st.sampled_from([0, 3 * GB]))
def test_every_request_is_served_once_and_no_pod_is_over_its_budget(
    lines: list[tuple[float, int]], policy: str, pods: int, disk_bytes: int
) -> None:
    models = of_size(0.5, 1.0, 1.5, 2.0, 0.7)
    pool = replace(POOL, pods=pods, disk_bytes=disk_bytes)
    fleet = Fleet(pool, models, POLICIES[policy], asked(*lines, models=5))
    seen = fleet.clock.at

    def watched(moment_s: float, act: object) -> None:
        for pod in fleet._pods:
            for place, budget in pod.ledger.budgets.items():
                assert pod.ledger.used_bytes(place) <= budget
        seen(moment_s, act)  # type: ignore[arg-type]

    fleet.clock.at = watched  # type: ignore[method-assign]
    record = fleet.replay()
    assert sorted(record.due_s) == pytest.approx(sorted(due_s for due_s, _ in lines))
    assert all(begin_s >= due_s for due_s, begin_s in zip(record.due_s, record.begin_s, strict=True))
    assert len(record.lives) >= 1
    again = Fleet(pool, models, POLICIES[policy], asked(*lines, models=5)).replay()
    assert again == record


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_of_models_of_one_size_nobody_loads_less_than_who_knows_the_future(order: list[int]) -> None:
    lines = asked(*((10.0 * turn, number) for turn, number in enumerate(order)), models=5)
    loads = {policy: replay(lines, of_size(1, 1, 1, 1, 1), 2 * GB, policy) for policy in ("hearth", "lru", "belady")}
    assert loads["belady"].loads <= min(loads["hearth"].loads, loads["lru"].loads)
    assert len({one.first_s for one in loads.values()}) == 1


def test_least_recently_used_is_what_it_says() -> None:
    lines = asked(*((10.0 * turn, number) for turn, number in enumerate((0, 1, 0, 2, 0, 1))))
    assert replay(lines, of_size(1, 1, 1), 2 * GB, "lru").loads == 4


def test_counts_of_a_minute_are_kept_and_lines_are_few() -> None:
    trace = Trace("t", "uniform", 60.0, ((Slot(0.0, 3), Slot(60.0, 5000)), (Slot(60.0, 16),)))
    one, same, other = of_trace(trace, 1), of_trace(trace, 1), of_trace(trace, 2)
    assert one.requests == 5019
    assert len(one) == 3 + 16 + 16
    assert one.due_s.tolist() == same.due_s.tolist() != other.due_s.tolist()
    assert (np.diff(one.due_s) >= 0).all()
    assert one.between(60.0, 120.0).requests == 5016


def test_the_next_line_of_each_model_is_known() -> None:
    assert asked((0, 0), (1, 1), (2, 0), (3, 2)).next_s().tolist() == [2.0, np.inf, np.inf, np.inf]


def test_sizes_do_not_depend_on_anything_but_the_seed() -> None:
    made = drawn(50, (GB, 28 * GB), Span.of("1s+0.5s/GB"), Span.of("0.2s"), serve_s=0.1, seed=3)
    assert made == drawn(50, (GB, 28 * GB), Span.of("1s+0.5s/GB"), Span.of("0.2s"), serve_s=0.1, seed=3)
    assert all(GB <= model.size_bytes <= 28 * GB for model in made)
    assert made[0].load_s == pytest.approx(1.2 + 0.5 * made[0].size_bytes / GB)
    assert sizes_of("0.25e9..28e9") == (250_000_000, 28 * GB)
    for wrong in ("fast", "1h"):
        with pytest.raises(BadCatalogue):
            Span.of(wrong)


def test_quantiles_weigh_and_spans_are_joined() -> None:
    assert weighted(np.array([5.0, 1.0]), [1, 99], 0.99) == 1.0
    assert weighted(np.array([5.0, 1.0]), [1, 99], 0.995) == 5.0
    assert union_s(np.array([0.0, 1.0, 10.0]), np.array([5.0, 2.0, 11.0])) == 6.0


def test_a_sweep_is_answered_in_a_sentence() -> None:
    row = figures("hearth", run(asked(*((0.5 * turn, 0) for turn in range(400)))))
    rows = [
        (1.0, replace(row, cold_rate=0.2)),
        (2.0, replace(row, cold_rate=0.001)),
        (4.0, replace(row, cold_rate=0.0, gpu_s=1e6)),
    ]
    assert answer(rows, "pods", 0.01).startswith("pods 2 is enough")
    assert answer(rows[:1], "pods", 0.01).startswith("No pods of the sweep")
    assert table(rows, "pods").count("\n") == 3


def test_a_simulated_run_can_be_replayed_and_compared_with_itself(tmp_path: Path) -> None:
    lines = asked(*((7.0 * turn, turn % 3) for turn in range(30)), (400, 0), (410, 1))
    record = run(lines)
    compare.write(tmp_path / "one", record, of_size(1, 1, 1))
    again, names = of_run(tmp_path / "one")
    assert names == ("m0", "m1", "m2")
    assert again.due_s.tolist() == lines.due_s.tolist()
    compare.write(tmp_path / "two", run(again), of_size(1, 1, 1))
    found = compare.residuals(tmp_path / "one", tmp_path / "two")
    assert (found["agreement"], found["requests"]) == (1.0, 32)
    assert found["cold_rate"][0] == pytest.approx(
        sum(count for start, count in zip(record.start, record.count, strict=True) if start) / 32
    )
    assert found["residual_s"]["p99"] == pytest.approx(0.0)
    assert read(tmp_path / "one").requests.told


def test_a_replay_begins_with_what_earlier_runs_asked_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, begins_s, lines in (("one", 1000.0, ((5.0, 0), (6.0, 1))), ("two", 1200.0, ((0.0, 1), (30.0, 0)))):
        compare.write(tmp_path / name, run(asked(*lines, models=2), models=of_size(1, 1)), of_size(1, 1))
        said = json.loads((tmp_path / name / "run.json").read_text())
        (tmp_path / name / "run.json").write_text(json.dumps({**said, "started_unix_s": begins_s}))
    found = earlier([tmp_path / "one"], tmp_path / "two")
    assert [(one.at_s, one.model) for one in found] == [(-195.0, "m0"), (-194.0, "m1")]
    again, names = of_run(tmp_path / "two", beside={"m7"})
    assert (names, again.model.tolist(), again.models) == (("m0", "m1", "m7"), [1, 0], 3)
    (tmp_path / "m.json").write_text(json.dumps({"*": {"size_bytes": GB, "load_s": 1.5}}))
    command = ["--run", str(tmp_path / "two"), "--measured", str(tmp_path / "m.json"), "--policy", "hearth"]
    assert main(command) == 0
    assert "100.00%" in capsys.readouterr().out
    assert main([*command, "--after", str(tmp_path / "one")]) == 0
    assert "50.00%" in capsys.readouterr().out
    (tmp_path / "one" / "run.json").write_text(json.dumps({"format": 1}))
    assert main([*command, "--after", str(tmp_path / "one")]) == 2
    assert "nobody recorded when it began" in capsys.readouterr().err


def test_the_command_prints_a_table_answers_a_sweep_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "counts.csv"
    trace.write_text("minute,fn,count\n" + "".join(f"{minute},f{minute % 3},{1 + minute % 5}\n" for minute in range(0, 40, 2)))
    common = [
        "--trace",
        str(trace),
        "--sizes",
        "1e9..2e9",
        "--device-bytes",
        "3e9",
        "--ram-bytes",
        "6e9",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(common) == 0
    assert "hearth" in capsys.readouterr().out
    assert main([*common, "--cpu", "--cores", "2", "--network", "1e6", "--policy", "hearth,none"]) == 0
    assert "hearth" in capsys.readouterr().out
    assert main([*common, "--sweep", "pods=1,2", "--policy", "hearth,pod-per-model", "--objective", "0.9"]) == 0
    assert "is enough to keep the cold rate" in capsys.readouterr().out
    assert {"simulation.html", "simulation.json", "cost.png", "sweep.png", "run.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_what_was_measured_is_taken(tmp_path: Path) -> None:
    told = {"*": {"size_bytes": 5, "load_s": 3.0, "serve_s": 0.2}, "b": {"load_s": 4.0, "build_s": 1.0}}
    (tmp_path / "m.json").write_text(json.dumps(told))
    a, b = measured(tmp_path / "m.json", ("a", "b"))
    assert (a.fetch_s, a.build_s, a.size_bytes, a.serve_s) == (3.0, 0.0, 5, 0.2)
    assert (b.fetch_s, b.build_s) == (3.0, 1.0)
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(BadCatalogue, match="does not tell"):
        measured(tmp_path / "m.json", ("a",))
