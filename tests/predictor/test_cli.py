"""The ``hearth`` command: its flags, its tables, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import msgspec
import pytest

from predictor import cli, flags, human
from predictor.report import Residency, WarmUp
from predictor.settings import Settings

RESIDENCY = {
    "pod": "pool-1",
    "up_s": 132.0,
    "tiers": [
        {"tier": "ram", "device": -1, "budget_bytes": 40_000_000, "reserved_bytes": 12_400_000, "ready_bytes": 12_400_000},
        {"tier": "device", "device": 0, "budget_bytes": 20_000_000, "reserved_bytes": 8_200_000, "ready_bytes": 8_200_000}
        | {"headroom_bytes": 2_000_000},
    ],
    "models": [
        {
            "name": "bert",
            "version": 3,
            "format": "onnx",
            "copies": [{"tier": "ram", "device": -1, "state": "filling", "bytes": 4_200_000, "leases": 0}],
            "rate_per_s": 0.0,
            "loads": 0,
            "load_s": None,
            "last_used_s_ago": None,
        },
        {
            "name": "resnet",
            "version": 1,
            "format": "pytorch",
            "copies": [
                {"tier": "ram", "device": -1, "state": "ready", "bytes": 8_200_000, "leases": 1},
                {"tier": "device", "device": 0, "state": "ready", "bytes": 8_200_000, "leases": 2},
            ],
            "rate_per_s": 0.25,
            "loads": 2,
            "load_s": 0.12,
            "last_used_s_ago": 1.04,
            "tenant": "vision",
            "weights_bytes": 9_000_000,
            "held_bytes": 9_100_000,
            "activation_bytes": 2_000_000,
            "memory_source": "measured",
            "invented_by_a_newer_server": True,
        },
    ],
    "waiting": 1,
    "in_flight": 2,
    "loads": 7,
    "drops": 4,
}

PS = """\
NAME    VERSION  FORMAT   WHERE              SIZE  LEASES      RATE  LAST USED
resnet        1  pytorch  ram + device 0  16.4 MB       2  15.0/min  1.0 s ago
bert          3  onnx     ram (loading)    4.2 MB       0         -      never

TIER         USED  TO COMPUTE   BUDGET  MODELS
ram       12.4 MB           -  40.0 MB       2
device 0   8.2 MB      2.0 MB  20.0 MB       1

