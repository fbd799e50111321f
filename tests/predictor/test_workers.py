"""Real worker processes: models built from real arenas, answers, deaths and successors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import (
    ComputedTooLong,
    LoadFailed,
    ModelFailed,
    SchemaMismatch,
    Unavailable,
    WorkerDied,
    WorkerRestarting,
    WorkerTaken,
)
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.passage import Passage
from predictor.tiers.slabs import Arena, SlabPool
from predictor.wire import FRAME, Frames, Hello, Run, Tensor, Unload, Unloaded, encode_head, to_worker_decoder
from predictor.workers.death import KERNEL_OUT_OF_MEMORY, Death, Lasting
from predictor.workers.dispatch import Answer, Outcome, Work
from predictor.workers.link import Link, Reply
from predictor.workers.output import Output
from predictor.workers.spawn import Child, Ends, Spawned, Starter, cpu_quota
from predictor.workers.worker import Worker
from predictor.workers.zygote import Zygote, starter
from tests.fakes.arenas import fragment, write
from tests.fakes.zoo import affine_onnx, affine_pytorch

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = (1.0, 2.0, 3.0, 4.0)

HANG_UP = b"""
        import os, socket
        for number in os.listdir("/proc/self/fd"):
            try:
                socket.socket(fileno=os.dup(int(number))).shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        time.sleep(1000)
""".strip()

BREAK_IN = b"""
        import mmap, os
        own = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        path = next(path for path in own if os.path.exists(path) and "hearth:weights" in os.readlink(path))
        numbers = [int(path.rpartition("/")[2]), os.open(path, os.O_RDWR)]
        for number in numbers:
            for attempt in (
                lambda: os.write(number, b"x"),
                lambda: os.ftruncate(number, 0),
                lambda: os.posix_fallocate(number, 0, 1 << 30),
                lambda: mmap.mmap(number, 4096),
            ):
                try:
                    attempt()
                except OSError:
                    continue
                raise AssertionError("broke in")
