"""``python -m loadtest.bench``: the generator itself. One core sends, the other answers at once; how late was it sent?"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from loadtest import payloads, records
from loadtest.command import LOCUSTFILE
from loadtest.standin import QUESTION

CORES: Final = 2
GOAL_MS: Final = 20.0
QUANTILES: Final = (0.5, 0.99, 0.999)


def main() -> int:
    """Run it. 0: the p99 of the send lag is within the goal; 1: it is not, or there are not two cores."""
    parser = argparse.ArgumentParser(prog="make bench-loadtest", description=__doc__)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second [%(default)s]")
    parser.add_argument("--seconds", type=float, default=20.0, help="[%(default)s]")
    parser.add_argument("--encoding", choices=("json", "binary"), default="json", help="[%(default)s]")
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES:
        print("bench-loadtest: this takes two cores, one to send and one to answer", file=sys.stderr)
        return 1
    with TemporaryDirectory(prefix="hearth-bench-") as name:
        folder = Path(name)
        payloads.write(folder / "deck.jsonl", [QUESTION])
        server = subprocess.Popen(_on(cores[0], "loadtest.standin"), stdout=subprocess.PIPE, text=True)  # noqa: S603 (ours)
        try:
            assert server.stdout is not None, "started without a pipe"
            host = f"http://127.0.0.1:{int(server.stdout.readline())}"
            flags = ["-f", str(LOCUSTFILE), "--headless", "--only-summary", "--loglevel", "ERROR", "--host", host]
            flags += ["--deck", str(folder / "deck.jsonl"), "--rate", str(asked.rate), "--duration-s", str(asked.seconds)]
            flags += ["--encoding", asked.encoding, "--output", str(folder / "run"), "--max-send-lag-ms", "1e9"]
            subprocess.run(_on(cores[1], "locust", *flags), check=True, capture_output=True)  # noqa: S603 (ours)
        finally:
            server.terminate()
            server.wait(timeout=10)
        return _print(folder / "run", asked.rate)


def _on(core: int, module: str, *flags: str) -> list[str]:
    return ["taskset", "-c", str(core), sys.executable, "-m", module, *flags]


def _print(folder: Path, rate: float) -> int:
    table, told = records.read(folder), records.read_run(folder)
    lags_ms = [1e3 * records.nearest_rank(table, "sent_s", "due_s", quantile=quantile) for quantile in QUANTILES]
    latencies_ms = [1e3 * records.nearest_rank(table, "done_s", "due_s", quantile=quantile) for quantile in QUANTILES]
    generator = told["generators"][0]
    print(f"{table.num_rows} requests at {rate:g}/s, open loop, one core to send")
    print("             p50 ms   p99 ms  p99.9 ms")
    print("send lag  " + "".join(f"{value:9.2f}" for value in lags_ms))
    print("latency   " + "".join(f"{value:9.2f}" for value in latencies_ms))
    print(f"the generator had {generator['cpu_share']:.0%} of its core, and lost it {generator['preempted']} times to others")
    within = lags_ms[1] <= GOAL_MS
    print(f"p99 send lag {lags_ms[1]:.1f} ms: {'within' if within else 'above'} {GOAL_MS:g} ms")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
