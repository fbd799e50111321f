"""``python -m loadtest.fairness``: floods, weights and priorities on one Hearth, and what each client got of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.fairness.scenes import FLOOD, HIGH, SCENES, Scene, Seen, models
from loadtest.fairness.stage import LOOK_S, Plan
from loadtest.fairness.table import as_json, latencies, verdicts
from loadtest.fairness.verdicts import SAMPLES
from loadtest.peers import wrk as client
from loadtest.peers.hearth import Hearth
from loadtest.peers.peer import PeerFailed, Site
from loadtest.peers.rounds import quiet
from loadtest.peers.workloads import WrongAnswer
from loadtest.peers.wrk import Wrk
from predictor.client import NoServer
from predictor.demo.children import Stopped, stoppable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: tables, whatever they say; 1: the server failed or answered wrongly, or the machine lacks what it takes."""
    asked = _parser().parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return _refuse("this takes two cores, one for the server and one for the clients")
    venv = asked.peers_venv.resolve()
    plan = Plan(asked.rounds, asked.seconds, asked.longest_seconds, cores[0], cores[-1], venv)
    wrk, why = client.find(venv), Hearth().missing(Site(Path(), plan.server_core, plan.client_core, venv))
    if wrk is None or why:
        return _refuse(why or f"no wrk on the PATH nor in {asked.peers_venv}: apt-get install wrk")
    scenes = [SCENES[name] for name in asked.scenes]
    seen: list[Seen] = []
    try:
        with stoppable():
            _play(plan, wrk, scenes, seen)
    except (PeerFailed, WrongAnswer, NoServer) as failed:
        return _refuse(str(failed))
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    _print(seen, scenes, plan)
    if asked.output:
        asked.output.write_text(json.dumps(as_json(seen), indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often every scene is played, on a new server each time")
    parser.add_argument("--seconds", type=int, default=10, help="of each run of wrk, at least")
    longest = f"of each run of wrk that has not had {SAMPLES} requests, at most"
    parser.add_argument("--longest-seconds", type=int, default=60, help=longest)
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES), help="what is played")
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="where wrk is, if not on the PATH")
    parser.add_argument("-o", "--output", type=Path, help="write every client of every round as JSON")
    return parser


def _play(plan: Plan, wrk: Wrk, scenes: Sequence[Scene], seen: list[Seen]) -> None:
    for number in range(1, plan.rounds + 1):
        for scene in scenes:
            _say(f"round {number}, {scene.name}: {quiet()}")
            for one in scene.play(plan, wrk, number):
                seen.append(one)
                _say(
                    f"  {one.client}: {one.figures.requests_per_s:,.1f}/s, p50 {one.figures.p50_us / 1e3:,.2f} ms, "
                    f"p99 {one.figures.p99_us / 1e3:,.2f} ms, n = {one.figures.requests}, {one.figures.failed} failed"
                )


def _print(seen: Sequence[Seen], scenes: Sequence[Scene], plan: Plan) -> None:
    print(f"\n{latencies(seen)}\n\n{verdicts(seen, scenes)}\n")
    print(f"Medians of {plan.rounds} rounds, n and failures summed; every scene on a freshly started `hearth serve`,")
    print(
        f"all its processes on core {plan.server_core}, clients (wrk, one thread each, closed loop) on core {plan.client_core}."
    )
    print(
        f"After {LOOK_S} s to warm up a client is timed for {plan.seconds} s, or for as long as {SAMPLES} requests should take,"
    )
    print(f"{plan.longest_seconds} s at most. A flood is {FLOOD} connections, a quiet client 1, one of high priority {HIGH}.")
    print("Device time and batches are hearth_compute_seconds and hearth_batch_rows over the window: wall clock in the")
    print("worker, which shares its core with the front; a batch's time is the mean. All answers were compared with")
    print("torch run alone before anything was timed.")
    for told in dict.fromkeys(f"- {workload.name}: {workload.told}" for scene in scenes for workload in models(scene)):
        print(told)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(why: str) -> int:
    _say(f"bench-fairness: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
