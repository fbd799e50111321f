"""What happened to a model, in sentences an operator reads at night. Pure: the numbers come from the pod."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from predictor import human
from predictor.model import ModelRef, Tier
from predictor.policy.admission import Profile
from predictor.policy.churn import WINDOW_S, Alarm
from predictor.policy.residency import Footprint, Place
from predictor.report import Event

DISK: Final = "disk"

DRAINS: Final = "this pod drains and loads no model any more: ask again, and another one answers"

REASONS: Final = {
    "order": "somebody unloaded it",
    "lost": "its worker process ended; it comes back from RAM",
    "sick": "it ended a worker, and comes back into one of its own",
    "worker": "another model needed a worker, and there may be no more of them (HEARTH_MAX_WORKERS)",
    "idle": "nobody asked for it within HEARTH_IDLE_TTL_S",
    "damaged": "the disk did not give back what was written; the model store did",
}
"""Why a copy was dropped, by Cause.kind; ``room`` has figures."""

HEALTH: Final = {
    "died": "ended its worker",
    "suspected": "was, as another suspect was, at work in a worker that ended",
    "recovered": "left the quarantine",
}

PER_HOUR_AND_MB: Final = 3600 * 1e6
"""Values are seconds of waiting saved per second and byte; nobody thinks in those."""


def lines(events: Sequence[Event]) -> list[str]:
    """One line an event, in this machine's time zone."""
    return [f"{_moment(event.at_s)}  {_sentence(event)}" for event in events]


def churning(alarm: Alarm) -> str:
    """What goes round in circles, and what helps."""
    names = ", ".join(str(ref) for ref in alarm.most)
    more = f" and {alarm.models - len(alarm.most)} more" if alarm.models > len(alarm.most) else ""
    return (
        f"models push each other out of {alarm.place}: {alarm.returns} loads within {WINDOW_S:.0f} s of models that had only "
        f"just been dropped, {human.span(alarm.seconds)} of loading ({names}{more}): raise "
        f"HEARTH_{alarm.place.tier.name}_BUDGET_BYTES, pin what must be fast (hearth pin), or split the pool"
    )


def crowded(waiting: int) -> str:
    """Why a request may not wait for its model."""
    return f"{waiting} requests already wait for models to load (HEARTH_MAX_WAITING): try again later"


def late(ref: ModelRef, waited_s: float) -> str:
    """Why a request does not wait for its model any longer."""
    return f"model {ref} was not ready within {waited_s:.1f} s; its load goes on, so a retry may find it ready"


def too_large(ref: ModelRef, need: Footprint, profile: Profile, elements: int, *, room: tuple[Place, int, int]) -> str:
    """Why a model, or a request of so many input elements, can never have the room it needs.

    room  the place, the bytes that can be had there, and its budget
    """
    place, available_bytes, budget_bytes = room
    need_bytes = need.size(place, filling=True) + need.headroom(place)
    of_which = ""
    if place.tier is Tier.DEVICE:
        request = f" a request of {elements} elements" if elements > profile.limit >= 0 else ""
        built = f", {need.building_bytes} to be built" if need.building_bytes > need.device_bytes else ""
        of_which = f" ({need.device_bytes} to stay{built}, {need.activation_bytes} to compute{request}, {profile.source})"
    kept = f", {budget_bytes - available_bytes} of it kept by HEARTH_TENANT_FLOORS" if available_bytes < budget_bytes else ""
    return (
        f"model {ref} needs {need_bytes} bytes in {place}{of_which}, the budget there is {budget_bytes} bytes{kept}: "
        f"raise HEARTH_{place.tier.name}_BUDGET_BYTES or use a larger pool"
    )


def _moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}"


def _sentence(event: Event) -> str:
    version = f"version {event.version}"
    match event.what:
        case "loaded" | "preloaded":
            way = "was written to" if event.place == DISK else "came into"
            ahead = f" before anybody waited ({event.cause})" if event.what == "preloaded" else ""
            return f"{version} {way} {event.place} in {human.span(event.seconds)}{ahead}"
        case "failed":
            way = "be written to" if event.place == DISK else "come into"
            return f"{version} could not {way} {event.place}: {event.cause}"
        case "stopped":
            return f"{version}: the pre-load into {event.place} made way for a request"
        case "pushed out":
            return f"{version} needed room in {event.place} and pushed out {event.other}, which {_worth(event)}"
        case "dropped":
            return f"{version} left {event.place}: {_reason(event)}"
        case _:
            told = HEALTH.get(event.what, "")
            return f"{version} {told} in {event.place}: {event.cause}" if told else f"{version}: {event.what} ({event.place})"


def _reason(event: Event) -> str:
    if event.cause == "room":
        asked = human.rate(event.other_rate_per_s)
        return f"{event.other} (asked for {asked}) needed the room; this copy {_worth(event)}"
    return REASONS.get(event.cause, event.cause)


def _worth(event: Event) -> str:
    worth = event.value * PER_HOUR_AND_MB
    return f"was asked for {human.rate(event.rate_per_s)} and saved {worth:.2g} s of waiting per hour and MB"