""".strip()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Bench:
    """One worker and the arenas of its models."""

    def __init__(self, starter: Starter, *, successor: bool = True) -> None:
        self.hellos: list[Hello] = []
        self.deaths: list[str] = []
        self.died: list[Death] = []
        self.lost = 0
        self.kernel_killed = False
        self.arenas: list[Arena] = []
        self.pool = SlabPool(64 << 20)
        self.passage = Passage(64 << 20, "requests")
        self.worker = Worker(
            device=0,
            kind="cpu",
            threads=1,
            pool=self.pool,
            passage=self.passage,
            successor=successor,
            build_timeout_s=60.0,
            execute_timeout_s=3.0,
            on_ready=self.hellos.append,
            on_lost=self._count,
            on_death=self._died,
            starter=starter,
            memory_killed=lambda: self.kernel_killed,
        )

    def _died(self, death: Death) -> None:
        self.deaths.append(death.reason)
        self.died.append(death)

    def _count(self) -> None:
        self.lost += 1

    async def load(self, name: str, files: dict[str, bytes], *, copy: bool = False, sleep_s: float = 0.0) -> ModelRef:
        spec, arena = self.prepare(name, files, sleep_s)
        await self.worker.load(spec, arena, copy=copy)
        return spec.ref

    def prepare(self, name: str, files: dict[str, bytes], sleep_s: float = 0.0) -> tuple[ModelSpec, Arena]:
        format_ = ModelFormat.ONNX if "model.onnx" in files else ModelFormat.PYTORCH
        listed = tuple(FileSpec(path, path, "etag", len(data)) for path, data in files.items())
        parameters = f'{{"width": 4, "sleep_s": {sleep_s}}}'
        spec = ModelSpec(ModelRef("default", name, 1), format_, "bucket", listed, parameters_json=parameters)
        arena = self.pool.take(spec.arena_bytes)
        self.arenas.append(arena)
        for placed in spec.layout():
            write(arena, placed.offset_bytes, files[placed.path])
        return spec, arena

    def close(self) -> None:
        for arena in self.arenas:
            arena.close()
        self.pool.close()
        self.passage.close()

    def ask(self, ref: ModelRef, *values: float, name: str = "x", wanted: tuple[str, ...] = ()) -> asyncio.Future[Answer]:
        data = struct.pack(f"<{len(values)}f", *values)
        return self.run(Work(ref, (Tensor(name, "FP32", (1, len(values)), len(data)),), [data], wanted, measure=False))

    def run(self, work: Work) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, Answer):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self.worker.run(work, done)
        return future

    @property
    def pid(self) -> int:
        return self.hellos[-1].pid

    async def until_it_computes(self, *, building: bool = False) -> None:
        """Only the worker knows when, and it says so on the page it shares with the front."""
        spawned = self.worker._spawned
        assert spawned is not None
        async with asyncio.timeout(30):
            while spawned.page[8 * building :][:8] == bytes(8):  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.01)

    def mapped(self) -> int:
        """Pieces of the pool that the worker maps."""
        return sum("memfd:hearth:weights" in line for line in _maps(self.pid))


def _maps(pid: int) -> list[str]:
    if os.geteuid():
        pytest.skip("only root looks into a worker")
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench() -> AsyncIterator[Bench]:
    zygote = Zygote(1)
    bench = Bench(starter(zygote))
    await bench.worker.start()
    yield bench
    await bench.worker.stop(5.0)
    bench.close()
    zygote.close()


def values(answer: Answer) -> list[float]:
    (part,) = answer.parts
    return list(struct.unpack(f"<{len(part) // 4}f", part))


async def test_models_of_both_formats_load_at_once_and_answer(bench: Bench) -> None:
    loads = (bench.load("t", affine_pytorch(scale=2.0)), bench.load("o", affine_onnx(scale=3.0)))
    torch_model, onnx_model = await asyncio.gather(*loads)
    assert values(await bench.ask(torch_model, *X)) == [3.0, 5.0, 7.0, 9.0]
    assert values(await bench.ask(onnx_model, *X)) == [4.0, 7.0, 10.0, 13.0]


async def test_many_requests_at_once_each_get_their_own_answer(bench: Bench) -> None:
    ref = await bench.load("many", affine_onnx(scale=1.0))
    answers = await asyncio.gather(*(bench.ask(ref, *(float(number),) * 4) for number in range(200)))
    assert [values(answer)[0] for answer in answers] == [number + 1.0 for number in range(200)]


async def test_a_body_of_many_megabytes_goes_there_and_back(bench: Bench) -> None:
    ref = await bench.load("big", affine_pytorch(scale=0.0))
    rows = 1 << 18
    answer = await bench.run(Work(ref, (Tensor("x", "FP32", (rows, 4), rows * 16),), [bytes(rows * 16)], (), measure=False))
    assert (answer.outputs[0].shape, len(answer.parts[0])) == ((rows, 4), rows * 16)
    assert values(answer)[:2] == [1.0, 1.0]


async def test_a_copy_outlives_its_arena_and_a_view_maps_it(bench: Bench) -> None:
    before = bench.mapped()
    copied = await bench.load("copied", affine_pytorch(scale=2.0), copy=True)
    onnx = await bench.load("onnx", affine_onnx(scale=3.0) | {"model.onnx.data": bytes(1 << 16)})
    assert bench.mapped() == before
    for arena in bench.arenas[-2:]:
        arena.close()
    write(bench.prepare("heir", {"model.onnx": bytes(1 << 20)})[1], 0, b"\xff" * (1 << 20))
    assert values(await bench.ask(copied, *X)) == [3.0, 5.0, 7.0, 9.0]
    assert values(await bench.ask(onnx, *X)) == [4.0, 7.0, 10.0, 13.0]
    viewed = await bench.load("viewed", affine_pytorch(scale=2.0))
    assert bench.mapped() == before + 1
    await bench.worker.unload(viewed)
    assert bench.mapped() == before
    await bench.worker.unload(copied)


async def test_loading_and_unloading_leaves_no_memory_behind(bench: Bench) -> None:
    big = {"model.onnx": affine_onnx(scale=1.0)["model.onnx"] + bytes(0)} | {"model.onnx.data": bytes(8 << 20)}
    resident: list[int] = []
    for _ in range(30):
        ref = await bench.load("cycled", big, copy=True)
        await bench.worker.unload(ref)
        bench.arenas.pop().close()
        resident.append(int(Path(f"/proc/{bench.pid}/statm").read_text().split()[1]) * 4096)
    # One model is 8 MiB; thirty of them would be 240. The allocator may keep a few.
    assert resident[-1] - resident[9] < 16 << 20


async def test_what_the_model_says_no_to_reaches_the_caller(bench: Bench) -> None:
    ref = await bench.load("picky", affine_pytorch(scale=1.0))
    with pytest.raises(ModelFailed, match=r"model picky:1 failed: RuntimeError: The size of tensor"):
        await bench.ask(ref, 1.0, 2.0, 3.0)
    with pytest.raises(SchemaMismatch, match="no output 'z'"):
        await bench.ask(ref, *X, wanted=("z",))
    spec, arena = bench.prepare("broken", {**affine_pytorch(scale=1.0), "model.py": b"import nothing_like_it"})
    with pytest.raises(LoadFailed, match="nothing_like_it"):
        await bench.worker.load(spec, arena, copy=False)
    assert values(await bench.ask(ref, *X))[0] == 2.0


RUDE = {
    "interrupt": b"raise KeyboardInterrupt",
    "cancelled": b"raise __import__('asyncio').CancelledError",
    "mute": b"raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
    "half a pair": rb"raise ValueError('a file called \udcff')",
}


@pytest.mark.parametrize("raised", RUDE.values(), ids=RUDE)
async def test_whatever_a_model_raises_its_worker_goes_on(bench: Bench, raised: bytes) -> None:
    files = affine_pytorch(scale=1.0)
    good = await bench.load("polite", files)
    pid = bench.pid
    ref = await bench.load("rude", {**files, "model.py": files["model.py"].replace(b"time.sleep(self.sleep_s)", raised)})
    with pytest.raises(ModelFailed, match="model rude:1 failed: "):
        await bench.ask(ref, *X)
    spec, arena = bench.prepare("rude-build", {**files, "model.py": raised})
    with pytest.raises(LoadFailed, match="model rude-build:1 could not be built: "):
        await bench.worker.load(spec, arena, copy=False)
    assert values(await bench.ask(good, *X))[0] == 2.0
    assert bench.pid == pid


SCRIBBLE = b"""
        import os, socket, struct
        for number in os.listdir("/proc/self/fd"):
            try:
                stream = socket.socket(fileno=os.dup(int(number)))
                assert stream.type is socket.SOCK_STREAM
                stream.send(struct.pack("<IQ", 8, 1 << 60) + bytes(8))
            except (OSError, AssertionError):
                pass
        time.sleep(1000)
