"""The demo's parts that need no model: what is asked, how answers are judged and added up, and how it looks."""

from __future__ import annotations

import json
import math
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from predictor.demo import run, server, show, traffic
from predictor.demo.children import Children, free_port
from predictor.demo.tally import Tally, drops_by_tier, percentile
from predictor.errors import HearthError
from predictor.report import CopyReport, ModelReport, Residency, TierReport

PIXELS = 4


class FakeModels(BaseHTTPRequestHandler):
    """Answers V2 requests: the class is the first pixel. ``broken`` fails; ``short`` forgets an image."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers.get(traffic.BINARY_LENGTH, len(content)))
        head = json.loads(content[:length])
        count, pixels = head["inputs"][0]["shape"]
        values = head["inputs"][0].get("data") or struct.unpack(f"<{count * pixels}f", content[length:])
        logits = [float(place == values[row * pixels]) for row in range(count) for place in range(traffic.CLASSES)]
        name = self.path.split("/")[3]
        if name == "broken":
            self._answer(500, b'{"error": "it broke"}', {})
            return
        if name == "short":
            logits = logits[traffic.CLASSES :]
        output: dict[str, object] = {"name": "logits", "datatype": "FP32", "shape": [count, traffic.CLASSES]}
        if head.get("parameters", {}).get("binary_data_output"):
            raw = struct.pack(f"<{len(logits)}f", *logits)
            told = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": len(raw)}}]}).encode()
            self._answer(200, told + raw, {traffic.BINARY_LENGTH: str(len(told))})
        else:
            self._answer(200, json.dumps({"outputs": [{**output, "data": logits}]}).encode(), {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Hearth-Start": "hot", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def plan() -> Iterator[traffic.Plan]:
    """Three models that all should name ten images rightly; the label of an image is its first pixel."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeModels) as fake:
        fake.daemon_threads = True
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield traffic.Plan(
            host="127.0.0.1",
            port=int(fake.server_address[1]),
            names=["good", "broken", "short"],
            expected=[list(range(10))] * 3,
            images=[[float(label)] * PIXELS for label in range(10)],
            labels=list(range(10)),
        )
        fake.shutdown()
        thread.join(5)


@given(st.integers(1, 500), st.floats(0, 3))
def test_popularity_is_zipfs_law(models: int, exponent: float) -> None:
    shares = traffic.popularity(models, exponent)
    assert math.isclose(sum(shares), 1.0)
    assert all(math.isclose(shares[0], share * rank**exponent) for rank, share in enumerate(shares, 1))


def test_the_first_quarter_of_the_models_gets_two_thirds_of_the_requests() -> None:
    assert 0.65 < sum(traffic.popularity(24)[:6]) < 0.72


def test_the_same_seed_asks_the_same_and_another_something_else() -> None:
    def asked(seed: int) -> list[traffic.Request]:
        return traffic.schedule(models=24, images=360, requests=300, seed=seed)

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)
    assert all(0 <= request.model < 24 and 1 <= len(request.images) <= traffic.MAX_IMAGES for request in asked(1))
    assert 100 < sum(request.binary for request in asked(1)) < 200


def test_a_plan_survives_its_file(plan: traffic.Plan, tmp_path: Path) -> None:
    whole = replace(plan, requests=traffic.schedule(models=3, images=10, requests=5, seed=1))
    whole.write(tmp_path / "plan.json")
    read = traffic.Plan.read(tmp_path / "plan.json")
    assert list(read.requests) == whole.requests
    assert read.images == whole.images


@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_read_and_judged_in_both_encodings(plan: traffic.Plan, *, binary: bool) -> None:
    wrong_label = replace(plan, labels=[9, *plan.labels[1:]], expected=[[0, 1, 5, *range(3, 10)]] * 3)
    outcome = traffic.Client(wrong_label).ask(traffic.Request(0, (0, 1, 2, 3), binary))
    assert outcome.error == ""
    assert (outcome.start, outcome.images, outcome.right, outcome.different) == ("hot", 4, 3, 1)


@pytest.mark.parametrize("binary", [False, True])
def test_a_failing_model_and_a_missing_answer_are_errors(plan: traffic.Plan, *, binary: bool) -> None:
    client = traffic.Client(plan)
    assert "HTTP 500" in client.ask(traffic.Request(1, (0,), binary)).error
    assert "1 answers to 2 images" in client.ask(traffic.Request(2, (0, 1), binary)).error
    assert client.ask(traffic.Request(0, (0,), binary)).error == ""


def test_nobody_at_the_port_is_an_error_of_the_request_not_of_the_client(plan: traffic.Plan) -> None:
    outcome = traffic.Client(replace(plan, port=free_port(0))).ask(traffic.Request(0, (0,), binary=False))
    assert "ConnectionRefusedError" in outcome.error


def test_every_request_of_a_plan_is_answered_once(plan: traffic.Plan) -> None:
    requests = [traffic.Request(0, (image % 10,), image % 2 == 0) for image in range(200)]
    outcomes = list(traffic.send(replace(plan, requests=requests)))
    assert len(outcomes) == 200
    assert sum(outcome.right for outcome in outcomes) == 200
    assert traffic.decoded([traffic.encoded(outcome) for outcome in outcomes]) == outcomes


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


def test_percentiles_of_a_hundred_values_are_those_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert math.isnan(percentile([], 0.5))


def outcome(model: int = 0, start: str = "hot", **changes: object) -> traffic.Outcome:
    whole = traffic.Outcome(model, start, 0.002, images=2, right=2, different=0, binary=False)
    return whole._replace(**changes)  # type: ignore[arg-type]


