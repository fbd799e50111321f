"""What is drawn of one run, a function for each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from loadtest.report import over_time
from loadtest.report.canvas import COLOURS, DASHES, WORDS, Panel, spans, ticked, time_axis
from loadtest.report.figures import PARTS, Figures, cold_parts
from loadtest.report.over_time import Steps
from loadtest.report.recorded import HOT, TIERS, UNTOLD, Floats, Run
from predictor import human

MAX_POINTS: Final = 1500
MAX_MODELS: Final = 200
MAX_NAMED_MODELS: Final = 45
MAP_STEPS: Final = 240
MAX_REASONS: Final = 6
TAIL_SHARE: Final = 0.1
PART_COLOURS: Final = ("#8C8C8C", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D9D9D9")
REASON_COLOURS: Final = ("#D55E00", "#CC79A7", "#E69F00", "#0072B2", "#56B4E9", "#7F7F7F", "#222222")
_LEAST_S: Final = 1e-5
"""Where the logarithmic axis of latencies begins at the latest: a clock's rounding may make a latency 0."""

_QUANTILES: Final = ((50.0, "p50", "#56B4E9", "-"), (99.0, "p99", "#0072B2", "-"), (100.0, "largest", "#999999", ":"))


@dataclass(frozen=True)
class View:
    """A run as its pictures see it.

    axis     the time axis that all runs of the page share
    tiers    the start tiers that occur in any of them, `UNTOLD` apart
    alone    whether it is the only run
    colours  of the most frequent reasons of errors, so that a reason has one colour in all runs
    """

    run: Run
    figures: Figures
    axis: Steps
    tiers: tuple[int, ...]
    alone: bool
    colours: Mapping[str, str]

    @property
    def length_s(self) -> float:
        """Where the time axis ends."""
        return float(self.axis.edges_s[-1])

    def heading(self, finding: str) -> str:
        """What a panel says above itself."""
        return finding if self.alone else f"{self.run.name}\n{finding}"


def latency(view: View) -> Panel:
    """The share of requests that were answered within a time, a curve for each start tier."""
    requests, figures = view.run.requests, view.figures
    latency_s = requests.latency_s
    groups = [(TIERS[tier], requests.tier == tier) for tier in view.tiers]
    everything = "all" if groups else "all requests"

    def draw(axes: Axes) -> None:
        for word, chosen in groups:
            label = f"{WORDS[word]} ({int(chosen.sum()):,})" if view.alone else WORDS[word]
            axes.plot(*_ecdf(latency_s[chosen]), color=COLOURS[word], linestyle=DASHES[word], label=label)
        label = f"{everything} ({len(requests):,})" if view.alone else everything
        axes.plot(*_ecdf(latency_s), color=COLOURS["offered"], linewidth=1.0 if groups else 1.8, label=label)
        axes.axhline(0.99, color="#888888", linewidth=0.8, linestyle=(0, (2, 3)))
        axes.annotate(
            "99 %",
            (1, 0.99),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8.5,
            va="center",
        )
        if np.isfinite(latency_s).any():  # a logarithmic axis of nothing cannot be drawn
            axes.set_xscale("log")
            spans(axes.xaxis, subs=(1, 3) if view.alone else (1,))
        else:
            _empty(axes, "no request was answered" if len(requests) else "no request")
        axes.set_xlabel("latency, from the due time (logarithmic)")
        axes.set_ylabel("requests answered within")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_ylim(0, 1.02)

    kinds = [f"{WORDS[word]} {_span(found.p99_s)}" for word, found in figures.tiers.items()]
    failed = [f"{_percent(figures.errors / figures.requests)} failed"] if figures.errors else []
    return Panel(view.heading(" · ".join([f"p99: all {_span(figures.all.p99_s)}", *kinds, *failed])), draw)


