"""A run held to its gates, in words and as an exit code: the same at the end of ``hearth loadtest run`` and in the report.

Exit codes: 0 every gate is met, 1 a gate is missed, 2 the command or a directory is wrong, 3 a run is invalid: its gates
mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from loadtest.report.gates import Gate, Verdict, judge, parse
from loadtest.report.recorded import Run

OK: Final = 0
MISSED: Final = 1
USAGE: Final = 2
INVALID: Final = 3


def own_gates(run: Run) -> list[Gate]:
    """What the run was asked to keep, as run.json has it. Raises BadGate."""
    return [parse(str(text)) for text in run.about.get("slo") or []]


def verdicts(gates: Iterable[Gate], run: Run) -> list[Verdict]:
    """Hold a run to all of them."""
    return [judge(gate, run) for gate in gates]


def line(verdict: Verdict) -> str:
    """A verdict in words, what was measured with it."""
    return f"{'PASS' if verdict.met else 'FAIL'} {verdict.gate}: {verdict.found}"


def exit_code(judged: Iterable[Sequence[Verdict]], *, invalid: bool) -> int:
    """Of these runs' verdicts. ``invalid``: one of the runs must not be believed, whatever its gates say."""
    if invalid:
        return INVALID
    return OK if all(verdict.met for own in judged for verdict in own) else MISSED
