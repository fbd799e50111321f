"""The worker's sight of the pool: pieces side by side, read-only, gone with their last view."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictor.engine.mapping import Weights
from predictor.errors import LoadFailed
from predictor.tiers.slabs import SlabPool
from predictor.wire import Pool, receive_pool, send_pool
from tests.fakes.arenas import write

PAGE = 4096
PAGES = 32


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    """A pool whose every page holds its own number, as a worker receives it."""
    pool = SlabPool(PAGES * PAGE)
    arena = pool.take(PAGES * PAGE)
    for number in range(PAGES):
        write(arena, number * PAGE, bytes([number]) * PAGE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_pool(ours, Pool(pool.size_bytes, 7, pool.reader))
    weights = Weights.receive(theirs)
    assert weights.limit_bytes == 7
    yield weights
    weights.close()
    arena.close()
    pool.close()
    ours.close()
    with pytest.raises(EOFError):
        receive_pool(theirs)
    theirs.close()


def mapped() -> int:
    """Read-only mappings of the pool in this process; the front's own can be written to."""
    return sum("memfd:hearth:weights" in line and "r--s" in line for line in Path("/proc/self/maps").read_text().splitlines())


@given(pages=st.lists(st.integers(0, PAGES - 1), unique=True), short_bytes=st.integers(0, PAGE - 1))
def test_pieces_lie_side_by_side_in_the_order_they_are_named(weights: Weights, pages: list[int], short_bytes: int) -> None:
    size_bytes = max(len(pages) * PAGE - short_bytes, 0)
    extents = tuple((number * PAGE, PAGE) for number in pages)
    seen = weights.map(extents, size_bytes)
    assert seen.extents == extents
    assert seen.contiguous.dtype == torch.uint8
    assert bytes(seen.contiguous.numpy()) == b"".join(bytes([number]) * PAGE for number in pages)[:size_bytes]
    del seen
    assert mapped() == 0


def test_memory_is_mapped_as_long_as_anything_looks_at_it_and_no_longer(weights: Weights) -> None:
    whole = weights.map(((0, PAGE), (2 * PAGE, PAGE)), 2 * PAGE).contiguous
    assert mapped() == 2
    view = whole[PAGE : PAGE + 64].view(torch.float32)
    del whole
    assert mapped() == 2
    array = view.numpy()
    del view
    assert mapped() == 2
    assert array.tobytes() == b"\2" * 64
    del array
    assert mapped() == 0


def test_what_is_behind_the_arena_in_its_last_slab_is_not_mapped(weights: Weights) -> None:
    seen = weights.map(((0, 8 * PAGE),), 2 * PAGE)
    spans = [
        line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "r--s" in line and "weights" in line
    ]
    begin, end = (int(part, 16) for part in spans[0].split("-"))
    assert (len(spans), end - begin) == (1, len(seen.contiguous))


def test_the_whole_pool_is_mapped_once_and_only_for_who_asks(weights: Weights) -> None:
    first, second = weights.map(((0, PAGE),), PAGE), weights.map(((PAGE, PAGE),), PAGE)
    assert mapped() == 2
    assert first.pool is not None
    assert second.pool is not None
    assert first.pool() is second.pool()
    assert first.pool()[5 * PAGE] == 5
    assert len(first.pool()) == PAGES * PAGE
    assert mapped() == 3
    weights._whole = None
    del first, second
    assert mapped() == 0


def test_what_cannot_be_mapped_is_told_and_leaves_no_room_reserved(weights: Weights) -> None:
    closed = Weights(os.open(os.devnull, os.O_RDONLY), 8 * PAGE)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(LoadFailed, match="4096 bytes of weights cannot be mapped: No such device"):
        closed.map(((0, PAGE), (2 * PAGE, PAGE)), 2 * PAGE)
    assert len(Path("/proc/self/maps").read_text().splitlines()) == before
    closed.close()
