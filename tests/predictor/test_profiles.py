"""What models take, kept across restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from predictor import profiles as module
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.profiles import Profiles
from predictor.tiers.device import Placement
from predictor.wire import Loaded, Peak
from tests.fakes.profiles import at_once

MIB = 1 << 20


def spec(revision: str = "r1", format_: ModelFormat = ModelFormat.ONNX) -> ModelSpec:
    file = FileSpec("model.onnx", "m/1/model.onnx", "etag", MIB)
    return ModelSpec(ModelRef("default", "m", 1, revision), format_, "bucket", (file,))


def profiles(folder: Path | None, runtime: str = "cpu torch 1", *, device_bytes: int = 1 << 40) -> Profiles:
    made = Profiles(Placement(copies=True), lambda: runtime, folder, at_once, device_bytes=device_bytes)
    made.read()
    return made


def built(held_bytes: int, *peaks: Peak) -> Loaded:
    return Loaded(1, (), (), 0.0, 0.0, held_bytes, peaks)


def test_what_was_measured_is_known_to_the_next_process_with_the_same_runtime(tmp_path: Path) -> None:
    first = profiles(tmp_path)
    assert first.must_probe(spec())
    first.built(spec(), built(3 * MIB, Peak(10, MIB)))
    second = profiles(tmp_path)
    assert not second.must_probe(spec())
    need = second.need(spec())
    assert (need.device_bytes, need.activation_bytes) == (3 * MIB, MIB)
    assert second.of(spec()).source == "stored"


@pytest.mark.parametrize("other", [lambda: spec("r2"), spec], ids=["contents", "runtime"])
def test_other_contents_and_other_runtimes_are_measured_anew(tmp_path: Path, other: Callable[[], ModelSpec]) -> None:
    profiles(tmp_path).built(spec(), built(3 * MIB))
    runtime = "cpu torch 1" if other().ref.revision == "r2" else "cpu torch 2"
    assert profiles(tmp_path, runtime).must_probe(other())


def test_a_larger_request_that_was_measured_is_kept_too(tmp_path: Path) -> None:
    first = profiles(tmp_path)
    first.built(spec(), built(3 * MIB, Peak(10, MIB)))
    first.ran(spec(), 50, 4 * MIB)
    assert profiles(tmp_path).need(spec()).activation_bytes == 4 * MIB


def test_a_file_that_cannot_be_read_costs_one_model_its_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = profiles(tmp_path)
    first.built(spec("r1"), built(3 * MIB))
    first.built(spec("r2"), built(4 * MIB))
    broken = min(tmp_path.glob("*.json"))
    broken.write_text('{"held_bytes": "many"')
    second = profiles(tmp_path)
    assert sorted([second.of(spec("r1")).source, second.of(spec("r2")).source]) == ["assumed", "stored"]
    assert str(broken) in caplog.text


def test_a_folder_that_cannot_be_made_costs_measuring_anew_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = profiles(tmp_path / "file" / "profiles")
    made.built(spec(), built(3 * MIB))
    assert made.of(spec()).source == "measured"


def test_the_oldest_profiles_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    first = profiles(tmp_path)
    for number in range(5):
        first.built(spec(f"r{number}"), built(2 * MIB))
    profiles(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_an_assumption_claims_rather_too_much_and_never_more_than_a_device() -> None:
    need = profiles(None).need(spec())
    assert need.device_bytes == 3 * MIB, "twice the file, and what lies beside it"
    assert need.building_bytes == 0, "small enough to be built in what is the worker's own"
    tight = profiles(None, device_bytes=2 * MIB)
    need = tight.need(spec())
    assert need.device_bytes + need.activation_bytes == 2 * MIB
    large = replace(spec(), files=(replace(spec().files[0], size_bytes=64 * MIB),))
    assert profiles(None).need(large).building_bytes == (4 * 64 - 128) * MIB
    hopeless = profiles(None, device_bytes=MIB // 2)
    assert hopeless.need(spec()).device_bytes == MIB, "so much is known"


def test_a_second_build_in_memory_that_others_left_does_not_make_a_model_smaller() -> None:
    made = profiles(None)
    made.built(spec(), built(3 * MIB))
    made.built(spec(), built(MIB))
    assert made.need(spec()).device_bytes == 3 * MIB
    made.built(spec("unmeasured"), built(-1))
    assert made.of(spec("unmeasured")).source == "assumed"


def test_more_models_than_are_remembered_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    made = profiles(None)
    for number in range(3):
        made.built(spec(f"r{number}"), built(3 * MIB))
    assert made.of(spec("r2")).source == "measured"
    assert made.of(spec("r0")).source == "assumed"
