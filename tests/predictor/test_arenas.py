"""A memfd for every model: counted as the pool's slabs are, read-only for whom it is sent to, gone when it is closed."""

from __future__ import annotations

import mmap
import os
import socket
from pathlib import Path

import pytest

from predictor.engine.mapping import Weights
from predictor.tiers.arenas import SeparateArenas
from predictor.wire import Pool, receive_arena, receive_pool, send_arena, send_pool
from tests.fakes.arenas import contents, write

PAGE = 4096


def open_memory() -> int:
    links = [link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
    return sum("memfd:hearth:arena" in str(link.readlink()) for link in links)


def mapped() -> int:
    return sum("memfd:hearth:arena" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_what_is_taken_counts_in_whole_pages_until_it_is_closed() -> None:
    arenas = SeparateArenas(4 * PAGE + 7)
    assert (arenas.size_bytes, arenas.slab_bytes, arenas.touched_bytes) == (4 * PAGE, PAGE, 0)
    first, second, nothing = arenas.take(PAGE + 1), arenas.take(2 * PAGE), arenas.take(0)
    assert (arenas.used_bytes, arenas.touched_bytes, open_memory(), mapped()) == (4 * PAGE, 4 * PAGE, 4, 2), (
        "Python's mmap has a descriptor, too"
    )
    with pytest.raises(MemoryError, match="4096 bytes are wanted, 0 are free"):
        arenas.take(1)
    write(first, 0, b"x" * (PAGE + 1))
    assert contents(first) == b"x" * (PAGE + 1)
    for arena in (first, second, nothing, first):
        arena.close()
    assert (arenas.used_bytes, open_memory(), mapped()) == (0, 0, 0)
    arenas.touch_from_now_on()
    arenas.close()


def test_a_worker_is_sent_one_models_memory_and_can_only_read_it() -> None:
    arenas = SeparateArenas(8 * PAGE)
    arena = arenas.take(2 * PAGE)
    write(arena, 0, b"a" * PAGE + b"b" * PAGE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_arena(ours, 7, 2 * PAGE, arena.descriptor)
    descriptor, size_bytes = receive_arena(theirs, 7)
    assert size_bytes == 2 * PAGE
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, PAGE)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)  # as model code of the same user may
    for attempt in (lambda: os.write(again, b"x"), lambda: os.ftruncate(again, 0), lambda: mmap.mmap(again, PAGE)):
        with pytest.raises(PermissionError):
            attempt()
    os.close(again)
    os.close(descriptor)

    send_arena(ours, 8, 2 * PAGE, arena.descriptor)
    seen = Weights.map_apart(theirs, 8, PAGE + 1)
    assert (bytes(seen.contiguous.numpy()), seen.pool) == (b"a" * PAGE + b"b", None)
    arena.close()
    assert bytes(seen.contiguous[:1].numpy()) == b"a", "what is mapped stays until it is let go of"
    del seen
    assert (mapped(), open_memory()) == (0, 0)
    ours.close()
    with pytest.raises(EOFError):
        receive_arena(theirs, 9)
    theirs.close()


def test_where_there_is_no_pool_a_worker_is_told_the_rest_alone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(os.devnull) as passage:  # noqa: PTH123 (its number is what counts)
        send_pool(ours, Pool(0, 5, -1, 9, passage.fileno()))
    pool = receive_pool(theirs)
    assert (pool.descriptor, pool.limit_bytes, pool.passage_bytes) == (-1, 5, 9)
    os.close(pool.passage)
    send_pool(ours, Pool(0, 5, -1))
    assert receive_pool(theirs) == Pool(0, 5, -1)
    ours.close()
    theirs.close()
