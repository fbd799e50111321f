"""``python -m loadtest.isolation``: every evil model beside healthy ones, in each isolation domain and on Triton."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.isolation import stage
from loadtest.isolation.evil import EVILS, Evil
from loadtest.isolation.scene import LEAD, Played, play
from loadtest.isolation.stage import BUILD_TIMEOUT_S, EXECUTE_TIMEOUT_S, TRITON, healthy
from loadtest.isolation.table import as_json, latencies, table
from loadtest.peers.peer import PeerFailed
from loadtest.peers.rounds import quiet
from predictor.demo.children import Stopped, stoppable

DOMAINS = ("pool", "tenant", "model", TRITON)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: tables, whatever they say; 1: a server did not start."""
    asked = _parser().parse_args(arguments)
    played: list[Played] = []
    try:
        with stoppable():
            for domain in asked.domains:
                _play(domain, asked, played)
    except PeerFailed as failed:
        print(f"bench-isolation: {failed}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        if asked.output:
            asked.output.write_text(json.dumps(as_json(played), indent=1))
    print(f"\n{table(played, asked.domains)}\n\n{latencies(played, asked.domains)}\n")
    print(
        f"{asked.healthy} healthy models, each asked {asked.rate:g} times a second for {asked.seconds:g} s; the evil model is"
    )
    print(
        f"poked every {asked.pause:g} s after the first {LEAD:.0%} of that. A cell: failed of asked after the first poke; the"
    )
    print("longest time that one of the healthy models gave no right answer, beyond the time between two questions; and")
    print("what the evil model answered to a harmless question afterwards.")
    print(f"Hearth's limits: {EXECUTE_TIMEOUT_S:g} s for a computation, {BUILD_TIMEOUT_S:g} s for a build. Triton has none.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.isolation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of steady load, for each evil model in each domain")
    parser.add_argument("--healthy", type=int, default=20, help="models that do no harm")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second to each of them")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two pokes")
    parser.add_argument("--evils", nargs="+", choices=list(EVILS), default=list(EVILS))
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="where Triton is")
    parser.add_argument("-o", "--output", type=Path, help="write everything that was seen as JSON")
    return parser


def _play(domain: str, asked: argparse.Namespace, played: list[Played]) -> None:
    if domain != TRITON:
        with stage.hearth(domain, asked.healthy) as port:
            for name in asked.evils:
                _scene(port, EVILS[name], domain, asked, played)
        return
    for name in asked.evils:  # a server each: what was done to one stays done
        with stage.triton(asked.healthy, EVILS[name], asked.peers_venv.resolve()) as port:
            _scene(port, EVILS[name], domain, asked, played)


def _scene(port: int, evil: Evil, domain: str, asked: argparse.Namespace, played: list[Played]) -> None:
    models = healthy(asked.healthy)
    load_by = f"/v2/repository/models/{evil.name}/load" if domain == TRITON and evil.when == "built" else ""
    one = asyncio.run(
        play(port, evil, models, domain=domain, seconds=asked.seconds, rate=asked.rate, pause_s=asked.pause, load_by=load_by)
    )
    played.append(one)
    pokes = [poke.status for poke in one.pokes]
    print(
        f"{domain}, {evil.name}: {len(one.failed)} of {one.asked} failed, silence {one.silence_s:.2f} s, "
        f"p99 {one.before_s * 1e3:.1f} → {one.after_s * 1e3:.1f} ms; pokes {pokes[:8]}, then {one.back}; {quiet()}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
