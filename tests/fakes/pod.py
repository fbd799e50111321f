"""A pod without S3 and without torch: the real HTTP servers, routes and cache over a catalogue and tiers that are fakes.

``ServedPod`` runs it on real sockets and an event loop of its own, in a thread, so that tests use ordinary blocking
clients (sockets, httpx, tritonclient) as users do.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Any, Self, TypeVar

import uvloop

from predictor.api.http import HttpServer
from predictor.api.pod import Pod, PodState
from predictor.cache import Cache
from predictor.errors import HearthError, SchemaMismatch, UnknownModel
from predictor.hops import Hops
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec, TensorSpec
from predictor.passage import Buffer, Passage
from predictor.policy.batching import Terms
from predictor.policy.demand import Demand
from predictor.policy.ledger import Ledger
from predictor.policy.residency import RAM, Place
from predictor.report import DeclaredReport
from predictor.settings import Settings
from predictor.telemetry import Batches, Telemetry, Timeline
from predictor.wire import Field, Loaded, Tensor
from predictor.workers.dispatch import Answer, Dispatcher, Job, Outcome, Work
from tests.fakes.profiles import HEADROOM_BYTES, KnownProfiles
from tests.fakes.tiers import FakeRam

Result = TypeVar("Result")
Compute = Callable[[Sequence[Tensor], Sequence[Buffer]], Answer]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PATIENCE_S = 10.0


def model(
    name: str,
    version: int = 1,
    *,
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
    pages: int = 1,
    **more: Any,
) -> ModelSpec:
    """A spec as the catalogue makes them; ``more`` of its fields."""
    file = FileSpec("model.onnx", f"{name}/{version}/model.onnx", "etag", pages * 4096)
    return ModelSpec(ModelRef("default", name, version), ModelFormat.ONNX, "bucket", (file,), inputs, outputs, **more)


class FakeCatalogue:
    """Models by name. ``errors[name]`` is raised instead; ``hanging`` names are never resolved."""

    def __init__(self, *specs: ModelSpec) -> None:
        self.specs = {spec.ref.name: spec for spec in specs}
        self.errors: dict[str, HearthError] = {}
        self.hanging: set[str] = set()
        self.resolved: Counter[str] = Counter()
        self.abandoned: Counter[str] = Counter()
        self.forgotten: Counter[str] = Counter()

    def known(self, name: str, version: int | None) -> ModelSpec | None:
        spec = self.specs.get(name)
        if not self.resolved[name] or spec is None or version not in (None, spec.ref.version):
            return None
        return spec

    async def resolve(self, name: str, version: int | None) -> ModelSpec:
        if name in self.hanging:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.abandoned[name] += 1
        if name in self.errors:
            raise self.errors[name]
        spec = self.specs.get(name)
        if spec is None or version not in (None, spec.ref.version):
            raise UnknownModel(f"no model {name!r}" + ("" if version is None else f" of version {version}"))
        self.resolved[name] += 1
        return spec

    def report(self) -> tuple[DeclaredReport, ...]:
        return ()

    def forget(self, name: str) -> None:
        self.forgotten[name] += 1

    async def names(self) -> tuple[str, ...]:
        return tuple(self.specs)


class ComputingDevice:
    """A device tier that computes in Python: ``computes[name]``, else an echo of the inputs.

    fails       errors that the next runs of a model fail with, in order
    load_fails  the same for its loads
    held        names whose runs wait for ``let_go``
    ran, rows   computations of each model, and the first dimension of each one's first input
    withdrawn   requests that were forgotten before their turn
    """

    def __init__(self) -> None:
        self.computes: dict[str, Compute] = {}
        self.schemas: dict[str, tuple[tuple[Field, ...], tuple[Field, ...]]] = {}
        self.fails: dict[str, list[HearthError]] = {}
        self.load_fails: dict[str, list[HearthError]] = {}
        self.held: set[str] = set()
        self.ran: Counter[str] = Counter()
        self.withdrawn: Counter[str] = Counter()
        self.rows: dict[str, list[int]] = {}
        self.telemetry = Telemetry()
        self.dispatcher = Dispatcher(self._send, on_batch=Batches(self.telemetry))
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    async def promote(self, spec: ModelSpec, *, probe: bool) -> Loaded:
        if self.load_fails.get(spec.ref.name):
            raise self.load_fails[spec.ref.name].pop(0)
        inputs, outputs = self.schemas.get(spec.ref.name, ((), ()))
        return Loaded(0, inputs, outputs, 0.001, 0.002)

    async def drop(self, ref: ModelRef) -> None:
        return

    def run(self, job: Job, terms: Terms) -> None:
        self.dispatcher.submit(job, terms)

    def withdraw(self, job: Job) -> bool:
        withdrawn = self.dispatcher.withdraw(job)
        self.withdrawn[job.ref.name] += withdrawn
        return withdrawn

    def _send(self, work: Work, done: Callable[[Outcome], None]) -> None:
        name = work.ref.name
        self.ran[name] += 1
        self.rows.setdefault(name, []).append(work.inputs[0].shape[0] if work.inputs and work.inputs[0].shape else 0)

        def finish() -> None:
            done(self.fails[name].pop(0) if self.fails.get(name) else self._computed(work))

        if name in self.held:
            self._waiting.setdefault(name, []).append(finish)
        else:
            asyncio.get_running_loop().call_soon(finish)

    def _computed(self, work: Work) -> Outcome:
        body = list(work.body)
        if len(body) != len(work.inputs):  # several requests
            whole = memoryview(b"".join(body))
            ends = tuple(accumulate(tensor.size_bytes for tensor in work.inputs))
            body = [whole[end - one.size_bytes : end] for one, end in zip(work.inputs, ends, strict=True)]
        try:
            answer = self.computes.get(work.ref.name, echo)(work.inputs, body)
        except HearthError as error:
            return error
        unknown = set(work.outputs) - {tensor.name for tensor in answer.outputs}
        if unknown:
            return SchemaMismatch(f"model {work.ref} has no output {', '.join(sorted(unknown))}")
        return answer

    def let_go(self, name: str) -> None:
        """Let the held runs of ``name`` end."""
        self.held.discard(name)
        for finish in self._waiting.pop(name, ()):
            finish()

    def waiting(self, name: str) -> int:
        """Runs of ``name`` that wait for ``let_go``."""
        return len(self._waiting.get(name, ()))


def echo(inputs: Sequence[Tensor], body: Sequence[Buffer]) -> Answer:
    """The inputs as outputs."""
    return Answer(tuple(inputs), tuple(body), 0.0005)


def double(inputs: Sequence[Tensor], body: Sequence[Buffer]) -> Answer:
    """FP32 ``x`` → ``y`` = 2 x."""
    layout = struct.Struct(f"<{inputs[0].size_bytes // 4}f")
    values = layout.pack(*(2 * value for value in layout.unpack(body[0])))
    return Answer((Tensor("y", "FP32", inputs[0].shape, len(values)),), (values,), 0.0005)


def make_pod(settings: Settings, catalogue: FakeCatalogue, device: ComputingDevice, ram: FakeRam) -> Pod:
    """A pod over fakes, with the real cache."""
    telemetry, timeline = device.telemetry, Timeline()
    cache = Cache(
        Ledger({RAM: 100 * 4096, Place(0): 100 * 4096 + HEADROOM_BYTES}, Demand()),
        Hops(ram, [device]),
        KnownProfiles(slab_bytes=4096),
        telemetry,
        timeline,
        max_waiting=settings.max_waiting,
    )
    return Pod(
        settings=settings,
        name="pod-1",
        catalogue=catalogue,
        cache=cache,
        telemetry=telemetry,
        timeline=timeline,
        passage=Passage(2 * settings.max_body_bytes_in_flight, "requests"),
        device_failure=lambda: "",
        state=PodState.SERVING,
    )


class ServedPod:
    """A pod that answers on two ports of 127.0.0.1 until the ``with`` block ends."""

    def __init__(self, loop: str = "uvloop", *specs: ModelSpec, **settings: Any) -> None:
        self.catalogue = FakeCatalogue(*specs)
        self.ram = FakeRam(lambda _: 0.0)
        self.device = ComputingDevice()
        self.settings = Settings.model_validate({"models": "s3://bucket/models", **settings})
        self._loop_factory = LOOPS[loop]
        self._listening = [_listen(), _listen()]
        self.port, self.admin_port = (listening.getsockname()[1] for listening in self._listening)
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-pod", daemon=True)
        self.pod: Pod
        self.inference: HttpServer
        self.admin: HttpServer
        self.complaints: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(PATIENCE_S), "the pod did not come up"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the pod did not end"
        assert not self.complaints, f"the event loop complained: {self.complaints}"

    def call(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` on the pod's event loop."""

        async def called() -> Result:
            return function()

        return self.do(called())

    def begin(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine on the pod's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the pod's event loop."""
        return self.begin(work).result(PATIENCE_S)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds on the pod's loop; it is looked at in every one of its ticks."""

        async def holds() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():  # noqa: ASYNC110 (what it looks at tells no events)
                    await asyncio.sleep(0.001)

        self.do(holds())

    def leases(self) -> int:
        """Leases that nobody has released."""
        return self.call(lambda: sum(copy.holds for copy in self.pod.cache.ledger.copies() if copy.place != RAM))

    @property
    def passage(self) -> Passage:
        """Where large bodies are received."""
        assert self.pod.passage is not None
        return self.pod.passage

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._stop = asyncio.Event()
        self.pod = make_pod(self.settings, self.catalogue, self.device, self.ram)
        self.inference, self.admin = HttpServer.inference(self.pod), HttpServer.admin(self.pod)
        await self.inference.start(self._listening[0])
        await self.admin.start(self._listening[1])
        self._up.set()
        await self._stop.wait()
        await asyncio.gather(self.inference.drain(0.0), self.admin.drain(0.0))
        await self.pod.cache.close()


def _listen() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    listening.settimeout(0)
    return listening
