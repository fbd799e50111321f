"""The front's side of one worker process: keeps it alive, hands it models and requests, ends it when it hangs.

What stays out: how a process is started (spawn.py), the bytes on the socket (link.py), what a worker does (engine/).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, Protocol

from predictor import wire
from predictor.errors import HearthError, Unavailable, WorkerDied, WorkerRestarting
from predictor.health import go_on
from predictor.model import ModelRef, ModelSpec, TensorSpec
from predictor.passage import Passage
from predictor.wire import Field, File, FromWorker, Hello, Load, Loaded, Ran, Run, Unload, send_arena, send_pool
from predictor.workers.death import (
    BUILD_TIMEOUT,
    EXECUTE_TIMEOUT,
    HUNG_UP,
    START_TIMEOUT,
    Death,
    Lasting,
    Sentence,
    ended,
    judge,
    obituary,
    stopped,
)
from predictor.workers.dispatch import Answer, Outcome, Work
from predictor.workers.link import Link, Reply
from predictor.workers.output import Output
from predictor.workers.spawn import Spawned, Starter

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.1, 10.0)
"""First and longest pause before a worker that died is started again; doubled by every death without a Hello between."""

SICK_AFTER: Final = 3
"""Starts in a row that never came to a Hello, after which the device counts as failed."""

RUNNING, BUILDING = 0, 8
"""Where a worker's page says what it computes, and what it builds."""

WATCH_S: Final = 0.5
"""How often the watchdog looks at what is being computed and built."""


class Arena(Protocol):
    """What a worker needs of an arena of tiers/ram.py."""

    size_bytes: int
    extents: tuple[tuple[int, int], ...]
    descriptor: int


class Pool(Protocol):
    """What a worker needs of the pool of tiers/slabs.py. ``reader``: -1 where every arena has a descriptor of its own."""

    size_bytes: int
    reader: int


