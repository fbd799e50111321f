"""``hearth loadtest report DIR...``: reads runs, writes the page, its pictures and the figures, and judges.

Exit codes are told in verdicts.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.report.figures import Figures, figures
from loadtest.report.gates import BadGate, Verdict, parse
from loadtest.report.page import page
from loadtest.report.pictures import pictures, views
from loadtest.report.recorded import Run, RunUnreadable, read
from loadtest.report.verdicts import USAGE, exit_code, line, own_gates, verdicts

MAX_RUNS: Final = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit codes are told above."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if len(asked.directories) > MAX_RUNS:
        parser.error(f"{len(asked.directories)} runs do not fit on a page: at most {MAX_RUNS}")
    try:
        given = [parse(text) for text in asked.slo]
        runs = [read(directory) for directory in asked.directories]
        gates = [given or own_gates(run) for run in runs]
    except (RunUnreadable, BadGate) as wrong:
        print(f"hearth loadtest report: {wrong}", file=sys.stderr)
        return USAGE
    found = [figures(run) for run in runs]
    judged = [verdicts(own, run) for run, own in zip(runs, gates, strict=True)]
    _write(asked, runs, found, judged)
    return _say(found, judged)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hearth loadtest report", description="Figures, pictures and gates of load tests.")
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="what `hearth loadtest run` wrote; several are compared"
    )
    told = "such as 'p99<250ms', 'errors<0.1%%', 'cold<2%%', 'p99[s3]<2s', 'p95{model}<1s'; repeatable; default: the run's own"
    parser.add_argument("--slo", action="append", default=[], metavar="GATE", help=told)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the page; default: DIR/report.html, or compare.html in the first DIR"
    )
    parser.add_argument("--png-only", type=Path, metavar="FOLDER", help="write the pictures there, and nothing else")
    return parser


def _write(
    asked: argparse.Namespace, runs: Sequence[Run], found: Sequence[Figures], judged: Sequence[Sequence[Verdict]]
) -> None:
    drawn = list(pictures(views(runs, found)))
    if asked.png_only:
        asked.png_only.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            (asked.png_only / f"{picture.name}.png").write_bytes(picture.png)
        return
    alone = len(runs) == 1
    output = asked.output or asked.directories[0] / ("report.html" if alone else "compare.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    for picture in drawn:
        (output.parent / f"{output.stem}-{picture.name}.png").write_bytes(picture.png)
    output.write_text(page(runs, found, judged, drawn, [note for run in runs for note in _notes(run)]))
    each = [_summary(one, own) for one, own in zip(found, judged, strict=True)]
    beside = output.with_name("summary.json") if output.stem == "report" else output.with_suffix(".json")
    beside.write_text(json.dumps(each[0] if alone else {"format": each[0]["format"], "runs": each}, indent=1) + "\n")
    print(f"{output}: {len(drawn)} pictures beside it, figures in {beside.name}")


def _summary(found: Figures, judged: Sequence[Verdict]) -> dict[str, Any]:
    return {**found.as_json(), "gates": [{"gate": one.gate, "met": one.met, "found": one.found} for one in judged]}


def _notes(run: Run) -> list[str]:
    notes = run.about.get("notes") or []
    return [f"{run.name}: {note}" for note in notes]


def _say(found: Sequence[Figures], judged: Sequence[Sequence[Verdict]]) -> int:
    """The verdicts in words, and the exit code."""
    for one, own in zip(found, judged, strict=True):
        for verdict in own:
            print(f"{one.name}: {line(verdict)}")
        if one.invalid:
            print(f"{one.name} is INVALID: {one.invalid}", file=sys.stderr)
    return exit_code(judged, invalid=any(one.invalid for one in found))