""".strip()


async def test_a_worker_that_announces_more_than_an_answer_may_have_is_ended_and_nothing_is_kept_for_it(bench: Bench) -> None:
    files = affine_pytorch(scale=1.0)
    ref = await bench.load("scribbles", {**files, "model.py": files["model.py"].replace(b"time.sleep(self.sleep_s)", SCRIBBLE)})
    with pytest.raises(WorkerDied, match="it wrote what is no answer: a body of 1152921504606846976 bytes"):
        await bench.ask(ref, *X)
    assert (bench.died[-1].culprit, bench.died[-1].cause) == (ref, "hung up")


async def test_an_answer_larger_than_the_front_takes_is_refused_and_not_sent(bench: Bench) -> None:
    files = affine_pytorch(scale=1.0)
    large = b"return torch.zeros(1, dtype=torch.uint8).expand((64 << 20) + 1).contiguous()"
    ref = await bench.load("talks", {**files, "model.py": files["model.py"].replace(b"time.sleep(self.sleep_s)", large)})
    with pytest.raises(ModelFailed, match="model talks:1: its outputs are 67108865 bytes"):
        await bench.ask(ref, *X)


async def test_a_death_by_a_signal_without_a_name_is_told_as_any_other(bench: Bench) -> None:
    slow = await bench.load("real-time", affine_pytorch(scale=1.0), sleep_s=2.0)
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGRTMIN + 6)
    with pytest.raises(WorkerDied, match="killed by signal 40"):
        await asked
    assert bench.died[-1] == Death("", "killed by signal 40", "real-time signal", slow)


async def test_a_write_into_a_weight_kills_that_worker_only_and_the_arena_keeps_its_bytes(bench: Bench) -> None:
    source = affine_pytorch(scale=5.0)
    evil = source["model.py"].replace(b"time.sleep(self.sleep_s)", b"self.scale.data.zero_()")
    ref = await bench.load("evil", {**source, "model.py": evil})
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        await bench.ask(ref, *X)
    good = await bench.load("good", source)
    assert values(await bench.ask(good, *X))[0] == 6.0


async def test_the_request_inside_a_killed_worker_fails_and_those_behind_it_may_ask_again(bench: Bench) -> None:
    ref = await bench.load("slow", affine_pytorch(scale=1.0), sleep_s=2.0)
    deaths, lost = len(bench.deaths), bench.lost
    requests = [bench.ask(ref, *X) for _ in range(3)]
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGKILL)
    first, *others = await asyncio.gather(*requests, return_exceptions=True)
    assert type(first) is WorkerDied
    assert {type(other) for other in others} == {WorkerRestarting}
    assert (bench.deaths[deaths:], bench.lost) == (["killed by SIGKILL"], lost + 1)
    with pytest.raises(WorkerRestarting):
        await bench.ask(ref, *X)
    await bench.worker.unload(ref)


async def test_a_request_that_computes_for_too_long_costs_the_worker_its_life(bench: Bench) -> None:
    ref = await bench.load("hung", affine_pytorch(scale=1.0), sleep_s=1000.0)
    with pytest.raises(ComputedTooLong, match="HEARTH_EXECUTE_TIMEOUT_S"):
        await bench.ask(ref, *X)
    ref = await bench.load("after", affine_onnx(scale=1.0))
    assert values(await bench.ask(ref, *X))[0] == 2.0


async def test_a_worker_that_begins_with_no_request_is_ended_and_no_model_is_blamed(bench: Bench) -> None:
    ref = await bench.load("ready", affine_pytorch(scale=1.0))
    os.kill(bench.pid, signal.SIGSTOP)
    with pytest.raises(WorkerRestarting, match="it began with no request for 3 s"):
        await bench.ask(ref, *X)
    assert bench.died[-1].culprit is None


async def test_a_worker_ends_with_its_socket_and_hears_no_sigterm(bench: Bench) -> None:
    other = Bench(starter(None))
    await other.worker.start()
    ref = await other.load("m", affine_onnx(scale=1.0))
    os.kill(other.pid, signal.SIGTERM)
    assert values(await other.ask(ref, *X))[0] == 2.0
    environment = Path(f"/proc/{other.pid}/environ").read_bytes()
    await other.worker.stop(5.0)
    assert not Path(f"/proc/{other.pid}").exists()
    assert b"AWS_" not in environment
    assert b"OMP_NUM_THREADS=1" in environment
    other.close()


async def test_a_model_in_a_hundred_pieces_computes_as_one_and_leaves_no_mapping_behind(bench: Bench) -> None:
    before = bench.mapped()
    rest = fragment(bench.pool)
    source = affine_pytorch(scale=2.0) | {"padding": os.urandom(100 * 4096)}
    onnx = affine_onnx(scale=3.0) | {"padding": os.urandom(100 * 4096)}
    viewed, copied = await bench.load("viewed", source), await bench.load("copied", onnx, copy=True)
    assert all(len(arena.extents) > 100 for arena in bench.arenas[-2:])
    assert bench.mapped() == before + len(bench.arenas[-2].extents)
    assert values(await bench.ask(viewed, *X)) == [3.0, 5.0, 7.0, 9.0]
    assert values(await bench.ask(copied, *X)) == [4.0, 7.0, 10.0, 13.0]
    await asyncio.gather(bench.worker.unload(viewed), bench.worker.unload(copied))
    assert bench.mapped() == before
    for arena in rest:
        arena.close()


async def test_a_load_that_fails_maps_nothing_when_its_answer_is_here(bench: Bench) -> None:
    files = affine_pytorch(scale=1.0)
    keeps = b"import torch\nclass M(torch.nn.Module):\n  pass\ndef build(config):\n  m = M(); m.me = [m]; return m\n"
    before = bench.mapped()
    for code in (b"1 / 0", keeps):
        spec, arena = bench.prepare("broken", {**files, "model.py": code})
        with pytest.raises(LoadFailed):
            await bench.worker.load(spec, arena, copy=False)
        assert bench.mapped() == before


async def test_a_worker_that_hangs_up_and_computes_on_is_dead_before_its_models_count_as_unloaded(bench: Bench) -> None:
    """Its arena goes to another model then: what still computed on it would compute with that model's weights."""
    files = affine_pytorch(scale=1.0)
    code = files["model.py"].replace(b"time.sleep(self.sleep_s)", HANG_UP)
    ref = await bench.load("deaf", {**files, "model.py": code})
    idle = await bench.load("idle", affine_onnx(scale=1.0))
    pid, link = bench.pid, bench.worker._link
    assert link is not None
    asked = bench.ask(ref, *X)
    await link.closed
    assert alive(pid)
    await asyncio.gather(bench.worker.unload(ref), bench.worker.unload(idle))
    assert not alive(pid)
    with pytest.raises(WorkerDied):
        await asked