class Worker:
    """One worker process and its successors.

    name         which models share it; what its processes are called in lists of them
    starter      starts processes
    successor    start another process when one ended that had been up; one that never came up is always tried again
    pool         where the arenas of all models lie
    limit_bytes  what the process may allocate for all models together; 0: no limit
    passage      where large requests lie; None: they travel over the socket
    on_ready     the process can take models
    on_lost      it is gone, unasked, and every model in it
    on_death     the same a moment later, when the process has ended and before its requests are told
    first        the process the boot started already

    memory_killed  whether the kernel killed somebody just now because memory ran out, whom nobody else has claimed to be
    """

    def __init__(
        self,
        *,
        device: int,
        kind: str,
        threads: int,
        starter: Starter,
        name: str = "",
        successor: bool = True,
        pool: Pool,
        limit_bytes: int = 0,
        passage: Passage | None = None,
        build_timeout_s: float,
        execute_timeout_s: float,
        on_ready: Callable[[Hello], object],
        on_lost: Callable[[], None],
        on_death: Callable[[Death], None],
        first: Spawned | None = None,
        memory_killed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.device = device
        self.name = name
        self.pid = 0
        self.ready = False
        self.failure = ""
        self._kind = kind
        self._threads = threads
        self._starter = starter
        self._successor = successor
        self._pool = pool
        self._limit_bytes = limit_bytes
        self.passage = passage
        self._build_timeout_s = build_timeout_s
        self._execute_timeout_s = execute_timeout_s
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_death = on_death
        self._memory_killed = memory_killed
        self._spawned = first
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._said_hello = False
        self._held: dict[str, Link] = {}
        self._condemned: Sentence | None = None
        self._stopping = asyncio.Event()
        self._over = False
        self._supervising: asyncio.Task[None] | None = None

    @property
    def came_up(self) -> bool:
        """Whether its process, or the last one, said Hello."""
        return self._said_hello

    @property
    def scratch(self) -> str:
        """The folder that its process may write to; "": there is none."""
        return "" if self._spawned is None else self._spawned.scratch

    async def start(self) -> None:
        """See ``begin``."""
        self.begin()

    def begin(self) -> None:
        """Begin to supervise; returns at once, the process comes up by itself."""
        self._supervising = asyncio.create_task(go_on(f"worker {self.device}", self._supervise), name=f"worker {self.device}")

    async def stop(self, timeout_s: float) -> None:
        """End the process: by closing its socket, after ``timeout_s`` by force."""
        self._stopping.set()
        if self._link is not None:
            self._link.abort()
        if self._supervising is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._supervising)
            except TimeoutError:
                self.end("it did not stop", HUNG_UP)
                await self._supervising

    async def load(self, spec: ModelSpec, arena: Arena, *, copy: bool, probe_limit_bytes: int = 0) -> Loaded:
        """Build the model in the worker, once that is up. Raises LoadFailed, OutOfMemory, WorkerDied, Unavailable.

        WorkerRestarting, which is a WorkerDied: it was not this model's doing, another worker may be asked.

        probe_limit_bytes  measure what the model takes, with computations of at most so many bytes; 0: do not

        When this raised, nobody computes on the arena any more; who cancels it has to wait for ``stop`` to know that.
        """
        link = await self._wait_until_up(spec.ref)
        message = Load(
            id=link.next_id(),
            model=spec.ref.key,
            format=spec.format.value,
            files=tuple(File(placed.path, placed.offset_bytes, placed.size_bytes) for placed in spec.layout()),
            arena_bytes=arena.size_bytes,
            copy=copy,
            inputs=_fields(spec.inputs),
            outputs=_fields(spec.outputs),
            parameters_json=spec.parameters_json,
            extents=arena.extents,
            max_batch_size=spec.max_batch_size,
            probe=probe_limit_bytes > 0,
            probe_limit_bytes=probe_limit_bytes,
            apart=arena.descriptor >= 0,
        )
        if message.apart:
            self._hand_over(spec.ref, message.id, arena)
        self._held[spec.ref.key] = link
        try:
            loaded = await link.ask(message, about=spec.ref)
        except HearthError:
            self._held.pop(spec.ref.key, None)
            raise
        assert isinstance(loaded, Loaded), f"a Load was answered by {loaded}"
        return loaded

    async def unload(self, ref: ModelRef) -> None:
        """Have the worker free the model. When this returns, or raises WorkerDied, nobody computes on its arena any more.

        The worker that held it may be gone: then it is free already. It may be going, with its socket closed and a thread
        that still computes: then it is free when the process has ended.
        """
        link = self._held.pop(ref.key, None)
        if link is None:
            return
        if link.closed.done():
            await asyncio.shield(link.ended)
            return
        await link.ask(Unload(link.next_id(), ref.key), computes=True)

    def run(self, work: Work, done: Callable[[Outcome], None]) -> None:
        """Send one batch.

        done  told the Answer, or ModelFailed, SchemaMismatch, OutOfMemory, WorkerDied, or WorkerRestarting if it never
              began; not before this returns
        """
        link = self._held.get(work.ref.key)
        if link is None or link.closed.done():
            asyncio.get_running_loop().call_soon(done, restarting(work.ref.key))
            return

        def deliver(reply: Reply) -> None:
            done(reply if isinstance(reply, HearthError) else _answer(*reply))

        message = Run(link.next_id(), work.ref.key, work.inputs, work.outputs, work.measure)
        link.send(message, work.body, answer=deliver, computes=True, about=work.ref)

    def end(self, reason: str, cause: str, blame: ModelRef | None = None) -> None:
        """End the process by force. ``reason``, ``cause`` and ``blame`` are what its death is told to be."""
        if self._spawned is not None:
            self._condemned = self._condemned or Sentence(reason, cause, blame)
            self._spawned.process.kill()

    # ---- supervision -----------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        fruitless = 0
        while not self._stopping.is_set():
            self._said_hello = False
            try:
                if self._spawned is None:
                    # In this thread: the worker dies with the thread that started it (PR_SET_PDEATHSIG).
                    self._spawned = self._starter(self.device, self._kind, self._threads, self.name)
                output = Output(self._spawned.output, self.name)
                output.start()
            except OSError as error:  # no descriptor is left, or no memory
                reason = f"it could not be started: {error}"
                if self._spawned is not None:
                    self._spawned.abandon()
                    await self._reap(self._spawned)
            else:
                reason = await self._live(self._spawned, output)
            finally:
                self._spawned = None
            if self._stopping.is_set() or (self._said_hello and not self._successor):
                break
            fruitless = 0 if self._said_hello else fruitless + 1
            if fruitless >= SICK_AFTER:
                self.failure = f"the worker of device {self.device} did not start {fruitless} times in a row: {reason}"
            with contextlib.suppress(TimeoutError):  # a pod that ends has no time for pauses
                async with asyncio.timeout(min(BACKOFF_S[0] * 2 ** min(fruitless, 16), BACKOFF_S[1])):
                    await self._stopping.wait()
        self._over = True
        self._up.set()

    async def _live(self, spawned: Spawned, output: Output) -> str:
        """One process from its start to its end; returns why it ended."""
        loop = asyncio.get_running_loop()
        spawned.stream.setblocking(False)  # noqa: FBT003 (the socket module's own signature)
        passage = self.passage
        _, link = await loop.create_unix_connection(
            lambda: Link(self._hello, passage, spawned.control if passage is not None else None), sock=spawned.stream
        )
        self._link = link
        shared = (passage.size_bytes, passage.reader) if passage is not None else ()
        try:
            send_pool(spawned.control, wire.Pool(self._pool.size_bytes, self._limit_bytes, self._pool.reader, *shared))
        except OSError as error:  # it is dead already, which the link's end tells in a moment
            log.debug("the worker of device %d took no weights: %s", self.device, error)
        watching = asyncio.create_task(go_on(self.name, partial(self._watch, link)), name=f"watch worker {self.device}")
        try:
            await link.closed
        finally:
            watching.cancel()
            self.ready = False
            self._up.clear()
            self._link = None
            if not self._stopping.is_set():
                self._on_lost()
            status = await self._reap(spawned)
            output.close()
            link.ended.set_result(None)
            self._held = {key: other for key, other in self._held.items() if other is not link}
            inside = [link.pending[number] for number in map(self._on_page, (RUNNING, BUILDING)) if number in link.pending]
            spawned.control.close()
            spawned.page.close()
        if link.fault:
            status = link.fault, HUNG_UP
        elif not self._said_hello:
            status = f"{status[0]} before it was up", status[1]
        death = judge(self.name, status, self._condemned, inside)
        self._condemned = None
        if self._stopping.is_set():  # our doing, and no model's
            link.fail(lambda _, request: stopped(request))
        else:
            self._on_death(death)
            link.fail(lambda _, request: obituary(death, request, inside=any(request is other for other in inside)))
        return death.reason

    def _hello(self, hello: Hello) -> None:
        self.ready = True
        self.pid = hello.pid
        self.failure = ""
        self._said_hello = True
        self._up.set()
        self._on_ready(hello)

    async def _wait_until_up(self, ref: ModelRef) -> Link:
        try:
            async with asyncio.timeout(self._build_timeout_s):
                while self._link is None or not self._up.is_set():  # it may be gone again before our turn comes
                    await self._up.wait()
                    if self._over:
                        raise restarting(ref.key)
        except TimeoutError:
            raise WorkerDied(
                f"the worker of device {self.device} is not up after {self._build_timeout_s:g} s, so model {ref} cannot be "
                f"loaded: {self.failure or 'it is still starting'}",
                retry_after_s=BACKOFF_S[1],
            ) from None
        assert self._link is not None, "up without a link"
        return self._link

    async def _watch(self, link: Link) -> None:
        """End a worker that does not come up, or computes or builds one thing for too long."""
        loop = asyncio.get_running_loop()
        starts, computes, builds = (Lasting(2 * WATCH_S, loop.time()) for _ in range(3))
        while True:
            await asyncio.sleep(WATCH_S)
            now_s = loop.time()
            if starts.look(not self._said_hello, now_s) > self._build_timeout_s:
                self.end(f"it was not up within {self._build_timeout_s:g} s (HEARTH_BUILD_TIMEOUT_S)", START_TIMEOUT)
                return
            # The moment and not the request: held until the next look, its shared memory would not be free meanwhile.
            first = next(((request.sent_s, request.about) for request in link.pending.values() if request.computes), None)
            since_s = max(first[0], link.answered_s) if first is not None else None
            if first is not None and computes.look(since_s, now_s) > self._execute_timeout_s:
                if link.pending.get(self._on_page(RUNNING)) is None:  # stopped, or busy with what nobody asked for
                    self.end(f"it began with no request for {self._execute_timeout_s:g} s (HEARTH_EXECUTE_TIMEOUT_S)", HUNG_UP)
                    return
                reason = f"a request computed for more than {self._execute_timeout_s:g} s (HEARTH_EXECUTE_TIMEOUT_S)"
                self.end(reason, EXECUTE_TIMEOUT, first[1])
                return
            number, about = self._being_built(link)
            if builds.look(number, now_s) > self._build_timeout_s:
                reason = f"model {about} was not built within {self._build_timeout_s:g} s (HEARTH_BUILD_TIMEOUT_S)"
                self.end(reason, BUILD_TIMEOUT, about)
                return

    async def _reap(self, spawned: Spawned) -> tuple[str, str]:
        """Wait for the process's end, by force if it closed its socket and lives on. Returns a Death's reason and cause."""
        for _ in range(50):
            status = spawned.process.poll()
            if status is not None:
                return ended(status, lambda: self._condemned is None and self._memory_killed())
            await asyncio.sleep(0.01)
        spawned.process.kill()
        await asyncio.to_thread(spawned.process.wait)
        return "it closed its socket and had to be killed", HUNG_UP

    def _hand_over(self, ref: ModelRef, number: int, arena: Arena) -> None:
        """The memory of a model that is about to be loaded."""
        assert self._spawned is not None, "up without a process"
        try:
            send_arena(self._spawned.control, number, sum(length for _, length in arena.extents), arena.descriptor)
        except BlockingIOError:
            raise Unavailable(
                f"model {ref} cannot be loaded: its worker builds another one for so long that too many wait for it",
                retry_after_s=BACKOFF_S[1],
            ) from None
        except OSError:
            raise restarting(ref.key) from None

    def _on_page(self, at: int) -> int:
        """The number of what the worker says that it is inside of, ``RUNNING`` or ``BUILDING``; 0: of nothing."""
        return int.from_bytes(self._spawned.page[at : at + 8], "little") if self._spawned is not None else 0

    def _being_built(self, link: Link) -> tuple[int, ModelRef | None]:
        """The load under way and its model, else the next one's, which the worker should have begun with. 0: there is none."""
        loads = {number: request.about for number, request in link.pending.items() if not request.computes}
        number = self._on_page(BUILDING)
        if number not in loads:
            number = next(iter(loads), 0)
        return number, loads.get(number)


def _answer(ran: FromWorker, body: memoryview) -> Answer:
    assert isinstance(ran, Ran), f"a Run was answered by {ran}"
    outputs = ran.outputs
    if len(outputs) == 1:
        return Answer(outputs, (body,), ran.compute_s, peak_bytes=ran.peak_bytes)
    ends = tuple(accumulate(tensor.size_bytes for tensor in outputs))
    parts = tuple(body[end - tensor.size_bytes : end] for tensor, end in zip(outputs, ends, strict=True))
    return Answer(outputs, parts, ran.compute_s, peak_bytes=ran.peak_bytes)


def restarting(key: str) -> WorkerRestarting:
    """What is told of a model whose worker is gone."""
    return WorkerRestarting(f"the worker that held model {key} ended before it began with this request", retry_after_s=1.0)


def _fields(specs: Sequence[TensorSpec]) -> tuple[Field, ...]:
    return tuple(Field(spec.name, spec.datatype, spec.shape) for spec in specs)
