"""From options to a schedule: the deck's targets, and the events of a workload or a trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from loadtest import payloads, traces
from loadtest.options import Options
from loadtest.payloads import Deck, Encoding
from loadtest.workloads import PROFILES, Event, Shape, Workload, compressed, dressed, profile, schedule


@dataclass(frozen=True)
class Plan:
    """What a run sends. Every process makes the same one from the same options and deck."""

    options: Options
    deck: Deck
    workload: Workload | None
    trace: traces.Trace | None

    @classmethod
    def of(cls, options: Options) -> Plan:
        """Read what has to be read. Raises BadDeck, BadWorkload or BadTrace."""
        if not options.deck:
            raise payloads.BadDeck("what to ask? Give --deck; `hearth loadtest record` makes one from a running server")
        deck = payloads.read(Path(options.deck), Encoding(options.encoding), options.model_names)
        if options.trace:
            count = options.trace_functions or len(deck.targets)
            if count > len(deck.targets):
                raise traces.BadTrace(f"--trace-functions {count}, but the deck has only {len(deck.targets)} models")
            trace = traces.read(Path(options.trace)).chosen(count, options.trace_choice)
            return cls(options, deck, None, trace)
        return cls(options, deck, _workload(options, len(deck.targets)), None)

    def events(self) -> Iterator[Event]:
        """The whole run's, in order."""
        options = self.options
        if self.trace is None:
            assert self.workload is not None, "neither a workload nor a trace"
            return schedule(self.workload)
        moments = self.trace.moments(
            from_s=options.trace_from_s,
            duration_s=options.duration_s * options.compress,
            targets=options.trace_functions or len(self.deck.targets),
            zipf_exponent=options.zipf,
            seed=options.seed,
        )
        events = dressed(moments, priorities=options.priority_weights, seed=options.seed)
        return compressed(events, options.compress) if options.compress != 1.0 else events

    def told(self) -> dict[str, Any]:
        """Everything that made the schedule, for run.json."""
        options = self.options
        common = {"seed": options.seed, "models": len(self.deck.targets), "duration_s": options.duration_s}
        if self.trace is None:
            assert self.workload is not None, "neither a workload nor a trace"
            return {"name": options.workload} | asdict(self.workload) | common | {"shape": self.workload.shape.value}
        return {
            "name": self.trace.name,
            **common,
            "trace": Path(options.trace).name,
            "from_s": options.trace_from_s,
            "functions": self.trace.functions,
            "choice": options.trace_choice,
            "compress": options.compress,
            "spreading": self.trace.spreading,
        }


ENDLESS_S: Final = 1e12
"""Clients of a closed loop take one request after another, for as long as they are let."""


def _workload(options: Options, targets: int) -> Workload:
    duration_s = ENDLESS_S if options.closed else options.duration_s
    if options.workload in PROFILES:
        made = profile(options.workload, targets=targets, duration_s=duration_s, seed=options.seed)
        return replace(made, priorities=options.priority_weights)
    return Workload(
        Shape(options.workload),
        targets,
        options.rate,
        duration_s,
        peak_rate_per_s=options.peak_rate,
        period_s=options.period_s,
        active_s=options.active_s,
        zipf_exponent=options.zipf,
        priorities=options.priority_weights,
        seed=options.seed,
    )
