"""What ``hearth ps`` says of hot sets and of pods that warm up, in words."""

from __future__ import annotations

import msgspec

from predictor import human
from predictor.report import WarmUp


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


def warm_up_line(pod: str, told: WarmUp | None) -> str:
    """How far a pod is with the hot set; "": there is nothing to say."""
    if told is None or (told.state == "off" and not told.trouble):
        return ""
    parts = [f"{pod}: warm-up {'paused: somebody waits' if told.state == 'paused' else told.state}"]
    if told.wanted:
        parts.append(f"{told.loaded} of {told.wanted} models of the hot set loaded")
    parts += [f"{count} {word}" for count, word in ((told.skipped, "without room"), (told.failed, "failed")) if count]
    return ", ".join(parts) + (f"; {told.trouble}" if told.trouble else "")
