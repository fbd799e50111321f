"""The ledger under every order of events: its numbered rules as invariants of a state machine."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from predictor.model import ModelRef, Tier
from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Abort, Drop, Footprint, Grant, Place, Plan, Refuse, Skip, Start, State

MODELS = [ModelRef("default", f"m{number}", 1) for number in range(6)]
SIZES = st.integers(0, 10)


class World(RuleBasedStateMachine):
    """Plays the tiers, the workers and the clients: it holds what the ledger decided and answers in any order."""

    @initialize(
        ram=st.integers(10, 30),
        devices=st.lists(st.integers(10, 25), min_size=1, max_size=2),
        sizes=st.lists(st.tuples(SIZES, SIZES, st.booleans()), min_size=len(MODELS), max_size=len(MODELS)),
    )
    def begin(self, ram: int, devices: list[int], sizes: list[tuple[int, int, bool]]) -> None:
        self.now_s = 0.0
        self.needs = {
            model: Footprint(ram_bytes, device_bytes, shares_ram)
            for model, (ram_bytes, device_bytes, shares_ram) in zip(MODELS, sizes, strict=True)
        }
        self.budgets = {RAM: ram, **{Place(index): size for index, size in enumerate(devices)}}
        self.ledger = Ledger(self.budgets, Demand())
        self.moving: dict[tuple[ModelRef, Place], bool] = {}  # transfers under way; True: asked to stop
        self.dropping: set[tuple[ModelRef, Place]] = set()
        self.ready: set[tuple[ModelRef, Place]] = set()
        self.leases: list[tuple[ModelRef, Place]] = []
        self.waiting: dict[int, ModelRef] = {}
        self.answered: set[int] = set()

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
                case Start(ref, target):
                    key = (ref, target)
                    assert key not in self.moving, f"second transfer: {action}"
                    assert key not in self.ready | self.dropping, f"already there: {action}"
                    if target is not RAM:
                        assert (ref, RAM) in self.ready, f"nothing to read from: {action}"
                    self.moving[key] = False
                case Abort(ref, place):
                    assert self.moving[ref, place] is False, f"aborted twice: {action}"
                    self.moving[ref, place] = True
                case Drop(ref, place):
                    self.drop(ref, place)
                case Skip(ref, place):
                    free = self.budgets[place] - self.ledger.used_bytes(place)
                    assert free < self.size(ref, place), f"skipped although {free} are free: {action}"

    def answer(self, ticket: int, ref: ModelRef) -> None:
        assert ticket not in self.answered, f"ticket {ticket} answered twice"
        assert self.waiting.pop(ticket) == ref
        self.answered.add(ticket)

    def drop(self, ref: ModelRef, place: Place) -> None:
        assert (ref, place) in self.ready, f"dropped what is not there: {ref} at {place}"
        assert (ref, place) not in self.leases, f"dropped in use: {ref} at {place}"
        if place is RAM:
            for device in self.budgets:
                if device is not RAM:
                    assert (ref, device) not in self.moving, f"dropped while it is read: {ref}"
                    shared = self.needs[ref].shares_ram and (ref, device) in self.ready | self.dropping
                    assert not shared, f"dropped while {device} shares it: {ref}"
        self.ready.remove((ref, place))
        self.dropping.add((ref, place))

    def size(self, ref: ModelRef, place: Place) -> int:
        need = self.needs[ref]
        return need.ram_bytes if place.tier is Tier.RAM else need.device_bytes

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

    @rule(model=st.sampled_from(MODELS))
    def preload(self, model: ModelRef) -> None:
        plan = self.ledger.preload(model, self.needs[model], self.now_s)
        assert not any(isinstance(action, Drop | Abort) for action in plan), f"a pre-load made room for itself: {plan}"
        if self.waiting:
            assert not any(isinstance(action, Start) for action in plan), f"a pre-load began before {self.waiting}"
        self.carry_out(plan)

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
        self.carry_out(self.ledger.release(*lease))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.carry_out(self.ledger.leave(ticket, self.waiting.pop(ticket), self.now_s))

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        devices = sorted(place for place in self.budgets if place is not RAM)
        self.carry_out(self.ledger.lost(data.draw(st.sampled_from(devices)), self.now_s))

    @rule(seconds=st.floats(0, 100_000))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    # ---- what always holds

    @invariant()
    def bytes_stay_within_every_budget(self) -> None:
        for place, budget in self.budgets.items():
            counted = sum(copy.size_bytes for copy in self.ledger.copies() if copy.place == place)
            assert counted == self.ledger.used_bytes(place) <= budget

    @invariant()
    def the_books_agree_with_the_world(self) -> None:
        booked = {(copy.ref, copy.place): copy for copy in self.ledger.copies()}
        assert set(booked) == set(self.moving) | self.ready | self.dropping
        for key in self.dropping:
            assert booked[key].state is State.DRAINING
        for key, stopping in self.moving.items():
            assert booked[key].state is (State.DRAINING if stopping else State.FILLING)
        for key, copy in booked.items():
            if key[1] is not RAM:
                assert copy.holds == self.leases.count(key)

    @invariant()
    def nobody_waits_on_nothing(self) -> None:
        if self.waiting:
            assert self.moving or self.dropping or self.leases, f"{self.waiting} wait, and nothing is under way"

    def teardown(self) -> None:
        """Whatever the state: once clients stop coming and the world answers, everybody is served and nothing is held."""
        if not hasattr(self, "ledger"):
            return
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
                self.carry_out(self.ledger.release(*self.leases.pop()))
            else:
                break
            self.bytes_stay_within_every_budget()
        assert not self.waiting, f"never served: {self.waiting}"
        for copy in self.ledger.copies():
            shared = copy.place is RAM and self.needs[copy.ref].shares_ram
            sharers = sum((copy.ref, place) in self.ready for place in self.budgets if place is not RAM)
            assert copy.holds == (sharers if shared else 0), f"held by nobody: {copy}"


TestLedger = World.TestCase
