"""``python -m loadtest.isolation.density``: what one more worker takes, forked from the zygote and started as a process.

Every worker builds the same two small models, PyTorch and ONNX, from shared memory and computes with both. Memory is the
growth of all workers' and the zygote's proportional set size (proc_pid_smaps(5)) from one worker to all of them, divided: what
several map is counted once. Shared memory, that is weights, is left out. What stays out: how workers are told apart
(predictor/workers).
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from predictor import wire
from predictor.engine import onnx
from predictor.workers.spawn import Spawned, cpu_quota, spawn
from predictor.workers.zygote import Zygote

BAR_MB: Final = 10.0
BAR_MS: Final = 150.0

WIDTH: Final = 512
PATIENCE_S: Final = 60.0

MODULE: Final = f"""
import torch

def build(config):
    return torch.nn.Linear({WIDTH}, {WIDTH}, bias=False)
"""
X: Final = wire.Field("x", "FP32", (-1, WIDTH))
ONE: Final = wire.Field("x", "FP32", (1,))


class Line(NamedTuple):
    """One way to come by workers.

    first_ms   from the start of its process to the first worker's Hello: the import of torch is in it
    further    the same of each further worker, from when it was asked for
    mb         what each further worker takes, weights left out
    own_mb     of that, memory that no other process maps
    all_mb     what the first one takes, with the zygote if there is one
    """

    name: str
    first_ms: float
    further_ms: tuple[float, ...]
    mb: float
    own_mb: float
    all_mb: float


def main() -> int:
    """Run it. 0: a forked worker is within both bars; 1: it is not, or the kernel does not tell."""
    parser = argparse.ArgumentParser(prog="make bench-density", description=__doc__)
    parser.add_argument("--forked", type=int, default=20, help="workers forked from the zygote [%(default)s]")
    parser.add_argument("--started", type=int, default=3, help="workers started as processes of their own [%(default)s]")
    asked = parser.parse_args()
    if os.geteuid():
        os.environ["HEARTH_CONFINE"] = "off"
        print("not root, so the workers are not confined: else nobody could read what they take", file=sys.stderr)
    lines = [measured_zygote(asked.forked), measured_processes(asked.started)]
    _print(lines)
    within = lines[0].mb <= BAR_MB and statistics.median(lines[0].further_ms) <= BAR_MS
    print(f"one more worker: {'within' if within else 'above'} {BAR_MB:g} MB and {BAR_MS:g} ms")
    return 0 if within else 1


def measured_zygote(count: int) -> Line:
    """Workers of one zygote."""
    threads = cpu_quota()
    zygotes: list[Zygote] = []

    def start() -> Spawned:
        if not zygotes:
            zygotes.append(Zygote(threads))
        return zygotes[0].fork(0, threads, name="density")

    try:
        return measured("forked from the zygote", start, count, lambda: [zygotes[0].pid], pause_s=6.0)
    finally:
        for zygote in zygotes:
            zygote.close()


def measured_processes(count: int) -> Line:
    """Workers that are processes of their own."""
    return measured("a process of its own", lambda: spawn(0, "cpu", cpu_quota()), count, list, pause_s=0.0)


def measured(
    name: str, start: Callable[[], Spawned], count: int, beside: Callable[[], Sequence[int]], *, pause_s: float
) -> Line:
    """Start one worker, wait, start ``count`` more.

    beside   other processes that are there for them
    pause_s  after the first worker, for what is done when nobody waits
    """
    weights, files = _models()
    workers: list[_Worker] = []
    try:
        first_ms = _started(workers, start)
        time.sleep(pause_s)
        workers[0].build(weights, files)
        first = _taken([*beside(), workers[0].pid])
        further_ms = []
        for _ in range(count):
            further_ms.append(_started(workers, start))
            workers[-1].build(weights, files)
        taken = _taken([*beside(), *(worker.pid for worker in workers)])
        own = statistics.median(_own(worker.pid) for worker in workers[1:])
        return Line(name, first_ms, tuple(further_ms), (taken - first) / count / 1e6, own / 1e6, first / 1e6)
    finally:
        for worker in workers:
            worker.end()
        os.close(weights.descriptor)


def _started(workers: list[_Worker], start: Callable[[], Spawned]) -> float:
    begin_s = time.monotonic()
    workers.append(_Worker(start()))
    return (time.monotonic() - begin_s) * 1e3


class _Worker:
    """One, spoken to without a front."""

    def __init__(self, spawned: Spawned) -> None:
        self._spawned = spawned
        spawned.stream.settimeout(PATIENCE_S)
        self._answers = self._listen(spawned.stream)
        hello = next(self._answers)
        assert isinstance(hello, wire.Hello), f"{hello} comes before Hello"
        self.pid = hello.pid

    def build(self, weights: wire.Pool, files: dict[str, tuple[wire.File, ...]]) -> None:
        """Load both models and compute with both."""
        wire.send_pool(self._spawned.control, weights)
        for number, (format_, placed) in enumerate(files.items()):
            field = ONE if format_ == "onnx" else X
            load = wire.Load(
                number, f"d/{format_}/1@", format_, placed, weights.size_bytes, False, (field,), (), "{}",  # noqa: FBT003 (by place)
                extents=((0, weights.size_bytes),),
            )  # fmt: skip
            self._ask(load)
            size = 4 * (1 if format_ == "onnx" else WIDTH)
            tensor = wire.Tensor("x", "FP32", (1,) if format_ == "onnx" else (1, WIDTH), size)
            self._ask(wire.Run(number, load.model, (tensor,), ()), bytes(size))

    def end(self) -> None:
        """Let go of it, and wait."""
        self._spawned.stream.close()
        self._spawned.control.close()
        self._spawned.page.close()
        os.close(self._spawned.output)
        self._spawned.process.wait()

    def _ask(self, message: wire.Asking, body: bytes = b"") -> None:
        self._spawned.stream.sendall(wire.encode_head(message, len(body)) + body)
        answer = next(self._answers)
        assert isinstance(answer, (wire.Loaded, wire.Ran)), f"{message} was answered by {answer}"

    @staticmethod
    def _listen(stream: socket.socket) -> Iterator[wire.FromWorker]:
        frames = wire.Frames()
        while data := stream.recv(1 << 20):
            for header, _ in frames.feed(data):
                yield wire.from_worker_decoder.decode(header)


def _models() -> tuple[wire.Pool, dict[str, tuple[wire.File, ...]]]:
    """Shared memory with both models' files, and where each lies."""
    size = WIDTH * WIDTH * 4
    head = f'{{"weight":{{"dtype":"F32","shape":[{WIDTH},{WIDTH}],"data_offsets":[0,{size}]}}}}'.encode()
    head += b" " * (-len(head) % 8)
    tensors = struct.pack("<Q", len(head)) + head + bytes(size)
    descriptor = os.memfd_create("density", os.MFD_CLOEXEC)
    files: dict[str, list[wire.File]] = {"pytorch": [], "onnx": []}
    offset = 0
    for format_, path, data in (
        ("pytorch", "model.safetensors", tensors),
        ("pytorch", "model.py", MODULE.encode()),
        ("onnx", "model.onnx", onnx.IDENTITY),
    ):
        os.pwrite(descriptor, data, offset)
        files[format_].append(wire.File(path, offset, len(data)))
        offset += -(-len(data) // 64) * 64
    os.ftruncate(descriptor, offset)
    return wire.Pool(offset, 0, descriptor), {format_: tuple(placed) for format_, placed in files.items()}


def _smaps(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) << 10 for name, value in (line.split(":") for line in lines)}


def _taken(pids: Sequence[int]) -> int:
    """Bytes of these processes together, without shared memory."""
    return sum(told["Pss"] - told["Pss_Shmem"] for told in map(_smaps, pids))


def _own(pid: int) -> int:
    return _smaps(pid)["Private_Dirty"]


def _print(lines: Sequence[Line]) -> None:
    print(f"{'':24} {'first Hello':>12} {'each further':>13} {'slowest':>8} {'memory':>9} {'of it own':>10} {'first, all':>11}")
    for line in lines:
        further = (statistics.median(line.further_ms), max(line.further_ms))
        print(
            f"{line.name:24} {line.first_ms:9.0f} ms {further[0]:10.0f} ms {further[1]:5.0f} ms {line.mb:6.1f} MB "
            f"{line.own_mb:7.1f} MB {line.all_mb:8.0f} MB"
        )


if __name__ == "__main__":
    sys.exit(main())
