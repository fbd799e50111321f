"""What a server's /metrics say about the device: seconds inside each model, batches and rows, over a window. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SAMPLE: Final = re.compile(r'^(hearth_\w+)\{model="([^"]*)"\} (\S+)', re.MULTILINE)
SECONDS: Final = "hearth_compute_seconds"
ROWS: Final = "hearth_batch_rows"


@dataclass(frozen=True)
class Compute:
    """What a model had of the device.

    device_s  inside the model
    batches   how often it ran
    rows      in all of them; None: the server does not count rows
    """

    device_s: float
    batches: float
    rows: float | None

    @property
    def batch_s(self) -> float:
        """Mean of one batch; 0.0: none ended."""
        return self.device_s / self.batches if self.batches else 0.0

    @property
    def batch_rows(self) -> float | None:
        """Mean of one batch; None: not counted, or none ended."""
        return self.rows / self.batches if self.rows is not None and self.batches else None


def read(exposition: str) -> dict[str, Compute]:
    """Each model's account since the server's start, from the text of /metrics."""
    values = {(name, model): float(value) for name, model, value in SAMPLE.findall(exposition)}
    return {
        model: Compute(seconds, values.get((f"{SECONDS}_count", model), 0.0), values.get((f"{ROWS}_sum", model)))
        for (name, model), seconds in values.items()
        if name == f"{SECONDS}_sum"
    }


def between(before: Mapping[str, Compute], after: Mapping[str, Compute]) -> dict[str, Compute]:
    """What happened from one reading to the next. A model that first computed in between had nothing before."""
    nothing = Compute(0.0, 0.0, None)
    return {model: _since(before.get(model, nothing), now) for model, now in after.items()}


def _since(then: Compute, now: Compute) -> Compute:
    rows = None if now.rows is None else now.rows - (then.rows or 0.0)
    return Compute(now.device_s - then.device_s, now.batches - then.batches, rows)


def together(one: Compute, other: Compute) -> Compute:
    """The sum of two windows."""
    rows = None if one.rows is None or other.rows is None else one.rows + other.rows
    return Compute(one.device_s + other.device_s, one.batches + other.batches, rows)
