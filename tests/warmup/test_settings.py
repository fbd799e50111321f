"""How ``hearth controller`` is told what to do, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from predictor import cli
from predictor.report import Event
from tests.fakes.kube import FakeKube
from warmup.history import EVENTS_PER_MODEL, History, Noted
from warmup.settings import from_arguments, own_namespace

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: fake
clusters: [{{name: fake, cluster: {{server: "{url}"}}}}]
contexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}]
users: [{{name: fake, user: {{}}}}]
"""


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_CONTROLLER_NAMESPACE", "team")
    monkeypatch.setenv("HEARTH_CONTROLLER_POLL_S", "2")
    monkeypatch.setenv("HEARTH_CONTROLLER_PORT", "1")
    settings = from_arguments(["--port", "9", "--trust", "code"], {"POD_NAME": "controller-1"})
    assert (settings.namespace, settings.poll_s, settings.port) == ("team", 2.0, 9)
    assert (settings.trust, settings.identity) == ("code", "controller-1")


def test_the_namespace_is_the_pods_own_unless_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("mounted\n")
    assert own_namespace({"POD_NAMESPACE": "told"}, tmp_path / "namespace") == "mounted"
    assert own_namespace({"POD_NAMESPACE": "told"}, tmp_path / "nothing") == "told"
    with pytest.raises(ValueError, match="--namespace"):
        own_namespace({}, tmp_path / "nothing")


def test_nonsense_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["controller", "--namespace", "team", "--poll-s", "soon"]) == 2
    assert "poll_s" in capsys.readouterr().err


async def test_a_controller_starts_leads_and_gives_the_lease_back_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with FakeKube() as fake:
        config = tmp_path / "kubeconfig"
        config.write_text(KUBECONFIG.format(url=fake.url))
        environment = {**os.environ, "KUBECONFIG": str(config)}
        command = ("-m", "predictor.cli", "controller", "--namespace", "team", "--port", "0", "--identity", "it")
        process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
        try:
            await fake.until_asked("create", "leases")
            await fake.until_asked("list", "pods")
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        lease = fake.object("leases", "hearth-controller", namespace="team")
        assert lease is not None
        assert not lease["spec"]["holderIdentity"]


def noted(at_s: float) -> Noted:
    return Noted(at_s, "loaded", source="pod", event=Event(at_s, "loaded", "ram", 1))


def test_history_is_bounded_and_in_order() -> None:
    history = History(max_events=200)
    for at_s in range(EVENTS_PER_MODEL + 10):
        history.note("busy", noted(float(at_s)))
    assert [each.at_s for each in history.of("busy")] == [float(at_s) for at_s in range(10, EVENTS_PER_MODEL + 10)]
    history.note("m", noted(5.0))
    history.own("m", "declared", "x" * 5000, 1.0)
    assert [(each.what, len(each.detail)) for each in history.of("m")] == [("declared", 1024), ("loaded", 0)]
    for number in range(200):
        history.note(f"n{number}", noted(1.0))
    assert history.of("busy") == ()
    assert len(history.of("n199")) == 1