def latency_over_time(view: View) -> Panel:
    """Quantiles of what was answered in each step, and where requests failed."""
    requests = view.run.requests
    answered = np.isfinite(requests.latency_s)
    found = _quantiles(requests.latency_s[answered], requests.due_s[answered], view.axis)
    failing = np.unique(view.axis.place(requests.due_s[~answered]))

    def draw(axes: Axes) -> None:
        _draw_quantiles(axes, np.maximum(found, _LEAST_S), view.axis)
        if failing.size:
            top = axes.get_xaxis_transform()
            at_s = _middles(view.axis)[failing]
            label = "steps with failed requests"
            axes.plot(
                at_s, np.full(failing.size, 0.985), "v", color=COLOURS["failed"], markersize=5, transform=top, label=label
            )
        axes.set_ylabel("latency (logarithmic)")
        if not answered.any():
            _empty(axes, "no request was answered")
        axes.margins(y=0.12)
        time_axis(axes, view.length_s)

    slow = [f"{count:,} longer than {limit}" for limit, count in view.figures.slower_than.items() if count]
    among = f", the {view.figures.errors:,} failed among them" if view.figures.errors else ""
    finding = f"{', '.join(slow)}{among}" if slow else "no request took longer than 0.1 s"
    return Panel(view.heading(finding), draw)


def rates(view: View) -> Panel:
    """What the schedule asked for and what was answered rightly."""
    requests, figures = view.run.requests, view.figures
    answered = np.isfinite(requests.latency_s)
    offered = over_time.rate_per_s(requests.due_s, view.axis)
    achieved = over_time.rate_per_s((requests.due_s + requests.took_s)[answered], view.axis)

    def draw(axes: Axes) -> None:
        edges_s = view.axis.edges_s
        axes.stairs(
            achieved, edges_s, color=COLOURS["hot"], fill=True, alpha=0.45, label="right answers, by when they were done"
        )
        axes.stairs(
            offered, edges_s, baseline=None, color=COLOURS["offered"], linewidth=1.2, label="offered, by when they were due"
        )
        axes.set_ylabel(f"requests/s, in {ticked(view.axis.width_s)}")
        time_axis(axes, view.length_s)

    return Panel(view.heading(f"offered {figures.offered_per_s:,.1f}/s, achieved {figures.achieved_per_s:,.1f}/s"), draw)


def cold(view: View) -> Panel:
    """The share of requests that did not start hot, by tier."""
    requests, figures = view.run.requests, view.figures
    share = over_time.shares(requests, view.axis)

    def draw(axes: Axes) -> None:
        below = np.zeros(view.axis.count)
        for tier in (tier for tier in view.tiers if tier != HOT):
            above = below + np.nan_to_num(share[tier])
            word = TIERS[tier]
            axes.stairs(above, view.axis.edges_s, baseline=below, fill=True, color=COLOURS[word], label=WORDS[word])
            below = above
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylabel(f"of the requests, in {ticked(view.axis.width_s)}")
        time_axis(axes, view.length_s)
        if not requests.cold_rows.size:
            _empty(axes, "no cold request" if requests.told else "this server does not say")

    if figures.cold_share is None:
        return Panel(view.heading("not known: the server does not say where requests start"), draw)
    return Panel(view.heading(f"{_percent(figures.cold_share)} of all requests were cold ({requests.cold_rows.size:,})"), draw)


