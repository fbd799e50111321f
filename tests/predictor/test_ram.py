"""Arenas of shared memory, and the RAM tier that fills them."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from predictor.errors import InvalidModel, StoreUnavailable
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.tiers.ram import Arena, SharedMemory
from predictor.tiers.store import Listing

CONTENTS = {"model.onnx": b"weights" * 1000, "empty": b""}


class Store:
    """A model store of two files; ``fails``: raise after the first byte."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    async def fetch(self, files: Sequence[tuple[FileSpec, memoryview]], *, background: Callable[[], bool]) -> None:
        background()
        for file, view in files:
            view[:] = CONTENTS[file.path]
            if self.fails:
                raise StoreUnavailable("gone in the middle")

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        raise AssertionError(f"nobody lists {prefix} {folders}")

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        raise AssertionError(f"nobody reads {key} {etag} {limit_bytes}")

    async def close(self) -> None:
        return


def spec(sha256: str = "") -> ModelSpec:
    files = tuple(
        FileSpec(path, f"m/1/{path}", "etag", len(data), sha256 if path == "model.onnx" else "")
        for path, data in CONTENTS.items()
    )
    return ModelSpec(ModelRef("default", "m", 1), ModelFormat.ONNX, "bucket", files)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_reader_sees_what_was_written_and_cannot_write() -> None:
    arena = Arena("m:1", 8192)
    view = arena.view(4096, 5)
    view[:] = b"hello"
    view.release()
    with arena.open_reader() as reader:
        with mmap.mmap(reader, 8192, prot=mmap.PROT_READ) as mapped:
            assert mapped[4096:4101] == b"hello"
        with pytest.raises(PermissionError):
            mmap.mmap(reader, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match=r"Bad file descriptor|Operation not permitted"):
            os.write(reader, b"x")
    arena.close()


def test_an_arena_gives_its_descriptor_back_and_may_be_empty() -> None:
    before = descriptors()
    for size_bytes in (0, 4096):
        arena = Arena("m:1", size_bytes)
        arena.view(0, size_bytes).release()
        arena.close()
        arena.close()
    assert descriptors() == before


async def test_every_file_lies_on_a_page_of_its_own() -> None:
    ram = SharedMemory(Store())
    await ram.fetch(spec(), lambda: False)
    arena = ram.arena(spec().ref)
    assert arena.size_bytes == spec().arena_bytes == 8192
    with arena.view(0, 7000) as view:
        assert view == CONTENTS["model.onnx"]
    ram.close()


async def test_a_fetch_that_fails_keeps_nothing() -> None:
    before = descriptors()
    ram = SharedMemory(Store(fails=True))
    with pytest.raises(StoreUnavailable):
        await ram.fetch(spec(), lambda: False)
    assert descriptors() == before
    with pytest.raises(KeyError):
        ram.arena(spec().ref)


async def test_a_checksum_of_the_manifest_is_held_against_what_came() -> None:
    before = descriptors()
    ram = SharedMemory(Store())
    with pytest.raises(InvalidModel, match=r"s3://bucket/m/1/model\.onnx has sha256"):
        await ram.fetch(spec("0" * 64), lambda: False)
    assert descriptors() == before
    await ram.fetch(spec(hashlib.sha256(CONTENTS["model.onnx"]).hexdigest().upper()), lambda: False)
    await ram.drop(spec().ref)
    await ram.drop(spec().ref)
    assert descriptors() == before
