"""``hearth simulate``: what a pool would have done with this traffic, what it would have cost, and how many GPUs it takes.

Exit codes: 0 fine, 2 asked wrongly or a file cannot be read.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from loadtest import traces
from loadtest.simulation import arrivals, catalogue, compare
from loadtest.simulation.arrivals import Arrivals, Earlier
from loadtest.simulation.catalogue import BadCatalogue, Model, Span
from loadtest.simulation.fleet import Fleet, Pool
from loadtest.simulation.outcome import Figures, figures, pod_per_model
from loadtest.simulation.policies import POD_PER_MODEL, POLICIES
from loadtest.simulation.table import answer, table

OK, USAGE = 0, 2
SWEEPABLE: Final = ("device-bytes", "ram-bytes", "pods", "window-s", "start-s", "weight")
MAX_POINTS: Final = 24
OBJECTIVE: Final = 0.01


@dataclass(frozen=True)
class Scene:
    """What is replayed: who asks, what of, on which pool; ``earlier``: what was asked before."""

    asked: Arrivals
    models: tuple[Model, ...]
    pool: Pool
    earlier: Sequence[Earlier] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit codes are told above."""
    given = _parser().parse_args(argv)
    gc.freeze()  # a day's record is millions of numbers, and every full collection would walk through all of them
    gc.disable()
    try:
        scene = _scene(given)
        names = _names(given.policy)
        points = _points(given.sweep)
        rows = [(point, _row(given, scene, name, point)) for point in points for name in names]
    except (BadCatalogue, traces.BadTrace, OSError) as wrong:
        print(f"hearth simulate: {wrong}", file=sys.stderr)
        return USAGE
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
    parser = argparse.ArgumentParser(prog="hearth simulate", description=__doc__, allow_abbrev=False)
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
    parser.add_argument("--from-s", type=float, default=0.0, help="begin so many seconds into it")
    parser.add_argument("--duration-s", type=float, default=0.0, help="and end so many later [all of it]")
    parser.add_argument("--compress", type=float, default=1.0, help="play it so many times faster")
    parser.add_argument("--models", type=int, default=0, metavar="N", help="functions of the trace, evenly chosen [all]")
    parser.add_argument("--zipf", type=float, default=1.0, help="popularity, where a trace has no functions [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of sizes and of what a trace does not say [%(default)s]")
    parser.add_argument("--sizes", default="0.25e9..28e9", metavar="A..B", help="bytes of a model [%(default)s]")
    parser.add_argument("--load", default="1s+0.4s/GB", metavar="TIME", help="from the model store into RAM [%(default)s]")
    parser.add_argument("--build", default="0.2s+0.1s/GB", metavar="TIME", help="from RAM onto a device [%(default)s]")
    parser.add_argument("--serve-s", type=float, default=0.05, help="of one request [%(default)s]")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="JSON: model → size_bytes, load_s, build_s, serve_s")
    parser.add_argument("--device-bytes", type=float, default=80e9, help="of each device [%(default)g]")
    parser.add_argument("--ram-bytes", type=float, default=160e9, help="of each pod, for models [%(default)g]")
    parser.add_argument("--pods", type=int, default=1, help="that run while the pool is up [%(default)s]")
    parser.add_argument("--devices", type=int, default=1, help="of each pod [%(default)s]")
    parser.add_argument("--start-s", type=float, default=20.0, help="from a request at zero until a pod serves [%(default)s]")
    parser.add_argument("--cpu", action="store_true", help="devices are processors: what they hold are views of RAM")
    parser.add_argument(
        "--network", type=float, default=math.inf, help="bytes/s of a pod's fetches together [each its own time]"
    )
    parser.add_argument("--disk-bytes", type=float, default=0.0, help="of each pod, empty when it comes up [none]")
    parser.add_argument("--disk", type=float, default=2e9, help="bytes/s that it reads, and writes [%(default)g]")
    parser.add_argument("--cores", type=int, default=4, help="of a pod: below 4 the hot set waits for the first request [4]")
    parser.add_argument("--window-s", type=float, default=90.0, help="Knative's window and grace together [%(default)s]")
    parser.add_argument("--weight", type=float, default=10.0, help="idle GPU-seconds worth a second of waiting [%(default)s]")
    parser.add_argument("--longest-s", type=float, default=3600.0, help="that an idle pod is kept [%(default)s]")
    parser.add_argument("--policy", default="all", help=f"of {', '.join((*POLICIES, POD_PER_MODEL))}; comma-separated [all]")
    parser.add_argument("--sweep", default="", metavar="NAME=A,B,...", help=f"one of {', '.join(SWEEPABLE)}")
    parser.add_argument("--objective", type=float, default=OBJECTIVE, help="--sweep: cold rate to stay below [%(default)s]")
    parser.add_argument("--compare", action="store_true", help="with --run and -o: residuals against what was recorded")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="page, pictures, figures, and one policy's requests")
    return parser


