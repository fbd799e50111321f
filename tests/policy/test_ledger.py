"""The ledger's decisions, one situation a test. What holds in every situation: test_ledger_properties.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from predictor.model import ModelRef, Tier
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Abort, Action, Drop, Footprint, Grant, Place, Refuse, Skip, Start

DEVICE = Place(0)
A, B, C, D, E = (ModelRef("default", name, 1) for name in "abcde")


def ledger(ram: int = 10, device: int = 10) -> Ledger:
    return Ledger({RAM: ram, DEVICE: device}, Demand(), Rules(min_residency_s=0.0))


def need(size: int, *, shares_ram: bool = False) -> Footprint:
    return Footprint(size, 0 if shares_ram else size, shares_ram)


def load(books: Ledger, ref: ModelRef, size: int, now_s: float = 0.0) -> None:
    ticket, plan = books.wait(ref, need(size), now_s)
    assert plan == (Start(ref, RAM),)
    assert books.finished(ref, RAM, 1.0, now_s) == (Start(ref, DEVICE, RAM),)
    assert books.finished(ref, DEVICE, 0.1, now_s) == (Grant(ticket, ref, DEVICE),)
    assert books.release(ref, DEVICE, 9.0) == ()


def test_a_miss_goes_from_the_store_to_ram_to_the_device_and_is_granted() -> None:
    books = ledger()
    load(books, A, 4)
    assert books.hit(A, 1.0) == DEVICE
    assert books.used_bytes(RAM) == books.used_bytes(DEVICE) == books.books.ready_bytes(DEVICE) == 4


def test_the_copy_asked_for_less_is_dropped_for_a_newcomer() -> None:
    books = ledger(ram=30)
    load(books, A, 5)
    load(books, B, 5)
    for _ in range(3):
        assert books.hit(A, 1.0) == DEVICE
        books.release(A, DEVICE, 9.0)
    _, plan = books.wait(C, need(5), 2.0)
    assert plan == (Start(C, RAM),)
    assert books.finished(C, RAM, 1.0, 3.0) == (Drop(B, DEVICE),)
    assert books.dropped(B, DEVICE, 3.1) == (Start(C, DEVICE, RAM),)


def test_a_failed_transfer_refuses_everybody_and_frees_its_bytes() -> None:
    books = ledger()
    first, _ = books.wait(A, need(4), 0.0)
    second, plan = books.wait(A, need(4), 0.0)
    assert plan == ()
    assert books.failed(A, RAM, 1.0) == (Refuse(first, A), Refuse(second, A))
    assert books.used_bytes(RAM) == 0
    assert not books.knows(A)


def test_a_preload_that_finds_no_room_is_skipped_and_forgotten() -> None:
    books = ledger()
    load(books, A, 8)
    assert books.preload(B, need(5), 1.0) == (Skip(B, RAM),)
    assert len(books.preloads) == 0
    assert not books.knows(B)


def test_two_preloads_run_at_once_and_the_third_waits_for_one_of_them() -> None:
    books = ledger(ram=30, device=30)
    assert books.preload(A, need(5), 0.0) == (Start(A, RAM),)
    assert books.preload(B, need(5), 0.0) == (Start(B, RAM),)
    assert books.preload(C, need(5), 0.0) == ()
    assert books.is_background(A, RAM)
    assert books.finished(A, RAM, 1.0, 1.0) == (Start(A, DEVICE, RAM), Start(C, RAM))
    assert books.finished(B, RAM, 1.0, 1.0) == (), "a device builds one at a time"
    assert books.finished(A, DEVICE, 1.0, 1.0) == (Start(B, DEVICE, RAM),)


def test_a_preload_into_ram_goes_no_further_until_somebody_wants_more() -> None:
    books = ledger()
    assert books.preload(A, need(5), 0.0, Tier.RAM) == (Start(A, RAM),)
    assert books.finished(A, RAM, 1.0, 1.0) == ()
    assert len(books.preloads) == 0
    assert books.preload(A, need(5), 2.0, Tier.RAM) == ()
    assert books.preload(A, need(5), 2.0) == (Start(A, DEVICE, RAM),)


def test_of_two_wishes_for_one_model_the_further_one_counts() -> None:
    books = ledger()
    books.preload(A, need(5), 0.0)
    books.preload(A, need(5), 0.0, Tier.RAM)
    assert books.finished(A, RAM, 1.0, 1.0) == (Start(A, DEVICE, RAM),)


def test_preloads_are_built_one_at_a_time_in_each_worker_and_by_two_workers_at_once() -> None:
    books = ledger(ram=40, device=40)
    models = {ModelRef("default", name, 1): name[0] for name in ("a1", "a2", "b1", "c1")}
    begun: list[Action] = []
    for ref, domain in models.items():
        begun += books.preload(ref, replace(need(5), domain=domain), 0.0)
        begun += books.finished(ref, RAM, 1.0, 1.0)
    a1, a2, b1, c1 = models
    assert [ref for ref in models if Start(ref, DEVICE, RAM) in begun] == [a1, b1]
    assert books.finished(b1, DEVICE, 1.0, 2.0) == (Start(c1, DEVICE, RAM),), "a2's worker builds a1"
    assert books.finished(a1, DEVICE, 1.0, 3.0) == (Start(a2, DEVICE, RAM),)


def test_once_the_queue_is_closed_nothing_is_wanted_ahead_of_requests() -> None:
    books = ledger()
    for ref in (A, B, C):
        books.preload(ref, need(3), 0.0)
    books.preloads.close()
    assert books.finished(A, RAM, 1.0, 1.0) == ()
    ticket, _ = books.wait(D, need(1), 1.0)
    books.leave(ticket, D, 1.0)
    assert len(books.preloads) == 0


def test_until_builds_may_begin_preloads_come_as_far_as_ram_and_a_request_goes_on() -> None:
    books = ledger(ram=20, device=20)
    books.preloads.builds_from_s = 5.0
    books.preload(A, need(5), 0.0)
    assert books.finished(A, RAM, 1.0, 1.0) == ()
    assert books.wake_s == 5.0
    ticket, plan = books.wait(B, need(5), 2.0)
    assert plan == (Start(B, RAM),)
    assert books.wake_s == math.inf, "not while somebody waits"
    assert books.finished(B, RAM, 1.0, 3.0) == (Start(B, DEVICE, RAM),)
    assert books.finished(B, DEVICE, 1.0, 4.0) == (Grant(ticket, B, DEVICE),)
    assert books.wake_s == 5.0
    assert books.tick(5.0) == (Start(A, DEVICE, RAM),)


def test_a_preload_pushes_out_what_is_worth_less_than_half_of_it() -> None:
    books = ledger(ram=30, device=5)
    load(books, A, 5)
    books.demand.add(B, 1.0, 1.0, 9.0)
    assert books.preload(B, need(5), 9.0) == (Start(B, RAM),)
    assert books.finished(B, RAM, 1.0, 10.0) == (Drop(A, DEVICE),)
    assert books.dropped(A, DEVICE, 10.0) == (Start(B, DEVICE, RAM),)


def test_a_preload_pushes_out_nothing_that_is_asked_alike() -> None:
    books = ledger(ram=30, device=5)
    load(books, A, 5)
    fast, slow = next((fast, slow) for _, fast, slow in books.demand.rates(9.0))
    books.demand.add(B, 1.9 * fast, 1.9 * slow, 9.0)
    books.preload(B, need(5), 9.0)
    assert books.finished(B, RAM, 1.0, 9.0) == (Skip(B, DEVICE),)


def test_a_preload_pushes_out_nothing_that_is_pinned_in_use_or_young() -> None:
    for spare in ("pinned", "used", "young"):
        books = Ledger({RAM: 30, DEVICE: 5}, Demand(), Rules(min_residency_s=60.0 if spare == "young" else 0.0))
        load(books, A, 5, 8.95)
        books.demand.add(B, 1.0, 1.0, 9.0)
        if spare == "pinned":
            books.pin("a")
        elif spare == "used":
            books.hit(A, 9.0)
        books.preload(B, need(5), 9.0)
        assert books.finished(B, RAM, 1.0, 9.0) == (Skip(B, DEVICE),), spare
        assert books.wake_s == math.inf, "and nobody waits for it to get old"


def test_a_model_that_shares_its_bytes_is_not_pushed_out_of_ram_by_a_preload_while_a_request_uses_it() -> None:
    books = Ledger({RAM: 5, DEVICE: 5}, Demand(), Rules(min_residency_s=0.0))
    ticket, _ = books.wait(A, need(5, shares_ram=True), 0.0)
    books.finished(A, RAM, 1.0, 0.0)
    assert books.finished(A, DEVICE, 0.1, 0.0) == (Grant(ticket, A, DEVICE),)
    books.demand.add(B, 1.0, 1.0, 9.0)
    assert books.preload(B, need(5), 9.0) == (Skip(B, RAM),)
    books.release(A, DEVICE, 10.0)
    assert books.preload(B, need(5), 11.0) == (Drop(A, DEVICE),)
    assert books.dropped(A, DEVICE, 12.0) == (Drop(A, RAM),)
    assert books.dropped(A, RAM, 13.0) == (Start(B, RAM),)


def test_the_room_made_for_a_preload_is_not_taken_by_a_smaller_one_behind_it() -> None:
    books = ledger(ram=10, device=10)
    load(books, A, 5)
    load(books, B, 5)
    for ref in (C, D):
        books.demand.add(ref, 1.0, 1.0, 9.0)
    assert set(books.preload(C, need(10), 9.0)) == {Drop(A, RAM), Drop(B, RAM)}
    assert books.preload(D, need(5), 9.0) == ()
    assert books.dropped(A, RAM, 9.0) == ()
    assert books.dropped(B, RAM, 9.0) == (Start(C, RAM), Skip(D, RAM))


def test_a_request_takes_the_room_of_a_preload_before_that_of_a_model_in_the_cache() -> None:
    books = ledger(ram=10, device=10)
    load(books, A, 4)
    books.preload(B, need(6), 1.0)
    _, plan = books.wait(C, need(6), 1.0)
    assert plan == (Abort(B, RAM),)
    assert books.failed(B, RAM, 1.0) == (Start(C, RAM),)


def test_an_abort_that_comes_too_late_ends_in_a_drop() -> None:
    books = ledger()
    books.preload(B, need(6), 1.0)
    books.wait(C, need(6), 1.0)
    assert books.finished(B, RAM, 1.0, 1.0) == (Drop(B, RAM),)
    assert books.dropped(B, RAM, 1.0) == (Start(C, RAM),)


def test_the_place_too_small_for_a_model_is_named() -> None:
    books = ledger(ram=10, device=5)
    assert books.too_large(need(11)) == (RAM, 10, 10)
    assert books.too_large(need(6)) == (DEVICE, 5, 5)
    assert books.too_large(need(5)) is None


def test_a_model_in_use_drains_when_nothing_else_can_make_room() -> None:
    books = ledger(ram=30, device=5)
    load(books, A, 5)
    assert books.hit(A, 1.0) == DEVICE
    books.wait(B, need(5), 1.0)
    assert books.finished(B, RAM, 1.0, 2.0) == ()
    assert books.hit(A, 2.0) is None, "draining: no new lease"
    assert books.books.is_draining(A)
    assert books.release(A, DEVICE, 9.0) == (Drop(A, DEVICE),)


def test_a_lost_device_gives_up_its_copies_when_their_requests_end() -> None:
    books = ledger()
    load(books, A, 4)
    load(books, B, 4)
    books.hit(A, 1.0)
    assert books.lost(DEVICE, [A, B, ModelRef("default", "nowhere", 1)], 1.0) == (Drop(B, DEVICE),)
    assert books.release(A, DEVICE, 9.0) == (Drop(A, DEVICE),)


def test_of_a_device_with_several_workers_only_the_dead_ones_copies_are_lost() -> None:
    books = ledger()
    load(books, A, 4)
    load(books, B, 4)
    assert books.lost(DEVICE, [A], 1.0) == (Drop(A, DEVICE),)
    assert books.hit(A, 1.0) is None
    assert books.hit(B, 1.0) == DEVICE


def test_a_build_that_hangs_in_one_worker_keeps_nobody_in_another_one_from_being_given_room() -> None:
    books = ledger(ram=30, device=10)
    load(books, A, 4)
    hung, same, other = (ModelRef("default", name, 1) for name in ("hung", "same", "other"))
    books.wait(hung, replace(need(4), domain="evil"), 1.0)
    assert Start(hung, DEVICE, RAM) in books.finished(hung, RAM, 1.0, 2.0)
    books.wait(same, replace(need(4), domain="evil"), 3.0)
    assert not any(isinstance(action, Drop) for action in books.finished(same, RAM, 1.0, 4.0)), "it would only stand empty"
    books.wait(other, replace(need(4), domain="good"), 6.0)
    assert Drop(A, DEVICE) in books.finished(other, RAM, 1.0, 7.0), "though one that waits longer waits for the hung one"
    assert books.dropped(A, DEVICE, 8.0)[0] == Start(other, DEVICE, RAM)


def test_books_without_ram_or_device_are_refused() -> None:
    with pytest.raises(AssertionError, match="no RAM budget"):
        Ledger({DEVICE: 1}, Demand())
    with pytest.raises(AssertionError, match="no device"):
        Ledger({RAM: 1}, Demand())


def test_who_waits_longer_claims_each_place_and_later_ones_wait_behind() -> None:
    books = ledger(ram=10, device=5)
    load(books, A, 5)
    assert books.hit(A, 1.0) == DEVICE
    books.wait(B, need(5), 1.0)
    books.finished(B, RAM, 1.0, 2.0)  # A drains for B
    _, plan = books.wait(C, need(5), 2.0)
    assert plan == (Drop(A, RAM),), "RAM is claimed by C"
    _, plan = books.wait(A, need(5), 3.0)
    assert plan == ()
    assert books.dropped(A, RAM, 3.0) == (Start(C, RAM),)
    assert books.finished(C, RAM, 1.0, 4.0) == (), "the device is claimed by B, which waits longer"
    assert books.release(A, DEVICE, 9.0) == (Drop(A, DEVICE),)
    assert books.dropped(A, DEVICE, 5.0)[0] == Start(B, DEVICE, RAM)


def test_places_have_names_for_people() -> None:
    assert (str(RAM), str(Place(3))) == ("ram", "device 3")


def test_nothing_is_dropped_for_a_second_newcomer_while_the_first_is_built() -> None:
    books = ledger(ram=30, device=10)
    load(books, A, 5)
    load(books, B, 5)
    d, e = (ModelRef("default", name, 1) for name in "de")
    books.wait(d, need(5), 1.0)
    books.wait(e, need(5), 1.0)
    assert books.finished(d, RAM, 1.0, 2.0) == (Drop(A, DEVICE),)
    assert books.dropped(A, DEVICE, 2.0) == (Start(d, DEVICE, RAM),)
    assert books.finished(e, RAM, 1.0, 2.0) == (), "B stays useful until d is built"
    assert Drop(B, DEVICE) in books.finished(d, DEVICE, 0.1, 3.0)


def test_who_gives_up_leaves_a_load_that_goes_on_as_a_preload() -> None:
    books = ledger()
    ticket, _ = books.wait(A, need(4), 0.0)
    assert books.is_awaited(A)
    assert books.leave(ticket, A, 0.5) == ()
    assert not books.is_awaited(A)
    assert A in books.preloads
    assert books.finished(A, RAM, 1.0, 1.0) == (Start(A, DEVICE, RAM),)


def test_who_gives_up_before_anything_began_leaves_nothing() -> None:
    books = ledger(ram=4)
    books.wait(A, need(4), 0.0)
    ticket, plan = books.wait(B, need(4), 0.0)
    assert plan == ()
    books.leave(ticket, B, 0.5)
    assert B not in books.preloads
    assert not books.knows(B)


def test_what_is_on_its_way_for_nobody_is_stopped_when_it_is_unloaded() -> None:
    books = ledger()
    books.preload(A, need(4), 0.0)
    assert books.unload(A, 0.5) == (Abort(A, RAM),)
    assert books.failed(A, RAM, 0.6) == ()
    assert not books.knows(A)


def test_while_every_place_is_busy_with_preloads_no_more_begin() -> None:
    books = ledger(ram=30, device=30)
    for ref in (A, B):
        books.preload(ref, replace(need(5), domain=ref.name), 0.0)
        assert books.finished(ref, RAM, 1.0, 1.0) == (Start(ref, DEVICE, RAM),)
    assert books.preload(C, need(5), 1.0) == (Start(C, RAM),)
    assert books.preload(D, need(5), 1.0) == (Start(D, RAM),)
    assert books.preload(E, need(5), 1.0) == ()
    assert E in books.preloads


def test_who_gives_up_takes_nobody_along_who_waits_for_the_same() -> None:
    books = ledger()
    first, _ = books.wait(A, need(4), 0.0)
    second, _ = books.wait(A, need(4), 0.0)
    assert books.leave(first, A, 0.5) == ()
    assert books.is_awaited(A)
    assert A not in books.preloads
    books.finished(A, RAM, 1.0, 1.0)
    assert books.finished(A, DEVICE, 0.1, 1.1) == (Grant(second, A, DEVICE),)


def test_a_preload_of_what_is_there_or_awaited_or_too_large_is_nothing() -> None:
    books = ledger()
    load(books, A, 4)
    books.wait(B, need(4), 0.0)
    for ref, size in ((A, 4), (B, 4), (C, 11)):
        assert books.preload(ref, need(size), 1.0) == ()
        assert ref not in books.preloads


def test_a_load_that_somebody_waits_for_goes_on_when_it_is_unloaded() -> None:
    books = ledger()
    ticket, _ = books.wait(A, need(4), 0.0)
    assert books.unload(A, 0.5) == ()
    assert books.finished(A, RAM, 1.0, 1.0) == (Start(A, DEVICE, RAM),)
    assert books.unload(A, 1.05) == (), "the device reads its copy in RAM"
    assert books.finished(A, DEVICE, 0.1, 1.1) == (Grant(ticket, A, DEVICE),)


def test_a_lost_device_has_nothing_to_give_up_of_a_model_on_its_way() -> None:
    books = ledger()
    ticket, _ = books.wait(A, need(4), 0.0)
    books.finished(A, RAM, 1.0, 1.0)
    assert books.lost(DEVICE, [A], 1.05) == (), "its load fails by itself"
    assert list(books.failed(A, DEVICE, 1.1)) == [Refuse(ticket, A)]


def test_of_several_devices_a_model_goes_where_there_is_room_and_else_where_the_least_value_is_in_its_way() -> None:
    second = Place(1)
    books = Ledger({RAM: 100, DEVICE: 10, second: 10}, Demand(), Rules(min_residency_s=0.0))
    for ref, place in ((A, DEVICE), (B, second)):
        ticket, _ = books.wait(ref, need(8), 0.0)
        assert books.finished(ref, RAM, 1.0, 0.0) == (Start(ref, place, RAM),)
        assert books.finished(ref, place, 1.0, 0.0) == (Grant(ticket, ref, place),)
        books.release(ref, place, 0.0)
    for _ in range(3):
        books.hit(A, 1.0)
        books.release(A, DEVICE, 1.0)
    assert {(copy.ref, copy.place) for copy in books.copies()} == {(A, RAM), (A, DEVICE), (B, RAM), (B, second)}
    books.wait(C, need(8), 2.0)
    assert books.finished(C, RAM, 1.0, 2.0) == (Drop(B, second),)
