"""``hearth simulate`` asked wrongly: one line that says what to do, exit code 2, and no replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest.simulation import compare
from loadtest.simulation.arrivals import ordered
from loadtest.simulation.catalogue import GB, BadCatalogue, Model, Span, size_bytes_of, sizes_of
from loadtest.simulation.command import main
from loadtest.simulation.fleet import Fleet, Pool
from loadtest.simulation.policies import POLICIES


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "counts.csv"
    path.write_text("minute,fn,count\n" + "".join(f"{minute},f{minute % 3},2\n" for minute in range(0, 12, 2)))
    return f"--trace={path}"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run of two requests for one model."""
    due_s, ones = np.array([0.0, 30.0]), np.ones(2, np.int64)
    lines = ordered(due_s, 0 * ones, ones, 0.0 * due_s, models=1)
    models = (Model("m0", GB, 1.0, 0.5, 0.1),)
    compare.write(tmp_path / "run", Fleet(Pool(2 * GB, 4 * GB), models, POLICIES["hearth"], lines).replay(), models)
    return tmp_path / "run"


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), (out, err)
    assert err.startswith("hearth simulate: ")
    return err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--device-bytes=nan", "--device-bytes: 'nan' is not a size above zero such as 80e9, 80GB or 74.5GiB"),
        ("--device-bytes=1e999", "--device-bytes: '1e999' is not a size"),
        ("--device-bytes=-80GB", "--device-bytes: '-80GB' is not a size"),
        ("--ram-bytes=0", "--ram-bytes: '0' is not a size above zero"),
        ("--ram-bytes=80XB", "--ram-bytes: '80XB' is not a size"),
        ("--disk-bytes=-1", "--disk-bytes: '-1' is not a size such as 80e9, 80GB or 74.5GiB, or 0"),
        ("--disk=0", "--disk: '0' is not a size above zero"),
        ("--network=0", "--network: '0' is not a size above zero"),
        ("--seed=-1", "--seed: '-1' is not a whole number, 0 or more"),
        ("--seed=one", "--seed: 'one' is not a whole number"),
        ("--compress=0", "--compress: '0' is not a number above zero"),
        ("--compress=1e-300", "--compress: '1e-300' is not a number above zero"),
        ("--from-s=-1", "--from-s: '-1' is not a number of 0 to"),
        ("--duration-s=0", "--duration-s: '0' is not a number above zero"),
        ("--weight=-1", "--weight: '-1' is not a number of 0 to"),
        ("--window-s=-1", "--window-s: '-1' is not a number of 0 to"),
        ("--longest-s=inf", "--longest-s: 'inf' is not a number of 0 to"),
        ("--start-s=soon", "--start-s: 'soon' is not a number of 0 to"),
        ("--serve-s=nan", "--serve-s: 'nan' is not a number of 0 to"),
        ("--zipf=-3", "--zipf: '-3' is not a number of 0 (all alike) to 10"),
        ("--cores=0", "--cores: '0' is not a whole number of 1 to"),
        ("--models=0", "--models: '0' is not a whole number of 1 to"),
        ("--models=1.5", "--models: '1.5' is not a whole number"),
        ("--pods=0", "--pods: '0' is not a whole number of 1 to"),
        ("--devices=1000000000", "--devices: '1000000000' is not a whole number of 1 to 100,000"),
        ("--objective=2", "--objective: '2' is not a share above 0 and at most 1"),
        ("--objective=0", "--objective: '0' is not a share above 0 and at most 1"),
        ("--policy=best", "no policy 'best': there are hearth"),
        ("--sizes=nan..1e9", "is no pair of sizes such as"),
        ("--sizes=0..1GB", "the smaller size comes first, and is above zero"),
        ("--load=1.2.3s", "is no time such as"),
        (f"--build={'9' * 400}s", "never ends"),
        ("--sweep=cores=1", "--sweep 'cores': it can be device-bytes, "),
        ("--sweep=pods=1,0", "pods=A,B,...: '0' is not a whole number of 1 to"),
        ("--sweep=device-bytes=80GB,nan", "device-bytes=A,B,...: 'nan' is not a size above zero"),
        ("--sweep=weight=", "'' is not a number of 0 to"),
        ("--compare", "--compare needs --run DIR"),
        ("--after=somewhere", "--after needs --run DIR"),
        ("--device-bytes=200MB", "--device-bytes more, or smaller models"),
        ("--from-s=1e6", "nobody asks in that stretch of time"),
        ("--measured=/proc/nothing.json", "/proc/nothing.json cannot be read"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("-o/proc/nothing/out", "-o /proc/nothing/out cannot be written (No such file or directory): give another folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_that_says_what_does(
    trace: str, capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    assert said in refusal(capsys, trace, "--policy=none", given)


def test_a_model_that_can_never_load_is_told_in_gigabytes(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, trace, "--sizes=5GB", "--device-bytes=80GB", "--ram-bytes=4.5GB")
    assert "has 5.0 GB and the RAM 4.5 GB, 500.0 MB too few: it can never load; give --ram-bytes more" in said


def test_a_run_is_compared_only_with_one_replay_of_all_of_it_in_another_folder(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (f"--run={recorded}", "--sizes=1GB", "--compare")
    out = f"-o={tmp_path / 'out'}"
    kept = sorted(path.name for path in recorded.rglob("*"))
    assert "-o DIR for those simulated" in refusal(capsys, *common)
    assert "would be written over" in refusal(capsys, *common, f"-o={recorded / '..' / 'run'}")
    assert sorted(path.name for path in recorded.rglob("*")) == kept
    for several in ("--policy=lru,none", "--policy=pod-per-model", "--sweep=pods=1,2"):
        assert "--compare takes one replay" in refusal(capsys, *common, out, several)
    assert main([*common, out]) == 0
    assert "agrees for" in capsys.readouterr().out
    assert main([*common, out, "--from-s=10"]) == 2
    assert "has 1 requests and" in capsys.readouterr().err
    assert "has no recorded request" in refusal(capsys, f"--run={tmp_path / 'nowhere'}")
    assert "nowhere" in refusal(capsys, f"--run={recorded}", f"--after={tmp_path / 'nowhere'}")
    (recorded / "requests" / "torn.parquet").write_text("torn")
    assert "cannot be read" in refusal(capsys, f"--run={recorded}")


@pytest.mark.parametrize(
    "told",
    [
        {"size_bytes": 0},
        {"serve_s": -1},
        {"load_s": -1},
        {"load_s": None},
        {"load_s": float("nan")},
        {"size_bytes": 1e999},
        [1],
    ],
)
def test_measurements_that_cannot_be_are_refused(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: object
) -> None:
    fine = {"size_bytes": GB, "load_s": 1.0}
    (tmp_path / "m.json").write_text(json.dumps({"*": fine | told if isinstance(told, dict) else told}))
    assert "m.json cannot be read" in refusal(capsys, trace, f"--measured={tmp_path / 'm.json'}")


def test_sizes_are_read_as_people_write_them() -> None:
    for text in ("80e9", "80000000000", "80GB", "80 GB", "80G", "80gb", "0.08TB", "80000MB", "80e6kB"):
        assert size_bytes_of(text) == 80 * GB, text
    for text in ("80GiB", "80Gi", "80gib", "0.078125TiB"):
        assert size_bytes_of(text) == 80 << 30, text
    assert (size_bytes_of("0"), size_bytes_of("512"), size_bytes_of("512B")) == (0, 512, 512)
    assert sizes_of("250MB..28GB") == sizes_of("0.25e9..28e9")
    for text in ("", "GB", "80Bi", "8.0.0GB", "80 G B", "inf", "nan", "-1", "1e999", "\uff18GB"):
        with pytest.raises(BadCatalogue, match="is no size such as 80e9, 80GB or"):
            size_bytes_of(text)
    with pytest.raises(BadCatalogue, match="is no time"):
        Span.of("1.2.3s")


def test_one_picture_is_one_picture(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([trace, "--sizes=1GB", "--device-bytes=3GiB", "--policy=none", f"-o={tmp_path / 'out'}"]) == 0
    assert "simulation.html: 1 picture beside it" in capsys.readouterr().out
    assert len([*(tmp_path / "out").glob("*.png")]) == 1
