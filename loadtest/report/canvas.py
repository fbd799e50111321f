"""How pictures look: colours, fonts, units on axes, several runs side by side on the same axes, PNG bytes."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

# Okabe and Ito's colours, which people with any colour vision can tell apart; lines differ in dashes as well.
COLOURS: Final = {
    "hot": "#009E73",
    "ram": "#56B4E9",
    "disk": "#0072B2",
    "s3": "#E69F00",
    "pod": "#CC79A7",
    "": "#7F7F7F",
    "failed": "#D55E00",
    "offered": "#222222",
}
DASHES: Final = {"hot": "-", "ram": (0, (5, 1.5)), "disk": (0, (3, 1, 1, 1)), "s3": "-", "pod": (0, (1.5, 1)), "": "-"}
WORDS: Final = {
    "hot": "hot",
    "ram": "from RAM",
    "disk": "from disk",
    "s3": "from S3",
    "pod": "from a pod's start",
    "": "not told",
}

WIDTHS_IN: Final = (10.0, 12.0, 14.0)
"""Of a picture with one, two or three panels a row."""

PANELS_A_ROW: Final = 3
CHARACTERS_AN_INCH: Final = 11
"""Of a heading, with room to spare."""

MAX_TICKS: Final = 9
DPI: Final = 110

_STYLE: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "text.color": "#1A1A1A",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Panel:
    """One run's part of a picture: its heading, and what draws it."""

    heading: str
    draw: Callable[[Axes], None]


def png(panels: Sequence[Panel], height_in: float, *, share: bool = True, from_zero: bool = False) -> bytes:
    """A picture of these panels, at most `PANELS_A_ROW` beside each other, with one legend below.

    share      all have the same axes
    from_zero  the y axes begin at 0 and end a little above the largest value of any panel
    """
    columns = min(len(panels), PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    width_in = WIDTHS_IN[columns - 1]
    with mpl.rc_context(cast("Any", _STYLE)):
        figure = Figure(figsize=(width_in, height_in * rows), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        every = list(figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).flat)
        for axes, panel in zip(every, panels, strict=False):
            panel.draw(axes)
            wide = int(width_in / columns * CHARACTERS_AN_INCH)
            axes.set_title("\n".join(line for part in panel.heading.split("\n") for line in textwrap.wrap(_kept(part), wide)))
            axes.tick_params(labelbottom=True, labelleft=True)
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        if from_zero:
            # Only now: a limit that is set while panels are still drawn would cut those that come after it.
            top = max(axes.dataLim.y1 for axes in every)
            for axes in every:
                axes.set_ylim(0, top * 1.08 if 0 < top < float("inf") else 1.0)
        _legend(figure, every[: len(panels)], int(width_in * 0.8))
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _kept(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=\w|%)", "\N{NO-BREAK SPACE}", text)


def _legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """What any panel labelled, once."""
    found = sorted((axes.get_legend_handles_labels() for axes in panels), key=lambda both: -len(both[1]))
    pairs = [pair for both in found for pair in zip(*both, strict=True)]
    handles = {label: handle for handle, label in reversed(pairs)}
    labels = list(dict.fromkeys(label for _, label in pairs))
    if labels:
        shown = [handles[label] for label in labels]
        figure.legend(
            shown, labels, loc="outside lower center", ncols=min(len(labels), columns), columnspacing=1.6, handlelength=1.6
        )


def time_axis(axes: Axes, duration_s: float) -> None:
    """Time since the run's start along x, in the unit that suits."""
    unit_s, unit = next((s, word) for s, word in ((3600.0, "h"), (60.0, "min"), (1.0, "s")) if duration_s >= 3 * s or s == 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at_s, _: f"{at_s / unit_s:g}"))
    step = next(
        (step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120) if duration_s / unit_s / step <= MAX_TICKS), None
    )
    axes.xaxis.set_major_locator(MultipleLocator((step or duration_s / unit_s / MAX_TICKS) * unit_s))
    axes.set_xlim(0, duration_s or 1.0)
    axes.set_xlabel(f"time since the start ({unit})")


def spans(axis: Axis, *, subs: Sequence[float] = ()) -> None:
    """Ticks of spans with their own units: 300 µs, 5 ms, 1 s. ``subs``: the ticks of a decade; none: the axis is linear."""
    if subs:
        axis.set_major_locator(LogLocator(subs=tuple(subs)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda span_s, _: ticked(span_s)))


def ticked(span_s: float) -> str:
    """A round span without needless digits: 2 s, 0.5 s, 30 ms."""
    for unit_s, unit in ((1.0, "s"), (1e-3, "ms")):
        if span_s >= unit_s * (1 - 1e-9):
            return f"{span_s / unit_s:.4g} {unit}"
    return f"{span_s * 1e6:.4g} µs" if span_s > 0 else "0"
