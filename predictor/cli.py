"""The ``hearth`` command. One function per subcommand; each imports what it needs when it runs.

``hearth serve`` never comes here on its way up: boot.py takes it, because every import costs a cold pod time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from predictor import human

if TYPE_CHECKING:
    from predictor.client import AdminClient
    from predictor.report import CopyReport, ModelReport, Residency, WarmUp
    from warmup.cluster import Place

STATES: Final = {"ready": "", "filling": "loading", "draining": "unloading"}
"""What a copy's state is called on screen; a ready copy needs no word."""

BOLD: Final = "\033[1m{}\033[0m"
LEFT_ALIGNED: Final = frozenset(
    {"NAME", "FORMAT", "WHERE", "TIER", "MEMORY", "TENANT", "POOL", "KIND", "READY", "STATE", "LOCATION", "MODELS BY STATE"}
)
WAIT_S: Final = 300.0
"""For a pool to become warm: an image may have to be pulled."""

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXTRA: Final = ("aiohttp", "kubernetes", "yaml")
"""What the extra ``controller`` installs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the value is the exit code. 1: it did not work, 2: it was asked wrongly."""
    from predictor.errors import HearthError  # noqa: PLC0415

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        return _serve(arguments)
    if arguments[:1] == ["controller"]:
        return _controller(arguments)
    foreign = arguments[:1] in (["loadtest"], ["simulate"])
    given = _parser().parse_args(arguments[:1] if foreign else arguments)
    try:
        return _program(arguments) if foreign else int(given.run(given))
    except HearthError as error:
        print(f"hearth {given.command}: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `hearth models | head` hung up: that is no failure. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hearth", description="Many models from few devices: loaded when asked for, dropped when the room is needed."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # Only for the list in `hearth --help`: main() has handed these over before this parser is asked.
    commands.add_parser("serve", help="serve the models below an S3 prefix", add_help=False)
    commands.add_parser("controller", help="own the model InferenceServices of a namespace", add_help=False)
    commands.add_parser("loadtest", help="drive a server with a schedule of requests", add_help=False)
    commands.add_parser("simulate", help="what a pool would do with a trace, and how many GPUs that takes", add_help=False)

    demo = commands.add_parser("demo", help="see it work on this machine: 24 models, a device that holds six")
    demo.add_argument("--keep", action="store_true", help="leave the server running until Ctrl-C")
    demo.add_argument("--requests", type=_positive, default=1500, metavar="N", help="how many to send [%(default)s]")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="of the training and of the requests [%(default)s]")
    demo.add_argument("--no-live", action="store_true", help="plain lines instead of the live table")
    demo.set_defaults(run=_demo)

    residents = commands.add_parser("ps", help="which models are where")
    _add_address(residents)
    _add_cluster(residents, pool=True)
    residents.add_argument("-o", "--output", choices=("table", "wide", "json"), default="table", help="[%(default)s]")
    wide = "-o wide: memory, too, and where its figures are from"
    residents.add_argument("--wide", dest="output", action="store_const", const="wide", help=wide)
    residents.set_defaults(run=_ps)

    models = commands.add_parser("models", help="every model that can be asked for, one a line")
    _add_address(models)
    _add_cluster(models, pool=True)
    models.add_argument("-o", "--output", choices=("table", "json"), default="table", help="[%(default)s]")
    models.set_defaults(run=_models)

    why = commands.add_parser("why", help="what happened to a model, in a cluster also to a pool: loads, drops, reasons")
    why.add_argument("name", metavar="NAME")
    _add_address(why)
    _add_cluster(why)
    why.add_argument("-o", "--output", choices=("table", "json"), default="table", help="[%(default)s]")
    why.set_defaults(run=_why)

    warm = commands.add_parser("warm", help="keep a pod of a cluster's pool running, though nobody asks")
    warm.add_argument("pool", metavar="POOL")
    warm.add_argument("--for", dest="for_s", type=_span, default="30m", metavar="SPAN", help="45s, 30m, 8h, 2d [%(default)s]")
    warm.add_argument("--off", action="store_true", help="no longer: let it go to zero")
    warm.add_argument("--no-wait", action="store_true", help="do not wait until a pod serves")
    _add_place(warm)
    warm.set_defaults(run=_warm)

    load = commands.add_parser("load", help="load models in the background")
    unload = commands.add_parser("unload", help="drop models from the device and from RAM")
    pin = commands.add_parser("pin", help="load models and never drop them for others, until the pod ends")
    unpin = commands.add_parser("unpin", help="let pinned models be dropped again")
    for parser_of_names, run in ((load, _load), (unload, _unload), (pin, _pin), (unpin, _unpin)):
        parser_of_names.add_argument("names", nargs="+", metavar="NAME")
        _add_address(parser_of_names)
        parser_of_names.set_defaults(run=run, clear=False)
    load.add_argument("--clear", action="store_true", help="take them out of quarantine first")
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", default="", metavar="URL", help="the pod's admin port [HEARTH_ADDRESS, else http://127.0.0.1:8082]"
    )


