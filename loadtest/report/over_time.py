"""A run along its time axis: rates, quantiles and shares in steps of equal width, and what was resident when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.report.figures import ranked
from loadtest.report.recorded import HOT, TIERS, UNTOLD, Floats, Requests

MAX_STEPS: Final = 120
_WIDTHS_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)

# What a cell of the heat map can say, in rising order of what is told first. A place in TIERS fits below FAILED.
NOTHING: Final = -2
KEPT: Final = -1
FAILED: Final = len(TIERS)


@dataclass(frozen=True)
class Steps:
    """Equal steps from the common start. ``edges_s`` is one longer than there are steps."""

    width_s: float
    edges_s: Floats

    @property
    def count(self) -> int:
        """How many."""
        return self.edges_s.size - 1

    def place(self, at_s: Floats) -> NDArray[np.int64]:
        """The step in which each moment lies; moments beyond the ends go to the nearest step."""
        return np.clip((at_s / self.width_s).astype(np.int64), 0, self.count - 1)


def steps(duration_s: float, at_most: int = MAX_STEPS) -> Steps:
    """A round width with which ``duration_s`` takes ``at_most`` so many steps."""
    fitting = (width_s for width_s in _WIDTHS_S if duration_s <= width_s * at_most)
    width_s = float(next(fitting, duration_s / at_most))
    count = max(int(np.ceil(duration_s / width_s)), 1)
    return Steps(width_s, np.arange(count + 1, dtype=np.float64) * width_s)


def rate_per_s(at_s: Floats, axis: Steps) -> Floats:
    """How many a second, in each step; moments that are nan never came."""
    return np.bincount(axis.place(at_s[np.isfinite(at_s)]), minlength=axis.count) / axis.width_s


def quantiles(values: Floats, at_s: Floats, axis: Steps, percents: tuple[float, ...]) -> NDArray[np.float64]:
    """A row for each percent, a column for each step: nearest-rank quantiles; nan where there is nothing or it is infinite."""
    place = axis.place(at_s)
    order = np.lexsort((values, place))
    edges = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=axis.count))])
    found = np.full((len(percents), axis.count), np.nan)
    for step in range(axis.count):
        part = values[order[edges[step] : edges[step + 1]]]
        for row, percent in enumerate(percents):
            value = ranked(part, percent)
            found[row, step] = np.nan if value is None else value
    return found


def shares(requests: Requests, axis: Steps) -> NDArray[np.float64]:
    """A row for each start tier: the share of the step's requests (by due time) that started there; nan in empty steps."""
    place = axis.place(requests.due_s)
    total = np.bincount(place, minlength=axis.count).astype(float)
    rows = [np.bincount(place[requests.tier == tier], minlength=axis.count) for tier in range(len(TIERS))]
    with np.errstate(invalid="ignore"):
        return np.stack(rows) / np.where(total > 0, total, np.nan)


def answering_pods(requests: Requests, axis: Steps) -> Floats:
    """How many different pods answered what was due in each step."""
    codes = requests.codes["pod"].astype(np.int64)
    named = codes > 0
    pairs = np.unique(codes[named] * axis.count + axis.place(requests.due_s[named]))
    return np.bincount(pairs % axis.count, minlength=axis.count).astype(float)


def most_asked(requests: Requests, limit: int) -> NDArray[np.int64]:
    """The codes of the models with the most requests, most first, at most ``limit``; ties by name."""
    counts = np.bincount(requests.codes["model"], minlength=len(requests.names["model"]))
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0][:limit]


def residency(requests: Requests, axis: Steps, models: NDArray[np.int64]) -> NDArray[np.int8]:
    """What clients saw of each of ``models`` (rows) in each step: the coldest start, FAILED above all.

    Steps without a request: KEPT between two requests of which the later one was hot (the model was there when it came, and
    nobody knows of a time between when it was not), NOTHING else.
    """
    cells = np.full((models.size, axis.count), NOTHING, np.int8)
    rows = np.full(len(requests.names["model"]), -1, np.int64)
    rows[models] = np.arange(models.size)
    row = rows[requests.codes["model"]]
    seen = np.where(np.isfinite(requests.latency_s), requests.tier, FAILED).astype(np.int8)
    mine = row >= 0
    place = axis.place(requests.due_s)
    np.maximum.at(cells, (row[mine], place[mine]), seen[mine])
    first_hot = _first_is_hot(row, place, requests.due_s, seen, cells.shape)
    for line, hot in zip(cells, first_hot, strict=True):
        asked = np.flatnonzero(line != NOTHING)
        for before, after in pairwise(asked):
            if hot[after] and line[before] not in (FAILED, UNTOLD):
                line[before + 1 : after] = KEPT
    return cells


def _first_is_hot(
    row: NDArray[np.int64],
    place: NDArray[np.int64],
    due_s: Floats,
    seen: NDArray[np.int8],
    shape: tuple[int, ...],
) -> NDArray[np.bool_]:
    """Whether the first request of each cell was hot: the model was there before the step began."""
    mine = row >= 0
    cell = row[mine] * shape[1] + place[mine]
    order = np.lexsort((seen[mine], due_s[mine], cell))
    firsts, starts = np.unique(cell[order], return_index=True)
    hot = np.zeros(shape, np.bool_)
    hot.flat[firsts] = seen[mine][order][starts] == HOT
    return hot
