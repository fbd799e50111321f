"""The ledger under every order of events: its numbered rules as invariants of a state machine."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from predictor.model import ModelRef, Tier
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules, value
from predictor.policy.ledger import Ledger
from predictor.policy.residency import DISK, RAM, Abort, Cause, Drop, Footprint, Grant, Place, Plan, Refuse, Skip, Start, State

MODELS = [ModelRef("default", f"m{number}", 1) for number in range(6)]
SIZES = st.integers(0, 10)
TENANTS = ["red", "blue"]


class World(RuleBasedStateMachine):
    """Plays the tiers, the workers and the clients: it holds what the ledger decided and answers in any order."""

    @initialize(
        ram=st.integers(10, 30),
        devices=st.lists(st.integers(10, 25), min_size=1, max_size=2),
        disk=st.none() | st.integers(10, 40),
        sizes=st.lists(
            st.tuples(
                SIZES,
                SIZES,
                st.booleans(),
                st.integers(0, 5),
                st.sampled_from(TENANTS),
                st.integers(0, 5),
                st.sampled_from("ab"),
            ),
            min_size=len(MODELS),
            max_size=len(MODELS),
        ),
        rules=st.builds(
            Rules,
            min_residency_s=st.sampled_from([0.0, 5.0]),
            idle_ttl_s=st.sampled_from([math.inf, 100.0]),
            floors=st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.2, 0.4]), max_size=2),
        ),
        kept=st.integers(0, 3),
    )
    def begin(
        self,
        ram: int,
        devices: list[int],
        disk: int | None,
        *,
        sizes: list[tuple[int, int, bool, int, str, int, str]],
        rules: Rules,
        kept: int,
    ) -> None:
        self.now_s = 0.0
        self.needs = {
            model: Footprint(ram_bytes, device_bytes, shares, activation_bytes, ram_bytes, tenant, device_bytes + more, domain)
            for model, (ram_bytes, device_bytes, shares, activation_bytes, tenant, more, domain) in zip(
                MODELS, sizes, strict=True
            )
        }
        self.budgets = {RAM: ram, **{Place(index): size for index, size in enumerate(devices)}}
        if disk is not None:
            self.budgets[DISK] = disk
        self.ledger = Ledger(self.budgets, Demand(), rules)
        self.moving: dict[tuple[ModelRef, Place], bool] = {}  # transfers under way; True: asked to stop
        self.dropping: set[tuple[ModelRef, Place]] = set()
        self.ready: set[tuple[ModelRef, Place]] = set()
        self.leases: list[tuple[ModelRef, Place]] = []
        self.waiting: dict[int, ModelRef] = {}
        self.answered: set[int] = set()
        self.sources: dict[tuple[ModelRef, Place], Place | None] = {}  # of transfers under way
        if disk is not None:
            for model in MODELS[:kept]:
                self.ready.add((model, DISK))
                self.carry_out(self.ledger.adopt(model, self.needs[model].disk_bytes, self.now_s))

    # ---- carrying plans out, with the rules checked action by action

    def carry_out(self, plan: Plan) -> None:
        for action in plan:
            match action:
                case Grant(ticket, ref, place):
                    self.answer(ticket, ref)
                    assert (ref, place) in self.ready, f"granted a copy that is not ready: {action}"
                    self.leases.append((ref, place))
                case Refuse(ticket, ref):
                    self.answer(ticket, ref)
                case Start(ref, target, source):
                    key = (ref, target)
                    assert key not in self.moving, f"second transfer: {action}"
                    assert key not in self.ready | self.dropping, f"already there: {action}"
                    assert (source == RAM) if target != RAM else source in {None, DISK}, f"from where? {action}"
                    assert source is None or (ref, source) in self.ready, f"nothing to read from: {action}"
                    self.moving[key] = False
                    self.sources[key] = source
                case Abort(ref, place):
                    assert self.moving[ref, place] is False, f"aborted twice: {action}"
                    self.moving[ref, place] = True
                case Drop(ref, place, cause):
                    self.drop(ref, place)
                    if cause is not None and cause.newcomer is not None and cause.newcomer in self.ledger.preloads:
                        self.check_pushed_out(ref, place, cause)
                case Skip(ref, place):
                    free = self.budgets[place] - self.ledger.used_bytes(place)
                    need = (
                        self.needs[ref].size(place, filling=True)
                        + self.ledger.books.headroom(place)
                        + self.needs[ref].headroom(place)
                    )
                    assert free < need, f"skipped although {free} are free: {action}"

    def answer(self, ticket: int, ref: ModelRef) -> None:
        assert ticket not in self.answered, f"ticket {ticket} answered twice"
        assert self.waiting.pop(ticket) == ref
        self.answered.add(ticket)

    def drop(self, ref: ModelRef, place: Place) -> None:
        assert (ref, place) in self.ready, f"dropped what is not there: {ref} at {place}"
        assert (ref, place) not in self.leases, f"dropped in use: {ref} at {place}"
        for (other, target), source in self.sources.items():
            read = other == ref and source == place and (other, target) in self.moving
            assert not read, f"dropped while it is read for {target}: {ref} at {place}"
        if place == RAM:
            for device in self.devices:
                shared = self.needs[ref].shares_ram and (ref, device) in self.ready | self.dropping
                assert not shared, f"dropped while {device} shares it: {ref}"
        self.ready.remove((ref, place))
        self.dropping.add((ref, place))

    def check_pushed_out(self, ref: ModelRef, place: Place, cause: Cause) -> None:
        """For a pre-load: it was worth less, and nothing spared it when that was decided."""
        copy = self.ledger.books.at(ref, place)
        assert copy is not None
        assert copy.holds == 0, f"a pre-load pushes out what is in use: {copy}"
        assert cause.newcomer_rate_per_s > 0, f"by what nobody asks for: {cause}"
        assert self.ledger.rules.stays_until_s(copy) <= self.now_s, f"too young: {copy}"

    @property
    def devices(self) -> list[Place]:
        return sorted(place for place in self.budgets if place.tier is Tier.DEVICE)

    # ---- events

    @rule(model=st.sampled_from(MODELS))
    def request(self, model: ModelRef) -> None:
        place = self.ledger.hit(model, self.now_s)
        if place is not None:
            assert (model, place) in self.ready
            self.leases.append((model, place))
        elif self.ledger.too_large(self.needs[model]) is None:
            ticket, plan = self.ledger.wait(model, self.needs[model], self.now_s)
            self.waiting[ticket] = model
            self.carry_out(plan)

    @rule(model=st.sampled_from(MODELS), more=st.integers(1, 8))
    def larger_request(self, model: ModelRef, more: int) -> None:
        need = replace(self.needs[model], activation_bytes=self.needs[model].activation_bytes + more)
        if self.ledger.too_large(need) is None:
            self.needs[model] = need
            ticket, plan = self.ledger.wait(model, need, self.now_s)
            self.waiting[ticket] = model
            self.carry_out(plan)

    @precondition(lambda self: any(place.tier is Tier.DEVICE for _, place in self.ready))
    @rule(data=st.data(), device_bytes=SIZES, activation_bytes=st.integers(0, 5))
    def measured(self, data: st.DataObject, device_bytes: int, activation_bytes: int) -> None:
        model, _ = data.draw(st.sampled_from(sorted(key for key in self.ready if key[1].tier is Tier.DEVICE)))
        need = replace(self.needs[model], device_bytes=device_bytes, activation_bytes=activation_bytes)
        if self.ledger.too_large(need) is None:
            self.needs[model] = need
            self.carry_out(self.ledger.measured(model, need, self.now_s))

    @rule(model=st.sampled_from(MODELS))
    def pin_or_unpin(self, model: ModelRef) -> None:
        if model.name in self.ledger.pins:
            self.carry_out(self.ledger.unpin(model.name, self.now_s))
        else:
            self.ledger.pin(model.name)

    @precondition(lambda self: any(source == DISK for key, source in self.sources.items() if key in self.moving))
    @rule(data=st.data())
    def disk_copy_is_damaged(self, data: st.DataObject) -> None:
        readers = sorted(key for key, source in self.sources.items() if source == DISK and key in self.moving)
        key = data.draw(st.sampled_from(readers))
        self.sources[key] = None
        self.carry_out(self.ledger.damaged(key[0], self.now_s))

    @rule(model=st.sampled_from(MODELS), tier=st.sampled_from([Tier.RAM, Tier.DEVICE]))
    def preload(self, model: ModelRef, tier: Tier) -> None:
        over = {place for place in self.budgets if self.over(place) > 0}
        paces = {place: self.pace(place) for place in self.budgets}
        plan = self.ledger.preload(model, self.needs[model], self.now_s, tier)
        for action in plan:
            if isinstance(action, Drop) and action.cause is not None and action.cause.newcomer == model:
                self.check_worth(action, paces)
            if isinstance(action, Drop | Abort):
                assert action.place in {DISK, *over} or not self.waiting, f"room was made for a pre-load: {plan}"
            if self.waiting and isinstance(action, Start):
                assert action.target == DISK, f"a pre-load began before {self.waiting}"
        self.carry_out(plan)

    def pace(self, place: Place) -> float:
        """Seconds a byte of the copies at ``place``, the median."""
        ready = [copy for copy in self.ledger.copies() if copy.place == place and copy.state is State.READY and copy.size_bytes]
        paces = sorted(copy.load_s / copy.size_bytes for copy in ready)
        return paces[len(paces) // 2] if paces else 0.0

    def check_worth(self, drop: Drop, paces: dict[Place, float]) -> None:
        """It was worth less than half of the pre-load that pushed it out."""
        cause, need = drop.cause, self.needs[drop.ref]
        assert cause is not None
        assert cause.newcomer is not None
        below = self.ledger.books.at(drop.ref, RAM)
        shared = need.shares_ram and below is not None and below.state is State.DRAINING  # then it goes with that one
        place = RAM if shared else drop.place
        size_bytes = self.needs[cause.newcomer].size(place)
        assert 2 * cause.value < value(cause.newcomer_rate_per_s, paces[place] * size_bytes, size_bytes), f"{drop}"

    @rule(model=st.sampled_from(MODELS), rate=st.sampled_from([0.001, 0.1, 10.0]))
    def is_known_to_be_hot(self, model: ModelRef, rate: float) -> None:
        self.ledger.demand.add(model, rate, rate, self.now_s)

    @rule(seconds=st.floats(0, 100))
    def builds_are_put_off(self, seconds: float) -> None:
        self.ledger.preloads.builds_from_s = self.now_s + seconds

    @rule(model=st.sampled_from(MODELS))
    def unload(self, model: ModelRef) -> None:
        self.carry_out(self.ledger.unload(model, self.now_s))

    @precondition(lambda self: self.moving)
    @rule(data=st.data(), seconds=st.floats(0, 5), succeeds=st.booleans())
    def transfer_ends(self, data: st.DataObject, seconds: float, succeeds: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        key = data.draw(st.sampled_from(sorted(self.moving)))
        del self.moving[key]
        if succeeds:
            self.ready.add(key)
            self.carry_out(self.ledger.finished(*key, seconds, self.now_s))
        else:
            self.carry_out(self.ledger.failed(*key, self.now_s))

    @precondition(lambda self: self.dropping)
    @rule(data=st.data())
    def drop_confirmed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.dropping)))
        self.dropping.remove(key)
        self.carry_out(self.ledger.dropped(*key, self.now_s))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.carry_out(self.ledger.release(*lease, self.now_s))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.carry_out(self.ledger.leave(ticket, self.waiting.pop(ticket), self.now_s))

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.devices))
        here = [copy.ref for copy in self.ledger.books.here(place)]
        dead = data.draw(st.lists(st.sampled_from(here), unique=True)) if here else []
        self.carry_out(self.ledger.lost(place, dead, self.now_s))

    @rule(seconds=st.floats(0, 100_000))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.carry_out(self.ledger.tick(self.now_s))

    def over(self, place: Place) -> int:
        return self.ledger.used_bytes(place) + self.ledger.books.headroom(place) - self.budgets[place]

    # ---- what always holds

    @invariant()
    def bytes_stay_within_every_budget(self) -> None:
        for place in self.budgets:
            here = [copy for copy in self.ledger.copies() if copy.place == place]
            assert sum(copy.size_bytes for copy in here) == self.ledger.used_bytes(place)
            if self.over(place) > 0:  # a copy turned out larger than it was booked: what can go is on its way
                assert place != RAM
                staying = [copy for copy in here if copy.state is not State.DRAINING]
                size_bytes = sum(copy.size_bytes for copy in staying)
                headroom_bytes = max((copy.headroom_bytes for copy in staying), default=0)
                free = [copy for copy in staying if copy.state is State.READY and copy.ref.name not in self.ledger.pins]
                assert not free or size_bytes + headroom_bytes <= self.budgets[place]

    @invariant()
    def the_books_agree_with_the_world(self) -> None:
        booked = {(copy.ref, copy.place): copy for copy in self.ledger.copies()}
        assert set(booked) == set(self.moving) | self.ready | self.dropping
        for key in self.dropping:
            assert booked[key].state is State.DRAINING
        for key, stopping in self.moving.items():
            assert booked[key].state is (State.DRAINING if stopping else State.FILLING)
        for key, copy in booked.items():
            if key[1].tier is Tier.DEVICE:
                assert copy.holds == self.leases.count(key)

    @invariant()
    def a_worker_builds_one_preload_at_a_time(self) -> None:
        for place in self.devices:
            here = [copy for copy in self.ledger.books.here(place) if copy.state is State.FILLING and copy.background]
            domains = [self.needs[copy.ref].domain for copy in here]
            assert len(domains) == len(set(domains)), f"{here}"

    @invariant()
    def nobody_waits_on_nothing(self) -> None:
        if self.waiting and not self.ledger.pins:
            under_way = self.moving or self.dropping or self.leases or self.ledger.wake_s < math.inf
            assert under_way, f"{self.waiting} wait, and nothing is under way"

    def teardown(self) -> None:
        """Whatever the state: once clients stop coming and the world answers, everybody is served and nothing is held."""
        if not hasattr(self, "ledger"):
            return
        for name in self.ledger.pins:
            self.carry_out(self.ledger.unpin(name, self.now_s))
        for _ in range(1000):
            if self.moving:
                key = min(self.moving)
                del self.moving[key]
                self.ready.add(key)
                self.carry_out(self.ledger.finished(*key, 0.1, self.now_s))
            elif self.dropping:
                key = self.dropping.pop()
                self.carry_out(self.ledger.dropped(*key, self.now_s))
            elif self.leases:
                self.carry_out(self.ledger.release(*self.leases.pop(), self.now_s))
            elif self.waiting and self.ledger.wake_s < math.inf:
                self.now_s = max(self.now_s, self.ledger.wake_s)
                self.carry_out(self.ledger.tick(self.now_s))
            else:
                break
            self.bytes_stay_within_every_budget()
        assert not self.waiting, f"never served: {self.waiting}"
        for copy in self.ledger.copies():
            shared = copy.place == RAM and self.needs[copy.ref].shares_ram
            sharers = sum((copy.ref, place) in self.ready for place in self.devices)
            assert copy.holds == (sharers if shared else 0), f"held by nobody: {copy}"


TestLedger = World.TestCase