def _add_cluster(parser: argparse.ArgumentParser, *, pool: bool = False) -> None:
    parser.add_argument(
        "--cluster", action="store_true", help="ask a cluster's controller, which wakes nothing, instead of a pod"
    )
    _add_place(parser)
    if pool:
        parser.add_argument("--pool", default="", help="with --cluster: this one only")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", default="", help="of the pool [the kubeconfig's, or the pod's own]")
    parser.add_argument("--context", default="", help="of the kubeconfig [its current one]")


def _span(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in SECONDS or not number.isdecimal() or not 0 < int(number) * SECONDS[unit] <= 365 * SECONDS["d"]:
        raise argparse.ArgumentTypeError(f"{text!r} is no span such as 45s, 30m, 8h or 2d, of at most 365d")
    return float(int(number) * SECONDS[unit])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


class _Version(argparse.Action):
    """``--version``; the package's metadata is read only then (25 ms)."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        parser.exit(0, f"hearth {version('hearth')}\n")


def _serve(arguments: list[str]) -> int:
    from predictor import boot  # noqa: PLC0415

    return boot.serve(arguments[1:])


def _controller(arguments: list[str]) -> int:
    try:
        from warmup.__main__ import main as control  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        print(f"hearth controller: {missing.name} is not installed: pip install 'hearth[controller]'", file=sys.stderr)
        return 1
    return control(arguments[1:])


def _program(arguments: list[str]) -> int:
    """Programs of their own, which bring their own libraries."""
    if arguments[0] == "loadtest":
        from loadtest.command import main as run  # noqa: PLC0415
    else:
        from loadtest.simulation.command import main as run  # noqa: PLC0415
    return run(arguments[1:])


def _demo(given: argparse.Namespace) -> int:
    from predictor.demo.run import Wishes, demo  # noqa: PLC0415

    return demo(Wishes(keep=given.keep, requests=given.requests, seed=given.seed, live=not given.no_live))


def _admin(given: argparse.Namespace) -> AdminClient:
    from predictor.client import AdminClient  # noqa: PLC0415

    return AdminClient(given.address)


def _place(given: argparse.Namespace) -> Place:
    """Which cluster and namespace; says how to install what asking one needs."""
    from predictor.errors import HearthError  # noqa: PLC0415

    try:
        from warmup.cluster import Place  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] not in EXTRA:
            raise
        raise HearthError(
            f"a cluster cannot be asked without the package {missing.name}: pip install hearth[controller]"
        ) from missing
    return Place(given.namespace, given.context)


def _warm(given: argparse.Namespace) -> int:
    place = _place(given)
    from warmup import cluster  # noqa: PLC0415

    for_s, wait_s = (0.0 if given.off else given.for_s), (0.0 if given.no_wait else WAIT_S)
    if cluster.warm(place, given.pool, for_s=for_s, wait_s=wait_s, say=print):
        return 0
    print(f"hearth warm: not yet after {human.span(wait_s)}; the controller goes on trying", file=sys.stderr)
    return 1


def _models(given: argparse.Namespace) -> int:
    if given.cluster:
        return _cluster(given)
    names = _admin(given).catalogue().models
    if given.output == "json":
        print(json.dumps({"models": names}))
    elif names:
        print("\n".join(names))
    else:
        print("the model store has no models yet", file=sys.stderr)
    return 0


def _why(given: argparse.Namespace) -> int:
    import msgspec  # noqa: PLC0415

    from predictor import why  # noqa: PLC0415

    if given.cluster:
        return _cluster(given)
    told = _admin(given).why(given.name)
    if given.output == "json":
        print(msgspec.json.encode(told).decode())
    elif told.events:
        print("\n".join(why.lines(told.events)))
    else:
        print(f"nothing happened to {given.name} since this pod started; the first request loads it")
    return 0


def _load(given: argparse.Namespace) -> int:
    if given.clear and (cleared := _admin(given).clear(given.names).cleared):
        print(f"out of quarantine: {', '.join(cleared)}")
    answer = _admin(given).preload(given.names)
    if answer.accepted:
        print(f"loading in the background: {', '.join(answer.accepted)} (watch with `hearth ps`)")
    if answer.unknown:
        told = f"the model store has no {', '.join(answer.unknown)}"
        print(f"hearth load: {told} (`hearth models` lists what it has)", file=sys.stderr)
    for name, reason in answer.refused.items():
        print(f"hearth load: {name}: {reason}", file=sys.stderr)
    return 1 if answer.unknown or answer.refused else 0


def _pin(given: argparse.Namespace) -> int:
    _say_pinned(_admin(given).pin(given.names).pinned)
    return _load(given)


def _unpin(given: argparse.Namespace) -> int:
    _say_pinned(_admin(given).unpin(given.names).pinned)
    return 0


def _say_pinned(names: Sequence[str]) -> None:
    print(f"pinned: {', '.join(names) or 'nothing'}")


def _unload(given: argparse.Namespace) -> int:
    unloaded = _admin(given).unload(given.names).unloaded
    if unloaded:
        print(f"unloaded: {', '.join(unloaded)}")
    absent = [name for name in given.names if name not in unloaded]
    if absent:
        print(f"not loaded: {', '.join(absent)}")
    return 0


def _cluster(given: argparse.Namespace) -> int:
    """``ps``, ``models`` and ``why`` of a cluster: asks the controller, which wakes nothing."""
    place = _place(given)
    from warmup import cluster  # noqa: PLC0415

    subject = given.name if given.command == "why" else given.pool
    for block in cluster.answer(place, given.command, subject, is_json=given.output == "json"):
        if isinstance(block, str):
            print(block)
        elif isinstance(block, list):
            _print_columns(block)
        else:
            print()
            _print_residency(block, wide=given.output == "wide")
    return 0


def _ps(given: argparse.Namespace) -> int:
    if given.cluster:
        return _cluster(given)
    admin = _admin(given)
    if given.output == "json":
        print(json.dumps(json.loads(admin.residency_json()), indent=2))
        return 0
    _print_residency(admin.residency(), wide=given.output == "wide")
    return 0


def _print_residency(residency: Residency, *, wide: bool) -> None:
    rows = model_rows(residency, wide=wide)
    if len(rows) == 1:
        print("no model is loaded; the first request loads one (`hearth models` lists what can be asked for)")
    else:
        _print_columns(rows)
    print()
    _print_columns(tier_rows(residency))
    print("\n".join(["", pod_line(residency), *warm_lines(residency.warm_up), *alarm_lines(residency)]))


def model_rows(residency: Residency, *, wide: bool = False) -> list[list[str]]:
    """The headings, then a row for every model that has a copy or is getting one; the latest used first."""
    more = ["LOADS", "LOAD TIME", "WEIGHTS", "ON DEVICE", "TO COMPUTE", "MEMORY", "TENANT"]
    rows = [["NAME", "VERSION", "FORMAT", "WHERE", "SIZE", "LEASES", "RATE", "LAST USED"] + more * wide]
    for model in sorted(residency.models, key=_recency):
        if not model.copies and not model.quarantine:
            continue
        row = [
            model.name + (" (pinned)" if model.pinned else ""),
            str(model.version),
            model.format or "-",
            " + ".join([_where(copy) for copy in model.copies] + ["quarantine"] * bool(model.quarantine)),
            human.size(sum(copy.bytes for copy in model.copies)),
            str(sum(copy.leases for copy in model.copies if copy.device >= 0)),  # in RAM: what reads or shares the copy
            human.rate(model.rate_per_s),
            "never" if model.last_used_s_ago is None else f"{human.span(model.last_used_s_ago)} ago",
        ]
        rows.append(row + _more(model) * wide)
    return rows


def _more(model: ModelReport) -> list[str]:
    """What ``-o wide`` adds."""
    known = bool(model.memory_source)
    return [
        str(model.loads),
        "-" if model.load_s is None else human.span(model.load_s),
        *(human.size(size) if known else "-" for size in (model.weights_bytes, model.held_bytes, model.activation_bytes)),
        model.memory_source or "-",
        model.tenant or "-",
    ]


def tier_rows(residency: Residency) -> list[list[str]]:
    """The headings, then a row for every tier: how much of its budget is taken, and by how many models."""
    rows = [["TIER", "USED", "TO COMPUTE", "BUDGET", "MODELS"]]
    for tier in residency.tiers:
        held = sum(any(copy.place == tier.place for copy in model.copies) for model in residency.models)
        headroom = human.size(tier.headroom_bytes) if tier.device >= 0 else "-"
        rows.append([tier.place, human.size(tier.reserved_bytes), headroom, human.size(tier.budget_bytes), str(held)])
    return rows


def alarm_lines(residency: Residency) -> list[str]:
    """What an operator should know, one a line; nothing while all is well."""
    sick = [f"model {model.name}:{model.version} is {model.quarantine}" for model in residency.models if model.quarantine]
    return [f"warning: {alarm}" for alarm in (*residency.alarms, *sick)]


def pod_line(residency: Residency) -> str:
    """Who answered, for how long it has been up, and what it is doing."""
    return (
        f"{residency.pod}: up {human.span(residency.up_s)}, {residency.in_flight} in flight, {residency.waiting} waiting, "
        f"{residency.loads} loads, {residency.drops} drops"
    )


def warm_lines(warm_up: WarmUp) -> list[str]:
    """How far the pod is with its hot set; nothing where it has none."""
    came = f"{warm_up.loaded} of {warm_up.wanted} loaded, {warm_up.skipped} found no room, {warm_up.failed} failed"
    lines = [f"hot set ({warm_up.source or 'orders'}): {came}, {warm_up.state}"] if warm_up.wanted else []
    return [*lines, *([f"warning: {warm_up.trouble}"] if warm_up.trouble else [])]


def _recency(model: ModelReport) -> tuple[float, str, int]:
    unused_s = float("inf") if model.last_used_s_ago is None else model.last_used_s_ago
    return unused_s, model.name, model.version


def _where(copy: CopyReport) -> str:
    word = STATES.get(copy.state, copy.state)
    return f"{copy.place} ({word})" if word else copy.place


def _print_columns(rows: list[list[str]]) -> None:
    """Headings and rows in columns, numbers to the right. Never cut to the terminal's width: names must stay whole."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for place, row in enumerate(rows):
        cells = (
            cell.ljust(width) if heading in LEFT_ALIGNED else cell.rjust(width)
            for heading, cell, width in zip(rows[0], row, widths, strict=True)
        )
        line = "  ".join(cells).rstrip()
        print(BOLD.format(line) if place == 0 and sys.stdout.isatty() else line)


if __name__ == "__main__":
    sys.exit(main())
