"""The disk tier on volumes that are full, read-only, broken or somebody else's, and in processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from predictor.model import ModelSpec
from predictor.tiers.disk import Disk
from predictor.tiers.disk_files import DiskFault, Fault
from tests.predictor.test_disk import PART, get, image_of, memory, names, opened, put, sidecar_of, spec

SMALL = spec("small", sizes=(PART,))
LARGE = spec("large", sizes=(2 * 2**20,))


@contextlib.contextmanager
def mounted(path: Path, kind: str, options: str = "rw") -> Iterator[Callable[[str], None]]:
    """A volume of its own at ``path``; what comes back remounts it."""
    path.mkdir(exist_ok=True)
    made = _mount("-t", kind, "-o", options, kind, str(path))
    if made:
        pytest.skip(f"cannot mount a {kind} here: {made}")

    def remount(how: str) -> None:
        assert not _mount("-o", f"remount,{how}", str(path))

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # a test that failed may have a file open there


def _mount(*words: str) -> str:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def fault_of_writing(disk: Disk, of: ModelSpec = SMALL) -> DiskFault:
    with pytest.raises(DiskFault) as caught:
        await put(disk, of)
    return caught.value


async def test_a_full_volume_degrades_the_tier_for_a_while_and_keeps_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    clock = Clock()
    with mounted(tmp_path / "volume", "tmpfs", "size=1m"):
        disk = Disk(tmp_path / "volume", part_bytes=PART, on_degraded=told.append, clock=clock, retry_s=60)
        await disk.scan()
        contents = await put(disk, SMALL)
        assert (await fault_of_writing(disk, LARGE)).kind is Fault.FULL
        assert "the volume is full" in disk.degraded
        assert names(tmp_path / "volume") == {image_of(tmp_path, SMALL).name, sidecar_of(tmp_path, SMALL).name}
        assert await get(disk, SMALL) == contents
        for name in ("a", "b", "c"):  # at once, though there would be room
            assert (await fault_of_writing(disk, spec(name))).kind is Fault.REFUSED
        clock.now_s += 61
        assert (await fault_of_writing(disk, LARGE)).kind is Fault.FULL
        assert (await fault_of_writing(disk)).kind is Fault.REFUSED
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        clock.now_s += 61
        with caplog.at_level("INFO"):
            await put(disk, spec("fits"))
        assert disk.degraded == ""
        assert "can be written again" in caplog.text
        assert len(told) == 2
        assert told[0].endswith("the volume is full")
        assert told[1] == ""
        await disk.close()


async def test_the_temporary_image_of_a_killed_process_makes_room_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "tmpfs", "size=1m"):
        (tmp_path / "volume" / f"{image_of(tmp_path, LARGE).name}.partial").write_bytes(b"x" * 1000 * 1024)
        async with opened(tmp_path / "volume") as (disk, _):
            contents = await put(disk, SMALL)
            assert await get(disk, SMALL) == contents


async def test_a_volume_that_becomes_read_only_is_read_on(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    clock = Clock()
    with mounted(volume, "tmpfs") as remount:
        disk = Disk(volume, part_bytes=PART, clock=clock)
        await disk.scan()
        contents = await put(disk, SMALL)
        remount("ro")
        assert (await fault_of_writing(disk, spec("m"))).kind is Fault.IO
        assert "mounted read-only" in disk.degraded
        assert await get(disk, SMALL) == contents
        with pytest.raises(DiskFault) as caught:
            await disk.drop(SMALL.ref)
        assert caught.value.kind is Fault.IO
        remount("rw")
        clock.now_s += 61
        await put(disk, spec("m"))
        assert disk.degraded == ""
        await disk.drop(SMALL.ref)
        await disk.close()


async def test_a_volume_that_is_read_only_at_start_serves_the_copies_it_has(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    clock = Clock()
    with mounted(volume, "tmpfs") as remount:
        async with opened(volume) as (disk, _):
            contents = await put(disk, SMALL)
        (volume / f"{image_of(volume, LARGE).name}.partial").write_bytes(b"left over")
        remount("ro")
        disk = Disk(volume, part_bytes=PART, clock=clock)
        assert [copy.ref for copy in await disk.scan()] == [SMALL.ref]
        assert "mounted read-only" in disk.degraded
        assert await get(disk, SMALL) == contents
        assert (await fault_of_writing(disk)).kind is Fault.REFUSED
        remount("rw")
        clock.now_s += 61
        await put(disk, LARGE)
        assert disk.degraded == ""
        await disk.close()


async def test_a_read_only_volume_without_copies_is_no_tier_at_all(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "tmpfs", "ro"):
        async with opened(tmp_path / "volume") as (disk, kept):
            assert kept == []
            assert disk.degraded
            assert not disk.ready
            assert (await fault_of_writing(disk)).kind is Fault.REFUSED
            with pytest.raises(DiskFault):
                await get(disk, SMALL)


async def test_a_volume_without_direct_io_is_written_through_the_page_cache(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "ramfs"):
        with pytest.raises(OSError, match="Invalid argument"):
            os.close(os.open(tmp_path / "volume" / "x", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
        async with opened(tmp_path / "volume") as (disk, _):
            contents = await put(disk, spec())
            assert await get(disk, spec()) == contents


@pytest.mark.parametrize("what", ["a file", "below a file", "a dangling link"])
async def test_a_folder_that_cannot_be_had_degrades_the_tier_from_the_start(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    path = tmp_path / {"a file": "file", "below a file": "file/cache", "a dangling link": "link"}[what]
    async with opened(path) as (disk, kept):
        assert kept == []
        assert str(path) in disk.degraded
        assert (await fault_of_writing(disk)).kind is Fault.REFUSED
        await disk.drop(SMALL.ref)


async def test_a_second_process_never_shares_the_folder_and_may_have_it_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as (first, _):
        contents = await put(first, SMALL)
        second = Disk(tmp_path, part_bytes=PART)
        assert await second.scan() == ()
        assert "another process uses this folder" in second.degraded
        assert (await fault_of_writing(second)).kind is Fault.REFUSED
        with pytest.raises(DiskFault):
            await get(second, SMALL)
        await second.drop(SMALL.ref)
        assert await get(first, SMALL) == contents
    assert [copy.ref for copy in await second.scan()] == [SMALL.ref]
    assert second.degraded == ""
    assert await get(second, SMALL) == contents
    await second.close()


async def test_a_folder_that_is_deleted_under_the_tier_is_a_fault_not_a_crash(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache") as (disk, _):
        await put(disk, SMALL)
        for entry in (tmp_path / "cache").iterdir():
            entry.unlink()
        (tmp_path / "cache").rmdir()
        with pytest.raises(DiskFault) as caught:
            await get(disk, SMALL)
        assert caught.value.kind is Fault.MISSING
        assert (await fault_of_writing(disk)).kind is Fault.IO
        assert disk.degraded


STEPS = ("open", "pwritev", "fdatasync", "write", "fsync", "rename", "unlink")
"""What a publish does to the file system."""


class Steps:
    """Counts the calls of ``os`` that change the folder, and does something before or after one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[int, str], None]) -> None:
        self.trace: list[str] = []
        for name in STEPS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name), act))

    def _wrap(self, name: str, real: Callable[..., object], act: Callable[[int, str], None]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            step = len(self.trace)
            suffixes = [str(arg).partition(".")[2] for arg in args if isinstance(arg, str)]
            self.trace.append(" ".join([name, *suffixes]))
            act(step, "before")
            try:
                return real(*args, **kwargs)
            finally:
                act(step, "after")

        return wrapped


async def test_a_publish_makes_each_step_durable_before_the_next_depends_on_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, lambda *_: None)
            await put(disk, spec(), seed=2)
    named = [step for step in steps.trace if not step.startswith("open") and step != "unlink arena.partial"]
    assert named[: 3 + 1] == ["pwritev"] * 3 + ["fdatasync"]
    assert named[4:] == [
        "unlink json.partial",
        "write",
        "fsync",
        "unlink json",
        "rename arena.partial arena",
        "rename json.partial json",
        "fsync",
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EROFS])
async def test_an_error_at_any_step_of_a_write_leaves_no_copy_and_no_rubbish(tmp_path: Path, number: int) -> None:
    """The clean-up's own calls are let through, as a step is broken once."""
    for broken in range(100):
        disk = Disk(tmp_path, part_bytes=PART)
        await disk.scan()

        def act(step: int, when: str, broken: int = broken) -> None:
            if (step, when) == (broken, "before"):
                raise OSError(number, os.strerror(number))

        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, act)
            with contextlib.suppress(DiskFault):
                await put(disk, spec())
                assert len(steps.trace) <= broken, "a fault was swallowed"
        if len(steps.trace) <= broken:
            assert broken > 8
            await disk.close()
            return
        assert disk.degraded
        assert names(tmp_path) == set()
        await disk.close()
    raise AssertionError("a write of more than a hundred steps")


