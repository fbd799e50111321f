"""The figures as columns of text, and the answer of a sweep as a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.simulation.outcome import Figures
from predictor import human

Rows = Sequence[tuple[float | None, Figures]]

HEADINGS: Final = (
    "POLICY",
    "COLD",
    "COLD p75 MODEL",
    "FROM ZERO",
    "ADDED p50",
    "p95",
    "p99",
    "GPU-S/1000",
    "WASTED/1000",
    "LOADS, S",
    "FETCHED",
    "WAKES",
    "PRECISION",
    "RECALL",
)


def cells(row: Figures) -> list[str]:
    """One row, in the order of the headings."""
    return [
        row.policy,
        f"{row.cold_rate:.2%}",
        f"{row.cold_rate_p75:.0%}",
        f"{row.from_zero:.2%}",
        *(_span(value_s) for value_s in (row.added_p50_s, row.added_p95_s, row.added_p99_s)),
        f"{row.gpu_s:,.1f}",
        f"{row.wasted_gpu_s:,.1f}",
        f"{row.load_s:,.0f}",
        human.size(row.fetched_bytes),
        str(row.wakes),
        _share(row.precision),
        _share(row.recall),
    ]


def table(rows: Rows, swept: str) -> str:
    """All rows; of a sweep with its value first."""
    lines = [[*([swept.upper()] if swept else []), *HEADINGS]]
    lines += [[*([f"{point:g}"] if swept and point is not None else []), *cells(row)] for point, row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = 1 if not swept else 2
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def answer(rows: Rows, swept: str, objective: float) -> str:
    """Which value of a sweep is enough for Hearth, in a sentence."""
    own = [(point, row) for point, row in rows if row.policy == "hearth" and point is not None]
    enough = [(point, row) for point, row in own if row.cold_rate <= objective]
    if not own:
        return "The sweep does not have the policy hearth: nothing to answer."
    if not enough:
        best = min(own, key=lambda pair: pair[1].cold_rate)
        return (
            f"No {swept} of the sweep keeps the cold rate at or below {objective:.2%}: the best is {best[0]:g} with "
            f"{best[1].cold_rate:.2%} cold, p99 {_span(best[1].added_p99_s)} added."
        )
    point, row = min(enough, key=lambda pair: (pair[1].gpu_s, pair[0]))
    sentence = (
        f"{swept} {point:g} is enough to keep the cold rate at or below {objective:.2%}: {row.cold_rate:.2%} cold, p99 "
        f"{_span(row.added_p99_s)} added, {row.gpu_s:,.0f} GPU-seconds per 1,000 requests"
    )
    alone = next((other for at, other in rows if other.policy == "pod-per-model" and at == point), None)
    if alone is None or not row.gpu_s:
        return sentence + "."
    return sentence + f"; one pod per model takes {alone.gpu_s / row.gpu_s:,.0f} times as many."


def _span(value_s: float) -> str:
    return human.span(value_s) if value_s else "0"


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.0%}"  # noqa: PLR0124 (nan)
