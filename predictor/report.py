"""What a pod tells about itself on its admin port, as one set of types for the pod that tells and the client that reads.

Fields have defaults wherever a client one version older or newer could miss them; unknown fields are ignored.
"""

from __future__ import annotations

import msgspec


class CopyReport(msgspec.Struct, frozen=True):
    """A model's weights in one place. ``state``: filling, ready or draining; ``device`` is -1 in RAM, -2 on disk."""

    tier: str
    device: int
    state: str
    bytes: int
    leases: int = 0

    @property
    def place(self) -> str:
        """``disk``, ``ram`` or ``device 0``."""
        return place(self.tier, self.device)


class ModelReport(msgspec.Struct, frozen=True):
    """One model and its copies.

    rate_per_s       decayed request rate
    load_s           seconds its last load took, S3 to answer-ready; None before the first
    last_used_s_ago  None where nobody asked for it yet
    failure          why its last load failed; "" if it did not
    weights_bytes    the model's files, page by page
    held_bytes       what a device copy holds, weights included unless they are shared with RAM
    activation_bytes what its largest computation takes beside that
    memory_source    where the last two come from: ``measured``, ``stored`` (by an earlier pod) or ``assumed``
    pinned           never dropped for another model
    quarantine       why it has a worker of its own, and does not load now if it does not; "": it is with the others
    """

    name: str
    version: int
    format: str = ""
    copies: tuple[CopyReport, ...] = ()
    rate_per_s: float = 0.0
    loads: int = 0
    load_s: float | None = None
    last_used_s_ago: float | None = None
    failure: str = ""
    tenant: str = ""
    weights_bytes: int = 0
    held_bytes: int = 0
    activation_bytes: int = 0
    memory_source: str = ""
    pinned: bool = False
    quarantine: str = ""


class TierReport(msgspec.Struct, frozen=True):
    """One tier's room.

    reserved_bytes  taken, also by copies on their way; together with the headroom never above the budget
    headroom_bytes  kept free on a device for the largest computation of any model there
    """

    tier: str
    device: int
    budget_bytes: int
    reserved_bytes: int
    ready_bytes: int = 0
    headroom_bytes: int = 0

    @property
    def place(self) -> str:
        """``disk``, ``ram`` or ``device 0``."""
        return place(self.tier, self.device)


