"""``make bench-policy``: eviction, wake-up and retention on public traces, judged against the bars of docs/benchmarks.md.

Settings were chosen on the trace ``AZURE_8H`` alone; every other one is run with them as they are, and the table says so.
The traces are not part of the project: ``--traces`` names a folder with the three files (docs/simulate.md says whose they are).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from loadtest import traces
from loadtest.draws import Draw
from loadtest.simulation import arrivals, catalogue, retention_bench
from loadtest.simulation.arrivals import Arrivals
from loadtest.simulation.catalogue import Model, Span
from loadtest.simulation.eviction_bench import Loads, replay
from predictor.heat import Warmth
from predictor.policy.demand import Demand
from predictor.policy.hotset import ordered

AZURE_8H: Final = "azure2019_500fn_8h_counts.csv"
AZURE_24H: Final = "azure2019_1250fn_24h_counts.csv.gz"
SERVEGEN: Final = "servegen_clients_10min.csv.gz"

SEEDS: Final = (1, 2, 3, 4, 5)
SIZES_BYTES: Final = (250_000_000, 28_000_000_000)
LOAD: Final = Span(1.0, 0.5)
SHARES: Final = (0.05, 0.10, 0.20, 0.40)
SERVEGEN_S: Final = 86_400.0
"""Of its 14 days the first one: 144 slots of 422 clients, 227 million requests."""

WAKES: Final = 40
NEXT_S: Final = 600.0
SEEN_S: Final = 3_600.0
"""A pool has been asked for so long, at least, before it wakes."""


@dataclass(frozen=True)
class Line:
    """One line of the table. ``bar``: not above it; None: only told."""

    what: str
    trace: str
    found: float
    least: float
    most: float
    bar: float | None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether the mean over the seeds is above the bar."""
        return self.bar is not None and self.found > self.bar


@cache
def _arrivals(path: Path, seed: int) -> Arrivals:
    found = arrivals.of_trace(traces.read(path), seed)
    return found.between(0.0, SERVEGEN_S) if path.name == SERVEGEN else found


def _models(count: int, seed: int) -> tuple[Model, ...]:
    return catalogue.drawn(count, SIZES_BYTES, LOAD, Span(0.0), serve_s=0.0, seed=seed)


def _loads(task: tuple[Path, int, float, str]) -> Loads:
    path, seed, share, policy = task
    asked = _arrivals(path, 1)
    models = _models(asked.models, seed)
    return replay(asked, models, round(share * sum(model.size_bytes for model in models)), policy)


def eviction(folder: Path, name: str, shares: Sequence[float], jobs: int, *, bound: bool) -> Iterator[Line]:
    """Reload seconds of Hearth's value over those of least recently used, by capacity."""
    policies = ("hearth", "lru", *(("belady",) if bound else ()))
    tasks = [(folder / name, seed, share, policy) for share in shares for seed in SEEDS for policy in policies]
    with ProcessPoolExecutor(jobs) as pool:
        found = dict(zip(tasks, pool.map(_loads, tasks), strict=True))
    for share in shares:
        for policy in policies:
            if policy == "lru":
                continue
            pairs = [(found[folder / name, seed, share, policy], found[folder / name, seed, share, "lru"]) for seed in SEEDS]
            again = [one.reload_s / other.reload_s for one, other in pairs]
            every = [(one.reload_s + one.first_s) / (other.reload_s + other.first_s) for one, other in pairs]
            bar = None
            if policy == "hearth":
                bar = {0.10: 0.70, 0.20: 0.55}.get(share, 1.0) if name == AZURE_8H else 1.0
            told = f"{policy}: reload seconds / LRU's, {share:.0%} capacity"
            yield Line(told, name, _mean(again), min(again), max(again), bar, f"{_mean(every):.3f} with first loads")


