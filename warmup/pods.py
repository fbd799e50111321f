"""The running pods of the pools: asks each for its state, again and again, and gives it the catalogue that it lacks.

One task per pod: one that answers slowly, never, or nonsense delays nobody, and is told apart by its state. What stays
out: which pods there are (watch.py), what follows from their reports (reconcile.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from predictor.report import DeclaredReport, Happened, LocationReport, PodReport
from predictor.telemetry import Telemetry

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 16 << 20
"""10,000 declared models that all have something to tell are 2 MB."""

MAX_RESIDENCY_BYTES: Final = 64 << 20
MAX_BATCH_BYTES: Final = 2 << 20
"""Of shards sent at once; a pod's admin port takes more, but a slow one should get on step by step."""

OLDER_ASKED_EACH_S: Final = 30.0
"""A pod of a release without these routes; its container may be replaced under the same address."""

RESTART_S: Final = 5.0
"""A container that seems to have started so much later than it did before is another one; answers are late by less."""

STATE_PATH: Final = "/hearth/v1/state"
DECLARATIONS_PATH: Final = "/hearth/v1/declarations"
RESIDENCY_PATH: Final = "/hearth/v1/residency"

_OK: Final = 200
_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405


class PodRef(NamedTuple):
    """A running pod, as the cluster knows it."""

    pool: str
    name: str
    address: str


class Shard(NamedTuple):
    """A document that pods should go by: see declared.ModelShard."""

    serial: int
    document: bytes


class Answers(msgspec.Struct, frozen=True):
    """What a pod says to declarations: file → serial of what it goes by now."""

    serials: dict[str, int] = {}


@dataclass(slots=True)
class Followed:
    """One pod and what it told last.

    state   ``new``, ``answering``, ``silent`` (late or unreachable), ``nonsense`` (no PodReport) or ``older`` (no such route)
    began_s  when the container started, by our clock: tells a restart under the same address
    report  the last one while it answers, else None: what a pod that does not answer once told is not known to be true
    ending  the cluster has told it to end: it is asked for its last events, and counts no more
    """

    ref: PodRef
    state: str = "new"
    trouble: str = ""
    report: PodReport | None = None
    since: int = 0
    ending: bool = False
    up_s: float = 0.0
    began_s: float = 0.0
    told: dict[str, DeclaredReport] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    answered_s: float | None = None
    poke: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def stage(self) -> str:
        """For people: ``ending``, what it says itself, or ``state``."""
        if self.ending:
            return "ending"
        return self.report.state if self.report is not None else self.state

    @property
    def counts(self) -> bool:
        """Whether what it says is true of the pool's future."""
        return self.report is not None and not self.ending and self.report.state != "draining"


class Listener:
    """Who wants to know; plain functions, called between two requests, never raising."""

    def models_changed(self, models: Collection[str]) -> None:
        """A pod's reports on these models are other than before."""

    def pod_changed(self, pool: str) -> None:
        """A pod came, went, changed its state, or goes by other credentials."""

    def happened(self, ref: PodRef, events: Iterable[Happened]) -> None:
        """A pod's journal went on."""


class _Trouble(Exception):
    """Why a pod told nothing. ``state``: see Followed."""

    def __init__(self, state: str, text: str) -> None:
        super().__init__(text)
        self.state = state


