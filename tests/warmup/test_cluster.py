"""``hearth ps | models | why --cluster`` and ``hearth warm``: the command as typed, against an API server in memory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from predictor import cli
from tests.fakes.kube import FakeKube
from warmup import cluster

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: here, context: {{cluster: c, user: u, namespace: team}}}}]
current-context: here
"""

RESIDENCY = {
    "pod": "gpu-abc",
    "pool": "gpu",
    "up_s": 132.0,
    "tiers": [
        {"tier": "ram", "device": -1, "budget_bytes": 40_000_000, "reserved_bytes": 12_400_000, "ready_bytes": 12_400_000}
    ],
    "models": [
        {
            "name": "bert",
            "version": 3,
            "format": "onnx",
            "copies": [{"tier": "ram", "device": -1, "state": "ready", "bytes": 4_200_000, "leases": 0}],
            "rate_per_s": 0.0,
            "loads": 1,
            "load_s": 0.5,
            "last_used_s_ago": None,
        }
    ],
    "loads": 1,
}
SERVES = {"name": "gpu-abc", "state": "serving", "up_s": 3.0}


class Desk:
    """The controller's routes, behind the API server's proxy."""

    def __init__(self, fake: FakeKube) -> None:
        self.fake = fake
        self.pools: list[dict[str, Any]] = [
            {"name": "cpu", "kind": "knative", "ready": False, "reason": "its image is not there", "service": "cpu-service"},
            {"name": "gpu", "kind": "kserve", "default": True, "ready": True, "models": {"Loaded": 1, "Standby": 29}},
            {"name": "plain", "kind": "deployment", "ready": True},
        ]
        self.pods: list[dict[str, Any]] = []
        self.later: list[list[dict[str, Any]]] = []
        """The gpu pool's pods, from one look to the next."""
        self.asked: list[str] = []
        fake.services["team", "hearth-controller:8082"] = self.answer

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:  # noqa: PLR0911 (a route each)
        self.asked.append(path)
        route = path.removeprefix("hearth/v1/")
        if query.get("pool", "gpu") != "gpu":
            return 404, b'{"error": "there is no such pool"}'
        if route == "pools":
            if self.later:
                self.pools[1]["pods"] = self.later.pop(0)
            return 200, json.dumps({"pools": self.pools}).encode()
        if route == "models":
            model = {"name": "bert", "pool": "gpu", "state": "FailedToLoad", "uri": "s3://b/bert", "failure": "no such bucket"}
            return 200, json.dumps(
                {"models": [model, {"name": "x", "pool": "gpu", "state": "Standby", "ready": True}]}
            ).encode()
        if route == "residency":
            return 200, json.dumps({"pods": self.pods}).encode()
        if route == "why/gpu":
            ahead = {"at_s": 1.0, "what": "PodsAhead", "detail": "pool gpu is to have 1 pod"}
            return 200, json.dumps({"model": "gpu", "events": [ahead], "now": ["forecast off: 1 days were watched"]}).encode()
        if route == "why/bert":
            loaded = {"at_s": 5.0, "what": "loaded", "place": "ram", "version": 3, "seconds": 0.5}
            told = {"at_s": 5.0, "what": "loaded", "source": "gpu-abc", "event": loaded}
            return 200, json.dumps(
                {"model": "bert", "events": [{"at_s": 1.0, "what": "declared", "detail": "s3://b"}, told]}
            ).encode()
        return 404, b'{"error": "no pool of this namespace has a model called \'nope\'"}'


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeKube]:
    async with FakeKube() as running:
        file = tmp_path / "kubeconfig"
        file.write_text(KUBECONFIG.format(url=running.url))
        monkeypatch.setenv("KUBECONFIG", str(file))
        monkeypatch.setattr(cluster, "POLL_S", 0.001)
        yield running


@pytest.fixture
def desk(fake: FakeKube) -> Desk:
    for kind, name in (("servingruntimes", "gpu"), ("services", "cpu-service")):
        version = "serving.kserve.io/v1alpha1" if kind == "servingruntimes" else "serving.knative.dev/v1"
        fake.put(kind, {"apiVersion": version, "metadata": {"name": name, "annotations": {"mine": "1"}}, "spec": {}})
    return Desk(fake)