async def test_a_build_that_takes_too_long_fails_when_its_worker_is_dead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, arena = bench.prepare("endless", {**affine_pytorch(scale=1.0), "model.py": b"import time; time.sleep(1000)"})
    await bench.load("up", affine_onnx(scale=1.0))
    pid = bench.pid
    monkeypatch.setattr(bench.worker, "_build_timeout_s", 0.2)
    with pytest.raises(LoadFailed, match="HEARTH_BUILD_TIMEOUT_S"):
        await bench.worker.load(spec, arena, copy=False)
    assert not alive(pid)


async def test_a_build_that_waits_behind_others_has_its_own_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = affine_pytorch(scale=1.0)
    slow = {**files, "model.py": b"import time; time.sleep(0.9)\n" + files["model.py"]}
    loads = [bench.prepare(f"queued-{number}", slow) for number in range(3)]
    await bench.load("up-again", affine_onnx(scale=1.0))
    deaths = len(bench.deaths)
    monkeypatch.setattr(bench.worker, "_build_timeout_s", 1.7)
    await asyncio.gather(*(bench.worker.load(spec, arena, copy=False) for spec, arena in loads))
    assert len(bench.deaths) == deaths


async def test_a_worker_that_dies_while_it_computes_and_builds_has_two_suspects_and_neither_load_is_lost(bench: Bench) -> None:
    slow = await bench.load("computing", affine_pytorch(scale=1.0), sleep_s=2.0)
    files = {**affine_pytorch(scale=1.0), "model.py": b"import time; time.sleep(2)\n" + affine_pytorch(scale=1.0)["model.py"]}
    spec, arena = bench.prepare("building", files)
    loading = asyncio.create_task(bench.worker.load(spec, arena, copy=False))
    await bench.until_it_computes(building=True)
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGKILL)
    died, restarting = await asyncio.gather(asked, loading, return_exceptions=True)
    assert (type(died), type(restarting)) == (WorkerDied, WorkerRestarting)
    assert "may have been, another model's doing" in str(died)
    assert (bench.died[-1].culprit, set(bench.died[-1].suspects)) == (None, {slow, spec.ref})


