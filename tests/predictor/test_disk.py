"""The disk tier on a real file system: what comes back is what was given, and what is not whole never comes back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import mmap
import os
import random
import stat
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.model import PAGE_BYTES, FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.tiers.disk import Disk
from predictor.tiers.disk_files import FORMAT, DiskFault, Fault, Kept, decode, describe, digest, encode
from predictor.tiers.scattered import Scattered

PART = 4 * PAGE_BYTES
SIZES = (3 * PAGE_BYTES + 5, 0, 1, 6 * PAGE_BYTES)
"""Files of a model whose image, 11 pages, is three parts."""


def spec(name: str = "m", *, sizes: tuple[int, ...] = SIZES, revision: str = "r") -> ModelSpec:
    files = tuple(FileSpec(f"f{n}", f"{name}/1/f{n}", f"etag{n}", size) for n, size in enumerate(sizes))
    return ModelSpec(ModelRef("default", name, 1, revision), ModelFormat.ONNX, "bucket", files, origin="s3://here")


class Memory:
    """Page-aligned memory in pieces that lie apart, as slabs of the pool do."""

    def __init__(self, size_bytes: int, pieces: tuple[int, ...] = (), *, skew_bytes: int = 0) -> None:
        lengths = [*pieces, size_bytes - sum(pieces)]
        self.mappings = [mmap.mmap(-1, max(length, 1) + PAGE_BYTES) for length in lengths]
        self.image = Scattered(
            [memoryview(m)[skew_bytes : skew_bytes + n] for m, n in zip(self.mappings, lengths, strict=True)]
        )

    def fill(self, seed: int) -> Memory:
        rng = random.Random(seed)
        for window in self.image.windows(0, self.image.size_bytes):
            window[:] = rng.randbytes(len(window))
        return self

    def contents(self) -> bytes:
        return b"".join(self.image.windows(0, self.image.size_bytes))

    def close(self) -> None:
        """BufferError: somebody refers to it still."""
        self.image.release()
        for mapping in self.mappings:
            mapping.close()


def memory(of: ModelSpec, pieces: tuple[int, ...] = (PAGE_BYTES, 2 * PAGE_BYTES)) -> Memory:
    return Memory(of.arena_bytes, pieces if sum(pieces) <= of.arena_bytes else ())


@contextlib.asynccontextmanager
async def opened(path: Path, *, part_bytes: int = PART) -> AsyncIterator[tuple[Disk, list[Kept]]]:
    disk = Disk(path, part_bytes=part_bytes, wall_clock=lambda: 1_700_000_000.5)
    try:
        yield disk, list(await disk.scan())
    finally:
        await disk.close()


async def put(disk: Disk, of: ModelSpec, seed: int = 1) -> bytes:
    given = memory(of).fill(seed)
    await disk.write(of, given.image)
    contents = given.contents()
    given.close()
    return contents


async def get(disk: Disk, of: ModelSpec) -> bytes:
    taken = memory(of, (4 * PAGE_BYTES,))
    try:
        await disk.read(of, taken.image)
        return taken.contents()
    finally:
        taken.close()


async def fault_of_reading(disk: Disk, of: ModelSpec) -> DiskFault:
    with pytest.raises(DiskFault) as caught:
        await get(disk, of)
    return caught.value


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - {"lock"}


def image_of(path: Path, of: ModelSpec) -> Path:
    return path / f"{digest(of.ref)}.arena"


def sidecar_of(path: Path, of: ModelSpec) -> Path:
    return path / f"{digest(of.ref)}.json"


async def test_what_is_read_is_what_was_written_also_by_the_next_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, kept):
        assert kept == []
        contents = await put(disk, spec())
        assert await get(disk, spec()) == contents
    async with opened(tmp_path) as (disk, kept):
        assert [copy.ref for copy in kept] == [spec().ref]
        assert kept[0].written_s == 1_700_000_000
        assert await get(disk, spec()) == contents
    assert names(tmp_path) == {image_of(tmp_path, spec()).name, sidecar_of(tmp_path, spec()).name}


@given(st.lists(st.integers(0, 9 * PAGE_BYTES), max_size=5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_any_sizes_and_any_cut_of_the_memory_come_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], part_pages: int, piece_pages: int, seed: int
) -> None:
    async def run() -> None:
        model = spec(sizes=tuple(sizes))
        piece = piece_pages * PAGE_BYTES
        given = Memory(model.arena_bytes, (piece,) * (model.arena_bytes // piece)).fill(seed)
        taken = Memory(model.arena_bytes)
        path = tmp_path_factory.mktemp("disk")
        async with opened(path, part_bytes=part_pages * PAGE_BYTES) as (disk, _):
            await disk.write(model, given.image)
            await disk.read(model, taken.image)
            assert taken.contents() == given.contents()
            charged = disk.disk_bytes(model)
        async with opened(path) as (_, kept):  # whatever its own part size
            assert [(copy.ref, copy.size_bytes) for copy in kept] == [(model.ref, charged)]
        given.close()
        taken.close()

    asyncio.run(run())


async def test_more_pieces_than_one_call_takes(tmp_path: Path) -> None:
    pages = 1500
    model = spec(sizes=(pages * PAGE_BYTES,))
    given, taken = (Memory(model.arena_bytes, (PAGE_BYTES,) * (pages - 1)) for _ in range(2))
    given.fill(3)
    async with opened(tmp_path, part_bytes=pages * PAGE_BYTES) as (disk, _):
        await disk.write(model, given.image)
        await disk.read(model, taken.image)
    assert taken.contents() == given.contents()


async def test_memory_that_direct_io_refuses_goes_through_the_page_cache(tmp_path: Path) -> None:
    model = spec()
    given, taken = (Memory(model.arena_bytes, (PAGE_BYTES,), skew_bytes=1) for _ in range(2))
    given.fill(4)
    async with opened(tmp_path) as (disk, _):
        await disk.write(model, given.image)
        assert cached_pages(image_of(tmp_path, model)) == 0
        await disk.read(model, taken.image)
        assert cached_pages(image_of(tmp_path, model)) == 0
        assert await get(disk, model) == given.contents() == taken.contents()
        await put(disk, model)
        await get(disk, model)
        assert cached_pages(image_of(tmp_path, model)) == 0


def cached_pages(path: Path) -> int:
    """Pages of a file in the page cache, as mincore tells. A tmpfs is nothing but page cache."""
    if os.statvfs(path).f_fsid == 0:
        pytest.skip("a tmpfs is page cache")
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED) as mapped:
        size = len(mapped)
        answer = (ctypes.c_ubyte * -(-size // PAGE_BYTES))()
        address = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), answer)
        del address
        assert not failed
        return sum(one & 1 for one in answer)


async def test_what_a_copy_takes_is_known_beforehand(tmp_path: Path) -> None:
    models = [spec("m"), spec("ünïcode-" + "x" * 200), spec("empty", sizes=()), spec("many", sizes=(1,) * 200)]
    async with opened(tmp_path) as (disk, _):
        expected = {model.ref: disk.disk_bytes(model) for model in models}
        for model in models:
            await put(disk, model)
    async with opened(tmp_path) as (_, kept):
        assert {copy.ref: copy.size_bytes for copy in kept} == expected
    for model in models:
        files = (image_of(tmp_path, model), sidecar_of(tmp_path, model))
        assert expected[model.ref] >= sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("written_s", [0.0, 1_700_000_000.0, 1e12, -5.0])
def test_a_sidecar_is_as_long_whatever_the_clock_says(written_s: float) -> None:
    usual = encode(describe(spec(), PART, ["0" * 16] * 3, 1.5e9))
    text = encode(describe(spec(), PART, ["f" * 16] * 3, written_s))
    assert len(text) == len(usual)
    assert decode(text).ref == spec().ref


async def test_only_this_user_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    async with opened(path) as (disk, _):
        await put(disk, spec())
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {0o600}


async def test_a_new_copy_of_the_same_model_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec(), seed=1)
        contents = await put(disk, spec(), seed=2)
        assert await get(disk, spec()) == contents
    assert len(names(tmp_path)) == 2


async def test_another_revision_is_another_model(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        assert (await fault_of_reading(disk, spec(revision="later"))).kind is Fault.MISSING


async def test_dropping_takes_any_number_of_times(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        await disk.drop(spec().ref)
        await disk.drop(spec().ref)
        fault = await fault_of_reading(disk, spec())
        assert fault.kind is Fault.MISSING
        assert names(tmp_path) == set()
    await disk.drop(spec().ref)


async def test_bytes_are_counted_as_they_move(tmp_path: Path) -> None:
    written: list[int] = []
    read: list[int] = []
    disk = Disk(tmp_path, part_bytes=PART, on_written=written.append, on_read=read.append)
    await disk.scan()
    await put(disk, spec())
    await get(disk, spec())
    await disk.close()
    assert written == [PART, PART, 3 * PAGE_BYTES]
    assert sorted(read) == sorted(written)


async def test_a_scan_removes_whatever_is_not_whole_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    kinds = ("whole", "short", "long", "no-image", "no-sidecar", "newer", "nonsense", "link", "pipe")
    models = {name: spec(name) for name in kinds}
    async with opened(tmp_path) as (disk, _):
        for model in models.values():
            await put(disk, model)
    os.truncate(image_of(tmp_path, models["short"]), PAGE_BYTES)
    os.truncate(image_of(tmp_path, models["long"]), 20 * PAGE_BYTES)
    image_of(tmp_path, models["no-image"]).unlink()
    sidecar_of(tmp_path, models["no-sidecar"]).unlink()
    rewrite(sidecar_of(tmp_path, models["newer"]), format=FORMAT + 1)
    sidecar_of(tmp_path, models["nonsense"]).write_bytes(b'{"format": 1, "files": 7}')
    image_of(tmp_path, models["link"]).rename(tmp_path / "elsewhere")
    image_of(tmp_path, models["link"]).symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{digest(spec('gone').ref)}.arena.partial").write_bytes(b"half")
    (tmp_path / f"{digest(spec('gone').ref)}.json.partial").write_bytes(b"{")
    image_of(tmp_path, models["pipe"]).unlink()
    os.mkfifo(image_of(tmp_path, models["pipe"]))
    for foreign in ("lost+found", f"{digest(spec('folder').ref)}.arena.copies"):
        (tmp_path / foreign).mkdir()
    (tmp_path / "notes.json").write_text("mine")
    async with opened(tmp_path) as (disk, kept):
        assert [copy.ref.name for copy in kept] == ["whole"]
        await get(disk, models["whole"])
    whole = {image_of(tmp_path, models["whole"]).name, sidecar_of(tmp_path, models["whole"]).name}
    foreign_names = {"elsewhere", "lost+found", "notes.json", f"{digest(spec('folder').ref)}.arena.copies"}
    assert names(tmp_path) == whole | foreign_names


def rewrite(path: Path, **changes: object) -> None:
    found = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(found | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_bytes": -PAGE_BYTES, "xxh3_64": []},
        {"image_bytes": 11 * PAGE_BYTES + 1},
        {"part_bytes": 0},
        {"part_bytes": PAGE_BYTES + 1},
        {"part_bytes": 2**40, "xxh3_64": ["0" * 16]},
        {"xxh3_64": []},
        {"version": 2},
    ],
    ids=str,
)
async def test_a_sidecar_that_makes_no_sense_is_removed_with_its_image(tmp_path: Path, changes: dict[str, object]) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
    rewrite(sidecar_of(tmp_path, spec()), **changes)
    async with opened(tmp_path) as (_, kept):
        assert kept == []
    assert names(tmp_path) == set()


async def test_a_copy_of_another_stores_model_is_never_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        elsewhere = replace(spec(), origin="s3://elsewhere")
        memory = Memory(elsewhere.arena_bytes)
        with pytest.raises(DiskFault, match="origin"):
            await disk.read(elsewhere, memory.image)
        memory.close()


async def test_leftovers_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(9):
        (tmp_path / f"{digest(spec(str(n)).ref)}.arena.partial").write_bytes(b"half")
    with caplog.at_level("INFO", "predictor.tiers"):
        async with opened(tmp_path):
            pass
    assert len(caplog.records) == 1
    assert "never finished" in caplog.text
    assert "and 4 more" in caplog.text


@pytest.mark.parametrize("byte", [0, 3 * PAGE_BYTES + 7, PART, 11 * PAGE_BYTES - 1])
async def test_a_flipped_bit_anywhere_is_found_and_told_with_its_place(tmp_path: Path, byte: int) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        with image_of(tmp_path, spec()).open("r+b") as file:
            file.seek(byte)
            found = file.read(1)[0]
            file.seek(byte)
            file.write(bytes([found ^ 0x10]))
        fault = await fault_of_reading(disk, spec())
        assert fault.kind is Fault.DAMAGED
        assert f"part {byte // PART} " in str(fault)
        assert ("f0" if byte < PART else "f3") in str(fault)


async def test_a_copy_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        os.truncate(image_of(tmp_path, spec()), 5 * PAGE_BYTES)
        assert (await fault_of_reading(disk, spec())).kind is Fault.DAMAGED
        image_of(tmp_path, spec()).unlink()
        assert (await fault_of_reading(disk, spec())).kind is Fault.MISSING


async def test_a_copy_of_the_same_length_under_a_strangers_sidecar_is_damaged(tmp_path: Path) -> None:
    mine, other = spec("mine"), spec("other")
    async with opened(tmp_path) as (disk, _):
        await put(disk, mine, seed=1)
        await put(disk, other, seed=2)
        sidecar_of(tmp_path, mine).write_bytes(sidecar_of(tmp_path, other).read_bytes())
        assert (await fault_of_reading(disk, mine)).kind is Fault.DAMAGED
        await get(disk, other)
        image_of(tmp_path, other).write_bytes(image_of(tmp_path, mine).read_bytes())
        assert (await fault_of_reading(disk, other)).kind is Fault.DAMAGED
    async with opened(tmp_path) as (_, kept):
        assert [copy.ref for copy in kept] == [other.ref]


@pytest.mark.parametrize("change", ["etag", "key", "path"])
async def test_a_model_whose_files_are_others_now_is_not_read_from_the_copy(tmp_path: Path, change: str) -> None:
    async with opened(tmp_path) as (disk, _):
        await put(disk, spec())
        first, *rest = spec().files
        now = FileSpec(
            "new" if change == "path" else first.path,
            "new" if change == "key" else first.key,
            "new" if change == "etag" else first.etag,
            first.size_bytes,
        )
        fault = await fault_of_reading(disk, ModelSpec(spec().ref, ModelFormat.ONNX, "bucket", (now, *rest)))
        assert fault.kind is Fault.DAMAGED


async def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    async with opened(folder) as (disk, _):
        await put(disk, spec())
        image_of(folder, spec()).rename(outside)
        image_of(folder, spec()).symlink_to(outside)
        assert (await fault_of_reading(disk, spec())).kind is Fault.DAMAGED
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        (folder / f"{digest(spec('n').ref)}.arena.partial").symlink_to(victim)
        (folder / f"{digest(spec('n').ref)}.json.partial").symlink_to(victim)
        await put(disk, spec("n"))
    assert victim.read_bytes() == b"precious"


async def test_reads_and_drops_at_once_end_with_the_whole_copy_or_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        outcomes = set()
        for round_number in range(20):
            contents = await put(disk, spec(), seed=round_number)
            tasks = [asyncio.create_task(get(disk, spec())) for _ in range(6)]
            for _ in range(round_number % 5):
                await asyncio.sleep(0)
            await disk.drop(spec().ref)
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(found, DiskFault):
                    assert found.kind is Fault.MISSING
                    outcomes.add("missing")
                else:
                    assert found == contents
                    outcomes.add("whole")
        assert outcomes
        assert names(tmp_path) == set()


class Gate:
    """Holds a thread after its n-th part until it is opened."""

    def __init__(self, after_parts: int = 1) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.parts = 0
        self._after_parts = after_parts

    def __call__(self, _: int) -> None:
        self.parts += 1
        if self.parts == self._after_parts:
            self.reached.set()
            assert self.open.wait(30)


@pytest.mark.parametrize("after_parts", [1, 2, 3])
async def test_a_cancelled_write_leaves_nothing_and_waits_for_its_thread(tmp_path: Path, after_parts: int) -> None:
    gate = Gate(after_parts)
    disk = Disk(tmp_path, part_bytes=PART, on_written=gate)
    await disk.scan()
    given = memory(spec()).fill(1)
    task = asyncio.create_task(disk.write(spec(), given.image))
    await asyncio.to_thread(gate.reached.wait)
    assert names(tmp_path)
    for _ in range(3):  # impatient people cancel again
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.parts == after_parts
    given.close()  # BufferError if a thread still had it
    assert names(tmp_path) == set()
    assert disk.degraded == ""
    await put(disk, spec())
    await disk.close()


async def test_a_cancelled_read_waits_for_all_its_threads(tmp_path: Path) -> None:
    gate = Gate()
    disk = Disk(tmp_path, part_bytes=PART, on_read=gate)
    await disk.scan()
    await put(disk, spec())
    taken = memory(spec())
    task = asyncio.create_task(disk.read(spec(), taken.image))
    await asyncio.to_thread(gate.reached.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    taken.close()
    await get(disk, spec())
    await disk.close()


async def test_a_write_cancelled_after_its_thread_ended_is_undone(tmp_path: Path) -> None:
    """Between the thread's end and the task's next step only the task knows that it was cancelled."""
    gate = Gate(3)
    disk = Disk(tmp_path, part_bytes=PART, on_written=gate)
    await disk.scan()
    given = memory(spec()).fill(1)
    task = asyncio.create_task(disk.write(spec(), given.image))
    await asyncio.to_thread(gate.reached.wait)
    gate.open.set()
    disk._writers.shutdown()  # here, so that the loop hears of the thread's end later than of the cancellation
    assert len(names(tmp_path)) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == set()
    given.close()
    await disk.close()


async def test_a_task_that_was_cancelled_while_it_waited_its_turn_writes_nothing(tmp_path: Path) -> None:
    gate = Gate()
    disk = Disk(tmp_path, part_bytes=PART, on_written=gate)
    await disk.scan()
    memories = [memory(spec()).fill(n) for n in range(4)]
    tasks = [asyncio.create_task(disk.write(spec(str(n)), m.image)) for n, m in enumerate(memories)]
    await asyncio.to_thread(gate.reached.wait)
    tasks[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[3]
    memories[3].close()
    gate.open.set()
    await asyncio.gather(*tasks[:3])
    assert len(names(tmp_path)) == 6
    await disk.close()


async def test_no_more_than_two_models_are_written_at_once_and_none_waits_for_ever(tmp_path: Path) -> None:
    writing: set[str] = set()
    disk = Disk(tmp_path, part_bytes=PART, on_written=lambda _: writing.add(threading.current_thread().name))
    await disk.scan()
    await asyncio.gather(*(put(disk, spec(str(n))) for n in range(8)))
    await disk.close()
    assert len(names(tmp_path)) == 8 * 2
    assert 1 <= len(writing) <= 2


async def test_closing_ends_what_runs_and_lets_the_next_process_in(tmp_path: Path) -> None:
    gate = Gate()
    disk = Disk(tmp_path, part_bytes=PART, on_written=gate)
    await disk.scan()
    given = memory(spec()).fill(1)
    task = asyncio.create_task(disk.write(spec(), given.image))
    await asyncio.to_thread(gate.reached.wait)
    closing = asyncio.create_task(disk.close())
    await asyncio.sleep(0)
    gate.open.set()
    await closing
    with pytest.raises(DiskFault, match="stopping") as caught:
        await task
    assert caught.value.kind is Fault.REFUSED
    given.close()
    with pytest.raises(DiskFault, match="stopping"):
        await put(disk, spec())
    with pytest.raises(DiskFault, match="stopping"):
        await get(disk, spec())
    assert await disk.scan() == ()
    async with opened(tmp_path) as (other, kept):
        assert kept == []
        assert other.degraded == ""


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_nothing_is_left_open_and_no_thread_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):  # the loop's own thread pool exists from here on
        await put(disk, spec())
    before = descriptors()
    for _ in range(3):
        async with opened(tmp_path) as (disk, _):
            await put(disk, spec())
            await get(disk, spec())
            image_of(tmp_path, spec()).unlink()
            await fault_of_reading(disk, spec())
            gone = weakref.ref(disk)
    assert descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hearth-disk")]
    del disk
    gc.collect()
    assert gone() is None
