"""What happened to a model, in sentences an operator reads at night. Pure: the numbers come from the pod."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from predictor import human
from predictor.report import Event

PER_HOUR_AND_MB: Final = 3600 * 1e6
"""Values are seconds of waiting saved per second and byte; nobody thinks in those."""


def lines(events: Sequence[Event]) -> list[str]:
    """One line an event, in this machine's time zone."""
    return [f"{_moment(event.at_s)}  {_sentence(event)}" for event in events]


def _moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}"


def _sentence(event: Event) -> str:
    version = f"version {event.version}"
    match event.what:
        case "loaded":
            return f"{version} came into {event.place} in {human.span(event.seconds)}"
        case "failed":
            return f"{version} could not come into {event.place}: {event.cause}"
        case "stopped":
            return f"{version}: the pre-load into {event.place} made way for a request"
        case "pushed out":
            return f"{version} needed room in {event.place} and pushed out {event.other}, which {_worth(event)}"
        case "dropped":
            return f"{version} left {event.place}: {_reason(event)}"
        case _:
            return f"{version}: {event.what} ({event.place})"


def _reason(event: Event) -> str:
    match event.cause:
        case "room":
            asked = human.rate(event.other_rate_per_s)
            return f"{event.other} (asked for {asked}) needed the room; this copy {_worth(event)}"
        case "order":
            return "somebody unloaded it"
        case "lost":
            return "its worker process died; the next request brings it back"
        case _:
            return event.cause


def _worth(event: Event) -> str:
    worth = event.value * PER_HOUR_AND_MB
    return f"was asked for {human.rate(event.rate_per_s)} and saved {worth:.2g} s of waiting per hour and MB"
