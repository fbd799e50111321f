"""The watch over workers' folders: what is counted, who is ended, and what of them is told."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from predictor.workers import scratch
from predictor.workers.memory_watch import Candidate
from predictor.workers.scratch_watch import SCRATCH_FULL, ScratchWatch, Written, written

MB = 1 << 20


def put(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\1" * size_bytes)


class Pod:
    """Workers by name with their folders, and those that were ended."""

    def __init__(self, root: Path, *names: str) -> None:
        self.ended: list[tuple[str, str, str]] = []
        self.counted = 0
        self.folders = {name: root / name for name in names}
        for folder in self.folders.values():
            folder.mkdir()
        self.watch = ScratchWatch(4 * MB, self._candidates, self._count, most_entries=50)

    def _count(self) -> None:
        self.counted += 1

    def _candidates(self) -> list[Candidate]:
        def end(name: str) -> Callable[[str, str], None]:
            return lambda reason, cause: self.ended.append((name, cause, reason))

        return [Candidate(name, 1, end(name), str(folder), f"in it: {name}") for name, folder in self.folders.items()]


def test_a_folder_holds_what_its_files_take_on_the_volume(tmp_path: Path) -> None:
    empty = written(str(tmp_path))
    assert empty == Written(0, 0)
    put(tmp_path / "a/b/file", MB)
    (tmp_path / "again").hardlink_to(tmp_path / "a/b/file")
    with (tmp_path / "hole").open("wb") as sparse:
        sparse.truncate(1 << 40)
    found = written(str(tmp_path))
    assert MB <= found.size_bytes < 2 * MB
    assert found.entries == 5


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "outside/large", 2 * MB)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to(tmp_path / "outside")
    (inside / "file").symlink_to(tmp_path / "outside/large")
    (inside / "loop").symlink_to(inside)
    found = written(str(inside))
    assert found.size_bytes < MB
    assert found.entries == 3


def test_a_walk_ends_at_its_bound_however_many_files_there_are(tmp_path: Path) -> None:
    for number in range(30):
        put(tmp_path / str(number % 3) / str(number), 1)
    assert written(str(tmp_path), 10).entries == 11


def test_what_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert written(str(tmp_path / "nothing")) == Written(0, 0)


def test_what_is_deleted_during_the_walk_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        put(tmp_path / str(number), MB)
    scandir = os.scandir

    class Racing:
        """Deletes the first entry when it is told."""

        def __init__(self, path: str) -> None:
            self._found = list(scandir(path))

        def __enter__(self) -> list[os.DirEntry[str]]:
            Path(self._found[0].path).unlink()
            return self._found

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(os, "scandir", Racing)
    assert written(str(tmp_path)).size_bytes >= 3 * MB


def test_a_folder_that_is_nested_deeper_than_a_path_is_long_hides_what_it_holds(tmp_path: Path) -> None:
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            Path("n" * 250).mkdir()
            os.chdir("n" * 250)
        assert written(str(tmp_path)).hidden.startswith("nnn")
    finally:
        os.chdir(before)


@pytest.mark.parametrize(("number", "hides"), [(errno.EACCES, True), (errno.EMFILE, False)])
def test_a_closed_folder_hides_what_it_holds_and_our_own_troubles_blame_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, hides: bool
) -> None:
    (tmp_path / "shut").mkdir()
    scandir: Callable[[str], Any] = os.scandir

    def fails(path: str) -> Any:
        def fail() -> NoReturn:
            raise OSError(number, os.strerror(number))

        return fail() if path.endswith("shut") else scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    assert written(str(tmp_path)).hidden == ("shut" if hides else "")


async def test_the_worker_above_its_share_is_ended_once_and_its_models_are_named(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "lean", "full")
    put(pod.folders["lean"] / "file", 3 * MB)
    await pod.watch.look()
    assert not pod.ended
    for number in range(5):
        put(pod.folders["full"] / str(number), MB)
    await pod.watch.look()
    await pod.watch.look()
    ((name, cause, reason),) = pod.ended
    assert (name, cause) == ("full", SCRATCH_FULL)
    assert reason == "scratch full: its folder holds 5.2 MB of 4.2 MB (HEARTH_SCRATCH_BYTES); in it: full"
    assert pod.counted == 1
    assert pod.watch.used_bytes >= 8 * MB


async def test_a_worker_with_too_many_files_is_ended(tmp_path: Path) -> None:
    pod = Pod(tmp_path, "many")
    for number in range(51):
        put(pod.folders["many"] / str(number), 0)
    await pod.watch.look()
    assert "its folder holds more than 50 files" in pod.ended[0][2]


async def test_a_successor_is_not_ended_for_what_its_predecessor_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(tmp_path, "worker")
    put(pod.folders["worker"] / "file", 5 * MB)
    walk = ScratchWatch._walk

    def replaced(watch: ScratchWatch, folders: set[str]) -> dict[str, Written]:
        found = walk(watch, folders)
        pod.folders["worker"] = tmp_path / "next"
        return found

    monkeypatch.setattr(ScratchWatch, "_walk", replaced)
    await pod.watch.look()
    assert not pod.ended


async def test_workers_without_a_folder_are_left_alone(tmp_path: Path) -> None:
    watch = ScratchWatch(1, lambda: [Candidate("bare", 1, lambda *_: pytest.fail("ended"))], lambda: None)
    put(tmp_path / "file", MB)
    await watch.look()
    assert watch.used_bytes == 0


def test_a_folder_is_emptied_although_somebody_still_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "0"
    put(folder / "file", 1)
    written_late = iter([True])
    rmtree = shutil.rmtree

    def racing(path: str, *, ignore_errors: bool) -> None:
        rmtree(path, ignore_errors=ignore_errors)
        if next(written_late, False):
            put(folder / "late", 1)

    monkeypatch.setattr(shutil, "rmtree", racing)
    monkeypatch.setattr(scratch, "AGAIN_S", (0.0,))
    scratch._remove(str(folder))
    assert not folder.exists()
