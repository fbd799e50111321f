"""The ledger's decisions beside the plain way in and out: disk, measured memory, and the operator's rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from predictor.model import ModelRef
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Abort, Drop, Footprint, Grant, Place, Start

DEVICE = Place(0)
A, B, C = (ModelRef("default", name, 1) for name in "abc")
AT_ONCE = Rules(min_residency_s=0.0)


def ledger(rules: Rules = AT_ONCE, *, ram: int = 100, device: int = 10, disk: int = 0) -> Ledger:
    return Ledger({RAM: ram, DEVICE: device} | ({DISK: disk} if disk else {}), Demand(), rules)


def need(size: int, activation: int = 0, *, tenant: str = "", shares_ram: bool = False) -> Footprint:
    return Footprint(size, 0 if shares_ram else size, shares_ram, activation, size, tenant)


def load(books: Ledger, ref: ModelRef, what: Footprint, now_s: float = 0.0, *, seconds: float = 1.0) -> None:
    """Load into free room; what goes to disk is written at once."""
    ticket, plan = books.wait(ref, what, now_s)
    assert plan[0] == Start(ref, RAM, None)
    plan = books.finished(ref, RAM, seconds, now_s)
    assert Start(ref, DEVICE, RAM) in plan
    if Start(ref, DISK, RAM) in plan:
        assert books.finished(ref, DISK, 0.1, now_s) == ()
    assert Grant(ticket, ref, DEVICE) in books.finished(ref, DEVICE, seconds, now_s)
    books.release(ref, DEVICE, now_s)


def test_what_came_from_the_store_goes_to_disk_and_comes_back_from_there() -> None:
    books = ledger(disk=10)
    load(books, A, need(4))
    assert books.used_bytes(DISK) == 4
    books.unload(A, 1.0)
    books.dropped(A, DEVICE, 1.0)
    books.dropped(A, RAM, 1.0)
    _, plan = books.wait(A, need(4), 2.0)
    assert plan == (Start(A, RAM, DISK),)
    assert books.finished(A, RAM, 0.1, 3.0) == (Start(A, DEVICE, RAM),), "and is not written again"


def test_a_damaged_disk_copy_goes_and_the_fetch_goes_on_from_the_store() -> None:
    books = ledger(disk=10)
    assert books.adopt(A, 4, 0.0) == ()
    ticket, plan = books.wait(A, need(4), 0.0)
    assert plan == (Start(A, RAM, DISK),)
    assert books.damaged(A, 1.0) == (Drop(A, DISK),)
    plan = books.finished(A, RAM, 1.0, 2.0)
    assert plan == (Start(A, DEVICE, RAM),), "the new disk copy waits until the old one is gone"
    assert books.dropped(A, DISK, 3.0) == (Start(A, DISK, RAM),)
    assert books.finished(A, DEVICE, 0.1, 3.0) == (Grant(ticket, A, DEVICE),)


def test_a_disk_copy_is_not_dropped_while_it_is_read() -> None:
    books = ledger(disk=10)
    books.adopt(A, 6, 0.0)
    books.wait(A, need(6), 0.0)
    books.wait(B, need(6), 0.0)
    plan = books.finished(B, RAM, 1.0, 1.0)
    assert Drop(A, DISK) not in plan
    assert books.is_background(A, DISK) is False


def test_nothing_hotter_is_pushed_out_of_the_disk_for_what_came_last() -> None:
    books = ledger(disk=5)
    load(books, A, need(4))
    for _ in range(5):
        books.hit(A, 1.0)
    load(books, B, need(4), 1.0)
    assert books.books.at(A, DISK) is not None
    assert books.books.at(B, DISK) is None, "asked for once when it came: worth less than A"


def test_a_hotter_model_takes_the_disk_from_a_colder_one() -> None:
    books = ledger(disk=5, device=30)
    load(books, A, need(4))
    for _ in range(3):
        books.wait(B, need(4), 1.0)
    assert books.finished(B, RAM, 1.0, 1.0) == (Start(B, DEVICE, RAM), Drop(A, DISK))
    assert books.dropped(A, DISK, 1.0) == (Start(B, DISK, RAM),)


def test_a_write_to_disk_is_stopped_when_its_ram_is_needed() -> None:
    books = ledger(ram=10, device=30, disk=100)
    ticket, _ = books.wait(A, need(6), 0.0)
    assert Start(A, DISK, RAM) in books.finished(A, RAM, 1.0, 0.0)
    assert Grant(ticket, A, DEVICE) in books.finished(A, DEVICE, 1.0, 0.0)
    books.release(A, DEVICE, 0.0)
    _, plan = books.wait(B, need(6), 1.0)
    assert plan == (Abort(A, DISK),)
    assert books.failed(A, DISK, 1.0) == (Drop(A, RAM),)
    assert books.dropped(A, RAM, 1.0) == (Start(B, RAM, None),)


def test_a_failed_write_to_disk_refuses_nobody() -> None:
    books = ledger(disk=10)
    ticket, _ = books.wait(A, need(4), 0.0)
    books.finished(A, RAM, 1.0, 0.0)
    assert books.failed(A, DISK, 0.5) == ()
    assert books.finished(A, DEVICE, 1.0, 1.0) == (Grant(ticket, A, DEVICE),)


def test_what_was_unloaded_while_it_waited_for_its_write_is_not_written() -> None:
    books = ledger(disk=20, device=30)
    books.wait(A, need(4), 0.0)
    assert Start(A, DISK, RAM) in books.finished(A, RAM, 1.0, 0.0)
    ticket, _ = books.wait(B, need(4), 0.0)
    assert books.finished(B, RAM, 1.0, 0.0) == (Start(B, DEVICE, RAM),), "one write at a time"
    assert books.finished(B, DEVICE, 1.0, 0.0) == (Grant(ticket, B, DEVICE),)
    books.release(B, DEVICE, 0.0)
    assert Drop(B, RAM) in books.unload(B, 1.0)
    assert books.finished(A, DISK, 0.1, 1.0) == ()
    books.dropped(B, RAM, 1.0)
    assert books.dropped(B, DEVICE, 1.0) == ()
    assert books.books.at(B, DISK) is None


def test_copies_found_on_a_disk_that_became_smaller_are_dropped_oldest_first() -> None:
    books = ledger(disk=10)
    assert books.adopt(A, 6, 0.0) == ()
    assert books.adopt(B, 6, 0.0) == (Drop(A, DISK),)


def test_room_is_kept_for_the_largest_computation_and_not_for_all() -> None:
    books = ledger(device=10)
    load(books, A, need(3, 3))
    load(books, B, need(3, 4))
    assert books.used_bytes(DEVICE) + books.books.headroom(DEVICE) == 10
    books.wait(C, need(1, 0), 1.0)
    assert books.finished(C, RAM, 1.0, 1.0) == (Drop(A, DEVICE),)


def test_what_only_building_takes_is_free_again_when_the_copy_is_ready() -> None:
    books = ledger(device=10)
    load(books, A, need(4))
    ticket, _ = books.wait(B, replace(need(3), building_bytes=8), 1.0)
    assert books.finished(B, RAM, 1.0, 1.0) == (Drop(A, DEVICE),), "4 and 8 do not fit into 10"
    assert books.dropped(A, DEVICE, 1.0) == (Start(B, DEVICE, RAM),)
    assert books.used_bytes(DEVICE) == 8
    assert books.finished(B, DEVICE, 1.0, 2.0) == (Grant(ticket, B, DEVICE),)
    assert books.used_bytes(DEVICE) == 3
    assert books.too_large(replace(need(3), building_bytes=11)) == (DEVICE, 10, 10)


def test_a_model_that_turns_out_larger_makes_others_leave() -> None:
    books = ledger(device=10)
    load(books, A, need(4))
    load(books, B, need(4), 1.0)
    books.hit(B, 1.0)
    assert books.measured(B, replace(need(4), device_bytes=5, activation_bytes=2), 2.0) == (Drop(A, DEVICE),)


def test_as_much_leaves_as_may_when_that_is_not_enough() -> None:
    books = ledger(device=10)
    load(books, A, need(4))
    load(books, B, need(2))
    load(books, C, need(4))
    books.pin("c")
    assert books.pins == {"c"}
    plan = books.measured(C, replace(need(4), device_bytes=12), 2.0)
    assert set(plan) == {Drop(A, DEVICE), Drop(B, DEVICE)}


def test_a_larger_request_waits_until_its_device_has_room_for_it() -> None:
    books = ledger(device=10)
    load(books, A, need(4, 1))
    load(books, B, need(4, 1), 1.0)
    ticket, plan = books.wait(B, need(4, 5), 2.0)
    assert plan == (Drop(A, DEVICE),)
    assert books.dropped(A, DEVICE, 2.0) == (Grant(ticket, B, DEVICE),)
    again, plan = books.wait(B, need(4, 3), 3.0)
    assert plan == (Grant(again, B, DEVICE),), "a smaller one has that room already"


def test_a_copy_stays_as_long_as_its_load_took_and_then_makes_room() -> None:
    books = ledger(Rules(min_residency_s=5.0), device=5)
    load(books, A, need(5), 10.0, seconds=2.0)
    books.wait(B, need(5), 10.0)
    assert books.finished(B, RAM, 1.0, 11.0) == ()
    assert books.wake_s == 12.0
    assert books.tick(11.5) == ()
    assert books.tick(12.0) == (Drop(A, DEVICE),)


def test_a_pinned_model_stays_and_an_unpinned_one_goes_at_once() -> None:
    books = ledger(device=5)
    load(books, A, need(5))
    books.pin("a")
    books.wait(B, need(5), 1.0)
    assert books.finished(B, RAM, 1.0, 1.0) == ()
    assert books.unpin("a", 2.0) == (Drop(A, DEVICE),)


def test_a_tenants_floor_is_not_taken_by_others_but_by_its_own_models() -> None:
    rules = Rules(min_residency_s=0.0, floors={"red": 0.5})
    books = ledger(rules, device=10)
    load(books, A, need(5, tenant="red"))
    load(books, B, need(5, tenant="blue"), 1.0)
    books.wait(C, need(5, tenant="blue"), 2.0)
    assert books.finished(C, RAM, 1.0, 2.0) == (Drop(B, DEVICE),), "A is older and as cold, but red's"
    assert books.too_large(need(6, tenant="blue")) == (DEVICE, 5, 10)
    assert books.too_large(need(6, tenant="red")) is None


def test_floors_beyond_the_budget_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"1\.2 of the budget"):
        Rules(floors={"a": 0.6, "b": 0.6})


def test_what_nobody_uses_is_dropped_after_its_time_to_live_and_what_is_used_is_not() -> None:
    books = ledger(Rules(idle_ttl_s=60.0), device=20)
    load(books, A, need(5), 0.0)
    load(books, B, need(5), 10.0)
    assert books.wake_s == 60.0
    assert books.hit(B, 30.0) == DEVICE
    assert books.tick(60.0) == (Drop(A, DEVICE), Drop(A, RAM))
    books.release(B, DEVICE, 100.0)
    assert books.tick(159.0) == ()
    assert books.tick(160.0) == (Drop(B, DEVICE), Drop(B, RAM))


def test_what_is_pinned_outlives_its_time_to_live() -> None:
    books = ledger(Rules(idle_ttl_s=60.0))
    load(books, A, need(5), 0.0)
    books.pin("a")
    assert books.tick(1000.0) == ()
    books.unpin("a", 1000.0)
    assert books.tick(1000.0) == (Drop(A, DEVICE), Drop(A, RAM))