async def test_who_is_blamed_for_an_end_by_force_is_told_and_what_another_model_computed_was_not_its_doing(
    bench: Bench,
) -> None:
    slow = await bench.load("inside", affine_pytorch(scale=1.0), sleep_s=2.0)
    fat = await bench.load("fat", affine_onnx(scale=1.0))
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    bench.worker.end("its memory ran away", "memory", fat)
    with pytest.raises(WorkerTaken, match="its memory ran away"):
        await asked
    assert bench.died[-1] == Death("", "its memory ran away", "memory", fat)


async def test_an_idle_death_blames_nobody_and_one_inside_blames_who_was(bench: Bench) -> None:
    slow = await bench.load("slow-again", affine_pytorch(scale=1.0), sleep_s=2.0)
    os.kill(bench.pid, signal.SIGKILL)
    with contextlib.suppress(WorkerDied):
        await bench.worker.unload(slow)
    slow = await bench.load("slow-again", affine_pytorch(scale=1.0), sleep_s=2.0)
    assert bench.died[-1] == Death("", "killed by SIGKILL", "SIGKILL")
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="model slow-again:1 ended its worker"):
        await asked
    assert bench.died[-1].culprit == slow


async def test_a_worker_that_the_kernel_killed_for_memory_is_told_as_that(bench: Bench) -> None:
    slow = await bench.load("hoards", affine_pytorch(scale=1.0), sleep_s=2.0)
    bench.kernel_killed = True
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"model hoards:1 ended its worker \(killed by the kernel: out of memory\)"):
        await asked
    assert bench.died[-1] == Death("", "killed by the kernel: out of memory", KERNEL_OUT_OF_MEMORY, slow)
    slow = await bench.load("hoards", affine_pytorch(scale=1.0), sleep_s=2.0)
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    bench.worker.end("we did it", "memory")
    with pytest.raises(WorkerDied, match="we did it"):
        await asked
    slow = await bench.load("hoards", affine_pytorch(scale=1.0), sleep_s=2.0)
    asked = bench.ask(slow, *X)
    await bench.until_it_computes()
    os.kill(bench.pid, signal.SIGSEGV)
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        await asked
    bench.kernel_killed = False


