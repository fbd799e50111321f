"""The lines of the books: every copy, its bytes, and who holds it. Keeps them consistent; decides nothing.

What stays out: who is loaded and who is dropped (ledger.py), in which order (eviction.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from predictor.model import ModelRef, Tier
from predictor.policy.residency import RAM, Abort, Action, Cause, Copy, Drop, Footprint, Place, Start, State


class Books:
    """Copies by place and model.

    budgets  bytes per place; ``devices`` are those of them that compute
    needs    what each model takes that has a copy, or that somebody wants
    """

    def __init__(self, budgets: Mapping[Place, int]) -> None:
        self.budgets = dict(budgets)
        self.devices = tuple(sorted(place for place in budgets if place.tier is Tier.DEVICE))
        self.needs: dict[ModelRef, Footprint] = {}
        self._copies: dict[Place, dict[ModelRef, Copy]] = {place: {} for place in budgets}
        self._filling: dict[Place, dict[ModelRef, Copy]] = {place: {} for place in budgets}
        self._headrooms: dict[Place, int] = {}  # by place; missing: to be found among the copies when it is asked for
        self._used = dict.fromkeys(budgets, 0)

    # ---- questions -------------------------------------------------------------------------------------------

    def at(self, ref: ModelRef, place: Place) -> Copy | None:
        """The model's copy at ``place``, in whatever state; None: there is none, or no such place."""
        return self._copies[place].get(ref) if place in self._copies else None

    def here(self, place: Place) -> Collection[Copy]:
        """Every copy at ``place``."""
        return self._copies[place].values()

    def filling(self, place: Place) -> Collection[Copy]:
        """Those on their way to ``place``."""
        return self._filling[place].values()

    def all(self) -> Iterable[Copy]:
        """Every line."""
        return chain.from_iterable(copies.values() for copies in self._copies.values())

    def of(self, ref: ModelRef) -> list[Copy]:
        """Every copy of one model."""
        return [copies[ref] for copies in self._copies.values() if ref in copies]

    def above(self, ref: ModelRef) -> list[Copy]:
        """The model's copies on devices."""
        return [copy for place in self.devices if (copy := self._copies[place].get(ref))]

    def used(self, place: Place) -> int:
        """Bytes of all copies at ``place``, whatever their state."""
        return self._used[place]

    def ready_bytes(self, place: Place) -> int:
        """Bytes of the copies at ``place`` that can be used."""
        return sum(copy.size_bytes for copy in self.here(place) if copy.state is State.READY)

    def is_draining(self, ref: ModelRef) -> bool:
        """Whether a copy of the model is on its way out of RAM or a device."""
        return any(copy.state is State.DRAINING and copy.place.tier is not Tier.DISK for copy in self.of(ref))

    def headroom(self, place: Place) -> int:
        """Bytes kept free at ``place`` for the largest computation of any model there."""
        if place not in self._headrooms:
            self._headrooms[place] = max((copy.headroom_bytes for copy in self.here(place)), default=0)
        return self._headrooms[place]

    def missing(self, ref: ModelRef, place: Place) -> int:
        """Bytes that a copy of ``ref`` at ``place`` still lacks there, its own included if it is there; <= 0: none."""
        need = self.needs[ref]
        size_bytes = 0 if ref in self._copies[place] else need.size(place, filling=True)
        headroom_bytes = max(self.headroom(place), need.headroom(place)) if place.tier is Tier.DEVICE else 0
        return self._used[place] + size_bytes + headroom_bytes - self.budgets[place]

    def ready(self, ref: ModelRef) -> Copy | None:
        """The least used ready device copy."""
        best: Copy | None = None
        for place in self.devices:
            copy = self._copies[place].get(ref)
            if copy is not None and copy.state is State.READY and (best is None or copy.holds < best.holds):
                best = copy
        return best

    def is_read(self, copy: Copy) -> bool:
        """Whether a transfer to a device reads this copy."""
        return copy.place == RAM and any(above.state is State.FILLING for above in self.above(copy.ref))

    # ---- changes ---------------------------------------------------------------------------------------------

    def start(self, ref: ModelRef, target: Place, source: Place | None, *, background: bool) -> Start:
        """Reserve the bytes of a copy at ``target`` and hold the one it is made from."""
        need = self.needs[ref]
        assert self.missing(ref, target) <= 0, f"{ref}: {self.missing(ref, target)} bytes missing at {target}"
        assert ref not in self._copies[target], f"{ref} is already at {target}"
        if source is not None:
            self._copies[source][ref].holds += 1
        size_bytes = need.size(target, filling=True)
        headroom_bytes = need.headroom(target)
        copy = Copy(ref, target, size_bytes, State.FILLING, headroom_bytes, source=source, background=background)
        self._copies[target][ref] = self._filling[target][ref] = copy
        self._headrooms[target] = max(self.headroom(target), headroom_bytes)
        self._used[target] += size_bytes
        return Start(ref, target, source)

    def adopt(self, ref: ModelRef, place: Place, size_bytes: int) -> None:
        """Enter a copy that is there already."""
        assert ref not in self._copies[place], f"{ref} is already at {place}"
        self._copies[place][ref] = Copy(ref, place, size_bytes, State.READY)
        self._used[place] += size_bytes

    def resize(self, ref: ModelRef, need: Footprint) -> None:
        """Enter what a model really takes on devices. The place may be over its budget then: the ledger makes room."""
        self.needs[ref] = need
        for copy in self.above(ref):
            size_bytes = need.size(copy.place, filling=copy.state is State.FILLING)
            self._used[copy.place] += size_bytes - copy.size_bytes
            copy.size_bytes = size_bytes
            copy.headroom_bytes = need.activation_bytes
            self._headrooms.pop(copy.place, None)

    def publish(self, copy: Copy, seconds: float, now_s: float) -> None:
        """A transfer that took ``seconds`` ended: the copy can be used, and what only building took is free."""
        copy.state = State.READY
        del self._filling[copy.place][copy.ref]
        copy.load_s, copy.ready_s, copy.used_s = seconds, now_s, now_s
        if copy.place.tier is Tier.DEVICE:
            self.resize(copy.ref, self.needs[copy.ref])

    def drain(self, copy: Copy, cause: Cause) -> list[Action]:
        """No new holds; dropped when the last one ends. A RAM copy takes along what shares it, and its way to disk."""
        assert copy.state is State.READY, f"drained while {copy.state}: {copy}"
        copy.state = State.DRAINING
        copy.cause = cause
        if copy.holds == 0:
            return [Drop(copy.ref, copy.place, cause)]
        actions: list[Action] = []
        if copy.place == RAM:
            for other in self.of(copy.ref):
                if other.place.tier is Tier.DISK and other.state is State.FILLING and other.source == RAM:
                    actions += self.abort(other, cause)
                elif other.place.tier is Tier.DEVICE and other.state is State.READY and self.needs[copy.ref].shares_ram:
                    actions += self.drain(other, cause)
        return actions

    def abort(self, copy: Copy, cause: Cause) -> list[Action]:
        """Stop a transfer."""
        assert copy.state is State.FILLING, f"aborted while {copy.state}: {copy}"
        copy.state = State.DRAINING
        del self._filling[copy.place][copy.ref]
        copy.cause = cause
        return [Abort(copy.ref, copy.place)]

    def unhold(self, copy: Copy) -> list[Action]:
        """One hold ends."""
        copy.holds -= 1
        assert copy.holds >= 0, f"released twice: {copy}"
        return [Drop(copy.ref, copy.place, copy.cause)] if copy.holds == 0 and copy.state is State.DRAINING else []

    def let_go_of_source(self, copy: Copy) -> list[Action]:
        """The copy that ``copy`` was made from is not needed for it any more."""
        if copy.source is None:
            return []
        source = self._copies[copy.source][copy.ref]
        copy.source = None
        return self.unhold(source)

    def forget(self, copy: Copy) -> list[Action]:
        """Take the copy out of the books."""
        actions = self.let_go_of_source(copy)
        del self._copies[copy.place][copy.ref]
        self._filling[copy.place].pop(copy.ref, None)
        if copy.headroom_bytes:
            self._headrooms.pop(copy.place, None)
        self._used[copy.place] -= copy.size_bytes
        return actions
