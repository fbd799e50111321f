"""What a run can be told, once for both ways in: ``hearth loadtest run`` and plain ``locust -f loadtest/locustfile.py``.

Every option has a plain text, number or switch as its value: Locust sends them to its workers and shows them on its page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from loadtest.workloads import KEEP_ALIVES, PROFILES, BadWorkload, Shape

WORKLOADS: Final = (*(shape.value for shape in Shape), *PROFILES)


@dataclass(frozen=True)
class Options:
    """One field per option, its dashes underscores; ``HELP`` says what each means."""

    deck: str = ""
    workload: str = "steady"
    rate: float = 10.0
    peak_rate: float = 0.0
    period_s: float = 0.0
    active_s: float = 0.0
    duration_s: float = 60.0
    zipf: float = 1.0
    seed: int = 1
    models: str = ""
    priorities: str = ""
    trace: str = ""
    trace_from_s: float = 0.0
    trace_functions: int = 0
    trace_choice: str = "even"
    compress: float = 1.0
    keep_alive_scaled: bool = False
    closed: int = 0
    think_time_s: float = 0.0
    encoding: str = "json"
    host_header: str = ""
    ca_file: str = ""
    insecure: bool = False
    server: str = "hearth"
    deadline_ms: int = 0
    retries: int = 2
    max_retry_wait_s: float = 30.0
    timeout_s: float = 180.0
    max_outstanding: int = 4096
    max_send_lag_ms: float = 20.0
    start_in_s: float = 2.0
    output: str = ""
    slo: str = ""
    admin: str = ""
    pods_from: str = ""
    pods_every_s: float = 5.0

    def __post_init__(self) -> None:
        if self.compress != 1.0 and not self.trace:
            raise BadWorkload("--compress is for traces; a made-up workload is given the rate that is wanted")
        if self.compress != 1.0 and not self.keep_alive_scaled:
            raise BadWorkload(
                f"--compress {self.compress:g} shortens the gaps between requests and not what keeps models and pods warm "
                f"over them. Divide these by {self.compress:g}, too, and say so with --keep-alive-scaled: "
                + ", ".join(KEEP_ALIVES)
            )
        for name in ("rate", "duration_s", "compress", "timeout_s", "max_outstanding", "max_send_lag_ms", "pods_every_s"):
            if not getattr(self, name) > 0:
                raise BadWorkload(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        for name in ("closed", "retries", "deadline_ms", "start_in_s", "think_time_s", "max_retry_wait_s", "trace_functions"):
            if getattr(self, name) < 0:
                raise BadWorkload(f"--{name.replace('_', '-')} must not be below 0, but is {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadWorkload(f"--{name.replace('_', '-')} is one of {', '.join(choices)}, not {getattr(self, name)!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Read them out of a parsed command line. Raises BadWorkload where they do not fit together."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    @property
    def mode(self) -> str:
        """Open: sent when due, whatever the server does. Closed: sent when the last one was answered."""
        return "closed" if self.closed else "open"

    @property
    def gates(self) -> list[str]:
        """The SLOs, one each."""
        return [gate.strip() for gate in self.slo.split(",") if gate.strip()]

    @property
    def model_names(self) -> list[str]:
        """The models of the deck that are asked; empty: all."""
        return [name.strip() for name in self.models.split(",") if name.strip()]

    @property
    def priority_weights(self) -> tuple[tuple[str, float], ...]:
        """Of Hearth-Priority. Raises BadWorkload."""
        pairs = []
        for item in filter(None, (part.strip() for part in self.priorities.split(","))):
            name, _, weight = item.partition("=")
            try:
                pairs.append((name.strip(), float(weight or 1)))
            except ValueError:
                raise BadWorkload(f"--priorities is NAME=WEIGHT,..., not {self.priorities!r}") from None
        return tuple(pairs)


CHOICES: Final = {
    "workload": WORKLOADS,
    "encoding": ("json", "binary", "mixed"),
    "server": ("hearth", "v2"),
    "trace_choice": ("even", "most"),
}

HELP: Final = {
    "deck": "questions with known answers (write one, or `hearth loadtest record`)",
    "workload": "when which model is asked",
    "rate": "requests a second; of a ramp or burst: the low one",
    "peak_rate": "requests a second at the peak of a ramp, burst or day",
    "period_s": "seconds of a burst, an on-off or a day, of cron's shortest clock, between the requests for a cold model",
    "active_s": "seconds at the start of every period in which a burst or an on-off is on",
    "duration_s": "seconds, of the run itself",
    "zipf": "exponent of the models' popularity; 0: all the same",
    "seed": "of arrivals, models and questions",
    "models": "only these models of the deck: NAME,...",
    "priorities": "Hearth-Priority by weight, such as high=1,normal=8,batch=1",
    "trace": "arrivals from a public trace instead of a workload: a file, or for ServeGen a folder (docs/loadtest.md)",
    "trace_from_s": "begin so many seconds into the trace",
    "trace_functions": "how many of the trace's functions become models [one for each model of the deck]",
    "trace_choice": "which of them: the most asked, or evenly from the most to the least asked",
    "compress": "play a trace so many times faster; needs --keep-alive-scaled",
    "keep_alive_scaled": "the pool's keep-alive settings were divided by --compress, too",
    "closed": "closed loop with so many clients in all, for peak rates; latency is from the sending then",
    "think_time_s": "closed loop: mean pause of a client between its requests",
    "encoding": "of tensors",
    "host_header": "Host to send, where the address is a gateway's",
    "ca_file": "certificates (PEM) of an authority that is believed beside the system's, for https",
    "insecure": "believe any certificate",
    "server": "hearth, or v2: any other server of the Open Inference Protocol, without Hearth's headers",
    "deadline_ms": "Hearth-Deadline-Ms; 0: not sent",
    "retries": "on 503 and 429 with Retry-After, per request",
    "max_retry_wait_s": "longest Retry-After that is obeyed",
    "timeout_s": "for one try; above the longest cold start",
    "max_outstanding": "requests of one process under way at once; more become errors, never later requests",
    "max_send_lag_ms": "p99 of what the generator may send late; above it the run is invalid (exit status 3)",
    "start_in_s": "seconds until the common start of all processes",
    "output": "folder of the run [loadtest-<time>]",
    "slo": "a gate, judged when the run is over (exit status 1) and in the report, such as 'p99<250ms', 'errors<0.1%%' or "
    "'cold<2%%'; several times, or with commas",
    "admin": "a Hearth admin port whose pod is counted during the run",
    "pods_from": "a namespace whose controller is asked how many pods there are during the run",
    "pods_every_s": "how often",
}


def option_of(name: str) -> str:
    """A field's option."""
    return "--" + name.replace("_", "-")


class _Joined(argparse.Action):
    """Given several times, one text with commas: Locust's page and messages take texts."""

    def __call__(self, _: object, namespace: argparse.Namespace, values: object, __: object = None) -> None:
        """Of argparse."""
        earlier = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, f"{earlier},{values}" if earlier else str(values))


def add(parser: argparse.ArgumentParser) -> None:
    """Let a parser, argparse's or Locust's, take every option."""
    group = parser.add_argument_group("Hearth's load test")
    for field in fields(Options):
        option = option_of(field.name)
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", help=HELP[field.name])
            continue
        if field.name == "slo":
            group.add_argument(option, action=_Joined, default="", metavar="GATE", help=HELP[field.name])
            continue
        told = f" [{field.default}]" if field.default not in ("", 0, 0.0) else ""
        group.add_argument(
            option,
            type=type(field.default),
            default=field.default,
            choices=CHOICES.get(field.name),
            metavar=None if field.name in CHOICES else type(field.default).__name__.upper(),
            help=HELP[field.name] + told,
        )