async def test_a_worker_without_a_successor_ends_for_good_and_a_load_that_waits_for_it_may_go_elsewhere() -> None:
    bench = Bench(starter(None), successor=False)
    await bench.worker.start()
    ref = await bench.load("m", affine_onnx(scale=1.0))
    spec, arena = bench.prepare("late", affine_onnx(scale=1.0))
    os.kill(bench.pid, signal.SIGKILL)
    with contextlib.suppress(WorkerDied):
        await bench.worker.unload(ref)
    with pytest.raises(WorkerRestarting):
        await bench.worker.load(spec, arena, copy=False)
    assert len(bench.hellos) == 1
    await bench.worker.stop(5.0)
    bench.close()


async def test_a_worker_that_is_stopped_while_it_builds_blames_nobody() -> None:
    bench = Bench(starter(None))
    await bench.worker.start()
    spec, arena = bench.prepare("building", {**affine_pytorch(scale=1.0), "model.py": b"import time; time.sleep(1000)"})
    loading = asyncio.create_task(bench.worker.load(spec, arena, copy=False))
    async with asyncio.timeout(30):
        while not bench.hellos:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.01)
    await bench.until_it_computes(building=True)
    await bench.worker.stop(0.0)
    with pytest.raises(Unavailable, match="was ended with this pod"):
        await loading
    assert bench.deaths == []
    bench.close()


async def test_a_worker_that_cannot_be_started_for_want_of_descriptors_is_started_later() -> None:
    failures = [OSError(24, "Too many open files")] * 4

    def start(*told: Any) -> Spawned:
        if failures:
            raise failures.pop()
        return starter(None)(*told)

    bench = Bench(start)
    await bench.worker.start()
    async with asyncio.timeout(30):
        while not bench.worker.failure:  # noqa: ASYNC110 (told nobody)
            await asyncio.sleep(0.01)
        assert "Too many open files" in bench.worker.failure
        await bench.load("m", affine_onnx(scale=1.0))
    assert bench.worker.failure == ""
    await bench.worker.stop(5.0)
    bench.close()


async def test_a_worker_whose_output_cannot_be_read_for_want_of_descriptors_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Spawned] = []

    def start(*told: Any) -> Spawned:
        started.append(starter(None)(*told))
        return started[-1]

    def listen(output: Output) -> None:
        if len(started) == 1:
            raise OSError(24, "Too many open files")
        begin(output)

    begin = Output.start
    monkeypatch.setattr(Output, "start", listen)
    bench = Bench(start)
    await bench.worker.start()
    async with asyncio.timeout(30):
        await bench.load("m", affine_onnx(scale=1.0))
    assert [spawned.process.poll() for spawned in started] == [-signal.SIGKILL, None]
    assert started[0].stream.fileno() == started[0].control.fileno() == -1
    await bench.worker.stop(5.0)
    bench.close()


