"""The table as pictures and as one self-contained page: what each policy costs and what it makes people wait."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtest.report.canvas import Panel, png
from loadtest.simulation.table import HEADINGS, Rows, cells

# Okabe and Ito's colours, as in the reports of load tests.
COLOURS: Final = {
    "hearth": "#0072B2",
    "none": "#56B4E9",
    "lru": "#E69F00",
    "always-on": "#009E73",
    "belady": "#7F7F7F",
    "pod-per-model": "#D55E00",
}
MARKS: Final = {"hearth": "o", "none": "v", "lru": "s", "always-on": "^", "belady": "D", "pod-per-model": "X"}
LEAST_RATE: Final = 1e-6
FAR: Final = 30.0
"""A range that spans more than this is drawn by powers of ten."""

_STYLE: Final = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1a1a1a; max-width: 1280px;
  margin: 2em auto; padding: 0 1.5em }
table { border-collapse: collapse; margin: .8em 0; font-size: .92em } th, td { padding: .25em .6em; text-align: right;
  border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums } th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #bbb; color: #444 } img { width: 100%; height: auto } p { max-width: 62em }
"""


class Picture(NamedTuple):
    """As the page shows it. ``caption``: how to read it."""

    name: str
    caption: str
    png: bytes


def pictures(rows: Rows, swept: str, objective: float) -> list[Picture]:
    """Cost against waiting; of a sweep, both along what is swept."""
    if not swept:
        panels = [
            Panel(
                "Cold requests and what they cost", lambda axes: _against(axes, rows, "cold_rate", "cold requests", share=True)
            ),
            Panel("Waiting and what it costs", lambda axes: _against(axes, rows, "added_mean_s", "mean added latency, s")),
        ]
        caption = (
            "Down and to the left is better: fewer GPU-seconds, less waiting. The p99 is in the table: where one model gets "
            "most of the requests, it is 0."
        )
        return [Picture("cost", caption, png(panels, 5.2, share=False))]
    panels = [
        Panel(
            "Cold requests",
            lambda axes: _along(axes, rows, swept, "cold_rate", "cold requests", objective=objective, share=True),
        ),
        Panel("GPU-seconds per 1,000 requests", lambda axes: _along(axes, rows, swept, "gpu_s", "GPU-s per 1,000 requests")),
    ]
    caption = "Left: the dashed line is the objective; where a curve falls below it, that much is enough. Right: what it costs."
    return [Picture("sweep", caption, png(panels, 4.8, share=False))]


def _against(axes: Axes, rows: Rows, name: str, label: str, *, share: bool = False) -> None:
    for _, row in rows:
        axes.plot(
            [row.gpu_s],
            [float(getattr(row, name))],
            MARKS[row.policy],
            color=COLOURS[row.policy],
            markersize=9,
            label=row.policy,
            clip_on=False,
        )
    costs = [row.gpu_s for _, row in rows if row.gpu_s > 0]
    if costs and max(costs) > FAR * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("GPU-seconds per 1,000 requests")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _along(
    axes: Axes, rows: Rows, swept: str, name: str, label: str, *, objective: float | None = None, share: bool = False
) -> None:
    values: list[float] = []
    for policy in dict.fromkeys(row.policy for _, row in rows):
        pairs = sorted((point, float(getattr(row, name))) for point, row in rows if row.policy == policy and point is not None)
        values += [value for _, value in pairs]
        axes.plot(
            [point for point, _ in pairs],
            [max(value, LEAST_RATE) for _, value in pairs],
            marker=MARKS[policy],
            color=COLOURS[policy],
            label=policy,
        )
    if objective is not None:
        axes.axhline(objective, color="#222222", linestyle="--", linewidth=1.0)
    above = [value for value in values if value > 0]
    if above and max(above) > FAR * min(above):
        axes.set_yscale("log")
        spelt = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(spelt)
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    points = [point for point, _ in rows if point is not None]
    if "bytes" in swept:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:g}"))
    if len(set(points)) <= 8:  # noqa: PLR2004 (as many ticks as fit)
        axes.set_xticks(sorted(set(points)))
    axes.set_xlabel(swept.replace("-bytes", ", GB").replace("-s", ", s"))
    axes.set_ylabel(label)
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def page(rows: Rows, swept: str, drawn: Sequence[Picture], sentences: Sequence[str]) -> str:
    """One self-contained HTML page."""
    heads = [*([swept] if swept else []), *HEADINGS]
    body = "".join(
        "<tr>" + _cells([*([f"{point:g}"] if point is not None else []), *cells(row)]) + "</tr>" for point, row in rows
    )
    head = "".join(f"<th>{escape(one.lower())}</th>" for one in heads)
    parts = [f"<p>{escape(sentence)}</p>" for sentence in sentences]
    parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    for picture in drawn:
        source = base64.b64encode(picture.png).decode()
        parts.append(f"<p>{escape(picture.caption)}</p>")
        parts.append(f'<img alt="{escape(picture.name)}" src="data:image/png;base64,{source}">')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Simulation</title>'
        f"<style>{_STYLE}</style></head>\n"
        f"<body><h1>Simulation</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)
