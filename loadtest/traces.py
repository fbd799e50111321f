"""Public traces as they are downloaded, made arrivals. The traces themselves stay where they are: no line of them is here.

========================  ===========================================================  ==================================
trace                     file                                                         one "function", later one model
========================  ===========================================================  ==================================
Azure Functions 2019      invocations_per_function_md.anon.dNN.csv                     a row: owner, app, function
counts                    minute,fn,count (one line a minute and function)             ``fn``
Azure LLM inference 2023  AzureLLMInferenceTrace_code.csv, ..._conv.csv                none: models are drawn by Zipf's law
Mooncake (FAST'25)        conversation_trace.jsonl and its siblings                    none: the same
ServeGen                  a folder of chunk-N-trace.csv, or one; the joined slice      a client
========================  ===========================================================  ==================================

Any of them may be gzipped. What a trace does not say is made up with the seed, and run.json says how (``spreading``).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from loadtest.draws import Choice, Draw
from loadtest.workloads import zipf

MINUTE_S: Final = 60.0
SERVEGEN_SLOT_S: Final = 600.0
AZURE_LEAD: Final = ("HashOwner", "HashApp", "HashFunction", "Trigger")
UNIFORM: Final = "a minute's count is spread uniformly at random over the minute"
RENEWAL: Final = "gaps of a gamma distribution with the slot's own rate and coefficient of variation"
EXACT: Final = "arrivals as recorded; models drawn by Zipf's law"
LEAST_CV: Final = 0.05

MOST: Final = 1e8
"""Arrivals of one function in one minute: a million a second. What is more was meant otherwise, and would fill the memory."""

KNOWN: Final = (
    "minute,fn,count | t_s,... | TIMESTAMP,... | workload,client,slot_10min,rate_rps,cv | "
    "HashOwner,HashApp,HashFunction,Trigger,1,2,... | lines of JSON with a timestamp"
)
"""How those that are known begin, beside ServeGen's chunk-N-trace.csv, which has no headings."""


class BadTrace(ValueError):
    """A file is no trace that is known here, or has a line that is none; the message says which."""


class Slot(NamedTuple):
    """What one function did in one stretch of time.

    amount  with ``cv`` 0: how many arrivals; else arrivals a second
    cv      of the gaps; 0: there is only a count
    """

    start_s: float
    amount: float
    cv: float = 0.0


