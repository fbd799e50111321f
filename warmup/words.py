"""What ``hearth ps`` says of hot sets, in words."""

from __future__ import annotations

import msgspec

from predictor import human


class HotSet(msgspec.Struct, frozen=True):
    """What a pool's next pod begins with. ``at_s``: moment of its rates, seconds since the epoch."""

    models: int = 0
    size_bytes: int = 0
    at_s: float = 0.0


def hot_set_words(hot_set: HotSet | None, now_s: float) -> str:
    """One cell. None: there is none, or an older controller does not tell."""
    if hot_set is None:
        return "-"
    return f"{hot_set.models} models, {human.size(hot_set.size_bytes)}, {human.span(max(0.0, now_s - hot_set.at_s))} old"