def wakeup(folder: Path) -> Iterator[Line]:
    """A pod that comes up at a random moment: seconds of loading at the first touch of models in the next ten minutes."""
    asked = _arrivals(folder / AZURE_8H, 1)
    draw = Draw(1, "wakes")
    last_s = float(asked.due_s[-1]) - NEXT_S
    moments = sorted(SEEN_S + (last_s - SEEN_S) * draw.uniform() for _ in range(WAKES))
    heard, line = Demand(), 0
    totals: dict[str, list[list[float]]] = {}
    for now_s in moments:
        until = int(np.searchsorted(asked.due_s, now_s))
        for at_s, number, count in zip(
            asked.due_s[line:until].tolist(), asked.model[line:until].tolist(), asked.count[line:until].tolist(), strict=True
        ):
            heard.note(number, at_s, count)
        line = until
        soon = asked.between(now_s, now_s + NEXT_S)
        touched = set(soon.model.tolist())
        for seed in SEEDS:
            models = _models(asked.models, seed)
            capacity_bytes = round(0.20 * sum(model.size_bytes for model in models))
            every_s = sum(models[number].load_s for number in touched)
            clair = sorted(touched, key=lambda number: -models[number].load_s / models[number].size_bytes)
            for name, order in (("hearth", _hot_set(heard, models, now_s)), ("knows the future", clair)):
                kept = _filled(order, models, capacity_bytes)
                left_s = every_s - sum(models[number].load_s for number in kept & touched)
                totals.setdefault(name, [[] for _ in SEEDS])[seed - 1] += [left_s / every_s]
    for name, by_seed in totals.items():
        means = [_mean(one) for one in by_seed]
        bar = 0.65 if name == "hearth" else None
        told = f"{name}: first-touch load seconds after a wake / without a hot set, 20% capacity"
        yield Line(told, AZURE_8H, _mean(means), min(means), max(means), bar, f"{WAKES} moments")


def _hot_set(heard: Demand, models: Sequence[Model], now_s: float) -> list[int]:
    """As the controller publishes it."""
    told = [
        Warmth(str(key), 1, fast, slow, models[int(str(key))].load_s, models[int(str(key))].size_bytes)
        for key, fast, slow in heard.rates(now_s)
    ]
    return [int(warmth.name) for warmth in ordered(told)]


def _filled(order: Sequence[int], models: Sequence[Model], capacity_bytes: int) -> set[int]:
    """What fits, in that order; one that does not is passed over, as the ledger does."""
    kept = set()
    for number in order:
        if models[number].size_bytes <= capacity_bytes:
            capacity_bytes -= models[number].size_bytes
            kept.add(number)
    return kept


def retention(folder: Path) -> Iterator[Line]:
    """Idle seconds and cold starts that pools pay which keep their last pod for ``keep_s``, beside their best fixed times."""
    for name in (AZURE_8H, AZURE_24H, SERVEGEN):
        asked = _arrivals(folder / name, 1)
        for row in retention_bench.rows(asked.due_s, asked.model):
            told = f"retention, pools of {row.size}, a cold start costs {row.costs_s:g} s: paid / best fixed time in hindsight"
            note = f"{row.pools} pools; mean of their ratios {row.mean:.3f}; break-even alone {row.even / row.best:.3f}"
            yield Line(told, name, row.paid / row.best, min(row.ratios), max(row.ratios), 1.10, note)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. The value is the exit code; 1: a bar was missed."""
    parser = argparse.ArgumentParser(prog="make bench-policy", description="Policies on public traces, beside rivals.")
    parser.add_argument("--traces", type=Path, required=True, help=f"folder with {AZURE_8H}, {AZURE_24H}, {SERVEGEN}")
    parser.add_argument("--only", choices=("eviction", "wakeup", "retention"), help="[all]")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes [%(default)s]")
    parser.add_argument("--tuned-only", action="store_true", help="Azure 8 h alone: minutes instead of an hour")
    parser.add_argument("-o", "--output", type=Path, help="write the lines as JSON, too")
    given = parser.parse_args(arguments)
    lines: list[Line] = []
    for line in _asked(given):
        lines.append(line)
        verdict = "" if line.bar is None else f"  {'MISSED' if line.missed else 'met'} (bar {line.bar:g})"
        tuned = "settings chosen here" if line.trace == AZURE_8H else "settings as they are"
        spread = f" ({line.least:.3f} to {line.most:.3f})" if line.least != line.most else ""
        print(f"{line.trace} [{tuned}] {line.what}: {line.found:.3f}{spread}{verdict}  {line.note}", flush=True)
    if given.output:
        given.output.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    return int(any(line.missed for line in lines))


def _asked(given: argparse.Namespace) -> Iterator[Line]:
    folder: Path = given.traces
    if given.only in (None, "wakeup"):
        yield from wakeup(folder)
    if given.only in (None, "retention"):
        yield from retention(folder)
    if given.only in (None, "eviction"):
        yield from eviction(folder, AZURE_8H, SHARES, given.jobs, bound=True)
        if not given.tuned_only:
            yield from eviction(folder, AZURE_24H, SHARES, given.jobs, bound=False)
            yield from eviction(folder, SERVEGEN, SHARES, given.jobs, bound=False)


if __name__ == "__main__":
    sys.exit(main())
