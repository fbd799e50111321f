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
    """A tier of this pod; ``device`` tells which one, -1 for RAM and -2 for the disk."""

    device: int

    @property
    def tier(self) -> Tier:
        """The kind of place."""
        return Tier.DEVICE if self.device >= 0 else Tier.RAM if self.device == -1 else Tier.DISK

    def __str__(self) -> str:
        return f"device {self.device}" if self.device >= 0 else self.tier.value


RAM = Place(-1)
DISK = Place(-2)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes in each place, and whose it is.

    shares_ram        the device copy is a view of the RAM copy, which must therefore stay as long as it does
    activation_bytes  what its largest computation takes on a device beside the copies there. One computation runs at a
                      time on a device, so a device keeps room for the largest of its models, not for all of them
    disk_bytes        0 where nothing is kept on disk
    building_bytes    what a device copy takes while it is built, where that is more than afterwards
    domain            models whose domains are equal share a worker, which builds one of them at a time
    """

    ram_bytes: int
    device_bytes: int
    shares_ram: bool
    activation_bytes: int = 0
    disk_bytes: int = 0
    tenant: str = ""
    building_bytes: int = 0
    domain: str = ""

    def size(self, place: Place, *, filling: bool = False) -> int:
        """Bytes of a copy at ``place``; ``filling``: while it comes there."""
        if filling and place.tier is Tier.DEVICE:
            return max(self.device_bytes, self.building_bytes)
        return {Tier.DEVICE: self.device_bytes, Tier.RAM: self.ram_bytes, Tier.DISK: self.disk_bytes}[place.tier]

    def headroom(self, place: Place) -> int:
        """Bytes that must stay free at ``place`` for as long as a copy is there."""
        return self.activation_bytes if place.tier is Tier.DEVICE else 0


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a copy goes, with the numbers of that moment.

    kind        ``room`` (a newcomer needs it), ``order`` (unloaded), ``lost`` (its worker died), ``sick`` (it ended one
                itself), ``worker`` (another model needed its worker), ``idle`` (its time to live ran out) or ``damaged``
                (the disk did not give back what was written)
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

    headroom_bytes  what its computations take beside it, see Footprint
    holds           what forbids dropping: requests on a device copy; on a RAM copy, transfers that read it and device
                    copies that share its bytes; on a disk copy, the transfer that reads it
    source          the place it is made from while it still holds the copy there; None: the model store, or let go
    load_s          seconds its load took, measured; what it would cost to bring back
    ready_s         moment it became ready
    used_s          moment a request last used it, else ``ready_s``
    background      a pre-load that nobody waits for, or a copy on its way to disk: room for a request may be taken back
    cause           why it drains; None while it does not
    """

    ref: ModelRef
    place: Place
    size_bytes: int
    state: State
    headroom_bytes: int = 0
    holds: int = 0
    source: Place | None = None
    load_s: float = 0.0
    ready_s: float = 0.0
    used_s: float = 0.0
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
    """Begin a transfer into ``target``: from the copy at ``source``, or from the model store where that is None."""

    ref: ModelRef
    target: Place
    source: Place | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop the background transfer into ``place``; answer with ``failed`` once nothing writes there any more."""

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