@dataclass(frozen=True)
class Trace:
    """Arrivals of one download: slots by function, or moments without functions."""

    name: str
    spreading: str
    slot_s: float = 0.0
    by_function: tuple[tuple[Slot, ...], ...] = ()
    arrivals_s: tuple[float, ...] = ()

    @property
    def functions(self) -> int:
        """How many there are; 0: the trace has none."""
        return len(self.by_function)

    def chosen(self, count: int, choice: str) -> Trace:
        """The ``count`` functions with the most arrivals, or as many ``even``ly from the most to the least asked."""
        if not self.by_function or count >= self.functions:
            return self
        ranked = sorted(self.by_function, key=lambda slots: -sum(slot.amount for slot in slots))
        places = range(count) if choice == "most" else (place * self.functions // count for place in range(count))
        return replace(self, by_function=tuple(ranked[place] for place in places))

    def moments(
        self, *, from_s: float, duration_s: float, targets: int, zipf_exponent: float, seed: int
    ) -> Iterator[tuple[float, int]]:
        """(Seconds from ``from_s``, target) in order, made while they are walked.

        targets  functions are dealt out to so many models, in an order drawn by the seed
        """
        moments = self._of_functions(targets, seed) if self.by_function else self._drawn(targets, zipf_exponent, seed)
        for at_s, target in moments:
            if at_s >= from_s + duration_s:
                return
            if at_s >= from_s:
                yield at_s - from_s, target

    def _drawn(self, targets: int, zipf_exponent: float, seed: int) -> Iterator[tuple[float, int]]:
        weights = zipf(targets, zipf_exponent)
        Draw(seed, "popularity").shuffle(weights)
        draw, choose = Draw(seed, "models"), Choice(weights)
        return ((at_s, choose(draw)) for at_s in self.arrivals_s)

    def _of_functions(self, targets: int, seed: int) -> Iterator[tuple[float, int]]:
        assert targets >= self.functions, f"{self.functions} functions on {targets} models"
        dealt = list(range(targets))
        Draw(seed, "deal").shuffle(dealt)
        slots = sorted((slot, function) for function, own in enumerate(self.by_function) for slot in own)
        at = 0
        while at < len(slots):
            start_s, first = slots[at][0].start_s, at
            while at < len(slots) and slots[at][0].start_s == start_s:
                at += 1
            made = []
            for slot, function in slots[first:at]:
                draw = Draw(seed, "slot", f"{start_s:g}", function)
                made += [(moment_s, dealt[function]) for moment_s in _spread(slot, self.slot_s, draw)]
            yield from sorted(made)


def _spread(slot: Slot, slot_s: float, draw: Draw) -> Iterator[float]:
    """The arrivals of a slot; of those with a ``cv`` in order, and independent of the slot before."""
    if not slot.cv:
        for _ in range(round(slot.amount)):
            yield slot.start_s + slot_s * draw.uniform()
        return
    shape = 1.0 / max(slot.cv, LEAST_CV) ** 2
    # The first gap is cut at a random place: a slot does not begin with an arrival.
    at_s = draw.gamma(shape) / (shape * slot.amount) * draw.uniform()
    while at_s < slot_s:
        yield slot.start_s + at_s
        at_s += draw.gamma(shape) / (shape * slot.amount)


def read(path: Path) -> Trace:
    """Read a download, recognised by what is in it. Raises BadTrace."""
    try:
        if path.is_dir():
            return _servegen_folder(path)
        with _opened(path) as file:
            return _recognised(path, file)
    except (OSError, UnicodeDecodeError) as problem:
        raise BadTrace(f"the trace {path} cannot be read: {problem}") from problem
    except (ValueError, KeyError, IndexError, TypeError) as problem:
        if isinstance(problem, BadTrace):
            raise
        raise BadTrace(f"{path} has a line that is none of its kind: {type(problem).__name__}: {problem}") from problem


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _recognised(path: Path, file: TextIO) -> Trace:
    first = file.readline().strip()
    columns = tuple(first.split(","))
    if first.startswith("{"):
        return _mooncake([first, *file])
    if columns[: len(AZURE_LEAD)] == AZURE_LEAD:
        return _azure_functions(csv.reader(file))
    rows = csv.DictReader(file, fieldnames=columns)
    match columns:
        case ("minute", "fn", "count"):
            made = _counts(rows)
        case ("TIMESTAMP", *_):
            made = _arrivals("Azure LLM inference 2023", (_azure_moment_s(row["TIMESTAMP"]) for row in rows))
        case ("t_s", *_):
            made = _arrivals("arrivals", (float(row["t_s"]) for row in rows))
        case ("workload", "client", "slot_10min", "rate_rps", "cv"):
            made = _servegen_joined(rows)
        case _ if path.name.removesuffix(".gz").endswith("-trace.csv"):
            made = _servegen([_servegen_chunk([first, *file])])
        case _:
            raise BadTrace(f"{path} begins with {first[:80]!r}: no trace that is known here; those begin with {KNOWN}")
    return made


def _amount(text: str) -> float:
    """A count. Raises ValueError."""
    amount = float(text)
    if not 0 <= amount <= MOST:  # NaN is neither
        raise ValueError(f"{text} arrivals, and a count lies between 0 and {MOST:g}")
    return amount


def _azure_functions(rows: Iterable[list[str]]) -> Trace:
    """One row a function, one column a minute of the day."""
    functions = []
    for row in rows:
        counts = [(minute, _amount(count or "0")) for minute, count in enumerate(row[len(AZURE_LEAD) :])]
        slots = tuple(Slot(MINUTE_S * minute, count) for minute, count in counts if count)
        if slots:
            functions.append(slots)
    return Trace("Azure Functions 2019", UNIFORM, MINUTE_S, tuple(functions))


def _counts(rows: Iterable[dict[str, str]]) -> Trace:
    functions: dict[str, list[Slot]] = defaultdict(list)
    for row in rows:
        functions[row["fn"]].append(Slot(MINUTE_S * int(row["minute"]), _amount(row["count"])))
    return Trace("counts by minute", UNIFORM, MINUTE_S, tuple(tuple(slots) for slots in functions.values()))


def _azure_moment_s(text: str) -> float:
    """Of ``2023-11-16 18:15:46.6805900``: seven digits, one more than Python reads."""
    whole, _, part = text.partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{part or 0}")


def _arrivals(name: str, moments_s: Iterable[float]) -> Trace:
    ordered = sorted(moments_s)
    if not ordered:
        raise BadTrace("the trace has no arrival")
    if not all(map(math.isfinite, ordered)):
        raise ValueError("an arrival at no moment (nan, or inf)")
    return Trace(name, EXACT, arrivals_s=tuple(moment_s - ordered[0] for moment_s in ordered))


def _mooncake(lines: Iterable[str]) -> Trace:
    return _arrivals("Mooncake", (json.loads(line)["timestamp"] / 1e3 for line in lines if line.strip()))


def _servegen_chunk(lines: Iterable[str]) -> tuple[Slot, ...]:
    """One client: start, rate, coefficient of variation, and fitted parameters that are not used here. No headings."""
    slots = []
    for row in csv.reader(lines):
        if not row:
            continue
        start_s, rate_per_s, cv = float(row[0]), float(row[1]), float(row[2])
        if rate_per_s > 0:
            slots.append(Slot(start_s, rate_per_s, cv if math.isfinite(cv) and cv > 0 else 1.0))
    return tuple(slots)


def _servegen_folder(path: Path) -> Trace:
    clients = []
    for chunk in sorted([*path.glob("chunk-*-trace.csv"), *path.glob("chunk-*-trace.csv.gz")]):
        with _opened(chunk) as file:
            clients.append(_servegen_chunk(file))
    return _servegen(clients)


def _servegen_joined(rows: Iterable[dict[str, str]]) -> Trace:
    clients: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        start_s = SERVEGEN_SLOT_S * int(row["slot_10min"])
        clients[row["workload"], row["client"]].append(f"{start_s},{row['rate_rps']},{row['cv'] or 'nan'}")
    return _servegen([_servegen_chunk(lines) for lines in clients.values()])


def _servegen(clients: Iterable[tuple[Slot, ...]]) -> Trace:
    asking = tuple(slots for slots in clients if slots)
    if not asking:
        raise BadTrace("no chunk-N-trace.csv with a client that asks")
    return Trace("ServeGen", RENEWAL, SERVEGEN_SLOT_S, asking)
