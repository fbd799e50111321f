"""The RAM tier: a model's files in the memory of the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from predictor.errors import ObjectChanged, StoreUnavailable
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.tiers.device import Placement
from predictor.tiers.ram import SharedMemory
from predictor.tiers.scattered import Scattered
from predictor.tiers.slabs import SlabPool
from predictor.tiers.store import Listing
from tests.fakes.arenas import contents, fragment, scribble

CONTENTS = {"model.onnx": b"weights" * 1000, "empty": b""}


class Store:
    """A model store of two files; ``fails``: raise after the first byte; ``changes``: afterwards they are others."""

    def __init__(self, *, fails: bool = False, changes: bool = False) -> None:
        self.fails = fails
        self.changes = changes
        self.confirmed: list[list[str]] = []

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        background()
        for file, memory in files:
            begin = 0
            for window in memory.windows(0, file.size_bytes):
                with window:
                    window[:] = CONTENTS[file.path][begin : begin + len(window)]
                    begin += len(window)
            if self.fails:
                raise StoreUnavailable("gone in the middle")

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        self.confirmed.append([file.path for file in files])
        if self.changes:
            raise ObjectChanged("another by now")

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        raise AssertionError(f"nobody lists {prefix} {folders}")

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        raise AssertionError(f"nobody reads {key} {etag} {limit_bytes}")

    async def close(self) -> None:
        return


def at(store: Store) -> Callable[[ModelSpec], Store]:
    return lambda _: store


def spec(sha256: str = "") -> ModelSpec:
    files = tuple(FileSpec(path, f"m/1/{path}", "etag", len(data), sha256) for path, data in CONTENTS.items())
    return ModelSpec(ModelRef("default", "m", 1), ModelFormat.ONNX, "bucket", files)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def pool() -> Iterator[SlabPool]:
    """Whatever a test leaves in it, descriptors and memory are given back."""
    before = descriptors()
    pool = SlabPool(1 << 20)
    yield pool
    pool.close()
    assert descriptors() == before


async def from_store(_image: Scattered) -> bool:
    """There is no copy elsewhere."""
    return False


IMAGE = CONTENTS["model.onnx"] + bytes(8192 - 7000)


@pytest.mark.parametrize("apart", [False, True])
async def test_every_file_lies_on_a_page_of_its_own_and_nothing_of_another_model_beside_it(
    pool: SlabPool, *, apart: bool
) -> None:
    scribble(pool)
    others = fragment(pool) if apart else []
    ram = SharedMemory(at(Store()), pool)
    await ram.fetch(spec(), lambda: False, from_store)
    arena = ram.arena(spec().ref)
    assert arena.size_bytes == spec().arena_bytes == 8192
    assert len(arena.extents) == (2 if apart else 1)
    assert contents(arena) == IMAGE
    for other in others:
        other.close()
    ram.close()


async def test_what_the_books_charge_is_what_the_pool_takes() -> None:
    pool = SlabPool(1 << 28)
    ram = SharedMemory(at(Store()), pool)
    await ram.fetch(spec(), lambda: False, from_store)
    placement = Placement(copies=True, slab_bytes=pool.slab_bytes)
    charged = placement.footprint(spec(), placement.known_bytes(spec()), 0)
    assert pool.used_bytes == charged.ram_bytes == pool.slab_bytes == 16384
    assert charged.device_bytes == spec().arena_bytes == 8192
    await ram.drop(spec().ref)
    assert pool.used_bytes == 0
    ram.close()


async def test_what_is_found_elsewhere_is_not_fetched(pool: SlabPool) -> None:
    ram = SharedMemory(at(Store(fails=True)), pool)

    async def from_disk(image: Scattered) -> bool:
        (window,) = image.windows(0, image.size_bytes)
        window[:] = b"d" * image.size_bytes
        window.release()
        return True

    await ram.fetch(spec(), lambda: False, from_disk)
    assert contents(ram.arena(spec().ref)) == b"d" * 8192
    assert ram.image(spec().ref).size_bytes == 8192
    ram.close()


async def test_a_fetch_that_fails_keeps_nothing(pool: SlabPool) -> None:
    ram = SharedMemory(at(Store(fails=True)), pool)
    with pytest.raises(StoreUnavailable):
        await ram.fetch(spec(), lambda: False, from_store)
    assert pool.used_bytes == 0
    with pytest.raises(KeyError):
        ram.arena(spec().ref)


async def test_what_no_checksum_proves_is_listed_once_more_when_it_is_there(pool: SlabPool) -> None:
    store = Store()
    ram = SharedMemory(at(store), pool)
    await ram.fetch(spec(), lambda: False, from_store)
    assert store.confirmed == [["model.onnx", "empty"]]
    await ram.drop(spec().ref)
    await ram.drop(spec().ref)
    await ram.fetch(spec("a" * 64), lambda: False, from_store)
    assert len(store.confirmed) == 1
    ram.close()


async def test_what_was_overwritten_by_the_end_of_its_fetch_is_not_kept(pool: SlabPool) -> None:
    ram = SharedMemory(at(Store(changes=True)), pool)
    with pytest.raises(ObjectChanged):
        await ram.fetch(spec(), lambda: False, from_store)
    assert pool.used_bytes == 0
    with pytest.raises(KeyError):
        ram.arena(spec().ref)
