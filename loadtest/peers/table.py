"""Medians and spread of rounds, as a table in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, NamedTuple

from loadtest.peers.wrk import Figures

WHOLE: Final = 100.0
US_PER_MS: Final = 1000.0


class Cell(NamedTuple):
    """What was asked: a row of the table."""

    workload: str
    encoding: str
    connections: int


@dataclass(frozen=True)
class Taken:
    """One run of wrk against one server."""

    round: int
    server: str
    cell: Cell
    figures: Figures


class Middle(NamedTuple):
    """Of several rounds: the median, and the lowest and highest in percent of it."""

    value: float
    low_percent: float
    high_percent: float


def middle(values: Sequence[float]) -> Middle:
    """The median and how far the others lie from it."""
    assert values, "a median of nothing"
    value = median(values)
    return Middle(value, 100 * (min(values) / value - 1), 100 * (max(values) / value - 1))


def table(taken: Iterable[Taken], servers: Sequence[str]) -> str:
    """One line for each cell: requests/s with their spread and the median latency of each server, and of Hearth's ratio.

    servers  the columns; the first is compared with the best of the others whose name begins with Triton
    """
    runs = list(taken)
    cells = list(dict.fromkeys(run.cell for run in runs))
    rivals = [server for server in servers[1:] if server.startswith("Triton")]
    head = ["", *servers, *([f"{servers[0]} / best Triton"] if rivals else [])]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        found = {server: [run.figures for run in runs if run.server == server and run.cell == cell] for server in servers}
        line = [f"{cell.workload}, {cell.encoding}, c={cell.connections}"]
        line += [_told(found[server]) for server in servers]
        best = max((_rate(found[server]) for server in rivals if found[server]), default=0.0)
        if rivals:
            line.append(f"{_rate(found[servers[0]]) / best:.2f}" if best and found[servers[0]] else "")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(taken: Iterable[Taken]) -> list[dict[str, Any]]:
    """Every run, for `-o`."""
    return [{"round": run.round, "server": run.server, **run.cell._asdict(), **asdict(run.figures)} for run in taken]


def _rate(found: Sequence[Figures]) -> float:
    return middle([figures.requests_per_s for figures in found]).value if found else 0.0


def _told(found: Sequence[Figures]) -> str:
    if not found:
        return "none"
    rate = middle([figures.requests_per_s for figures in found])
    p50, p99 = (median(values) for values in zip(*((one.p50_us, one.p99_us) for one in found), strict=True))
    spread = f" ({rate.low_percent:+.0f}/{rate.high_percent:+.0f} %)" if len(found) > 1 else ""
    return f"{_three_digits(rate.value)}/s{spread} p50 {_time(p50)} p99 {_time(p99)}"


def _time(value_us: float) -> str:
    return f"{_three_digits(value_us)} µs" if value_us < US_PER_MS else f"{_three_digits(value_us / US_PER_MS)} ms"


def _three_digits(value: float) -> str:
    """What is worth printing: below a hundred with one decimal."""
    return f"{value:,.0f}" if value >= WHOLE else f"{value:.1f}"
