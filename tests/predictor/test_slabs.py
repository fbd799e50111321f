"""The pool of slabs: who gets which memory, who may write there, and when it is touched."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from predictor.tiers.extents import MAX_SLABS, Extents, FreeSlabs, slab_bytes
from predictor.tiers.slabs import NICEST, SlabPool, populate, seal
from tests.fakes.arenas import contents, fragment, write

MIB = 1 << 20
SLABS = 40


class Slabs(RuleBasedStateMachine):
    """The allocator against a set of slab numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.free = FreeSlabs(SLABS, 4096)
        self.taken: list[Extents] = []

    @property
    def numbers(self) -> set[int]:
        return {number for extents in self.taken for number in slabs(extents)}

    @rule(size_bytes=st.integers(0, (SLABS + 1) * 4096))
    def take(self, size_bytes: int) -> None:
        count, left = -(-size_bytes // 4096), SLABS - len(self.numbers)
        if count > left:
            with pytest.raises(MemoryError):
                self.free.take(size_bytes)
            return
        runs = self.runs()
        extents = self.free.take(size_bytes)
        got = slabs(extents)
        assert len(got) == len(set(got)) == count
        assert not set(got) & self.numbers
        assert list(extents) == sorted(extents)
        assert all(a + size < b for (a, size), (b, _) in pairwise(extents)), "runs that touch are one"
        assert len(extents) == fewest(runs, count)
        fitting = [run for run in runs if len(run) >= count]
        assert not fitting or not count or got[0] == fitting[0][0], "the lowest that fits"
        self.taken.append(extents)

    @precondition(lambda self: self.taken)
    @rule(draw=st.data())
    def give_back(self, draw: st.DataObject) -> None:
        extents = self.taken.pop(draw.draw(st.integers(0, len(self.taken) - 1)))
        self.free.give_back(extents)
        if extents:
            with pytest.raises(AssertionError):
                self.free.give_back(extents)

    @invariant()
    def counts_are_true(self) -> None:
        assert self.free.free_bytes == (SLABS - len(self.numbers)) * 4096
        assert self.free.highest_bytes == (max(self.numbers, default=-1) + 1) * 4096

    def runs(self) -> list[list[int]]:
        found: list[list[int]] = []
        for number in sorted(set(range(SLABS)) - self.numbers):
            if found and found[-1][-1] == number - 1:
                found[-1].append(number)
            else:
                found.append([number])
        return found


TestSlabs = Slabs.TestCase
TestSlabs.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def slabs(extents: Extents) -> list[int]:
    return [number for offset, size in extents for number in range(offset // 4096, (offset + size) // 4096)]


def fewest(runs: list[list[int]], count: int) -> int:
    needed = 0
    for length in sorted(map(len, runs), reverse=True):
        if count <= 0:
            break
        needed += 1
        count -= length
    return needed


@given(st.integers(0, 1 << 45))
def test_slabs_are_as_small_as_the_kernels_number_of_mappings_allows(budget_bytes: int) -> None:
    size_bytes = slab_bytes(budget_bytes)
    assert size_bytes & (size_bytes - 1) == 0
    assert size_bytes >= 4096
    assert budget_bytes <= size_bytes * MAX_SLABS
    assert size_bytes == 4096 or budget_bytes > size_bytes // 2 * MAX_SLABS


def test_a_budget_that_is_no_multiple_of_a_slab_is_rounded_down() -> None:
    for budget_bytes, size_bytes in ((10, 0), (4096, 4096), (9000, 8192)):
        pool = SlabPool(budget_bytes)
        assert (pool.size_bytes, pool.used_bytes) == (size_bytes, 0)
        empty = pool.take(0)
        assert (empty.extents, empty.image.size_bytes) == ((), 0)
        pool.touch_from_now_on()
        empty.close()
        pool.close()


def test_memory_that_lies_apart_is_one_arena_and_goes_back_whole() -> None:
    pool = SlabPool(8 * 4096)
    others = fragment(pool)
    with pytest.raises(MemoryError):
        pool.take(5 * 4096)
    arena = pool.take(3 * 4096 + 1)
    assert arena.extents == tuple((number * 4096, 4096) for number in (0, 2, 4, 6))
    assert arena.image.size_bytes == arena.size_bytes == 3 * 4096 + 1
    window = arena.window(4095, 2)
    first, second = window.windows(0, 2)
    first[:], second[:] = b"a", b"b"
    with mmap.mmap(pool.reader, pool.size_bytes, prot=mmap.PROT_READ) as seen:
        assert (seen[4095:4097], seen[2 * 4096 : 2 * 4096 + 1]) == (b"a\0", b"b")
    for held in (first, second, window, arena.image):
        held.release()
    arena.close()
    arena.close()
    assert pool.used_bytes == 4 * 4096
    for other in others:
        other.close()
    again = pool.take(8 * 4096)
    assert again.extents == ((0, 8 * 4096),)
    again.close()
    pool.close()


def test_memory_is_recycled_before_fresh_memory_is_used() -> None:
    pool = SlabPool(MIB)
    first, second = pool.take(5000), pool.take(5000)
    first.close()
    third = pool.take(8192)
    assert third.extents == first.extents
    assert second.extents == ((8192, 8192),)
    for arena in (second, third):
        arena.close()
    pool.close()


def test_closing_gives_descriptors_and_memory_back() -> None:
    before = descriptors()
    pool = SlabPool(MIB)
    pool.touch_from_now_on()
    arena = pool.take(MIB)
    arena.close()
    pool.close()
    pool.close()
    assert descriptors() == before
    assert "hearth:weights" not in Path("/proc/self/maps").read_text()
    assert not any(thread.name == "hearth-touch" for thread in threading.enumerate())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


BURGLAR = """
import ctypes, mmap, os, sys
number = int(sys.argv[1])
assert mmap.mmap(number, 4096, prot=mmap.PROT_READ)[:5] == b"hello"
def protect(number):
    seen = mmap.mmap(number, 4096, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(int(next(l.split("-")[0] for l in open("/proc/self/maps") if "hearth:weights" in l), 16))
    if libc.mprotect(address, 4096, 3):
        raise OSError(ctypes.get_errno(), "mprotect")
def punch(number):
    if ctypes.CDLL(None, use_errno=True).fallocate(number, 3, ctypes.c_long(0), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "fallocate")
roads = {
    "write": lambda n: os.write(n, b"x"),
    "shrink": lambda n: os.ftruncate(n, 0),
    "grow": lambda n: os.ftruncate(n, 1 << 30),
    "map": lambda n: mmap.mmap(n, 4096),
    "protect": protect,
    "punch": punch,
}
for way, opened in (("given", number), ("reopened", os.open(f"/proc/self/fd/{number}", os.O_RDWR))):
    for name, road in roads.items():
        try:
            road(opened)
        except OSError:
            continue
        print(way, name)
"""


def test_nobody_else_can_write_into_the_pool_not_even_by_opening_it_anew() -> None:
    pool = SlabPool(MIB)
    arena = pool.take(4096)
    write(arena, 0, b"hello")
    command = [sys.executable, "-c", BURGLAR, str(pool.reader)]
    done = subprocess.run(command, pass_fds=[pool.reader], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    assert contents(arena)[:5] == b"hello"
    arena.close()
    pool.close()


def test_a_kernel_that_cannot_seal_is_told_of_and_the_descriptor_still_only_reads(caplog: pytest.LogCaptureFixture) -> None:
    unsealable = os.memfd_create("test")
    assert not seal(unsealable)
    os.close(unsealable)
    assert "cannot seal" in caplog.text
    pool = SlabPool(4096)
    with pytest.raises(PermissionError):
        mmap.mmap(pool.reader, 4096)
    pool.close()


class Toucher:
    """Stands for the kernel: gives pages, or says why not, and tells the test when."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.nice = 0
        self.touched_bytes = 0
        self.told = threading.Condition()

    def __call__(self, address: int, size_bytes: int) -> int:
        error = self.errors.pop(0) if self.errors else populate(address, size_bytes)
        with self.told:
            self.calls += 1
            self.touched_bytes += 0 if error else size_bytes
            self.nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            self.told.notify_all()
        return error

    def until(self, holds: Callable[[], bool]) -> None:
        with self.told:
            assert self.told.wait_for(holds, timeout=20)


def present_bytes(pool: SlabPool) -> int:
    """Pages that the kernel gave to the pool."""
    return os.fstat(pool.reader).st_blocks * 512


def test_memory_is_touched_ahead_of_what_is_in_use_and_only_once_it_is_told_to() -> None:
    kernel = Toucher()
    pool = SlabPool(64 * MIB, ahead_bytes=4 * MIB, populate=kernel)
    assert present_bytes(pool) == pool.touched_bytes == 0
    pool.touch_from_now_on()
    pool.touch_from_now_on()
    kernel.until(lambda: kernel.touched_bytes == 4 * MIB)
    assert kernel.nice == NICEST
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    arena = pool.take(3 * MIB)
    kernel.until(lambda: kernel.touched_bytes == 7 * MIB)
    large = pool.take(10 * MIB)
    kernel.until(lambda: kernel.touched_bytes == 26 * MIB)  # as much as is in use
    arena.close()
    large.close()
    pool.close()


def test_touching_changes_nothing_that_is_written_meanwhile() -> None:
    kernel = Toucher()
    pool = SlabPool(32 * MIB, ahead_bytes=32 * MIB, populate=kernel)
    arena = pool.take(8 * MIB)
    pool.touch_from_now_on()
    write(arena, 0, b"w" * (8 * MIB))
    kernel.until(lambda: kernel.touched_bytes == 32 * MIB)
    assert contents(arena) == b"w" * (8 * MIB)
    assert present_bytes(pool) == 32 * MIB
    arena.close()
    pool.close()


def test_an_old_kernel_has_fresh_memory_written_to_instead_and_never_what_a_model_had() -> None:
    kernel = Toucher(errno.EINVAL)
    pool = SlabPool(8 * MIB, ahead_bytes=8 * MIB, populate=kernel)
    arena = pool.take(3 * MIB)
    write(arena, 0, b"w" * (3 * MIB))
    arena.close()
    arena = pool.take(MIB)
    pool.touch_from_now_on()
    eventually(lambda: pool.touched_bytes == 8 * MIB)
    assert kernel.calls == 1
    assert contents(arena) == b"w" * MIB
    assert present_bytes(pool) == 8 * MIB
    arena.close()
    pool.close()


def test_when_memory_cannot_be_touched_it_is_told_and_given_out_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    pool = SlabPool(8 * MIB, populate=Toucher(errno.ENOMEM))
    pool.touch_from_now_on()
    eventually(lambda: "cannot be touched ahead" in caplog.text)
    arena = pool.take(MIB)
    write(arena, 0, b"x")
    assert pool.touched_bytes == 0
    arena.close()
    pool.close()


def eventually(holds: Callable[[], bool]) -> None:
    """Another thread does it, and tells nobody."""
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
