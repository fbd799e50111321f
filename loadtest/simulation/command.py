"""``hearth simulate``: what a pool would have done with this traffic, what it would have cost, and how many GPUs it takes.

Exit codes: 0 fine, 2 asked wrongly or a file cannot be read.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from loadtest import traces
from loadtest.simulation import arrivals, catalogue, compare
from loadtest.simulation.arrivals import Arrivals, Earlier
from loadtest.simulation.catalogue import BadCatalogue, Model, Span
from loadtest.simulation.fleet import Fleet, Pool
from loadtest.simulation.outcome import Figures, figures, pod_per_model
from loadtest.simulation.policies import POD_PER_MODEL, POLICIES
from loadtest.simulation.table import answer, table
from predictor import human

OK, USAGE = 0, 2
MAX_POINTS: Final = 24
MAX_COUNT: Final = 100_000
"""Of models, pods, devices and cores: each is an object here or a hash, and nobody has more."""
MAX_NUMBER: Final = 1e9
"""Of seconds (30 years), weights and the like: with larger ones sums lose their seconds, or become infinite."""
OBJECTIVE: Final = 0.01


def _number(wanted: str, fits: Callable[[float], bool], read: Callable[[str], float] = float) -> Callable[[str], float]:
    """A type of argparse: what ``read`` makes of the text, where it ``fits``. NaN has to fit nothing."""

    def taken(text: str) -> float:
        try:
            value = read(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {wanted}")
        return value

    return taken


_positive = _number(f"a number above zero (at most {MAX_NUMBER:g})", lambda value: 1 / MAX_NUMBER <= value <= MAX_NUMBER)
_not_negative = _number(f"a number of 0 to {MAX_NUMBER:g}", lambda value: 0 <= value <= MAX_NUMBER)
_zipf = _number("a number of 0 (all alike) to 10", lambda value: 0 <= value <= 10)  # noqa: PLR2004
_share = _number("a share above 0 and at most 1, such as 0.01", lambda value: 0 < value <= 1)
_count = _number(f"a whole number of 1 to {MAX_COUNT:,}", lambda value: 1 <= value <= MAX_COUNT, int)
_seed = _number("a whole number, 0 or more", lambda value: value >= 0, int)
_size = _number(f"a size above zero such as {catalogue.SIZES}", lambda value: value > 0, catalogue.size_bytes_of)
_size_or_none = _number(f"a size such as {catalogue.SIZES}, or 0", lambda value: value >= 0, catalogue.size_bytes_of)

SWEEPABLE: Final = {
    "device-bytes": _size,
    "ram-bytes": _size,
    "pods": _count,
    "window-s": _not_negative,
    "start-s": _not_negative,
    "weight": _not_negative,
}


@dataclass(frozen=True)
class Scene:
    """What is replayed: who asks, what of, on which pool; ``earlier``: what was asked before."""

    asked: Arrivals
    models: tuple[Model, ...]
    pool: Pool
    earlier: Sequence[Earlier] = ()


class _Parser(argparse.ArgumentParser):
    """What is asked wrongly is one line, without the usage: that is thirty lines here, and hides it."""

    def error(self, message: str) -> NoReturn:
        raise BadCatalogue(f"{message} (hearth simulate --help tells what there is)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit codes are told above."""
    try:
        return _run(_given(argv))
    except (BadCatalogue, traces.BadTrace) as wrong:
        print(f"hearth simulate: {wrong}", file=sys.stderr)
    except OSError as wrong:
        print(f"hearth simulate: {wrong.filename or 'a file'}: {wrong.strerror or wrong}", file=sys.stderr)
    return USAGE


