"""Against the real server: a deck is recorded from it, and a run finds its tiers in its headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest import records
from loadtest.command import main
from tests.fakes.s3 import FakeS3
from tests.fakes.zoo import affine_onnx, affine_pytorch
from tests.loadtest.test_run import ANY_LAG, locust, standin
from tests.predictor.test_pod import Server, publish


def test_a_deck_recorded_from_hearth_is_answered_rightly_from_every_tier(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deck, folder = tmp_path / "deck.jsonl", tmp_path / "run"
    with FakeS3() as s3:
        for number in range(2):
            publish(s3, f"torch-{number}", affine_pytorch(scale=number + 1.0))
            publish(s3, f"onnx-{number}", affine_onnx(scale=number + 1.0))
        server = Server(s3)
        try:
            host = f"http://127.0.0.1:{server.port}"
            given = [f"--input={kind}-{number}=x:FP32:-1,4" for kind in ("torch", "onnx") for number in range(2)]
            assert main(["record", f"--host={host}", "--rows=1,3", f"-o={deck}", *given]) == 0, capfd.readouterr().err
            lines = [json.loads(line) for line in deck.read_text().splitlines()]
            assert {line["model"] for line in lines} == {"torch-0", "torch-1", "onnx-0", "onnx-1"}
            assert {line["inputs"][0]["shape"][0] for line in lines} == {1, 3}
            for number in range(2):
                server.admin.post("/hearth/v1/unload", json={"models": [f"torch-{number}", f"onnx-{number}"]})
            arguments = [
                f"--host={host}",
                f"--deck={deck}",
                f"--output={folder}",
                "--rate=40",
                "--duration-s=2",
                "--encoding=mixed",
            ]
            admin = f"--admin=http://127.0.0.1:{server.admin_port}"
            done = locust(
                *arguments, ANY_LAG, "--priorities=high=1,normal=1", "--deadline-ms=30000", admin, "--pods-every-s=0.2"
            )
            assert done.returncode == 0, done.stderr
        finally:
            server.stop()
    found = records.read(folder).to_pylist()
    assert not [row["error"] for row in found if row["error"]]
    assert {row["start"] for row in found} > {"hot"}
    assert {row["version"] for row in found} == {"1"}
    assert all(row["pod"] and row["pod_up_s"] > 0 and row["timing_compute_ms"] is not None for row in found)
    assert any(row["timing_fetch_ms"] is not None or row["timing_build_ms"] is not None for row in found)
    assert (folder / "pods.parquet").exists()


def test_a_model_that_tells_nothing_of_itself_is_not_guessed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with standin() as host:
        asked = ["record", f"--host={host}", "--models=m", f"-o={tmp_path / 'deck.jsonl'}"]
        assert main(asked) == 2
        assert "--input m=" in capfd.readouterr().err
        assert main([*asked, "--input=m=x:FP32:1,4"]) == 0
