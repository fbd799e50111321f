"""The eviction policy alone: one place, loads that take no time but count, the same arrivals for every rival.

Production parts: Demand, Room with its victims, Books and Rules. Replaced by the simplest thing: the ledger's queue, tiers
and transfers, because all that is asked here is which copies stay. ``min_residency_s`` is 0: where loads take no time,
nothing can be pushed out before it has answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.simulation.arrivals import Arrivals
from loadtest.simulation.catalogue import Model
from loadtest.simulation.rivals import Foresight, Recency, RecencyRoom
from predictor.model import ModelRef
from predictor.policy.books import Books
from predictor.policy.demand import Demand
from predictor.policy.eviction import Rules
from predictor.policy.residency import RAM, Drop, Footprint, Place
from predictor.policy.room import Room

DEVICE: Final = Place(0)
POLICIES: Final = ("hearth", "lru", "belady")


@dataclass(frozen=True)
class Loads:
    """What a policy loaded.

    first_s   seconds of the first load of each model, which nothing avoids
    reload_s  of all others
    """

    first_s: float
    reload_s: float
    loads: int


def ref_of(model: Model) -> ModelRef:
    """Every simulated model has one version."""
    return ModelRef("sim", model.name, 1)


def replay(arrivals: Arrivals, models: Sequence[Model], capacity_bytes: int, policy: str = "hearth") -> Loads:
    """Ask for every line in turn; what is not there is loaded at once, into room that the policy makes.

    Raises AssertionError for a model that is larger than the capacity.
    """
    demand = {"hearth": Demand, "lru": Recency, "belady": Foresight}[policy]()
    books = Books({RAM: 0, DEVICE: capacity_bytes})
    room = (RecencyRoom if policy == "lru" else Room)(books, demand, Rules(min_residency_s=0.0), ())
    refs = [ref_of(model) for model in models]
    for ref, model in zip(refs, models, strict=True):
        books.needs[ref] = Footprint(0, model.size_bytes, shares_ram=False)
    seen: set[int] = set()
    first_s = reload_s = 0.0
    loads = 0
    next_s = arrivals.next_s().tolist() if isinstance(demand, Foresight) else None
    lines = zip(arrivals.due_s.tolist(), arrivals.model.tolist(), arrivals.count.tolist(), strict=True)
    for line, (now_s, number, count) in enumerate(lines):
        ref = refs[number]
        if isinstance(demand, Foresight):
            assert next_s is not None, "the future is known to foresight alone"
            demand.next_s[ref] = next_s[line]
        demand.note(ref, now_s, count)
        if books.at(ref, DEVICE) is not None:
            continue
        loads += 1
        if number in seen:
            reload_s += models[number].load_s
        else:
            seen.add(number)
            first_s += models[number].load_s
        if books.missing(ref, DEVICE) > 0:
            for action in room.make(DEVICE, ref, now_s):
                assert isinstance(action, Drop), f"to be dropped: {action}"
                gone = books.at(action.ref, DEVICE)
                assert gone is not None, f"dropped without a copy: {action}"
                books.forget(gone)
        books.start(ref, DEVICE, None, background=False)
        copy = books.at(ref, DEVICE)
        assert copy is not None, f"just started: {ref}"
        books.publish(copy, models[number].load_s, now_s)
    return Loads(first_s, reload_s, loads)