def _given(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, and what they may not be together. Raises BadCatalogue."""
    given = _parser().parse_args(argv)
    if given.after and not given.run:
        raise BadCatalogue("--after needs --run DIR: a trace does not say when it was")
    if given.run and given.output and given.run.resolve() == given.output.resolve():
        raise BadCatalogue(f"-o {given.output} is the recorded run, and would be written over: give another folder")
    if given.compare:
        if given.run is None or given.output is None:
            raise BadCatalogue("--compare needs --run DIR, whose requests it compares, and -o DIR for those simulated")
        replayed = "hearth" in given.policy or (len(given.policy) == 1 and given.policy[0] in POLICIES)
        if given.sweep or not replayed:
            raise BadCatalogue("--compare takes one replay: give one --policy (of several it is hearth's), and no --sweep")
    return given


def _run(given: argparse.Namespace) -> int:
    gc.freeze()  # a day's record is millions of numbers, and every full collection would walk through all of them
    gc.disable()
    try:
        scene = _scene(given)
        points = _points(given.sweep)
        if given.output:
            _make(given.output)  # before the replay, which takes minutes
        rows = [(point, _row(given, scene, name, point)) for point in points for name in given.policy]
    finally:
        gc.enable()
    print(_told(scene))
    print(table(rows, given.sweep.partition("=")[0]))
    if given.sweep:
        print(answer(rows, given.sweep.partition("=")[0], given.objective))
    if given.compare:
        print(compare.told(given.run, given.output))
    if given.output:
        _write(given, scene, rows)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hearth simulate", description=__doc__, allow_abbrev=False)
    who = parser.add_argument_group("who asks").add_mutually_exclusive_group(required=True)
    who.add_argument("--trace", type=Path, metavar="FILE", help="a public trace, as hearth loadtest reads them")
    who.add_argument("--run", type=Path, metavar="DIR", help="the schedule that a load test recorded")
    parser.add_argument(
        "--after",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="with --run: a run before it, which is remembered",
    )
    parser.add_argument("--from-s", type=_not_negative, default=0.0, help="begin so many seconds into it")
    parser.add_argument("--duration-s", type=_positive, default=math.inf, help="and end so many later [all of it]")
    parser.add_argument("--compress", type=_positive, default=1.0, help="play it so many times faster")
    parser.add_argument("--models", type=_count, default=0, metavar="N", help="functions of the trace, evenly chosen [all]")
    parser.add_argument("--zipf", type=_zipf, default=1.0, help="popularity, where a trace has no functions [%(default)s]")
    parser.add_argument("--seed", type=_seed, default=1, help="of sizes and of what a trace does not say [%(default)s]")
    parser.add_argument("--sizes", default="250MB..28GB", metavar="A..B", help="bytes of a model [%(default)s]")
    parser.add_argument("--load", default="1s+0.4s/GB", metavar="TIME", help="from the model store into RAM [%(default)s]")
    parser.add_argument("--build", default="0.2s+0.1s/GB", metavar="TIME", help="from RAM onto a device [%(default)s]")
    parser.add_argument("--serve-s", type=_not_negative, default=0.05, help="of one request [%(default)s]")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="JSON: model → size_bytes, load_s, build_s, serve_s")
    parser.add_argument("--device-bytes", type=_size, default="80GB", help="of each device, or 75GiB, or 80e9 [%(default)s]")
    parser.add_argument("--ram-bytes", type=_size, default="160GB", help="of each pod, for models [%(default)s]")
    parser.add_argument("--pods", type=_count, default=1, help="that run while the pool is up [%(default)s]")
    parser.add_argument("--devices", type=_count, default=1, help="of each pod [%(default)s]")
    parser.add_argument(
        "--start-s", type=_not_negative, default=20.0, help="from a request at zero until a pod serves [%(default)s]"
    )
    parser.add_argument("--cpu", action="store_true", help="devices are processors: what they hold are views of RAM")
    parser.add_argument(
        "--network", type=_size, default=math.inf, help="bytes/s of a pod's fetches together [each its own time]"
    )
    parser.add_argument("--disk-bytes", type=_size_or_none, default=0, help="of each pod, empty when it comes up [none]")
    parser.add_argument("--disk", type=_size, default="2GB", help="bytes/s that it reads, and writes [%(default)s]")
    parser.add_argument("--cores", type=_count, default=4, help="of a pod: below 4 the hot set waits for the first request [4]")
    parser.add_argument(
        "--window-s", type=_not_negative, default=90.0, help="Knative's window and grace together [%(default)s]"
    )
    parser.add_argument(
        "--weight", type=_not_negative, default=10.0, help="idle GPU-seconds worth a second of waiting [%(default)s]"
    )
    parser.add_argument("--longest-s", type=_not_negative, default=3600.0, help="that an idle pod is kept [%(default)s]")
    parser.add_argument(
        "--policy", type=_names, default="all", help=f"of {', '.join((*POLICIES, POD_PER_MODEL))}; comma-separated [all]"
    )
    parser.add_argument("--sweep", default="", metavar="NAME=A,B,...", help=f"one of {', '.join(SWEEPABLE)}")
    parser.add_argument("--objective", type=_share, default=OBJECTIVE, help="--sweep: cold rate to stay below [%(default)s]")
    parser.add_argument("--compare", action="store_true", help="with --run and -o: residuals against what was recorded")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="page, pictures, figures, and one policy's requests")
    return parser


def _scene(given: argparse.Namespace) -> Scene:
    names: tuple[str, ...] = ()
    earlier: Sequence[Earlier] = ()
    if given.run:
        try:
            earlier = arrivals.earlier(given.after, given.run)
            asked, names = arrivals.of_run(given.run, beside={one.model for one in earlier})
        except (ValueError, TypeError) as wrong:
            raise BadCatalogue(f"--run {given.run}, or one of --after, cannot be read: {wrong}") from wrong
        if not len(asked):
            raise BadCatalogue(f"--run {given.run} has no recorded request: give the folder that a load test wrote")
    else:
        trace = traces.read(given.trace)
        if given.models:
            trace = trace.chosen(given.models, "even")
        asked = arrivals.of_trace(trace, given.seed, models=given.models, zipf_exponent=given.zipf)
    if given.from_s or given.duration_s < math.inf:
        asked = asked.between(given.from_s, given.from_s + given.duration_s)
    if given.compress != 1.0:
        asked = replace(asked, due_s=asked.due_s / given.compress, span_s=asked.span_s / given.compress)
    if not len(asked):
        raise BadCatalogue("nobody asks in that stretch of time")
    names = names or tuple(f"m{number}" for number in range(asked.models))
    if given.measured:
        models = catalogue.measured(given.measured, names)
    else:
        sizes = catalogue.sizes_of(given.sizes)
        made = catalogue.drawn(
            asked.models, sizes, Span.of(given.load), Span.of(given.build), serve_s=given.serve_s, seed=given.seed
        )
        models = tuple(replace(model, name=name) for model, name in zip(made, names, strict=True))
    pool = Pool(
        given.device_bytes,
        given.ram_bytes,
        given.pods,
        given.devices,
        given.start_s,
        given.window_s,
        given.weight,
        given.longest_s,
        given.network,
        given.cores,
        given.cpu,
        given.disk_bytes,
        given.disk,
    )
    scene = Scene(asked, models, pool, earlier)
    _check(scene)
    return scene


def _check(scene: Scene) -> None:
    largest = max(scene.models, key=lambda model: model.size_bytes)
    for what, bytes_ in (("device", scene.pool.device_bytes), ("RAM", scene.pool.ram_bytes)):
        if largest.size_bytes > bytes_:
            raise BadCatalogue(
                f"model {largest.name} has {human.size(largest.size_bytes)} and the {what} {human.size(bytes_)}, "
                f"{human.size(largest.size_bytes - bytes_)} too few: it can never load; "
                f"give --{what.lower()}-bytes more, or smaller models"
            )


def _names(text: str) -> list[str]:
    known = (*POLICIES, POD_PER_MODEL)
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no policy {name!r}: there are {', '.join(known)}")
    return names


def _points(text: str) -> list[float | None]:
    if not text:
        return [None]
    name, _, values = text.partition("=")
    if name not in SWEEPABLE:
        raise BadCatalogue(f"--sweep {name!r}: it can be {', '.join(SWEEPABLE)}")
    try:
        points: list[float | None] = [SWEEPABLE[name](value) for value in values.split(",")]
    except argparse.ArgumentTypeError as wrong:
        raise BadCatalogue(f"--sweep {text!r} is not {name}=A,B,...: {wrong}") from None
    if len(points) > MAX_POINTS:
        raise BadCatalogue(f"--sweep has {len(points)} points: at most {MAX_POINTS}")
    return points


def _row(given: argparse.Namespace, scene: Scene, name: str, point: float | None) -> Figures:
    pool = scene.pool
    if point is not None:
        field = given.sweep.partition("=")[0].replace("-", "_")
        changed: dict[str, Any] = {field: point}
        pool = replace(pool, **changed)
        _check(replace(scene, pool=pool))
    if name == POD_PER_MODEL:
        return pod_per_model(scene.asked, scene.models, start_s=pool.start_s, window_s=pool.window_s)
    record = Fleet(pool, scene.models, POLICIES[name], scene.asked, earlier=scene.earlier).replay()
    if given.output and point is None and (name == "hearth" or given.policy == [name]):
        compare.write(given.output, record, scene.models)
    return figures(name, record)


def _told(scene: Scene) -> str:
    asked, pool = scene.asked, scene.pool
    total_gb = sum(model.size_bytes for model in scene.models) / catalogue.GB
    return (
        f"{asked.requests} requests in {asked.due_s[-1] / 3600:.1f} h for {len(set(asked.model.tolist()))} of "
        f"{asked.models} models ({total_gb:,.0f} GB together); {asked.told}. "
        f"{pool.pods} pod(s) with {pool.devices} device(s) of "
        f"{pool.device_bytes / catalogue.GB:,.0f} GB and {pool.ram_bytes / catalogue.GB:,.0f} GB of RAM; "
        f"a start takes {pool.start_s:g} s, the window is {pool.window_s:g} s."
    )


def _make(folder: Path) -> None:
    """The folder of -o, tried with a file in it. Raises BadCatalogue: it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as wrong:
        raise BadCatalogue(f"-o {folder} cannot be written ({wrong.strerror}): give another folder") from wrong


def _write(given: argparse.Namespace, scene: Scene, rows: Sequence[tuple[float | None, Figures]]) -> None:
    from loadtest.simulation.pictures import page, pictures  # noqa: PLC0415 (matplotlib: 0.5 s)

    folder: Path = given.output
    name = given.sweep.partition("=")[0]
    drawn = pictures(rows, name, given.objective)
    for picture in drawn:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    sentences = [_told(scene), *([answer(rows, name, given.objective)] if name else [])]
    (folder / "simulation.html").write_text(page(rows, name, drawn, sentences))
    told = [{"point": point, **row.as_json()} for point, row in rows]
    (folder / "simulation.json").write_text(json.dumps({"format": 1, "sweep": name, "rows": told}, indent=1) + "\n")
    beside = "1 picture" if len(drawn) == 1 else f"{len(drawn)} pictures"
    print(f"{folder / 'simulation.html'}: {beside} beside it, figures in simulation.json")
