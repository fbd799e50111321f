"""`hearth why`: events in sentences."""

from __future__ import annotations

import pytest

from predictor.report import Event
from predictor.why import lines

VALUE = 2.0 / 3600 / 1e6
WORTH = "was asked for 1.0/s and saved 2 s of waiting per hour and MB"


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (Event(0.5, "loaded", "ram", 3, seconds=2.0), "version 3 came into ram in 2.0 s"),
        (
            Event(0.5, "preloaded", "ram", 3, seconds=2.0, cause="hot set"),
            "version 3 came into ram in 2.0 s before anybody waited (hot set)",
        ),
        (Event(0.5, "failed", "device 0", 3, cause="no layer"), "version 3 could not come into device 0: no layer"),
        (Event(0.5, "loaded", "disk", 3, seconds=2.0), "version 3 was written to disk in 2.0 s"),
        (Event(0.5, "failed", "disk", 3, cause="no space"), "version 3 could not be written to disk: no space"),
        (Event(0.5, "dropped", "ram", 3, cause="idle"), "version 3 left ram: nobody asked for it within HEARTH_IDLE_TTL_S"),
        (
            Event(0.5, "dropped", "disk", 3, cause="damaged"),
            "version 3 left disk: the disk did not give back what was written; the model store did",
        ),
        (Event(0.5, "stopped", "ram", 3), "version 3: the pre-load into ram made way for a request"),
        (Event(0.5, "dropped", "ram", 3, cause="order"), "version 3 left ram: somebody unloaded it"),
        (
            Event(0.5, "dropped", "device 1", 3, cause="lost"),
            "version 3 left device 1: its worker process ended; it comes back from RAM",
        ),
        (
            Event(0.5, "dropped", "ram", 3, cause="room", other="b:1", value=VALUE, rate_per_s=1.0, other_rate_per_s=2.0),
            f"version 3 left ram: b:1 (asked for 2.0/s) needed the room; this copy {WORTH}",
        ),
        (
            Event(0.5, "pushed out", "ram", 3, cause="room", other="a:1", value=VALUE, rate_per_s=1.0),
            f"version 3 needed room in ram and pushed out a:1, which {WORTH}",
        ),
        (Event(0.5, "renamed", "ram", 3), "version 3: renamed (ram)"),
    ],
)
def test_every_event_is_a_sentence(event: Event, sentence: str) -> None:
    (line,) = lines([event])
    moment, told = line[:23], line[25:]
    assert moment.endswith(".500")
    assert told == sentence
