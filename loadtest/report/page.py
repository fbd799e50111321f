"""One self-contained HTML page: a summary on top, gates, tables and pictures. Nothing is loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from loadtest.report.canvas import COLOURS, WORDS
from loadtest.report.figures import NOT_SENT, Figures, Latency
from loadtest.report.gates import Verdict
from loadtest.report.pictures import Picture
from loadtest.report.recorded import Run
from predictor import human

MAX_MODEL_ROWS: Final = 25
MAX_GROUP_ROWS: Final = 40
_PERCENTILES: Final = ("p50_s", "p90_s", "p95_s", "p99_s", "max_s")

_STYLE: Final = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff; max-width: 1280px;
  margin: 2em auto; padding: 0 1.5em }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.2em; margin: 2.2em 0 .3em }
table { border-collapse: collapse; margin: .8em 0 } caption { text-align: left; font-weight: 600; padding: .4em 0 }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums }
th { font-weight: 600; color: #444 } th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #bbb }
img { width: 100%; height: auto } figure { margin: 0 } figcaption { margin-bottom: .8em }
.beside { display: flex; flex-wrap: wrap; column-gap: 2.5em;
  align-items: flex-start } figcaption, .small { color: #555; font-size: .92em; max-width: 62em }
.bad { color: #b3261e; font-weight: 700 } .good { color: #00694d; font-weight: 600 }
.alarm { border-left: 6px solid #b3261e; background: #fdf0ef; padding: .6em 1em; margin: 1em 0 }
.note { border-left: 6px solid #e69f00; background: #fdf8ec; padding: .5em 1em; margin: .6em 0 }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; vertical-align: -1px }
details { margin: .4em 0 } code { font: 13px/1.45 "DejaVu Sans Mono", monospace }
"""

_NOTE: Final = (
    "Latency counts from when a request was due. In p50 to p99 a request that failed counts as never answered; the largest is "
    "of those that were answered."
)

Cell = str