async def hearth(*arguments: str) -> int:
    """The command, in a thread: it has an event loop of its own."""
    return await asyncio.to_thread(cli.main, arguments)


async def test_ps_shows_pools_and_says_that_nothing_runs(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await hearth("ps", "--cluster") == 0
    out = capsys.readouterr().out
    assert "gpu (default)" in out
    assert "1 Loaded, 29 Standby" in out
    assert "no: its image is not there" in out
    assert "no pod runs" in out


async def test_ps_shows_what_is_in_each_pod_and_which_pod_is_silent(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.pods = [RESIDENCY, {"pod": "gpu-def", "pool": "gpu", "error": "no answer within 3 s"}]
    assert await hearth("ps", "--cluster", "--pool", "gpu") == 0
    out = capsys.readouterr().out
    assert "bert" in out
    assert "gpu-abc: up 2 min" in out
    assert "gpu-def: no answer within 3 s" in out
    assert "plain" not in out


async def test_ps_of_a_namespace_without_pools_says_what_makes_one(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.pools = []
    assert await hearth("ps", "--cluster") == 0
    assert "hearth.dev/pool" in capsys.readouterr().out


async def test_models_and_why_are_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await hearth("models", "--cluster") == 0
    assert "no: no such bucket" in capsys.readouterr().out
    assert await hearth("why", "bert", "--cluster") == 0
    out = capsys.readouterr().out
    assert "declared: s3://b  [controller]" in out
    assert "[gpu-abc]" in out


async def test_of_a_pool_it_tells_what_was_done_ahead_of_its_traffic_and_how_it_stands(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await hearth("why", "gpu", "--cluster") == 0
    done, now = capsys.readouterr().out.splitlines()
    assert "PodsAhead: pool gpu is to have 1 pod  [controller]" in done
    assert now == "now: forecast off: 1 days were watched"


@pytest.mark.parametrize("command", [["ps"], ["models"], ["why", "bert"]])
async def test_json_is_what_the_controller_said(desk: Desk, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert await hearth(*command, "--cluster", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)


async def test_an_unknown_model_and_an_unknown_pool_are_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await hearth("why", "nope", "--cluster") == 1
    assert "hearth why: no pool of this namespace has a model called 'nope'" in capsys.readouterr().err
    assert await hearth("ps", "--cluster", "--pool", "nope") == 1
    assert "it has: cpu, gpu, plain" in capsys.readouterr().err
    assert await hearth("models", "--cluster", "--pool", "nope") == 1
    assert "there is no such pool" in capsys.readouterr().err


async def test_a_namespace_without_a_controller_says_so(fake: FakeKube, capsys: pytest.CaptureFixture[str]) -> None:
    assert await hearth("ps", "--cluster", "-n", "other") == 1
    assert "namespace other has no Hearth controller" in capsys.readouterr().err


async def test_a_controller_that_does_not_run_says_so(fake: FakeKube, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("services", {"apiVersion": "v1", "metadata": {"name": "hearth-controller"}})
    assert await hearth("ps", "--cluster") == 1
    assert "no endpoints" in capsys.readouterr().err


async def test_what_is_forbidden_says_which_permission_is_missing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.fake.fail(403)
    assert await hearth("ps", "--cluster") == 1
    assert 'resources: ["services/proxy"]' in capsys.readouterr().err
    desk.fake.fail(403, verb="patch")
    assert await hearth("warm", "gpu", "--no-wait") == 1
    assert 'resources: ["servingruntimes"], verbs: ["patch"]' in capsys.readouterr().err


async def test_an_answer_that_is_not_a_controllers_is_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.fake.services["team", "hearth-controller:8082"] = lambda _path, _query: (200, b"hello")
    assert await hearth("ps", "--cluster") == 1
    assert "is not a Hearth controller's" in capsys.readouterr().err
    desk.fake.services["team", "hearth-controller:8082"] = lambda _path, _query: (500, b"<html>")
    assert await hearth("ps", "--cluster") == 1
    assert "HTTP 500" in capsys.readouterr().err


async def test_without_a_kubeconfig_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    assert await hearth("ps", "--cluster") == 1
    assert "KUBECONFIG" in capsys.readouterr().err


async def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("warmup")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert await hearth("ps", "--cluster") == 1
    assert "pip install hearth[controller]" in capsys.readouterr().err


def warm_until(fake: FakeKube, kind: str, name: str) -> str:
    found = fake.object(kind, name)
    assert found is not None
    assert found["metadata"]["annotations"]["mine"] == "1"
    return str(found["metadata"]["annotations"].get(cluster.WARM_UNTIL, ""))


async def test_warm_writes_the_moment_and_waits_until_a_pod_serves(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.later = [[], [], [{"name": "gpu-abc", "state": "starting"}], [SERVES]]
    assert await hearth("warm", "gpu", "--for", "2h") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pool gpu is kept warm until" in lines[0]
    assert [line.partition(": ")[2] for line in lines[1:]] == ["waiting for a pod", "gpu-abc: starting", "gpu-abc serves"]
    left_s = datetime.fromisoformat(warm_until(desk.fake, "servingruntimes", "gpu")).timestamp() - datetime.now(UTC).timestamp()
    assert 7100 < left_s <= 7200


async def test_a_pod_that_tells_nothing_is_believed_when_knative_calls_it_ready(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.later = [[{"name": "gpu-abc", "state": "older"}]]
    desk.pools[1]["warm"] = "warm"
    assert await hearth("warm", "gpu") == 0
    assert "a pod serves" in capsys.readouterr().out


async def test_a_pod_that_serves_is_not_enough_until_knative_calls_it_ready(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "WAIT_S", 0.05)
    desk.pools[1]["warm"] = "starting"
    desk.pools[1]["pods"] = [{"name": "gpu-abc", "state": "serving"}]
    assert await hearth("warm", "gpu") == 1
    desk.pools[1]["warm"] = "warm"
    assert await hearth("warm", "gpu") == 0


async def test_warm_off_removes_it(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    await hearth("warm", "gpu", "--no-wait")
    assert warm_until(desk.fake, "servingruntimes", "gpu")
    assert await hearth("warm", "gpu", "--off") == 0
    assert not warm_until(desk.fake, "servingruntimes", "gpu")
    assert "not kept warm any more" in capsys.readouterr().out


async def test_warm_writes_a_knative_pools_wish_on_its_service(desk: Desk) -> None:
    assert await hearth("warm", "cpu", "--no-wait") == 0
    assert warm_until(desk.fake, "services", "cpu-service")


async def test_warm_gives_up_waiting_in_the_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "WAIT_S", 0.05)
    desk.pools[1]["warm"] = "waking"
    assert await hearth("warm", "gpu") == 1
    told = capsys.readouterr()
    assert "was sent a request and has not started a pod" in told.out
    assert "the controller goes on trying" in told.err


async def test_warm_refuses_a_deployment_and_what_is_no_pool(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await hearth("warm", "plain") == 1
    assert "Deployment" in capsys.readouterr().err
    assert await hearth("warm", "nope") == 1
    assert "it has: cpu, gpu, plain" in capsys.readouterr().err


async def test_warm_says_when_the_runtime_is_missing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.fake.remove("servingruntimes", "gpu")
    assert await hearth("warm", "gpu") == 1
    assert "has no ServingRuntime gpu" in capsys.readouterr().err


async def test_looking_wakes_nothing(desk: Desk) -> None:
    """Nothing is asked but the controller's own Service."""
    for command in (["ps"], ["models"], ["why", "bert"]):
        await hearth(*command, "--cluster")
    assert {(asked.verb, asked.plural, asked.name) for asked in desk.fake.asked} == {
        ("get", "services", "hearth-controller:8082")
    }


@pytest.mark.parametrize("span", ["", "30", "0m", "m", "-5m", "1.5h", "3w", "366d", "9" * 20 + "d"])
def test_a_span_that_is_none_is_refused(span: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["warm", "gpu", f"--for={span}"])
    assert "no span" in capsys.readouterr().err
