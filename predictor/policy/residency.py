"""One copy of one model in one place, and the plain data that decisions are made of.

    ABSENT ──Start──▶ FILLING ──finished──▶ READY ──▶ DRAINING ──dropped──▶ ABSENT
                         └──────────── failed ───────────────────────────────▲

ABSENT is not stored: a copy that is not in the books is absent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from predictor.model import ModelRef, Tier


class State(enum.Enum):
    """Where a copy is in its life. Its bytes count in every state."""

    FILLING = "filling"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A tier of this pod; ``device`` tells which one, -1 for RAM."""

    device: int

    @property
    def tier(self) -> Tier:
        """The kind of place."""
        return Tier.RAM if self.device < 0 else Tier.DEVICE

    def __str__(self) -> str:
        return "ram" if self.device < 0 else f"device {self.device}"


RAM = Place(-1)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes in each place.

    shares_ram  the device copy is a view of the RAM copy, which must therefore stay as long as it does
    """

    ram_bytes: int
    device_bytes: int
    shares_ram: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a copy goes, with the numbers of that moment.

    kind        ``room`` (a newcomer needs it), ``order`` (unloaded) or ``lost`` (its worker died)
    value       what the copy was worth: eviction.value
    rate_per_s  how often its model was asked for
    newcomer    who needed the room, and how often that one was asked for; None where nobody did
    """

    kind: str
    value: float
    rate_per_s: float
    newcomer: ModelRef | None = None
    newcomer_rate_per_s: float = 0.0


@dataclass(slots=True)
class Copy:
    """One line of the books.

    holds         what forbids dropping: requests on a device copy; on a RAM copy, transfers that
                  read it and device copies that share its bytes
    holds_source  a device copy that still holds the RAM copy it is made from
    load_s        seconds its load took, measured; what it would cost to bring back
    background    a pre-load that nobody waits for: room for a request may be taken back from it
    cause         why it drains; None while it does not
    """

    ref: ModelRef
    place: Place
    size_bytes: int
    state: State
    holds: int = 0
    holds_source: bool = False
    load_s: float = 0.0
    background: bool = False
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The waiter's lease begins, on the copy at ``place``."""

    ticket: int
    ref: ModelRef
    place: Place


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a transfer into ``target``: from RAM when that is a device, from the model store otherwise."""

    ref: ModelRef
    target: Place


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop the pre-load into ``place``; answer with ``finished(ok=False)`` once nothing writes there any more."""

    ref: ModelRef
    place: Place


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the copy's bytes, then say ``dropped``. ``cause`` is for people: two Drops of one copy are equal."""

    ref: ModelRef
    place: Place
    cause: Cause | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refuse:
    """The waiter gets an error: its model's transfer failed."""

    ticket: int
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Skip:
    """The pre-load ends before ``place``: it found no free room there, and it never makes any."""

    ref: ModelRef
    place: Place


Action = Grant | Start | Abort | Drop | Refuse | Skip
Plan = tuple[Action, ...]