def page(
    runs: Sequence[Run],
    figures: Sequence[Figures],
    verdicts: Sequence[Sequence[Verdict]],
    pictures: Iterable[Picture],
    notes: Sequence[str],
) -> str:
    """The page's text.

    verdicts  of each run, in the order of ``runs``
    notes     what should be known before anything is believed; that a run is invalid is told anyway
    """
    title = "Load test: " + ", ".join(run.name for run in runs)
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="small">{_told(run)}</p>' for run in runs)]
    invalid = [f"{found.name} is INVALID: {found.invalid}" for found in figures if found.invalid]
    parts += [f'<p class="alarm"><span class="bad">{escape(text)}</span></p>' for text in invalid]
    parts += [f'<p class="note">{escape(text)}</p>' for text in notes]
    tiers = [_tiers(found, alone=len(runs) == 1) for found in figures]
    parts.append(_beside([_summary(figures), _gates(runs, verdicts) + "".join(tiers)]))
    parts.append(f'<p class="small">{_NOTE}</p>')
    for picture in pictures:
        source = base64.b64encode(picture.png).decode()
        parts.append(f"<h2>{escape(picture.title)}</h2><figure><figcaption>{_code(picture.caption)}</figcaption>")
        parts.append(f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{source}"></figure>')
    parts += [_groups(found, alone=len(runs) == 1) for found in figures]
    parts += [_how(run) for run in runs]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _told(run: Run) -> str:
    """What was asked of whom, in a line."""
    about = run.about
    target, workload = about.get("target") or {}, about.get("workload") or {}
    host = str(target.get("host", "an unknown server"))
    virtual = f" as {target['host_header']}" if target.get("host_header") else ""
    seed = f", seed {workload['seed']}" if "seed" in workload else ""
    processes = about.get("processes")
    by = f", {processes} generator process{'' if processes == 1 else 'es'}" if processes else ""
    loop = {"open": "open loop", "closed": "closed loop"}.get(str(about.get("mode")), "unknown loop")
    text = f"{run.name}: {workload.get('name', 'a workload without a name')}{seed}, {loop}{by}, against {host}{virtual}"
    return escape(text)


def _summary(figures: Sequence[Figures]) -> str:
    rows: list[tuple[str, list[Cell]]] = [
        ("this run is", ['<span class="bad">INVALID</span>' if found.invalid else "valid" for found in figures]),
        ("requests", [f"{found.requests:,}" for found in figures]),
        ("duration", [human.span(found.duration_s) for found in figures]),
        ("offered", [f"{found.offered_per_s:,.1f}/s" for found in figures]),
        ("achieved (right answers)", [f"{found.achieved_per_s:,.1f}/s" for found in figures]),
    ]
    for name, word in zip(_PERCENTILES, ("p50", "p90", "p95", "p99", "largest"), strict=True):
        rows.append((f"latency {word}", [_span(getattr(found.all, name), found.all) for found in figures]))
    rows += [
        ("cold requests", ["not told" if found.cold_share is None else _percent(found.cold_share) for found in figures]),
        ("errors", [_count(found.errors, found.requests) for found in figures]),
        ("wrong answers", [_count(found.wrong, found.requests) for found in figures]),
        ("retries", [f"{found.retries:,}" for found in figures]),
        ("send lag p99", ["-" if found.lag_p99_s is None else human.span(found.lag_p99_s) for found in figures]),
    ]
    names = [escape(found.name) for found in figures]
    return _table("Summary", ["", *names], [[name, *cells] for name, cells in rows])


def _gates(runs: Sequence[Run], verdicts: Sequence[Sequence[Verdict]]) -> str:
    rows = []
    for run, judged in zip(runs, verdicts, strict=True):
        for verdict in judged:
            word = '<span class="good">met</span>' if verdict.met else '<span class="bad">missed</span>'
            rows.append([f"<code>{escape(verdict.gate)}</code>", escape(run.name), escape(verdict.found), word])
    return _table("Gates", ["gate", "run", "found", ""], rows) if rows else ""


def _tiers(found: Figures, *, alone: bool) -> str:
    rows = [
        [
            f'<span class="swatch" style="background:{COLOURS[tier]}"></span>{escape(WORDS[tier])}',
            *_latency(latency, found.requests),
        ]
        for tier, latency in found.tiers.items()
    ]
    rows.append(["all that were answered", *_latency(found.answered, found.requests)])
    rows.append(["all", *_latency(found.all, found.requests)])
    title = "Latency by start" if alone else f"Latency by start: {escape(found.name)}"
    return _table(title, _latency_head("started"), rows)


def _groups(found: Figures, *, alone: bool) -> str:
    of = "" if alone else f": {escape(found.name)}"
    tables = [
        _table(
            f"By {column}{of}",
            _latency_head(column),
            [[escape(name), *_latency(one, found.requests)] for name, one in list(groups.items())[:MAX_GROUP_ROWS]],
        )
        for column, groups in found.by.items()
    ]
    slowest = sorted(found.models.items(), key=lambda pair: (-_rank(pair[1]), pair[0]))[:MAX_MODEL_ROWS]
    if slowest:
        rows = [[escape(name) or "(no name)", *_latency(one, found.requests)] for name, one in slowest]
        which = f"The {len(slowest)} models with the largest p99, of {len(found.models):,}{of}"
        tables.append(_table(which if len(found.models) > len(slowest) else f"Models by p99{of}", _latency_head("model"), rows))
    if found.reasons:
        counts = [[escape(reason), f"{count:,}", _percent(count / found.requests)] for reason, count in found.reasons.items()]
        tables.append(_table(f"Errors{of}", ["reason", "requests", "of all"], counts))
        if any(reason.startswith(NOT_SENT) for reason in found.reasons):
            tables.append(f'<p class="small">{NOT_SENT}: too many requests were in flight, so these were never sent.</p>')
    return f"<h2>Tables{of}</h2>" + "".join(tables) if tables else ""


def _rank(latency: Latency) -> float:
    return float("inf") if latency.p99_s is None else latency.p99_s


def _latency_head(first: str) -> list[str]:
    return [first, "requests", "of all", "errors", "p50", "p90", "p95", "p99", "largest"]


def _latency(latency: Latency, total: int) -> list[Cell]:
    spans = [_span(getattr(latency, name), latency) for name in _PERCENTILES]
    return [f"{latency.requests:,}", _percent(latency.requests / total) if total else "-", f"{latency.errors:,}", *spans]


def _how(run: Run) -> str:
    """Everything that made the run, folded away."""
    about: Mapping[str, Any] = run.about
    rows = []
    for key, value in about.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[escape(f"{key}.{name}" if name else key), escape(str(item))] for name, item in pairs]
    return f"<details><summary>How {escape(run.name)} was made</summary>{_table('', ['setting', 'value'], rows)}</details>"


def _beside(blocks: Sequence[str]) -> str:
    """Beside each other where the window is wide enough."""
    return '<div class="beside">' + "".join(f"<div>{block}</div>" for block in blocks) + "</div>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"


def _code(text: str) -> str:
    words = escape(text).split("`")
    return "".join(f"<code>{word}</code>" if place % 2 else word for place, word in enumerate(words))


def _span(span_s: float | None, latency: Latency) -> Cell:
    if span_s is not None:
        return human.span(span_s)
    return '<span class="bad">never</span>' if latency.requests else "-"


def _count(count: int, total: int) -> Cell:
    if not count:
        return "0"
    return f'<span class="bad">{count:,}</span> ({_percent(count / total)})'


def _percent(share: float) -> str:
    return "0 %" if not share else f"{100 * share:.3g} %"
