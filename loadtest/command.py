"""``hearth loadtest``: ``run`` hands over to Locust, ``record`` makes a deck, ``schedule`` shows what a run would send."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
EXTRA: Final = ("locust", "pyarrow")
BADLY_ASKED: Final = 2
SHOWN_MODELS: Final = 10


def main(argv: Sequence[str]) -> int:
    """Run one subcommand; the value is the exit code.

    1: a gate is missed, or there is none and requests failed; 2: badly asked; 3: the run is invalid.
    """
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "run": _run,
        "record": _record,
        "schedule": _schedule,
        "report": _report,
    }
    if argv[:1] and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    told = f"usage: hearth loadtest {{{','.join(commands)}}} ... (each has --help)"
    if argv[:1] in (["-h"], ["--help"]):
        print(told)
        return 0
    print(told, file=sys.stderr)
    return BADLY_ASKED


def _report(argv: Sequence[str]) -> int:
    """Read, draw and judge; nothing of Locust."""
    from loadtest.report.command import main as report  # noqa: PLC0415 (matplotlib: 0.5 s)

    return report(argv)


def _run(argv: Sequence[str]) -> int:
    """Hand over to Locust, in a process of its own: it patches the standard library for gevent as it is imported."""
    from loadtest import options, trust  # noqa: PLC0415 (numpy only where it is used)
    from loadtest.options import Options  # noqa: PLC0415
    from loadtest.payloads import BadDeck  # noqa: PLC0415
    from loadtest.plan import Plan  # noqa: PLC0415
    from loadtest.traces import BadTrace  # noqa: PLC0415
    from loadtest.workloads import BadWorkload  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="hearth loadtest run",
        description="Send a schedule of requests to a Hearth, or to any server of the Open Inference Protocol, and keep every "
        "request's record. What is not listed here is Locust's own (`locust --help`): --master, --worker, --web-port, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--host", required=True, metavar="URL", help="the server, or the gateway before it (--host-header)")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="generators on this machine [1]")
    parser.add_argument("--web", action="store_true", help="with Locust's page (http://127.0.0.1:8089) instead of at once")
    options.add(parser)
    given, rest = parser.parse_known_args(argv)
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse("run", f"{', '.join(missing)} is not installed: pip install 'hearth[loadtest]'")
    if "--worker" not in rest:  # a worker hears from its master what to do
        from loadtest.report.gates import BadGate, parse  # noqa: PLC0415 (pyarrow, which may be missing)

        try:
            asked = Options.of(vars(given))
            Plan.of(asked)
            trust.authority(asked.ca_file)
            for gate in asked.gates:
                parse(gate)
        except (BadDeck, BadGate, BadTrace, BadWorkload) as refusal:
            return _refuse("run", str(refusal))
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *_without(argv, "--web")]
    command += ["--web-host", "127.0.0.1"] if given.web else ["--headless", "--only-summary", "--loglevel", "WARNING"]
    return _followed(command)


def _without(argv: Sequence[str], switch: str) -> list[str]:
    return [argument for argument in argv if argument != switch]


def _followed(command: Sequence[str]) -> int:
    """Run it; what ends this process ends that one, which then writes what it has."""
    child = subprocess.Popen(command)  # noqa: S603 (our own Python, with what its user typed)

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the child got the terminal's Ctrl-C as well


def _record(argv: Sequence[str]) -> int:
    from loadtest import payloads, recording, trust  # noqa: PLC0415
    from loadtest.workloads import BadWorkload  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="hearth loadtest record", description=recording.__doc__, allow_abbrev=False)
    parser.add_argument("--host", required=True, metavar="URL", help="the server")
    parser.add_argument("--host-header", default="", metavar="NAME", help="Host to send, where the address is a gateway's")
    parser.add_argument("--ca-file", default="", metavar="FILE", help="certificates that are believed beside the system's")
    parser.add_argument("--insecure", action="store_true", help="believe any certificate")
    parser.add_argument("--models", default="", metavar="NAME[:VERSION],...", help="[all that the server lists]")
    parser.add_argument("--rows", default="1", metavar="N,...", help="sizes of a free first dimension [%(default)s]")
    parser.add_argument("--questions", type=int, default=2, metavar="N", help="of each size [%(default)s]")
    parser.add_argument("--input", action="append", default=[], metavar="MODEL=NAME:DATATYPE:SHAPE;...", help="where not told")
    parser.add_argument("--tolerance", type=float, default=payloads.TOLERANCE, help="relative and absolute [%(default)s]")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="of one answer [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs [%(default)s]")
    parser.add_argument("-o", "--output", type=Path, default=Path("deck.jsonl"), help="[%(default)s]")
    given = parser.parse_args(argv)
    try:
        asked = recording.Recording(
            given.host,
            given.host_header,
            tuple(filter(None, given.models.split(","))),
            tuple(int(rows) for rows in given.rows.split(",")),
            given.questions,
            dict(recording.shape_of(text) for text in given.input),
            given.tolerance,
            given.timeout_s,
            given.seed,
            trust.contexts(trust.authority(given.ca_file), insecure=given.insecure)(),
        )
        payloads.write(given.output, recording.record(asked, lambda text: print(text, file=sys.stderr)))
    except (recording.CannotRecord, BadWorkload, ValueError, OSError) as problem:
        return _refuse("record", str(problem))
    print(f"{given.output}: these answers are {given.host}'s own")
    return 0


def _schedule(argv: Sequence[str]) -> int:
    """What a run would send, without sending: rate by tenth of the run, and by model."""
    from loadtest import options  # noqa: PLC0415
    from loadtest.options import Options  # noqa: PLC0415
    from loadtest.payloads import BadDeck  # noqa: PLC0415
    from loadtest.plan import Plan  # noqa: PLC0415
    from loadtest.traces import BadTrace  # noqa: PLC0415
    from loadtest.workloads import BadWorkload  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="hearth loadtest schedule", description=_schedule.__doc__, allow_abbrev=False)
    options.add(parser)
    try:
        given = Options.of(vars(parser.parse_args(argv)))
        plan = Plan.of(given)
    except (BadDeck, BadTrace, BadWorkload) as refusal:
        return _refuse("schedule", str(refusal))
    tenths, models = Counter[int](), Counter[int]()
    for event in plan.events():
        tenths[int(10 * event.due_s / given.duration_s)] += 1
        models[event.target] += 1
    print(f"{models.total()} requests in {given.duration_s:g} s for {len(models)} of {len(plan.deck.targets)} models")
    for tenth in range(10):
        print(f"  from {tenth * given.duration_s / 10:8.1f} s  {10 * tenths[tenth] / given.duration_s:9.2f}/s")
    for target, count in models.most_common(SHOWN_MODELS):
        print(f"  {plan.deck.targets[target].model:32} {count:8}")
    return 0


def _refuse(command: str, why: str) -> int:
    print(f"hearth loadtest {command}: {why}", file=sys.stderr)
    return BADLY_ASKED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