def _scene(given: argparse.Namespace) -> Scene:
    names: tuple[str, ...] = ()
    earlier: Sequence[Earlier] = ()
    if given.run:
        try:
            earlier = arrivals.earlier(given.after, given.run)
        except ValueError as wrong:
            raise BadCatalogue(str(wrong)) from wrong
        asked, names = arrivals.of_run(given.run, beside={one.model for one in earlier})
    else:
        trace = traces.read(given.trace)
        if given.models:
            trace = trace.chosen(given.models, "even")
        asked = arrivals.of_trace(trace, given.seed, models=given.models, zipf_exponent=given.zipf)
    if given.from_s or given.duration_s:
        asked = asked.between(given.from_s, given.from_s + (given.duration_s or float("inf")))
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
        int(given.device_bytes),
        int(given.ram_bytes),
        given.pods,
        given.devices,
        given.start_s,
        given.window_s,
        given.weight,
        given.longest_s,
        given.network,
        given.cores,
        given.cpu,
        int(given.disk_bytes),
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
                f"model {largest.name} has {largest.size_bytes} bytes and the {what} {bytes_}: it can never load"
            )
    if scene.pool.disk_bytes_per_s <= 0:
        raise BadCatalogue("a disk of no bytes a second gives back no model")
    if scene.pool.network_bytes_per_s <= 0:
        raise BadCatalogue("a network of no bytes a second brings no model")
    if scene.pool.pods < 1 or scene.pool.devices < 1:
        raise BadCatalogue("a pool has at least one pod, and a pod one device")


def _names(text: str) -> list[str]:
    known = (*POLICIES, POD_PER_MODEL)
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise BadCatalogue(f"no policy {name!r}: there are {', '.join(known)}")
    return names


def _points(text: str) -> list[float | None]:
    if not text:
        return [None]
    name, _, values = text.partition("=")
    if name not in SWEEPABLE:
        raise BadCatalogue(f"--sweep {name!r}: it can be {', '.join(SWEEPABLE)}")
    try:
        points: list[float | None] = [float(value) for value in values.split(",")]
    except ValueError:
        raise BadCatalogue(f"--sweep {text!r} is not NAME=A,B,...") from None
    if len(points) > MAX_POINTS:
        raise BadCatalogue(f"--sweep has {len(points)} points: at most {MAX_POINTS}")
    return points


def _row(given: argparse.Namespace, scene: Scene, name: str, point: float | None) -> Figures:
    pool = scene.pool
    if point is not None:
        field = given.sweep.partition("=")[0].replace("-", "_")
        value: Any = int(point) if field in ("device_bytes", "ram_bytes", "pods") else point
        pool = replace(pool, **{field: value})
        _check(replace(scene, pool=pool))
    if name == POD_PER_MODEL:
        return pod_per_model(scene.asked, scene.models, start_s=pool.start_s, window_s=pool.window_s)
    record = Fleet(pool, scene.models, POLICIES[name], scene.asked, earlier=scene.earlier).replay()
    if given.output and point is None and name in {"hearth", given.policy}:
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


def _write(given: argparse.Namespace, scene: Scene, rows: Sequence[tuple[float | None, Figures]]) -> None:
    from loadtest.simulation.pictures import page, pictures  # noqa: PLC0415 (matplotlib: 0.5 s)

    folder: Path = given.output
    folder.mkdir(parents=True, exist_ok=True)
    name = given.sweep.partition("=")[0]
    drawn = pictures(rows, name, given.objective)
    for picture in drawn:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    sentences = [_told(scene), *([answer(rows, name, given.objective)] if name else [])]
    (folder / "simulation.html").write_text(page(rows, name, drawn, sentences))
    told = [{"point": point, **row.as_json()} for point, row in rows]
    (folder / "simulation.json").write_text(json.dumps({"format": 1, "sweep": name, "rows": told}, indent=1) + "\n")
    print(f"{folder / 'simulation.html'}: {len(drawn)} pictures beside it, figures in simulation.json")