async def test_a_stop_does_not_wait_for_the_pause_before_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> Spawned:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("predictor.workers.worker.BACKOFF_S", (60.0, 60.0))
    bench = Bench(start)
    await bench.worker.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await bench.worker.stop(1.0)
    bench.close()


async def test_a_worker_that_never_says_hello_is_ended_and_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> Spawned:
        ends = Ends.make()
        process = subprocess.Popen(["sleep", "1000"], pass_fds=ends.theirs, start_new_session=True)
        ends.close_theirs()
        return ends.spawned(Child(process.pid), "")

    monkeypatch.setattr("predictor.workers.worker.WATCH_S", 0.01)
    bench = Bench(start)
    monkeypatch.setattr(bench.worker, "_build_timeout_s", 0.05)
    await bench.worker.start()
    async with asyncio.timeout(30):
        while not bench.worker.failure:  # noqa: ASYNC110 (told nobody)
            await asyncio.sleep(0.01)
    assert "it was not up within 0.05 s (HEARTH_BUILD_TIMEOUT_S)" in bench.worker.failure
    await bench.worker.stop(1.0)
    bench.close()


async def test_model_code_cannot_write_into_the_pool_by_any_road(bench: Bench) -> None:
    files = affine_pytorch(scale=1.0)
    code = files["model.py"].replace(b"time.sleep(self.sleep_s)", BREAK_IN)
    ref = await bench.load("burglar", {**files, "model.py": code})
    assert values(await bench.ask(ref, *X)) == [2.0, 3.0, 4.0, 5.0]


# ---- the pure parts


async def test_who_was_stopped_counts_no_more_than_one_look_and_begins_anew_with_something_else() -> None:
    lasting = Lasting(1.0, 0.0)
    assert [lasting.look("a", now_s) for now_s in (0.5, 1.0, 1.5)] == [0.0, 0.5, 1.0]
    assert lasting.look("a", 600.0) == 2.0
    assert [lasting.look("b", 600.5), lasting.look("b", 601.0)] == [0.0, 0.5]
    assert [lasting.look(None, 601.5), lasting.look(None, 602.0)] == [0.0, 0.0]


async def test_an_answer_of_another_kind_than_was_asked_for_ends_the_link_before_anybody_is_told() -> None:
    told: list[Reply] = []
    ours, theirs = socket.socketpair()
    _, link = await asyncio.get_running_loop().create_unix_connection(lambda: Link(lambda _: None), sock=ours)
    link.send(Run(1, "m", (), ()), answer=told.append, computes=True)
    theirs.send(encode_head(Unloaded(1)))
    await link.closed
    assert link.fault == "it wrote what is no answer: Unloaded where Ran is due"
    assert (told, list(link.pending)) == ([], [1])
    theirs.close()


@given(
    bodies=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=50),
)
async def test_frames_survive_every_way_a_stream_may_be_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode_head(Unload(number, "m"), len(body)) + body for number, body in enumerate(bodies))
    frames = Frames()
    got: list[tuple[object, bytes]] = []
    position = 0
    while position < len(stream):
        size = cuts[len(got) % len(cuts)]
        got += [(to_worker_decoder.decode(head), bytes(body)) for head, body in frames.feed(stream[position : position + size])]
        position += size
    assert got == [(Unload(number, "m"), body) for number, body in enumerate(bodies)]


async def test_a_header_of_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="header of"):
        list(Frames().feed(FRAME.pack(1 << 31, 0)))
    assert to_worker_decoder.decode(encode_head(Run(1, "m", (), ()))[FRAME.size :]) == Run(1, "m", (), ())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, lambda cores: cores),
        ({"cpu.max": "max 100000"}, lambda cores: cores),
        ({"cpu.max": "100000 100000"}, lambda _: 1),
        ({"cpu.max": "150000 100000"}, lambda cores: min(2, cores)),
        ({"cpu.max": "10000 100000"}, lambda _: 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, lambda cores: cores),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, lambda _: 1),
    ],
)
async def test_threads_follow_the_containers_quota(
    tmp_path: Path, files: dict[str, str], expected: Callable[[int], int]
) -> None:
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu_quota(tmp_path) == expected(len(os.sched_getaffinity(0)))
