"""``python -m loadtest.peers.alongside``: the load test itself against Hearth and Triton, one after the other, on one page.

The same models, the same schedule, a core for the server and one for the generator. What `python -m loadtest.peers` measures is
how fast a closed loop can go; this is how long requests take that come when they come.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from loadtest import payloads
from loadtest.command import LOCUSTFILE
from loadtest.peers.hearth import Hearth
from loadtest.peers.peer import HOST, Peer, PeerFailed, Site, pinned, wait_until_right
from loadtest.peers.rounds import place, quiet
from loadtest.peers.triton import Triton
from loadtest.peers.workloads import DIGITS, INPUT, OUTPUT, WORKLOADS, Case, WrongAnswer, made
from loadtest.report.command import main as report
from predictor.demo.children import Children, Stopped, stoppable

CORES: Final = 2
HIDDEN: Final = ((512, 512), (256,), (1024, 512), (128, 128, 128))
"""The models: MLPs from 784 pixels to 10 classes, by their hidden widths."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: a page; 1: a server failed, answered wrongly, or the machine lacks what it takes."""
    parser = argparse.ArgumentParser(prog="make bench-alongside", description=__doc__)
    parser.add_argument("--rate", type=float, nargs="+", default=[100.0, 400.0], help="requests a second, a page each")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run [%(default)s]")
    parser.add_argument("--encoding", choices=("json", "binary", "mixed"), default="json", help="[%(default)s]")
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="where Triton is installed")
    parser.add_argument("-o", "--output", type=Path, default=Path("alongside"), help="a folder that is not there yet")
    asked = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES or asked.output.exists():
        return _refuse("this takes two cores, and a folder of its own to write to")
    asked.output.mkdir(parents=True)
    cases = [_model(widths) for widths in HIDDEN]
    payloads.write(asked.output / "deck.jsonl", map(_asked, cases))
    peers: list[tuple[str, Peer]] = [
        ("hearth", Hearth()),
        ("triton", Triton(dynamic=False)),
        ("triton-dynamic", Triton(dynamic=True)),
    ]
    runs: dict[float, list[str]] = {rate: [] for rate in asked.rate}
    try:
        with stoppable():
            for name, peer in peers:
                for rate, folder in _visit(asked, name, peer, cases, cores):
                    runs[rate].append(str(folder))
    except (PeerFailed, WrongAnswer) as failed:
        return _refuse(str(failed))
    except Stopped as stopped:
        return stopped.exit_code
    return max(report([*folders, "-o", str(asked.output / f"{rate:g}.html")]) for rate, folders in runs.items())


def _visit(
    asked: argparse.Namespace, name: str, peer: Peer, cases: Sequence[Case], cores: Sequence[int]
) -> list[tuple[float, Path]]:
    """One server, all rates: rate and the folder of its run."""
    found = []
    with place() as folder, Children(folder) as children:
        site = Site(folder, cores[0], cores[1], asked.peers_venv.resolve())
        if why := peer.missing(site):
            raise PeerFailed(f"{peer.name}: {why}")
        started = peer.start(children, site, cases)
        for case in cases:
            wait_until_right(started, children, case)
        for rate in asked.rate:
            print(f"{peer.name}, {rate:g}/s: {quiet()}", file=sys.stderr, flush=True)
            output = asked.output / f"{name}-{rate:g}"
            flags = ["-f", str(LOCUSTFILE), "--headless", "--only-summary", "--loglevel", "ERROR"]
            flags += ["--host", f"http://{HOST}:{started.port}", "--server", "hearth" if name == "hearth" else "v2"]
            flags += ["--deck", str(asked.output / "deck.jsonl"), "--encoding", asked.encoding, "--output", str(output)]
            flags += ["--rate", str(rate), "--duration-s", str(asked.seconds), "--slo", "errors<=0%"]
            # What the run makes of itself (late, errors) is on the page.
            subprocess.run(  # noqa: S603 (ours)
                pinned(cores[1], [sys.executable, "-m", "locust", *flags]), check=False, capture_output=True
            )
            found.append((rate, output))
    return found


def _model(hidden: Sequence[int]) -> Case:
    name = "mlp-" + "-".join(map(str, hidden))
    return made(replace(WORKLOADS["mlp"], name=name, config={"kind": "mlp", "widths": [784, *hidden, 10]}))


def _asked(case: Case) -> dict[str, Any]:
    def tensor(name: str, values: Any, digits: int) -> dict[str, Any]:
        data = [round(float(value), digits) for value in values.ravel()]
        return {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": data}

    return {
        "model": case.workload.name,
        "inputs": [tensor(INPUT, case.input, DIGITS)],
        "outputs": [tensor(OUTPUT, case.expected, 2 * DIGITS)],
    }


def _refuse(why: str) -> int:
    print(f"bench-alongside: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
