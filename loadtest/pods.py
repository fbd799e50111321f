"""``python -m loadtest.pods``: how many pods there are, again and again, while a run goes on; looking wakes none.

A process of its own: asking a controller costs imports and computing that would make the generator late.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from predictor.client import AdminClient
from predictor.errors import HearthError

if TYPE_CHECKING:
    from warmup.cluster import Pool

SCHEMA: Final = pa.schema([("at_s", pa.float64()), ("ready_pods", pa.int32()), ("pods", pa.int32())])
LINES: Final = "pods.jsonl"
NICENESS: Final = 10
SERVING: Final = "serving"
"""What a pod that takes requests says of itself."""


class Count(NamedTuple):
    """Pods at one moment of the wall clock. Ready: those that serve, and were not told to end; a pod ends for 30 s and more."""

    at_unix_s: float
    ready_pods: int
    pods: int


def of_admin(address: str) -> Callable[[], Count]:
    """Count the one pod behind an admin port: it is there, or it is not."""
    client = AdminClient(address)

    def count() -> Count:
        try:
            client.residency()
        except HearthError:
            return Count(time.time(), 0, 0)
        return Count(time.time(), 1, 1)

    return count


def of_cluster(namespace: str) -> Callable[[], Count]:
    """Count what a namespace's controller knows of."""
    from warmup import cluster  # noqa: PLC0415 (kubernetes and aiohttp: only where there is a cluster)

    place = cluster.Place(namespace, "")

    def count() -> Count:
        return counted(cluster.run(place, lambda controller: controller.pools()), time.time())

    return count


def counted(pools: Iterable[Pool], at_unix_s: float) -> Count:
    """Add up what the controller tells of every pool of its namespace."""
    states = [pod.state for pool in pools for pod in pool.pods]
    return Count(at_unix_s, states.count(SERVING), len(states))


def begin(folder: Path, *, admin: str, namespace: str, every_s: float) -> subprocess.Popen[bytes] | None:
    """Start counting into the run's folder; None where nobody said where to look."""
    if not (admin or namespace):
        return None
    source = ["--namespace", namespace] if namespace else ["--admin", admin]
    command = [sys.executable, "-m", "loadtest.pods", *source, "--every-s", str(every_s)]
    with (folder / LINES).open("wb") as lines:
        return subprocess.Popen(command, stdout=lines)  # noqa: S603 (our own Python, with what its user typed)


def finish(folder: Path, process: subprocess.Popen[bytes] | None, start_unix_s: float) -> None:
    """End the counting; what was counted becomes pods.parquet."""
    if process is None:
        return
    process.terminate()
    process.wait(timeout=10)
    counts = list(_read(folder / LINES))
    columns = [[count.at_unix_s - start_unix_s for count in counts], *zip(*(count[1:] for count in counts), strict=True)]
    if counts:
        pq.write_table(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA), folder / "pods.parquet"
        )


def _read(path: Path) -> Iterator[Count]:
    for line in path.read_text().splitlines():
        try:
            yield Count(*json.loads(line))
        except ValueError:  # the last line, cut short
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Count until ended."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.pods", description=__doc__)
    parser.add_argument("--admin", default="")
    parser.add_argument("--namespace", default="")
    parser.add_argument("--every-s", type=float, default=5.0)
    asked = parser.parse_args(argv)
    os.nice(NICENESS)
    count = of_cluster(asked.namespace) if asked.namespace else of_admin(asked.admin)
    parent = os.getppid()
    while os.getppid() == parent:  # a run that was killed leaves nobody behind
        try:
            print(json.dumps(count()), flush=True)
        except HearthError as problem:  # a controller that restarts is asked again
            print(f"loadtest: pods could not be counted: {problem}", file=sys.stderr, flush=True)
        time.sleep(asked.every_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