pool-1: up 2 min, 2 in flight, 1 waiting, 7 loads, 4 drops
"""


class FakeAdmin(BaseHTTPRequestHandler):
    """An admin port that has one model, ``resnet``."""

    catalogue: ClassVar[list[str]] = ["bert", "resnet"]

    def do_GET(self) -> None:
        if self.path == "/hearth/v1/residency":
            self._answer(200, RESIDENCY)
        elif self.path == "/hearth/v1/catalogue":
            self._answer(200, {"models": self.catalogue})
        else:
            self._answer(404, {"error": f"no such URL: {self.path}"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["models"]
        known = [name for name in asked if name in self.catalogue]
        if self.path == "/hearth/v1/preload" and "broken" in asked:
            self._answer(503, {"error": "the model store cannot be reached"})
        elif self.path.endswith("pin"):
            self._answer(200, {"pinned": known if self.path == "/hearth/v1/pin" else []})
        elif self.path == "/hearth/v1/preload":
            self._answer(202, {"accepted": known, "unknown": [name for name in asked if name not in known]})
        else:
            self._answer(200, {"cleared" if self.path == "/hearth/v1/clear" else "unloaded": known})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeAdmin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(5)


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    named = [flag.setting for flag in flags.SERVE_FLAGS]
    assert sorted(named) == sorted(Settings.model_fields)


@pytest.mark.parametrize("flag", flags.SERVE_FLAGS, ids=lambda flag: flag.option)
def test_a_flag_takes_what_its_setting_takes(flag: flags.Flag) -> None:
    schema = Settings.model_json_schema()["properties"][flag.setting]
    kinds = {variant.get("type") for variant in schema.get("anyOf", [schema])} - {"null"}
    assert kinds == {{str: "string", int: "integer", float: "number", bool: "boolean"}[flag.kind]} or (
        kinds in ({"array"}, {"object"}) and flag.kind is str
    )
    assert tuple(schema.get("enum", ())) == flag.choices
    assert flag.variable == f"{Settings.model_config['env_prefix']}{flag.setting.upper()}"


def test_flags_reach_the_settings_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_MODELS", "s3://elsewhere")
    monkeypatch.setenv("HEARTH_MAX_WAITING", "7")
    line = "--models s3://bucket/prefix --port 0 --trust code --cpu-copy --preload a,b --settle-s 0.5"
    for name, value in flags.environment(flags.ServeParser().parse_args(line.split())).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.models, settings.port, settings.trust) == ("s3://bucket/prefix", 0, "code")
    assert settings.cpu_copy
    assert settings.preload == ("a", "b")
    assert settings.settle_s == 0.5
    assert settings.max_waiting == 7


def test_a_flag_not_given_says_nothing_to_the_environment() -> None:
    assert flags.environment(flags.ServeParser().parse_args([])) == {}


def test_serve_help_tells_every_flag_with_the_settings_own_words() -> None:
    told = " ".join(flags.ServeParser().format_help().split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in told
        assert field.description is not None
        assert field.description.split()[0] in told


@pytest.mark.parametrize("module", ["predictor.flags", "predictor.cli"])
def test_importing_the_command_line_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in sys.modules if name in {{'pydantic', 'rich', 'msgspec', 'torch'}}])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert told.stdout.strip() == "[]"


def test_ps_shows_models_room_and_pod_in_plain_columns(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ps", "--address", address]) == 0
    assert capsys.readouterr().out == PS


def test_ps_takes_the_address_from_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTH_ADDRESS", address.removeprefix("http://"))
    assert cli.main(["ps", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == RESIDENCY


def test_ps_wide_adds_what_loads_cost(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ps", "-o", "wide", "--address", address]) == 0
    heading, resnet, bert, *_ = capsys.readouterr().out.splitlines()
    assert heading.endswith("LOADS  LOAD TIME  WEIGHTS  ON DEVICE  TO COMPUTE  MEMORY    TENANT")
    assert resnet.split()[-11:] == ["2", "120", "ms", "9.0", "MB", "9.1", "MB", "2.0", "MB", "measured", "vision"]
    assert bert.split()[-7:] == ["0", "-", "-", "-", "-", "-", "-"]


def test_ps_wide_has_a_flag_of_its_own(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ps", "--wide", "--address", address]) == 0
    assert "TO COMPUTE  MEMORY" in capsys.readouterr().out


def test_ps_ends_with_what_an_operator_should_know(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    alarmed = msgspec.convert({**RESIDENCY, "alarms": ["models push each other out"]}, Residency)
    assert cli.alarm_lines(alarmed) == ["warning: models push each other out"]
    assert cli.main(["ps", "--address", address]) == 0
    assert "warning" not in capsys.readouterr().out


def test_ps_tells_how_far_the_hot_set_is_where_there_is_one() -> None:
    assert cli.warm_lines(WarmUp()) == []
    assert cli.warm_lines(WarmUp("loading", "mounted", 40, 12, 3, 1)) == [
        "hot set (mounted): 12 of 40 loaded, 3 found no room, 1 failed, loading"
    ]
    assert cli.warm_lines(WarmUp(trouble="demand cannot be written")) == ["warning: demand cannot be written"]


def test_ps_of_an_empty_pod_says_how_a_model_gets_in() -> None:
    empty = msgspec.convert({**RESIDENCY, "models": []}, Residency)
    assert len(cli.model_rows(empty)) == 1
    assert [row[-1] for row in cli.tier_rows(empty)] == ["MODELS", "0", "0"]


def test_ps_names_what_is_in_quarantine_and_why_though_it_has_no_copy() -> None:
    sick = {"name": "evil", "version": 3, "quarantine": "in quarantine: it ended a worker (killed by SIGSEGV)"}
    told = msgspec.convert({**RESIDENCY, "models": [sick]}, Residency)
    assert [row[:4] for row in cli.model_rows(told)[1:]] == [["evil", "3", "-", "quarantine"]]
    assert cli.alarm_lines(told) == ["warning: model evil:3 is in quarantine: it ended a worker (killed by SIGSEGV)"]


def test_pin_loads_and_says_what_is_pinned(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pin", "resnet", "--address", address]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pinned: resnet",
        "loading in the background: resnet (watch with `hearth ps`)",
    ]
    assert cli.main(["unpin", "resnet", "--address", address]) == 0
    assert capsys.readouterr().out == "pinned: nothing\n"


@pytest.mark.parametrize("command", [["ps"], ["models"], ["load", "a"], ["unload", "a"]])
def test_nobody_at_the_address_is_said_clearly(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--address", "http://127.0.0.1:1"]) == 1
    told = capsys.readouterr().err
    assert "no Hearth admin port at http://127.0.0.1:1" in told
    assert "hearth serve" in told
    assert "--address or HEARTH_ADDRESS" in told


def test_an_address_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ps", "--address", "file:///etc/passwd"]) == 1
    assert "http://" in capsys.readouterr().err


def test_load_names_what_it_loads_and_what_nobody_has(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["load", "resnet", "nonesuch", "--address", address]) == 1
    told = capsys.readouterr()
    assert "loading in the background: resnet" in told.out
    assert "has no nonesuch" in told.err


def test_load_can_take_models_out_of_quarantine_first(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["load", "resnet", "--clear", "--address", address]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "out of quarantine: resnet",
        "loading in the background: resnet (watch with `hearth ps`)",
    ]


def test_what_the_server_refuses_is_told_in_its_own_words(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["load", "broken", "--address", address]) == 1
    assert "the model store cannot be reached (HTTP 503" in capsys.readouterr().err


def test_unload_tells_what_was_there_and_what_was_not(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["unload", "resnet", "nonesuch", "--address", address]) == 0
    assert capsys.readouterr().out == "unloaded: resnet\nnot loaded: nonesuch\n"


def test_models_prints_one_name_a_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--address", address]) == 0
    assert capsys.readouterr().out == "bert\nresnet\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for command in ("serve", "demo", "ps", "models", "load", "unload", "--version"):
        assert command in told


def test_a_wrong_command_is_told_with_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--requests", "none"])
    assert ended.value.code == 2
    assert "'none' is not a number above zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quantity", "told"),
    [
        (human.size(999), "999 B"),
        (human.size(17_800_000), "17.8 MB"),
        (human.span(0.0004), "0.40 ms"),
        (human.span(0.0123), "12 ms"),
        (human.span(3.21), "3.2 s"),
        (human.span(7200), "2 h"),
        (human.rate(0), "-"),
        (human.rate(3.21), "3.2/s"),
        (human.rate(0.25), "15.0/min"),
        (human.rate(0.001), "3.6/h"),
    ],
)
def test_quantities_read_as_people_say_them(quantity: str, told: str) -> None:
    assert quantity == told