class Pods:
    """All running pods.

    poll_s     pause between a pod's answer and the next question
    timeout_s  of one question
    port       the admin port
    may_write  whether this controller is the leader: others ask, too, but send nothing
    """

    def __init__(
        self,
        listener: Listener,
        *,
        telemetry: Telemetry,
        may_write: Callable[[], bool],
        poll_s: float = 1.0,
        timeout_s: float = 3.0,
        port: int = 8082,
        max_pods: int = 500,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._telemetry = telemetry
        self._may_write = may_write
        self._poll_s = poll_s
        self._port = port
        self._max_pods = max_pods
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._pods: dict[PodRef, Followed] = {}
        self._shards: dict[str, Mapping[str, Shard]] = {}
        self._left_out = 0

    # ---- what should be ---------------------------------------------------------------------------------------

    def follow(self, refs: Iterable[PodRef], ending: Collection[PodRef] = ()) -> None:
        """Ask exactly these from now on; ``ending``: of them, those that were told to end."""
        wanted = sorted(set(refs))
        if len(wanted) > self._max_pods and self._left_out != len(wanted) - self._max_pods:
            log.warning("%d pods run, %d are asked (HEARTH_CONTROLLER_MAX_PODS)", len(wanted), self._max_pods)
        self._left_out = max(0, len(wanted) - self._max_pods)
        wanted = wanted[: self._max_pods]
        for ref in self._pods.keys() - set(wanted):
            gone = self._pods.pop(ref)
            if gone.task is not None:
                gone.task.cancel()
            self._tell_gone(gone)
        for ref in wanted:
            if ref not in self._pods:
                pod = self._pods[ref] = Followed(ref)
                pod.task = asyncio.create_task(self._ask_for_ever(pod), name=f"pod {ref.name}")
            pod = self._pods[ref]
            if ref in ending and not pod.ending:
                pod.ending = True
                self._listener.pod_changed(ref.pool)
                self._listener.models_changed(pod.told)

    def declare(self, pool: str, shards: Mapping[str, Shard]) -> None:
        """These are the pool's documents, by file name, as they stand in the cluster; pods that lack one get it at once."""
        self._shards[pool] = shards
        for pod in self._pods.values():
            if pod.ref.pool == pool:
                pod.poke.set()

    def forget(self, pool: str) -> None:
        """The pool is gone."""
        self._shards.pop(pool, None)

    # ---- what is ----------------------------------------------------------------------------------------------

    def of(self, pool: str = "") -> list[Followed]:
        """The pods of a pool, or all of them, by name."""
        return sorted((pod for pod in self._pods.values() if pool in ("", pod.ref.pool)), key=lambda pod: pod.ref.name)

    def reports(self, pool: str) -> list[PodReport]:
        """What the pods that answer told last; those on their way out are not in it."""
        return [pod.report for pod in self.of(pool) if pod.report is not None and pod.counts]

    def told(self, pool: str, model: str, file: str, serial: int) -> tuple[list[tuple[str, LocationReport]], bool]:
        """What they say about one model's locations, and whether one of them does not go by ``serial`` of ``file`` yet.

        What such a pod says is left out: it may mean other locations by the same numbers.
        """
        found: list[tuple[str, LocationReport]] = []
        behind = False
        for pod in self._pods.values():
            report = pod.report
            if pod.ref.pool != pool or report is None or not pod.counts:
                continue
            if report.serials.get(file, 0) < serial:
                behind = True
            elif (declared := pod.told.get(model)) is not None:
                found += [(pod.ref.name, location) for location in declared.locations]
        return found, behind

    async def residencies(self, pool: str = "") -> list[dict[str, Any]]:
        """Every running pod's own residency, asked now; of one that does not answer, its name and why."""
        return list(await asyncio.gather(*(self._residency(pod) for pod in self.of(pool))))

    async def exchange(
        self, ref: PodRef, method: str, path: str, body: bytes | None = None, *, operation: str
    ) -> tuple[int, bytes] | None:
        """One request to a pod, beside those of its own task: status and body. None: no answer, counted as such."""
        try:
            status, answer = await self._exchange(ref, method, path, MAX_RESIDENCY_BYTES, body)
        except _Trouble as trouble:
            self._count(operation, trouble.state)
            return None
        older = status in (_NOT_FOUND, _NOT_ALLOWED)
        self._count(operation, "ok" if status == _OK else "older" if older else "refused")
        return status, answer

    async def close(self) -> None:
        """Stop asking."""
        tasks = [pod.task for pod in self._pods.values() if pod.task is not None]
        self._pods.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._session is not None:
            await self._session.close()

    # ---- one pod ----------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, pod: Followed) -> None:
        while True:
            pod.poke.clear()
            try:
                await self._ask(pod)
                await self._give(pod)
            except _Trouble as trouble:
                self._silence(pod, trouble)
            except Exception:  # the root of a task: one pod's answer must not end the questions
                log.exception("pod %s", pod.ref.name)
                self._silence(pod, _Trouble("nonsense", "an error of the controller: see its log"))
            pause_s = OLDER_ASKED_EACH_S if pod.state == "older" else self._poll_s
            try:
                async with asyncio.timeout(pause_s):
                    # Who does not answer is asked at its own pace, whatever there is to send.
                    await (pod.poke.wait() if pod.state == "answering" else asyncio.sleep(pause_s + 1))
            except TimeoutError:
                continue

    async def _ask(self, pod: Followed) -> None:
        report = await self._state(pod)
        began_s = self._clock() - report.up_s
        if pod.since and (report.up_s < pod.up_s or began_s > pod.began_s + RESTART_S):
            pod.since = 0  # its journal started anew, too
            report = await self._state(pod)
        pod.up_s, pod.began_s = report.up_s, began_s
        self._count("state", "ok")
        told = {declared.name: declared for declared in report.declared}
        changed = [name for name in told.keys() | pod.told.keys() if told.get(name) != pod.told.get(name)]
        before, was = pod.report, pod.state
        pod.told, pod.report, pod.state, pod.trouble, pod.answered_s = told, report, "answering", "", self._clock()
        if was not in ("new", "answering"):
            log.info("pod %s answers again", pod.ref.name)
        if report.happened:
            pod.since = max(happened.number for happened in report.happened)
            self._listener.happened(pod.ref, report.happened)
        if before is None or (before.state, before.unready, before.scopes) != (report.state, report.unready, report.scopes):
            self._listener.pod_changed(pod.ref.pool)
            if before is None or (before.state == "draining") != (report.state == "draining"):
                changed = list(told.keys() | set(changed))
        if changed:
            self._listener.models_changed(changed)

    async def _state(self, pod: Followed) -> PodReport:
        status, body = await self._exchange(pod.ref, "GET", f"{STATE_PATH}?since={pod.since}", MAX_ANSWER_BYTES)
        if status in (_NOT_FOUND, _NOT_ALLOWED):
            raise _Trouble("older", f"{STATE_PATH}: HTTP {status}; a release before it, or no Hearth pod")
        if status != _OK:
            raise _Trouble("nonsense", f"{STATE_PATH}: HTTP {status}")
        try:
            return msgspec.json.decode(body, type=PodReport)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Trouble("nonsense", f"{STATE_PATH}: {error}") from None

    async def _give(self, pod: Followed) -> None:
        """Send what the pod has in an older form, some at a time. A newer one it has from another leader: leave it."""
        if not self._may_write() or pod.report is None:
            return
        has = pod.report.serials
        lacking = {
            file: shard for file, shard in self._shards.get(pod.ref.pool, {}).items() if has.get(file, -1) < shard.serial
        }
        for batch in _batches(lacking):
            body = (
                b'{"shards":['
                + b",".join(
                    b'{"file":%s,"document":%s}' % (msgspec.json.encode(file), shard.document) for file, shard in batch.items()
                )
                + b"]}"
            )
            status, answer = await self._exchange(pod.ref, "PUT", DECLARATIONS_PATH, MAX_ANSWER_BYTES, body)
            if status != _OK:
                self._count("declare", "refused")
                said = answer[:500].decode(errors="replace")
                raise _Trouble("nonsense", f"{DECLARATIONS_PATH}: HTTP {status}: {said}")
            try:
                serials = msgspec.json.decode(answer, type=Answers).serials
            except msgspec.DecodeError as error:
                raise _Trouble("nonsense", f"{DECLARATIONS_PATH}: {error}") from None
            self._count("declare", "ok")
            log.debug("pod %s goes by %s", pod.ref.name, serials)
        given = {file: shard.serial for file, shard in lacking.items()}
        if given and given != pod.given:
            pod.poke.set()  # what it makes of them is in its next report
        pod.given = given

    async def _residency(self, pod: Followed) -> dict[str, Any]:
        try:
            status, body = await self._exchange(pod.ref, "GET", RESIDENCY_PATH, MAX_RESIDENCY_BYTES)
            residency = msgspec.json.decode(body)
        except (_Trouble, msgspec.DecodeError) as trouble:
            return {"pod": pod.ref.name, "pool": pod.ref.pool, "error": str(trouble)}
        if status != _OK or not isinstance(residency, dict):
            return {"pod": pod.ref.name, "pool": pod.ref.pool, "error": f"{RESIDENCY_PATH}: HTTP {status}"}
        return {**residency, "pod": pod.ref.name, "pool": pod.ref.pool}

    async def _exchange(
        self, ref: PodRef, method: str, path: str, limit_bytes: int, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Status and whole body; one time limit for both."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=2, force_close=False),
                timeout=self._timeout,
                auto_decompress=False,  # it should not be compressed; what is could be a bomb
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        host = f"[{ref.address}]" if ref.address.count(":") > 1 else ref.address
        authority = host if ":" in ref.address and ref.address.count(":") == 1 else f"{host}:{self._port}"
        headers = {"Accept-Encoding": "identity"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            async with self._session.request(
                method, f"http://{authority}{path}", data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    answer += chunk
                    if len(answer) > limit_bytes:
                        raise _Trouble("nonsense", f"{path}: more than {limit_bytes} bytes")
                return response.status, bytes(answer)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            said = str(error) or type(error).__name__
            raise _Trouble("silent", f"{path.partition('?')[0]}: {said}") from None

    def _silence(self, pod: Followed, trouble: _Trouble) -> None:
        self._count("state", trouble.state)
        changed = pod.state != trouble.state
        pod.state, pod.trouble = trouble.state, str(trouble)[:500]
        if changed:
            log.warning("pod %s is %s: %s", pod.ref.name, trouble.state, pod.trouble)
            self._tell_gone(pod)

    def _tell_gone(self, pod: Followed) -> None:
        told, pod.told, pod.report = pod.told, {}, None
        self._listener.pod_changed(pod.ref.pool)
        if told:
            self._listener.models_changed(told)

    def _count(self, operation: str, outcome: str) -> None:
        self._telemetry.counter("hearth_controller_pod_requests_total", operation, outcome).inc()


def _batches(shards: Mapping[str, Shard]) -> Iterable[dict[str, Shard]]:
    batch: dict[str, Shard] = {}
    size_bytes = 0
    for file, shard in sorted(shards.items()):
        if batch and size_bytes + len(shard.document) > MAX_BATCH_BYTES:
            yield batch
            batch, size_bytes = {}, 0
        batch[file] = shard
        size_bytes += len(shard.document)
    if batch:
        yield batch
