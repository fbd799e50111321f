from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest.peers.__main__ import _parser
from loadtest.peers.hearth import files
from loadtest.peers.rounds import Plan, planned_s
from loadtest.peers.table import Cell, Taken, as_json, middle, table
from loadtest.peers.triton import MAX_BATCH, Triton, config
from loadtest.peers.workloads import WORKLOADS, Encoding, WrongAnswer, answer, compare, made, request
from loadtest.peers.wrk import Figures, figures, script

CELL = Cell("mlp", "json", 16)


def _answer(values: list[float], shape: list[int]) -> bytes:
    return json.dumps({"outputs": [{"name": "y", "shape": shape, "datatype": "FP32", "data": values}]}).encode()


def test_the_json_body_is_about_six_kilobytes_and_says_what_the_binary_one_says() -> None:
    case = made(WORKLOADS["mlp"])
    as_text, as_bytes = request(case.input, "json"), request(case.input, "binary")
    assert 5_500 < len(as_text.body) < 7_000
    head_bytes = int(as_bytes.headers["Inference-Header-Content-Length"])
    head = json.loads(as_bytes.body[:head_bytes])
    raw = np.frombuffer(as_bytes.body, dtype="<f4", offset=head_bytes)
    assert head["inputs"][0]["parameters"]["binary_data_size"] == raw.nbytes
    np.testing.assert_array_equal(np.array(json.loads(as_text.body)["inputs"][0]["data"], dtype=np.float32), raw)


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_every_run_asks_the_same(encoding: Encoding) -> None:
    one, other = made(WORKLOADS["mlp"]), made(WORKLOADS["mlp"])
    assert request(one.input, encoding) == request(other.input, encoding)
    assert one.weights == other.weights


def test_an_answer_is_read_from_json_and_from_binary() -> None:
    expected = np.array([[1.5, 2.0]], dtype=np.float32)
    compare(answer(_answer([1.5, 2.0], [1, 2]), None), expected)
    head = b'{"outputs":[{"name":"y","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}'
    compare(answer(head + expected.tobytes(), len(head)), expected)


def test_a_value_that_differs_by_more_than_rounding_is_a_wrong_answer() -> None:
    expected = np.array([[1.5, 2.0]], dtype=np.float32)
    compare(expected * np.float32(1 + 5e-5), expected)
    with pytest.raises(WrongAnswer, match="values differ"):
        compare(expected * np.float32(1 + 5e-4), expected)
    with pytest.raises(WrongAnswer, match="shape"):
        compare(expected.ravel(), expected)
    with pytest.raises(WrongAnswer, match="3 values"):
        answer(_answer([1.0, 2.0, 3.0], [1, 2]), None)


def test_the_resnet_has_the_size_of_resnet18() -> None:
    assert 46_000_000 < len(made(WORKLOADS["resnet18"]).weights) < 48_000_000


def test_the_manifest_is_uploaded_last() -> None:
    assert list(files(made(WORKLOADS["mlp"]))) == ["model.safetensors", "model.py", "hearth.json"]


def test_dynamic_batching_is_all_that_differs_between_the_two_tritons() -> None:
    case = made(WORKLOADS["mlp"])
    plain, dynamic = (config(case, dynamic=wanted).splitlines() for wanted in (False, True))
    assert set(dynamic) - set(plain) == {"dynamic_batching { }"}
    assert 'input [{ name: "x", data_type: TYPE_FP32, dims: [784] }]' in plain


def test_wrks_script_sends_the_body_and_its_headers() -> None:
    written = script(Path("/x/body"), request(made(WORKLOADS["mlp"]).input, "binary"))
    assert 'io.open("/x/body", "rb")' in written
    assert 'wrk.headers["Inference-Header-Content-Length"] = "' in written
    assert '{"requests": %d' in written


def test_a_run_without_an_answer_has_no_latencies_and_failures_are_counted() -> None:
    told = {"requests": 200, "duration_us": 2_000_000, "p50_us": 10.0, "p99_us": 20.0, "failed": 0}
    assert figures(f"Running 2s test\n\n{json.dumps(told)}\n") == Figures(100.0, 10.0, 20.0, 200)
    assert figures(json.dumps(told | {"failed": 3})).failed == 3
    assert figures(json.dumps(told | {"requests": 0})) == Figures(0.0, 0.0, 0.0, 0, 0)


def test_a_default_run_takes_a_quarter_of_an_hour_at_most() -> None:
    asked = _parser().parse_args([])
    plan = Plan(asked.rounds, asked.seconds, 0, 1, Path())
    peer_count = 2 + 2 * len(asked.triton_http_threads)  # Hearth, FastAPI, and Triton with its batching and without
    assert planned_s(plan, peer_count, [WORKLOADS[name] for name in asked.workloads]) <= 15 * 60


def test_what_is_declared_of_a_model_stands_in_its_manifest_and_is_the_same_as_tritons_by_default() -> None:
    case = made(WORKLOADS["mlp"])
    assert json.loads(files(case)["hearth.json"])["batching"] == {"max_batch_size": MAX_BATCH}
    assert json.loads(files(case, {"weight": 2})["hearth.json"])["weight"] == 2


def test_a_sweep_of_tritons_threads_is_a_column_each() -> None:
    assert Triton(dynamic=True, http_threads=2).name != Triton(dynamic=True, http_threads=8).name


def test_the_middle_of_rounds_is_their_median_with_the_spread_around_it() -> None:
    assert tuple(middle([110.0, 100.0, 80.0])) == pytest.approx((100.0, -20.0, 10.0))


def test_the_table_compares_hearth_with_the_best_triton() -> None:
    rates = {"Hearth": 3000.0, "Triton": 1000.0, "Triton dynamic": 1500.0, "FastAPI": 4000.0}
    taken = [Taken(1, server, CELL, Figures(rate, 250.0, 12_000.0)) for server, rate in rates.items()]
    head, _, row = table(taken, list(rates)).splitlines()
    assert head.endswith("| Hearth / best Triton |")
    assert row.startswith("| mlp, json, c=16 | 3,000/s p50 250 µs p99 12.0 ms |")
    assert row.endswith("| 2.00 |")
    assert as_json(taken)[0] == {
        "round": 1,
        "server": "Hearth",
        "workload": "mlp",
        "encoding": "json",
        "connections": 16,
        "requests_per_s": 3000.0,
        "p50_us": 250.0,
        "p99_us": 12_000.0,
        "requests": 0,
        "failed": 0,
    }


def test_a_table_without_triton_has_no_ratio() -> None:
    head, _, row = table([Taken(1, "Hearth", CELL, Figures(1.0, 1.0, 1.0))], ["Hearth", "FastAPI"]).splitlines()
    assert head == "|  | Hearth | FastAPI |"
    assert row.endswith("| none |")