async def test_errors_of_reading_are_told_and_do_not_stop_the_writing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        contents = await put(disk, spec())

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            with pytest.raises(DiskFault) as caught:
                await get(disk, spec())
        assert caught.value.kind is Fault.IO
        assert disk.degraded == ""
        assert await get(disk, spec()) == contents


async def test_calls_that_move_less_than_they_were_asked_to_are_continued(tmp_path: Path) -> None:
    rng = random.Random(5)

    def short(real: Callable[[int, list[memoryview], int], int]) -> Callable[[int, list[memoryview], int], int]:
        def call(descriptor: int, windows: list[memoryview], offset: int) -> int:
            return real(descriptor, [windows[0][: rng.randrange(1, len(windows[0]) + 1)]], offset)

        return call

    async with opened(tmp_path) as (disk, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwritev", short(os.pwritev))
            contents = await put(disk, spec())
            patch.setattr(os, "preadv", short(os.preadv))
            assert await get(disk, spec()) == contents
        assert await get(disk, spec()) == contents


# --- a process that is killed in the middle of a publish -------------------------------------------------------------

MODELS = tuple(spec(name) for name in "ab")


def killed_at(path: Path, step: int, when: str) -> bool:
    """In a process of its own, write and rewrite until before or after the step of this number: then die. False: it ended."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_write_until(path, step, when))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


async def _write_until(path: Path, *last: int | str) -> None:
    def act(*now: int | str) -> None:
        if now == last:
            os.kill(os.getpid(), signal.SIGKILL)

    disk = Disk(path, part_bytes=PART)
    await disk.scan()
    Steps(pytest.MonkeyPatch(), act)
    for seed in (1, 2):  # the second time in place of the first
        for model in MODELS:
            await put(disk, model, seed)
        await disk.drop(MODELS[0].ref)


async def check_after_a_kill(path: Path) -> int:
    """Only whole copies are listed, they verify, hold what was given, and nothing else is left. How many there are."""
    async with opened(path) as (disk, kept):
        for copy in kept:
            model = next(model for model in MODELS if model.ref == copy.ref)
            assert await get(disk, model) in [memory(model).fill(seed).contents() for seed in (1, 2)]
            assert copy.size_bytes == disk.disk_bytes(model)
        assert len(names(path)) == 2 * len(kept)
        await put(disk, spec("next"))
    return len(kept)


def kill_everywhere(path: Path) -> None:
    """Die before and after every step. Run in a process without threads, so that it can fork."""
    found = set()
    for step in range(1000):
        for when in ("before", "after"):
            folder = path / f"{step}-{when}"
            died = killed_at(folder, step, when)
            found.add(asyncio.run(check_after_a_kill(folder)))
            if not died:
                assert step > 60, step
                assert found == {0, 1, 2}
                return


def kill_at_random(path: Path) -> None:
    """Die at any moment at all, on the same folder again and again."""
    rng = random.Random(11)
    for _ in range(40):
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(_write_for_ever(path))
            finally:
                os._exit(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _wait(child, rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        asyncio.run(check_after_a_kill(path))
        asyncio.run(_drop_next(path))


def _wait(child: int, span_s: float) -> None:
    """Let the child run for this long, or until it ends."""
    signal.sigtimedwait({signal.SIGCHLD}, span_s)


async def _drop_next(path: Path) -> None:
    async with opened(path) as (disk, _):
        await disk.drop(spec("next").ref)


async def _write_for_ever(path: Path) -> None:
    disk = Disk(path, part_bytes=PART)
    await disk.scan()
    while True:
        await asyncio.gather(*(put(disk, model, seed) for model, seed in zip(MODELS, (1, 2), strict=True)))
        await disk.drop(MODELS[1].ref)


@pytest.mark.parametrize("how", ["kill_everywhere", "kill_at_random"])
def test_a_process_killed_at_any_moment_leaves_only_whole_copies(tmp_path: Path, how: str) -> None:
    code = f"import pathlib; from tests.predictor.test_disk_faults import {how}; {how}(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
