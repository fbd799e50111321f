"""Who asks when: a trace or a run's record as arrays, with many requests of one model in a few seconds as one line.

A minute's count is spread uniformly at random over the minute (seeded): up to ``SINGLY`` requests one by one, more as
``SINGLY`` lines, one in every ``60 / SINGLY`` seconds, each with its share of the count. A slot of ServeGen, ten minutes, has
ten times as many. So a day with 18 million requests is three million lines, and no gap that a cache could notice is lost:
models asked that often are never dropped between two of their lines by any policy that is worth comparing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.traces import MINUTE_S, Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SINGLY: Final = 16


@dataclass(frozen=True)
class Arrivals:
    """Lines in the order of their moments, a column each.

    due_s    of the first request of the line, seconds from the start
    model    number of the model it asks for
    count    requests of the line
    span_s   over which they are spread; 0 where it is one
    models   how many models there are; some may not be asked
    """

    due_s: Floats
    model: Ints
    count: Ints
    span_s: Floats
    models: int
    told: str = ""

    def __len__(self) -> int:
        return int(self.due_s.size)

    @property
    def requests(self) -> int:
        """All of them."""
        return int(self.count.sum())

    def between(self, from_s: float, until_s: float) -> Arrivals:
        """Those of a stretch, which then begins at 0."""
        first, last = np.searchsorted(self.due_s, [from_s, until_s])
        part = slice(int(first), int(last))
        return Arrivals(
            self.due_s[part] - from_s, self.model[part], self.count[part], self.span_s[part], self.models, self.told
        )

    def next_s(self) -> Floats:
        """For each line the moment of the same model's next one; infinity: it is asked no more."""
        order = np.lexsort((self.due_s, self.model))
        later = np.full(len(self), np.inf)
        same = self.model[order][1:] == self.model[order][:-1]
        later[order[:-1][same]] = self.due_s[order[1:][same]]
        return later


def ordered(due_s: Floats, model: Ints, count: Ints, span_s: Floats, *, models: int, told: str = "") -> Arrivals:
    """Lines that came in any order."""
    order = np.argsort(due_s, kind="stable")
    return Arrivals(due_s[order], model[order], count[order], span_s[order], models, told)


def of_trace(trace: Trace, seed: int, *, models: int = 0, zipf_exponent: float = 1.0) -> Arrivals:
    """A whole trace, one model for each of its functions; where it has none, ``models`` drawn by Zipf's law."""
    if not trace.by_function:
        moments = list(
            trace.moments(from_s=0.0, duration_s=np.inf, targets=models or 1, zipf_exponent=zipf_exponent, seed=seed)
        )
        due_s = np.array([at_s for at_s, _ in moments])
        model = np.array([target for _, target in moments], np.int64)
        return ordered(
            due_s, model, np.ones(due_s.size, np.int64), np.zeros(due_s.size), models=models or 1, told=trace.spreading
        )
    start_s, function, amount = _slots(trace, seed)
    spread = np.random.Generator(np.random.PCG64(seed))
    pieces = max(SINGLY, round(SINGLY * trace.slot_s / MINUTE_S))
    few = amount <= pieces
    singly = np.repeat(np.flatnonzero(few), amount[few])
    many = np.flatnonzero(~few)
    step_s = trace.slot_s / pieces
    steps = np.arange(pieces)
    bursts_s = start_s[many, None] + step_s * (steps + spread.random((many.size, pieces)))
    shares = amount[many, None] // pieces + (steps < amount[many, None] % pieces)
    return ordered(
        np.concatenate([start_s[singly] + trace.slot_s * spread.random(singly.size), bursts_s.ravel()]),
        np.concatenate([function[singly], np.repeat(function[many], pieces)]),
        np.concatenate([np.ones(singly.size, np.int64), shares.ravel()]),
        np.concatenate([np.zeros(singly.size), np.where(shares.ravel() > 1, step_s / 2, 0.0)]),
        models=trace.functions,
        told=trace.spreading,
    )


def _slots(trace: Trace, seed: int) -> tuple[Floats, Ints, Ints]:
    """Start, function and number of arrivals of every slot. Rates become counts: Poisson's, widened by the gaps' own spread."""
    rows = [(slot.start_s, function, slot.amount, slot.cv) for function, own in enumerate(trace.by_function) for slot in own]
    table = np.array(rows)
    amount = table[:, 2].copy()
    drawn = table[:, 3] > 0
    chance = np.random.Generator(np.random.PCG64([seed, 1]))
    mean = amount[drawn] * trace.slot_s
    # Of a renewal process the count of a long slot has variance cv² x mean; a gamma-Poisson mixture has that where cv > 1.
    spread = np.maximum(table[drawn, 3] ** 2 - 1.0, 1e-9)
    amount[drawn] = chance.poisson(chance.gamma(mean / spread, spread))
    return table[:, 0], table[:, 1].astype(np.int64), amount.astype(np.int64)


def of_run(folder: Path, *, beside: Collection[str] = ()) -> tuple[Arrivals, tuple[str, ...]]:
    """The schedule that a load test recorded, and its models' names. ``beside``: names of models that it may not ask for."""
    from loadtest import records  # noqa: PLC0415 (pyarrow: half a second)

    table = records.read(folder)
    asked = np.array(table["model"].to_pylist(), dtype=object).astype(str)
    names = np.unique(np.concatenate([asked, np.array([*beside], dtype=object).astype(str)]))
    model = np.searchsorted(names, asked).astype(np.int64)
    due_s = table["due_s"].to_numpy()
    ones = np.ones(due_s.size, np.int64)
    return ordered(due_s, model, ones, np.zeros(due_s.size), models=names.size, told="as recorded"), tuple(names.tolist())


class Earlier(NamedTuple):
    """A request of an earlier run. ``load_s``: what its load from the model store took; 0.0: nobody measured one."""

    at_s: float
    model: str
    load_s: float = 0.0


def earlier(folders: Sequence[Path], run: Path) -> list[Earlier]:
    """What runs before ``run`` asked, in seconds from its start: negative. Raises ValueError: one does not say when it was."""
    from loadtest import records  # noqa: PLC0415 (as above)

    stages = [f"timing_{stage}_ms" for stage in ("fetch", "device", "build")]
    found: list[Earlier] = []
    for folder in folders:
        try:
            begins_s, zero_s = (json.loads((one / "run.json").read_text())["started_unix_s"] for one in (folder, run))
        except KeyError:
            raise ValueError(f"of {folder} or {run} nobody recorded when it began") from None
        for row in records.read(folder).to_pylist():
            load_s = sum(row[stage] or 0.0 for stage in stages) / 1e3 if row["start"] == "s3" else 0.0
            found.append(Earlier(begins_s - zero_s + row["due_s"], row["model"], load_s))
    return sorted(found)