def test_the_tally_is_faultless_only_while_every_answer_is() -> None:
    tally = Tally()
    assert not tally.faultless
    tally.add(outcome(right=1))
    assert tally.faultless
    assert tally.accuracy == 0.5
    tally.add(outcome(different=1))
    assert not tally.faultless


def test_an_answer_without_a_known_start_counts_as_an_error() -> None:
    tally = Tally()
    tally.add(outcome(start=""))
    assert (tally.failed, tally.images) == (1, 0)
    assert "Hearth-Start" in tally.errors[0]


def test_the_tally_keeps_few_of_many_errors() -> None:
    tally = Tally()
    for _ in range(1000):
        tally.add(outcome(error="HTTP 500"))
    assert tally.failed == 1000
    assert len(tally.errors) == 5


def test_drops_are_read_from_the_metrics_by_tier() -> None:
    text = (
        "# HELP hearth_drops_total Copies dropped.\n# TYPE hearth_drops_total counter\n"
        'hearth_drops_total{model="a",tier="device"} 3.0\nhearth_drops_total{model="b",tier="device"} 4.0\n'
        'hearth_drops_total{model="b",tier="ram"} 2.0\nhearth_drops_created{model="b",tier="ram"} 1.7e9\n'
    )
    assert drops_by_tier(text) == {"device": 7, "ram": 2}


def scene() -> show.Scene:
    models = [show.Shown(f"mlp-1024x{place}-{name}", name, 8_300_000) for name in ("pytorch", "onnx") for place in range(12)]
    tally = Tally()
    for place in range(24):
        for start in ("hot", "ram", "s3"):
            tally.add(outcome(place, start))
    copies = {
        models[0].name: (CopyReport("ram", -1, "ready", 10), CopyReport("device", 0, "ready", 10)),
        models[1].name: (CopyReport("ram", -1, "ready", 10), CopyReport("device", 0, "filling", 10)),
        models[2].name: (CopyReport("ram", -1, "filling", 10),),
    }
    tiers = (TierReport("ram", -1, 40_000_000, 30_000_000), TierReport("device", 0, 20_000_000, 20_000_000))
    reports = tuple(ModelReport(name, 1, copies=where) for name, where in copies.items())
    return show.Scene(models, 1500, tally, Residency(tiers, reports, loads=9), elapsed_s=2.0)


def drawn(what: object, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 (the console's own)
    console.print(what)
    return console.export_text().splitlines()


def test_the_picture_of_the_burst_fits_a_hundred_columns_and_a_small_terminal() -> None:
    lines = drawn(show.picture(scene()))
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert len(lines) <= 24
    assert "72 of 1,500 requests" in "\n".join(lines)
    assert all(f"mlp-1024x{place}" in "\n".join(lines) for place in range(12))


def test_the_picture_is_drawn_before_the_pod_has_told_anything() -> None:
    empty = replace(scene(), residency=None, tally=Tally(), elapsed_s=0.0)
    assert "0 of 1,500 requests" in "\n".join(drawn(show.picture(empty)))


@pytest.mark.parametrize(("place", "where"), [(0, "device"), (1, "ram"), (2, "moving")])
def test_a_model_is_shown_where_it_is_ready_nearest_to_the_computation(place: int, where: str) -> None:
    residency = scene().residency
    assert residency is not None
    assert show.whereabouts(residency.models[place]) == where
    assert show.whereabouts(None) == "s3"


def test_the_summary_tells_errors_accuracy_latencies_and_evictions() -> None:
    told = scene()
    told.drops.update(device=41, ram=7)
    text = "\n".join(drawn(show.summary(told, alone=1.0, clients=4)))
    for words in ("72 requests", "0 errors", "100.00% of 144 images", "no answer differs", "from RAM", "p99 ms"):
        assert words in text
    assert "41 evictions from the device, 7 from RAM" in text


def test_without_a_terminal_the_burst_tells_how_far_it_is_a_few_times() -> None:
    console = Console(file=open("/dev/null", "w"), record=True)  # noqa: SIM115, PTH123 (the console's own)
    screen = show.Screen(console)
    screen.console = Console(file=console.file, record=True, width=100)
    told = replace(scene(), requests=100)
    with screen.burst():
        for _ in range(50):
            screen.update(told)
    assert screen.console.export_text().count("72 of 100 requests") == 1


def test_an_image_is_drawn_with_one_line_for_each_row_of_pixels() -> None:
    lines = show.digit([0.0] * 63 + [16.0]).plain.split("\n")
    assert len(lines) == 8
    assert lines[-1].endswith("██")


def test_children_end_with_the_context_even_those_that_do_not_want_to(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    with Children(tmp_path, end_timeout_s=0.1) as children:
        child = children.start("stubborn", [sys.executable, "-c", stubborn], server.environment(), talks=True)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
    assert child.poll() == -9


def test_what_a_child_said_last_is_kept(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        code = "import sys; sys.stderr.write('\\n'.join(map(str, range(100))))"
        children.start("noisy", [sys.executable, "-c", code], server.environment()).wait(30)
    assert children.last_words("noisy").split("\n") == [str(line) for line in range(80, 100)]
    assert children.last_words("never started") == ""


def test_a_port_in_use_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        assert free_port(port) != port
    assert free_port(port) == port


def test_children_see_nothing_of_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("HEARTH_MAX_WAITING", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    told = server.environment("http://127.0.0.1:9000")
    assert told["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert not {"AWS_PROFILE", "HEARTH_MAX_WAITING", "HTTP_PROXY"} & set(told)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.EXTRAS, "no_such_module", "no-such-package")
    with pytest.raises(HearthError, match=r"needs no-such-package: pip install 'hearth\[demo\]'"):
        run.demo(run.Wishes())