def stages(view: View) -> Panel:
    """Stacked bars: the parts of cold requests, of all and of the slowest of each tier."""
    latency_s = view.run.requests.latency_s
    bars: list[tuple[str, Floats]] = []
    for tier in (tier for tier in reversed(view.tiers) if tier != HOT):
        took_s, parts = cold_parts(view.run.requests, latency_s, tier)
        # Equal latencies are told apart by their parts: which of them are the slowest must not hang on the order of rows.
        order = np.lexsort((*parts.T, took_s))
        tail = order[took_s.size - min(max(int(took_s.size * TAIL_SHARE), 1), took_s.size) :]
        for name, chosen in (("slowest tenth", parts[tail]), (WORDS[TIERS[tier]], parts)):
            bars.append((name, chosen.mean(axis=0) if len(chosen) else np.zeros(len(PARTS))))

    def draw(axes: Axes) -> None:
        left = np.zeros(len(bars))
        for part, colour, column in zip(PARTS, PART_COLOURS, np.array([row for _, row in bars]).T, strict=False):
            label = part if column.any() else None
            axes.barh(range(len(bars)), column, 0.7, left, color=colour, edgecolor="white", linewidth=0.6, label=label)
            left += column
        for place, total in enumerate(left):
            told = human.span(total) if total else "none"
            axes.annotate(told, (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.grid(visible=False, axis="y")
        spans(axes.xaxis)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("mean latency")
        axes.margins(x=0.15)

    means = view.figures.parts_s
    worst = max(means, key=lambda tier: sum(means[tier].values()), default="")
    if not worst or not means[worst]:
        return Panel(view.heading("no cold request was answered"), draw)
    part, part_s = max(means[worst].items(), key=lambda pair: pair[1])
    whole_s = sum(means[worst].values())
    return Panel(view.heading(f"{WORDS[worst]}: {human.span(whole_s)} on average, {human.span(part_s)} of it: {part}"), draw)


def errors(view: View) -> Panel:
    """Failed requests, stacked by reason."""
    requests, figures = view.run.requests, view.figures
    named = list(figures.reasons)[:MAX_REASONS]
    rest = list(figures.reasons)[MAX_REASONS:]
    groups = [(reason, [reason]) for reason in named] + ([("other", rest)] if rest else [])
    place = view.axis.place(requests.due_s)

    def draw(axes: Axes) -> None:
        below = np.zeros(view.axis.count)
        for (name, reasons), colour in zip(groups, REASON_COLOURS, strict=False):
            failed = np.isin(requests.failure, [requests.failures.index(reason) for reason in reasons])
            above = below + np.bincount(place[failed], minlength=view.axis.count)
            label = f"{name} ({int(failed.sum()):,})" if view.alone else name
            axes.stairs(above, view.axis.edges_s, baseline=below, fill=True, color=view.colours.get(name, colour), label=label)
            below = above
        axes.set_ylabel(f"errors, in {ticked(view.axis.width_s)}")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        time_axis(axes, view.length_s)
        if not groups:
            _empty(axes, "no error")

    share = figures.errors / figures.requests if figures.requests else 0.0
    return Panel(view.heading(f"{figures.errors:,} of {figures.requests:,} requests failed ({_percent(share)})"), draw)


def judged(view: View) -> bool:
    """Whether there is a send lag to speak of."""
    return view.figures.lag_p99_s is not None and not view.run.closed


def lag(view: View) -> Panel:
    """How late requests were sent, and how late they might be."""
    requests, figures = view.run.requests, view.figures
    sent = np.isfinite(requests.lag_s)
    found = _quantiles(requests.lag_s[sent], requests.due_s[sent], view.axis)
    allowed_s = figures.max_send_lag_s

    def draw(axes: Axes) -> None:
        _draw_quantiles(axes, np.maximum(found, _LEAST_S), view.axis)
        label = "allowed for the p99 of the whole run"
        axes.axhline(allowed_s, label=label, color=COLOURS["failed"], linewidth=1.2, linestyle="--")
        axes.set_ylabel("send lag (logarithmic)")
        axes.margins(y=0.12)
        time_axis(axes, view.length_s)

    if not judged(view):
        told = "closed loop: nothing is due before it is sent" if view.run.closed else "nothing was sent"
        return Panel(view.heading(told), _empty)
    word = "INVALID, the generator was late: " if figures.invalid else ""
    spent = f"p50 {_span(figures.lag_p50_s)}, p99 {_span(figures.lag_p99_s)}, largest {_span(figures.lag_max_s)}"
    return Panel(view.heading(f"{word}{spent}; allowed p99: {ticked(allowed_s)}"), draw)


def pods(view: View) -> Panel:
    """How many pods there were and how many answered."""
    sampled, requests = view.run.pods, view.run.requests
    answering = over_time.answering_pods(requests, view.axis)

    def draw(axes: Axes) -> None:
        axes.stairs(answering, view.axis.edges_s, fill=True, color="#D9D9D9", label="different pods that answered")
        if sampled is not None:
            axes.step(
                sampled.at_s,
                sampled.all,
                where="post",
                color=COLOURS["s3"],
                linestyle="--",
                label="pods, those that end included",
            )
            axes.step(sampled.at_s, sampled.ready, where="post", color=COLOURS["hot"], label="ready pods")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("pods")
        time_axis(axes, view.length_s)

    count = int((np.bincount(requests.codes["pod"], minlength=1)[1:] > 0).sum())
    return Panel(view.heading("1 pod answered" if count == 1 else f"{count} different pods answered"), draw)


def residency(view: View) -> Panel:
    """Models by time: where the requests of each step started."""
    requests = view.run.requests
    axis = over_time.steps(view.length_s, MAP_STEPS)
    models = over_time.most_asked(requests, MAX_MODELS)
    cells = over_time.residency(requests, axis, models)
    colours = ["#FFFFFF", "#CDEBE1", *(COLOURS[word] for word in TIERS), COLOURS["failed"]]
    told = {over_time.KEPT: "not asked, kept", UNTOLD: "answered", over_time.FAILED: "failed"}
    told |= {tier: WORDS[TIERS[tier]] for tier in range(UNTOLD)}

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        if not models.size:
            _empty(axes, "no request")
            return
        extent = (0.0, float(axis.edges_s[-1]), float(models.size), 0.0)
        first, last = over_time.NOTHING - 0.5, over_time.FAILED + 0.5
        palette = ListedColormap(colours)
        axes.imshow(cells, aspect="auto", interpolation="nearest", extent=extent, cmap=palette, vmin=first, vmax=last)
        seen = set(np.unique(cells).tolist())
        for code in (HOT, over_time.KEPT, *range(HOT + 1, over_time.FAILED + 1)):
            if code in seen:  # of no size: it is there for the legend
                axes.bar(0, 0, color=colours[code - over_time.NOTHING], edgecolor="#BBBBBB", label=told[code])
        if models.size <= MAX_NAMED_MODELS:
            names = [requests.names["model"][code] or "(no name)" for code in models]
            axes.set_yticks(np.arange(models.size) + 0.5, names, fontsize=8)
        else:
            axes.set_ylabel("models, the most asked on top")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(models.size, 0)
        time_axis(axes, view.length_s)

    total = len(view.figures.models)
    which = f"the {models.size} most asked of {total:,} models" if total > models.size else f"{total} models"
    return Panel(view.heading(f"{which}, steps of {ticked(axis.width_s)}"), draw)


def _quantiles(values_s: Floats, at_s: Floats, axis: Steps) -> NDArray[np.float64]:
    return over_time.quantiles(values_s, at_s, axis, tuple(percent for percent, *_ in _QUANTILES))


def _draw_quantiles(axes: Axes, found_s: NDArray[np.float64], axis: Steps) -> None:
    for row, (_, label, colour, style) in reversed(list(zip(found_s, _QUANTILES, strict=True))):
        axes.plot(_middles(axis), row, color=colour, linestyle=style, linewidth=1.3, marker=".", markersize=3.5, label=label)
    if np.isfinite(found_s).any():  # a logarithmic axis of nothing cannot be drawn
        axes.set_yscale("log")
        spans(axes.yaxis, subs=(1, 3))


def _middles(axis: Steps) -> Floats:
    return axis.edges_s[:-1] + axis.width_s / 2


def _ecdf(latency_s: Floats) -> tuple[Floats, Floats]:
    """At most `MAX_POINTS` points of the share answered within a time, more of them in the tail; exact where it has points."""
    ordered = np.sort(latency_s)
    finite = int(np.searchsorted(ordered, np.inf))
    if not finite:
        return np.zeros(0), np.zeros(0)
    ranks = np.arange(finite)
    if finite > MAX_POINTS:
        even = np.linspace(0, finite - 1, MAX_POINTS // 2)
        tail = finite - np.geomspace(1, finite, MAX_POINTS // 2)
        ranks = np.unique(np.concatenate([even, tail]).astype(np.int64))
    shares = (ranks + 1) / ordered.size
    # From 0 up at the first latency: of a single request, too, one sees a line.
    return np.maximum(np.concatenate([ordered[:1], ordered[ranks]]), _LEAST_S), np.concatenate([[0.0], shares])


def _span(span_s: float | None) -> str:
    return "never" if span_s is None else human.span(span_s)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _empty(axes: Axes, told: str = "nothing to show") -> None:
    axes.text(0.5, 0.5, told, transform=axes.transAxes, ha="center", va="center", color="#777777", fontsize=12)
