"""The report of a load test: its figures equal what is known of synthetic runs, and every run gives a page."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.report.command import main
from loadtest.report.figures import PARTS, figures, ranked
from loadtest.report.gates import BadGate, judge, parse
from loadtest.report.over_time import FAILED, KEPT, MAX_STEPS, NOTHING, most_asked, rate_per_s, residency, steps
from loadtest.report.recorded import HOT, TIERS, RunUnreadable, read
from loadtest.report.verdicts import INVALID, MISSED, OK, USAGE
from tests.fakes.load_runs import row, write

PNG = b"\x89PNG"


def _stalled(stall_s: float, rate_per_s: int, whole_s: float) -> list[dict[str, Any]]:
    """A server that answers in 5 ms but stands still for ``stall_s`` from second 2 on: who is due then waits for its end."""
    due = [number / rate_per_s for number in range(int(whole_s * rate_per_s))]
    return [row(due_s, max(0.005, 2.0 + stall_s - due_s + 0.005) if due_s >= 2.0 else 0.005) for due_s in due]


def _mixed(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Of each hundred: 90 hot, 4 from RAM, 2 from disk, 3 from S3, one that failed."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        due_s, place = number * 0.01, number % 100
        start = "hot" if place < 90 else "ram" if place < 94 else "disk" if place < 96 else "s3" if place < 99 else ""
        took_s = {"hot": 0.01, "ram": 0.1, "disk": 0.2, "s3": 1.0, "": 0.002}[start] * chance.uniform(0.5, 1.5)
        failed = {"status": 503, "error": "HTTP 503", "tries": 3, "retry_wait_s": 1.0} if not start else {}
        rows.append(row(due_s, took_s, start=start, model=f"m{chance.randrange(9)}", **failed))
    return rows


def test_figures_equal_the_truth_of_the_run(tmp_path: Path) -> None:
    rows = _mixed(1000)
    found = figures(read(write(tmp_path / "run", rows[::2], rows[1::2])))

    assert (found.requests, found.errors, found.reasons, found.retries) == (1000, 10, {"HTTP 503": 10}, 20)
    assert found.cold_share == 0.09
    assert found.tier_shares == {"hot": 0.9, "ram": 0.04, "disk": 0.02, "s3": 0.03}
    hot = sorted(one["done_s"] - one["due_s"] for one in rows if one["start"] == "hot")
    assert found.tiers["hot"].p50_s == hot[449]
    assert found.tiers["hot"].p99_s == hot[890]
    assert found.tiers["hot"].p99_9_s == hot[899]
    assert found.tiers["hot"].max_s == hot[-1]
    assert found.tiers["hot"].mean_s == pytest.approx(math.fsum(hot) / 900)
    assert sum(latency.requests for latency in found.models.values()) == 1000


def test_a_failed_request_counts_as_never_answered_however_fast_it_failed(tmp_path: Path) -> None:
    rows = [row(number * 0.1, 0.01) for number in range(98)] + [
        row(9.8 + place, 0.001, error="HTTP 500", status=500) for place in (0, 1)
    ]
    found = figures(read(write(tmp_path / "run", rows)))

    assert found.all.p95_s == pytest.approx(0.01)
    assert found.all.p99_s is None
    assert found.answered.p99_s == pytest.approx(0.01)
    assert found.slower_than == {"0.1 s": 2, "1 s": 2, "10 s": 2}


def test_a_request_that_says_nothing_of_its_failure_has_failed_all_the_same(tmp_path: Path) -> None:
    rows = [row(0.0, None), row(0.1, 0.1, status=500), row(0.2, 0.1, status=0), row(0.3, 0.1)]
    found = figures(read(write(tmp_path / "run", rows)))

    assert found.reasons == {"no answer": 2, "HTTP 500": 1}


def test_a_server_that_stalls_ten_seconds_at_fifty_a_second_is_reported_as_five_hundred_slow_requests(tmp_path: Path) -> None:
    run = read(write(tmp_path / "run", _stalled(10.0, 50, 20.0)))
    found = figures(run)

    assert found.requests == 1000
    assert 445 <= found.slower_than["1 s"] <= 455  # those due in the last second of the stall waited less
    assert 490 <= int((run.requests.latency_s > 0.1).sum()) <= 500
    assert found.all.p50_s == pytest.approx(0.02, abs=0.03)
    assert found.all.max_s == pytest.approx(10.005)


def test_stages_of_cold_requests_add_up_to_what_the_client_saw(tmp_path: Path) -> None:
    timing = {
        f"timing_{name}_ms": ms
        for name, ms in zip(("queue", "fetch", "device", "build", "compute"), (1, 50, 5, 20, 4), strict=True)
    }
    rows = [row(0.0, 0.1, start="s3", **timing), row(1.0, 0.2, start="s3", **timing, retry_wait_s=0.05), row(2.0, 0.01)]
    parts_s = figures(read(write(tmp_path / "run", rows))).parts_s["s3"]

    assert list(parts_s) == list(PARTS)
    assert parts_s["fetch"] == pytest.approx(0.05)
    assert parts_s["retry wait"] == pytest.approx(0.025)
    assert parts_s["beyond"] == pytest.approx((0.02 + 0.07) / 2)
    assert sum(parts_s.values()) == pytest.approx(0.15)


def test_requests_that_a_pod_was_started_for_are_a_tier_of_their_own(tmp_path: Path) -> None:
    rows = [
        row(0.0, 4.0, start="s3", pod="a", pod_up_s=1.5),  # its pod began to run at 2.5
        row(3.0, 0.5, start="s3", pod="a", pod_up_s=1.0),
        row(5.0, 0.1, pod="a", pod_up_s=2.6),
    ]
    run = read(write(tmp_path / "run", rows))
    found = figures(run)

    assert [TIERS[tier] for tier in run.requests.tier] == ["pod", "s3", "hot"]
    assert found.parts_s["pod"]["until a pod ran"] == pytest.approx(2.5)
    assert found.parts_s["s3"]["until a pod ran"] == 0
    assert found.tier_shares["pod"] == pytest.approx(1 / 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 60), count=st.integers(1, 60))
def test_figures_depend_neither_on_the_order_of_rows_nor_on_how_files_are_split(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int, count: int
) -> None:
    rows = _mixed(count, seed)
    shuffled = random.Random(seed).sample(rows, len(rows))
    folder = tmp_path_factory.mktemp("runs")
    one = figures(read(write(folder / "a" / "run", rows)))
    other = figures(read(write(folder / "b" / "run", shuffled[:cut], shuffled[cut:])))

    assert one == other


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=50), percent=st.sampled_from([50.0, 90.0, 99.0, 99.9]))
def test_a_quantile_is_the_least_latency_that_so_many_requests_kept_to(values: list[float], percent: float) -> None:
    found = ranked(np.sort(np.array(values)), percent)

    assert found in values
    share = 100 / len(values)
    assert share * sum(value <= found for value in values) >= percent - 1e-6
    assert share * sum(value < found for value in values) < percent


def test_versions_tenants_and_priorities_are_told_apart_where_there_are_several(tmp_path: Path) -> None:
    rows = [
        row(number * 0.1, 0.01, version="2" if number % 10 == 0 else "1", priority="high" if number % 2 else "low")
        for number in range(100)
    ]
    found = figures(read(write(tmp_path / "run", rows, [row(0.05, 0.01, model="other")])))

    assert {name: latency.requests for name, latency in found.by["version"].items()} == {"m 1": 90, "m 2": 10}
    assert {name: latency.requests for name, latency in found.by["priority"].items()} == {"high": 50, "low": 50}
    assert "tenant" not in found.by


def test_a_run_is_invalid_when_its_generator_was_late_and_valid_in_a_closed_loop(tmp_path: Path) -> None:
    late = [row(number * 0.1, 0.1, sent_s=number * 0.1 + (0.03 if number < 3 else 0.001)) for number in range(100)]

    assert "30.0 ms" in figures(read(write(tmp_path / "late", late))).invalid
    assert not figures(read(write(tmp_path / "raised", late, max_send_lag_ms=40.0))).invalid
    assert not figures(read(write(tmp_path / "closed", late, mode="closed"))).invalid
    lost = write(
        tmp_path / "lost", [row(0.0, 0.1)], valid=False, notes=["process 2 died: its share of the requests is missing"]
    )
    assert "process 2 died" in figures(read(lost)).invalid


def test_the_heat_map_knows_what_was_kept_and_what_nobody_knows(tmp_path: Path) -> None:
    rows = [
        row(0.5, 0.1, start="s3"),
        row(3.5, 0.01),
        row(7.5, 0.1, start="ram"),
        row(8.5, 0.01),
        row(8.6, 0.01, error="timeout"),
    ]
    rows += [row(1.5, 0.1, model="rare", start="disk")]
    requests = read(write(tmp_path / "run", rows)).requests
    axis = steps(10.0, 10)
    models = most_asked(requests, 5)

    assert [requests.names["model"][code] for code in models] == ["m", "rare"]
    s3, ram, disk = (TIERS.index(name) for name in ("s3", "ram", "disk"))
    expected = [s3, KEPT, KEPT, HOT, NOTHING, NOTHING, NOTHING, ram, FAILED, NOTHING]
    cells = residency(requests, axis, models)
    assert cells[0].tolist() == expected
    assert cells[1].tolist() == [NOTHING, disk, *[NOTHING] * 8]


@given(duration_s=st.floats(0, 1e7))
def test_steps_are_few_and_cover_the_run(duration_s: float) -> None:
    axis = steps(duration_s)

    assert 1 <= axis.count <= MAX_STEPS + 1
    assert axis.edges_s[-1] >= duration_s * (1 - 1e-9)


def test_rates_count_every_moment_once() -> None:
    axis = steps(12.0)
    at_s = np.array([0.0, 0.05, 11.99, 12.0, np.nan])

    assert rate_per_s(at_s, axis).sum() * axis.width_s == pytest.approx(4)


@pytest.mark.parametrize(
    ("gate", "met", "told"),
    [
        ("p50<30ms", True, "12 ms"),
        ("p99<30ms", False, "1.0 s"),
        ("p99 <= 1s", True, "1.0 s"),
        ("max<2s", False, "never"),
        ("max[answered]<2s", True, "1.0 s"),
        ("mean[hot]<13ms", True, "12 ms"),
        ("p95[s3]<500ms", False, "1.0 s"),
        ("p95[disk]<1ms", True, "no request started from disk"),
        ("p99{big}<2s", True, "1.0 s"),
        ("p99.9{small}<10ms", False, "never"),
        ("p99{none}<10ms", False, "no request for none"),
        ("errors<0.6%", True, "0.5 %"),
        ("errors{small}<0.5%", False, "0.513 %"),
        ("wrong<0.1%", False, "0.5 %"),
        ("cold<=2.5%", True, "2.5 %"),
        ("cold[s3]<2%", False, "2.5 %"),
        ("cold[ram]<0.1%", True, "0 %"),
        ("lag.p99<5ms", True, "0.00 ms"),
        ("p50>1ms", True, "12 ms"),
    ],
)
def test_gates_judge_what_they_say(tmp_path: Path, gate: str, *, met: bool, told: str) -> None:
    rows = [row(number * 0.1, 0.012, model="small") for number in range(194)]
    rows += [row(20 + number, 1.0, model="big", start="s3") for number in range(5)]
    rows += [row(30, 0.01, model="small", error="wrong answer: OUTPUT__0")]
    verdict = judge(parse(gate), read(write(tmp_path / "run", rows)))

    assert (verdict.met, verdict.found) == (met, told)


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("p99", "METRIC<LIMIT"),
        ("p99<250", "ms or s"),
        ("p99<250%", "ms or s"),
        ("errors<1", "in %"),
        ("p0<1s", "between 0 and 100"),
        ("p100<1s", "max"),
        ("speed<1s", "there is no 'speed'"),
        ("p99[gpu]<1s", "no start tier"),
        ("p99{}<1s", "names no model"),
        ("lag.p99[hot]<1s", "leave out the tier"),
        ("cold[hot]<1%", "ram, disk, s3 and pod"),
        ("p99=1s", "METRIC<LIMIT"),
    ],
)
def test_what_is_no_gate_is_told_with_what_would_be(gate: str, says: str) -> None:
    with pytest.raises(BadGate, match=re.escape(says)):
        parse(gate)


def test_gates_on_what_a_server_does_not_say_or_nobody_asked_are_not_met(tmp_path: Path) -> None:
    silent = read(write(tmp_path / "silent", [row(0.0, 0.1, start="")]))
    empty = read(write(tmp_path / "empty", []))

    assert not judge(parse("cold<2%"), silent).met
    assert not judge(parse("p99[hot]<1s"), silent).met
    assert not judge(parse("errors<2%"), empty).met


def test_the_exit_code_tells_fine_from_missed_from_invalid_from_a_wrong_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = str(write(tmp_path / "fine", [row(0.0, 0.1)], slo=["p99<250ms"]))
    late = str(write(tmp_path / "late", [row(0.0, 0.1, sent_s=0.05)]))

    assert main([fine]) == OK
    assert main([fine, "--slo", "p99<50ms"]) == MISSED
    assert main([fine, late, "--slo", "p99<50ms", "-o", str(tmp_path / "both.html")]) == INVALID
    assert main([fine, "--slo", "p99"]) == USAGE
    assert main([str(tmp_path / "nothing")]) == USAGE
    told = capsys.readouterr()
    assert "fine: FAIL p99<50ms: 100 ms" in told.out
    assert "late is INVALID" in told.err
    assert "no run.json" in told.err


def test_the_page_is_one_file_that_loads_nothing_and_the_pictures_stand_beside_it(tmp_path: Path) -> None:
    rows = _mixed(300)
    pods = [{"at_s": at_s, "ready_pods": at_s > 1, "pods": 1} for at_s in range(4)]
    run = write(tmp_path / "a<b", rows, pods=pods, notes=["the <b>generator</b> shared a node"])

    assert main([str(run), "--slo", "p50<1s"]) == OK
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=(?!\"data:)", page)
    assert "a&lt;b" in page
    assert "&lt;b&gt;generator" in page
    names = {"latency", "latency-over-time", "rates", "cold", "residency", "stages", "errors", "send-lag", "pods"}
    assert {path.name for path in run.glob("*.png")} == {f"report-{name}.png" for name in names}
    assert page.count("data:image/png;base64,") == len(names)
    summary = json.loads((run / "summary.json").read_text())
    assert [one["met"] for one in summary["gates"]] == [True]
    assert summary["requests"] == 300


V1_COLUMNS = ("start", "version", "pod", "pod_up_s", "first_byte_s", "tries", "retry_wait_s", "tenant", "priority", "status")


@pytest.mark.parametrize(
    ("rows", "without"),
    [
        ([], ()),
        (None, ()),
        ([row(0.0, 0.1)], ()),
        ([row(0.0, None, error="timeout", sent_s=None, start="", status=0)] * 3, ()),
        ([row(0.0, 0.0)], ()),
        ([row(0.1 * number, 0.1) for number in range(20)], V1_COLUMNS),
        ([row(0.0, 0.1, start="s3")], ("timing_queue_ms", "timing_fetch_ms")),
        ([row(0.1 * number, 0.1, model=f"m{number}") for number in range(300)], ()),
        ([row(0.1 * number, None, error=f"reason {number}") for number in range(12)], ()),
    ],
    ids=[
        "no row",
        "no file",
        "one",
        "errors only",
        "no time at all",
        "another V2 server",
        "no stages",
        "many models",
        "many reasons",
    ],
)
def test_every_run_gives_a_page(tmp_path: Path, rows: list[dict[str, Any]] | None, without: tuple[str, ...]) -> None:
    run = write(tmp_path / "run", *([] if rows is None else [rows]), without=without)

    assert main([str(run)]) == OK
    assert all(path.read_bytes().startswith(PNG) for path in run.glob("*.png"))
    json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)


def test_runs_of_different_kinds_are_compared_on_one_page(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", _mixed(200)), write(tmp_path / "b", [row(0.0, 0.1, start="")]), write(tmp_path / "c", [])]
    runs.append(write(tmp_path / "d", _stalled(1.0, 50, 5.0), mode="closed"))

    assert main([*map(str, runs), "-o", str(tmp_path / "out" / "page.html")]) == OK
    summary = json.loads((tmp_path / "out" / "page.json").read_text())
    assert [one["requests"] for one in summary["runs"]] == [200, 1, 0, 250]


def test_pictures_alone_go_to_a_folder_and_nothing_else_is_written(tmp_path: Path) -> None:
    run = write(tmp_path / "run", _mixed(100))
    before = set(run.iterdir())

    assert main([str(run), "--png-only", str(tmp_path / "images")]) == OK
    assert set(run.iterdir()) == before
    assert "latency.png" in {path.name for path in (tmp_path / "images").iterdir()}


def test_what_is_no_run_says_why(tmp_path: Path) -> None:
    newer = write(tmp_path / "newer", [], format=2)
    cut = write(tmp_path / "cut", [row(0.0, 0.1)])
    (cut / "requests" / "0.parquet").write_bytes(b"PAR1 and no end")
    headless = write(tmp_path / "headless", [row(0.0, 0.1)], without=("due_s",))

    for run, says in ((newer, "format 2"), (cut, "killed while it wrote"), (headless, "no column due_s")):
        with pytest.raises(RunUnreadable, match=says):
            read(run)
