"""``python -m loadtest.peers``: Hearth beside Triton and FastAPI, one core each in turn, and a table of medians."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest.peers import wrk as client
from loadtest.peers.fastapi_peer import FastApi
from loadtest.peers.hearth import Hearth
from loadtest.peers.peer import Peer, PeerFailed, Site
from loadtest.peers.rounds import Plan, planned_s, run, timed_s
from loadtest.peers.table import Taken, as_json, table
from loadtest.peers.triton import HTTP_THREADS, Triton
from loadtest.peers.workloads import WORKLOADS, Case, WrongAnswer, made
from predictor.demo.children import Stopped, stoppable

PEERS: Final = ("hearth", "triton", "triton-dynamic", "fastapi")
CORES: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: a table; 1: a server failed, answered wrongly, or the machine lacks what it takes."""
    asked = _parser().parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES:
        return _refuse("this takes two cores, one for the server and one for the client")
    wrk = client.find(asked.peers_venv.resolve())
    if wrk is None:
        return _refuse(f"no wrk on the PATH nor in {asked.peers_venv}: apt-get install wrk")
    plan = Plan(asked.rounds, asked.seconds, cores[0], cores[1], asked.peers_venv.resolve())
    peers = _present(asked, plan)
    cases = [made(WORKLOADS[name]) for name in asked.workloads]
    taken: list[Taken] = []
    minutes = planned_s(plan, len(peers), [case.workload for case in cases]) / 60
    _say(f"{len(peers)} servers, {len(cases)} models, {plan.rounds} rounds: about {minutes:.0f} minutes")
    try:
        with stoppable():
            for found in run(plan, peers, cases, wrk, say=_say):
                taken.append(found)
                _say(
                    f"  {found.cell.workload} {found.cell.encoding} c={found.cell.connections}: "
                    f"{found.figures.requests_per_s:,.1f}/s, p50 {found.figures.p50_us:,.0f} µs"
                )
    except (PeerFailed, WrongAnswer) as failed:
        return _refuse(str(failed))
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    _print(taken, peers, cases, plan)
    if asked.output:
        asked.output.write_text(json.dumps(as_json(taken), indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often every server is started and asked")
    parser.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="which servers")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="which models")
    threads = "Triton's --http-thread-count; several are swept, a column each"
    parser.add_argument("--triton-http-threads", type=int, nargs="+", default=[HTTP_THREADS], help=threads)
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="where other servers are installed")
    parser.add_argument("-o", "--output", type=Path, help="write every run as JSON")
    return parser


def _present(asked: argparse.Namespace, plan: Plan) -> list[Peer]:
    """The servers that were asked for and can run; says which cannot, and why."""
    sweep = dict.fromkeys(asked.triton_http_threads)
    made_peers: dict[str, Sequence[Peer]] = {
        "hearth": [Hearth()],
        "triton": [Triton(dynamic=False, http_threads=threads) for threads in sweep],
        "triton-dynamic": [Triton(dynamic=True, http_threads=threads) for threads in sweep],
        "fastapi": [FastApi()],
    }
    site = Site(Path(), plan.server_core, plan.client_core, plan.peers_venv)
    present = []
    for peer in (peer for name in PEERS if name in asked.peers for peer in made_peers[name]):
        if why := peer.missing(site):
            _say(f"{peer.name} is left out: {why}")
        else:
            present.append(peer)
    return present


def _print(taken: Sequence[Taken], peers: Sequence[Peer], cases: Sequence[Case], plan: Plan) -> None:
    print(f"\n{table(taken, [peer.name for peer in peers])}\n")
    print(f"Medians of {plan.rounds} rounds of {plan.seconds} s (lowest and highest in percent); wrk with one thread on core")
    print(f"{plan.client_core}, all processes of the server on core {plan.server_core}, one server at a time, freshly started.")
    print("Every answer was compared with torch run alone before anything was timed.")
    for case in cases:
        shorter = f", {timed_s(plan, case.workload)} s" if case.workload.slow else ""
        print(f"- {case.workload.name}: {case.workload.told}{shorter}")
    for peer in peers:
        print(f"- {peer.name}: {peer.settings}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(why: str) -> int:
    _say(f"bench-overhead: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