class WarmUp(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a pod that came up is with the hot set, and with what it was ordered since.

    state    ``off`` (there is no hot set), ``reading``, ``loading``, ``paused`` (somebody waits), ``done``
    source   where the hot set was found: ``mounted``, ``state prefix`` or ``""``
    wanted   models of the hot set; ``loaded`` of them were, ``skipped`` found no room or nothing colder, ``failed``
    trouble  why there is no hot set, or why demand cannot be written; "": nothing is wrong
    """

    state: str = "off"
    source: str = ""
    wanted: int = 0
    loaded: int = 0
    skipped: int = 0
    failed: int = 0
    trouble: str = ""


class Residency(msgspec.Struct, frozen=True):
    """What is where in one pod at one moment. ``alarms``: what an operator should know, in sentences."""

    tiers: tuple[TierReport, ...]
    models: tuple[ModelReport, ...]
    pod: str = ""
    up_s: float = 0.0
    waiting: int = 0
    in_flight: int = 0
    loads: int = 0
    drops: int = 0
    alarms: tuple[str, ...] = ()
    warm_up: WarmUp = WarmUp()


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to one version of a model.

    at_s         moment, seconds since the epoch
    what         ``loaded``, ``preloaded`` (nobody waited; ``cause`` says who wanted it), ``failed``, ``stopped`` (a pre-load
                 made way), ``dropped``, ``pushed out`` (another one), ``died`` (it ended its worker), ``suspected`` (it may
                 have) or ``recovered`` (it left the quarantine)
    place        ``disk``, ``ram`` or ``device 0``
    seconds      what a load took
    cause        of a drop: ``room``, ``order``, ``lost``, ``sick``, ``worker``, ``idle`` or ``damaged``; of a failure or
                 death: its message
    other        who needed the room, or who was pushed out
    value        what the dropped copy was worth: seconds of waiting saved per second and byte (policy/eviction.py)
    rate_per_s   how often the dropped model was asked for; ``other_rate_per_s``: how often the one that needed room
    """

    at_s: float
    what: str
    place: str
    version: int
    seconds: float = 0.0
    cause: str = ""
    other: str = ""
    value: float = 0.0
    rate_per_s: float = 0.0
    other_rate_per_s: float = 0.0


class Why(msgspec.Struct, frozen=True):
    """What happened to a model, oldest first, as far back as the pod remembers."""

    model: str
    events: tuple[Event, ...] = ()


class LocationReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one location of a declared model fares in a pod. One that was never tried there is left out: it stands by.

    number     see declared.Location
    state      ``loading``, ``loaded``, ``failed`` or ``standby`` (it was loaded, and made room for others)
    version    what answers call it (Hearth-Version); 0 until it is known
    failure    of ``failed``: what went wrong
    permanent  of ``failed``: asking again cannot help, somebody has to change something
    at_s       moment of the failure, seconds since the epoch
    proven     it was loaded in this pod at least once
    """

    number: int
    state: str
    version: int = 0
    failure: str = ""
    permanent: bool = False
    at_s: float = 0.0
    proven: bool = False


class DeclaredReport(msgspec.Struct, frozen=True):
    """A declared model of which the pod has something to tell."""

    name: str
    locations: tuple[LocationReport, ...]


class Happened(msgspec.Struct, frozen=True):
    """An event with its place in the pod's journal. ``number`` counts from 1 at the pod's start."""

    number: int
    model: str
    event: Event


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """Controller → pod: have this model at this tier, behind every request. The same ``number`` twice is one order.

    number   grows with every order that this controller gives a pool (its clock's milliseconds at first)
    version  0: whichever is served
    tier     ``device`` or ``ram``
    why      for people, in a sentence: "asked on pod a, cold on pod b"
    until_s  moment, seconds since the epoch, from which it means nothing any more
    """

    number: int
    name: str
    version: int = 0
    tier: str = "device"
    why: str = ""
    until_s: float = 0.0


class Orders(msgspec.Struct, frozen=True):
    """What ``PUT /hearth/v1/orders`` takes, at most ``MAX_ORDERS`` at once. The answer is a PodReport's ``ordered``."""

    orders: tuple[Order, ...]


MAX_ORDERS = 256


class PodReport(msgspec.Struct, frozen=True):
    """What a controller asks a running pod, again and again: ``GET /hearth/v1/state?since=NUMBER``.

    release   the distribution's version
    state     ``starting``, ``serving`` or ``draining``
    unready   why it should get no requests; "": it should
    serials   file name of a shard of models → serial of what the pod goes by
    scopes    file name of a shard of credentials → serial, the same
    declared  models that are loaded, loading or failed
    happened  events after ``since``, oldest first, as far as the journal reaches back
    asked     inference requests since it began, but those that no model could be asked (400, 404); ``asked_s_ago``: since the
              latest, None: none came yet
    running   of those, inside the pod now, waiting ones included
    warm_up   how far it is with the hot set
    ordered   highest number of an order that it has taken
    """

    pod: str
    release: str = ""
    state: str = "serving"
    unready: str = ""
    up_s: float = 0.0
    serials: dict[str, int] = {}
    scopes: dict[str, int] = {}
    declared: tuple[DeclaredReport, ...] = ()
    happened: tuple[Happened, ...] = ()
    asked: int = 0
    asked_s_ago: float | None = None
    running: int = 0
    warm_up: WarmUp = WarmUp()
    ordered: int = 0


def place(tier: str, device: int) -> str:
    """A tier in words: there is one disk and one RAM, and possibly several devices."""
    return tier if device < 0 else f"{tier} {device}"
