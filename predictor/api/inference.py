"""One inference, from decoded body to answer, on a lease that ends exactly once.

Two ways through. A hot model's request is queued for its device in the very callback that read it, and answered in the
callback that brings the result: no task, no coroutine. Everything else is held in a task: looking the model up, waiting
for its load, and the one retry of what a dying worker had not computed.

What stays out: bodies (codec.py), whether and when a model is ready (cache.py), when it is a request's turn (dispatch.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from predictor.api import codec, schema
from predictor.api.message import Answering, Request, Response, error_response, internal_error
from predictor.api.pod import Pod
from predictor.api.traffic import PRIORITIES, Traffic
from predictor.errors import (
    ComputedTooLong,
    DeadlineExceeded,
    HearthError,
    MalformedRequest,
    ObjectChanged,
    OutOfMemory,
    TooManyRequests,
    WorkerDied,
    WorkerRestarting,
    WorkerTaken,
)
from predictor.model import ModelRef, ModelSpec
from predictor.policy.batching import Priority
from predictor.workers.dispatch import Answer, Job, Outcome

if TYPE_CHECKING:
    from predictor.lease import Lease

log = logging.getLogger(__name__)

OCTETS: Final = b"application/octet-stream"
ATTEMPTS: Final = 2
"""A request whose model was overwritten while it was fetched, that found no memory on its device, or whose worker ended before
it began with it, is sent once more; one that had begun is only where its model says that this may be (idempotent)."""
MAX_DEADLINE_DIGITS: Final = 12
_DEADLINE: Final = b"hearth-deadline-ms"
_PRIORITY: Final = b"hearth-priority"
_JSON_LENGTH: Final = b"inference-header-content-length"
REMEMBERED: Final = 10_000
"""Models whose traffic is remembered while they have none."""
QUEUED_S: Final = 1e-4
"""A shorter wait for the device is not told in Server-Timing: it is the event loop's own."""


class Inference:
    """Answers inference requests for a pod's models."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._traffic: dict[ModelRef, Traffic] = {}
        self._answered_once = False

    def __call__(self, request: Request, name: str, version: int | None) -> Answering:
        """Answer ``request`` for model ``name``; None: the version that is served."""
        pod = self._pod
        ref, lease, load = None, None, pod.load
        try:
            if load.requests > pod.settings.max_in_flight:
                raise TooManyRequests(
                    f"{pod.settings.max_in_flight} requests are inside this pod (HEARTH_MAX_IN_FLIGHT): try again later",
                    retry_after_s=1.0,
                )
            spec = pod.catalogue.known(name, version)
            if spec is None:
                return self._held(request, name, version)
            ref = spec.ref
            traffic = self._enter(request, spec)
            wanted = codec.decode(request.body, request.headers.get(_JSON_LENGTH))
            lease = pod.cache.hit(ref, wanted.elements)
            if lease is None:
                return self._held(request, name, version, wanted, spec=spec)
            schema.check(ref, spec.inputs or lease.schema.inputs, wanted.inputs)
            deadline_s = request.began_s + self._patience_s(request)
            hot = _Hot(self, request, wanted, lease, priority=_priority(request, traffic), deadline_s=deadline_s)
            infirmary = pod.cache.infirmary
            hot.alone = bool(infirmary.poison) and infirmary.alone(ref, wanted.inputs, wanted.body)
            load.asks(request.began_s)
            lease.run(hot)
        except HearthError as error:
            if lease is not None:
                lease.release()
            return self.refusal(ref, error)
        return hot

    def _enter(self, request: Request, spec: ModelSpec) -> Traffic:
        """Count the request as its model's, from now on until the connection has done with it. Raises TooManyRequests."""
        traffic = self._traffic.get(spec.ref) or self._new_traffic(spec)
        if request.host is traffic:  # it was here before, and is tried again
            return traffic
        if traffic.inside >= traffic.max_inside:
            raise TooManyRequests(
                f"{traffic.inside} requests for model {traffic.name} are inside this pod already "
                "(HEARTH_MAX_IN_FLIGHT_PER_MODEL, or limits.concurrency in its hearth.json): try again later",
                retry_after_s=1.0,
            )
        most_bytes = self._pod.settings.max_body_bytes_in_flight_per_model
        if traffic.body_bytes + request.body_bytes > most_bytes and traffic.inside:
            raise TooManyRequests(
                f"bodies of requests for model {traffic.name} inside this pod reach {most_bytes} bytes "
                "(HEARTH_MAX_BODY_BYTES_IN_FLIGHT_PER_MODEL): try again later",
                retry_after_s=1.0,
            )
        if request.host is not None:  # counted for an older revision
            request.host.leave(request)
        request.host = traffic
        traffic.inside += 1
        traffic.body_bytes += request.body_bytes
        return traffic

    def _new_traffic(self, spec: ModelSpec) -> Traffic:
        if len(self._traffic) >= REMEMBERED:
            self._traffic = {ref: traffic for ref, traffic in self._traffic.items() if traffic.inside}
        traffic = self._traffic[spec.ref] = Traffic(self._pod, spec)
        return traffic

    async def _held(
        self,
        request: Request,
        name: str,
        version: int | None,
        wanted: codec.InferenceRequest | None = None,
        *,
        spec: ModelSpec | None = None,
        attempts: int = 0,
    ) -> Response:
        """The slow way; in its own task, cancelled when the client goes.

        spec      what answers it, where that was looked up already: asked twice, a canary would get a share of a share
        attempts  so many it had
        """
        ref, infirmary = None, self._pod.cache.infirmary
        try:
            deadline_s = asyncio.get_running_loop().time() + self._patience_s(request)
            while True:
                attempts += 1
                spec = spec or await self._look_up(name, version, deadline_s)
                ref = spec.ref
                traffic = self._enter(request, spec)
                if wanted is None:
                    wanted = codec.decode(request.body, request.headers.get(_JSON_LENGTH))
                schema.check(ref, spec.inputs, wanted.inputs)  # what cannot run must not evict anything either
                alone = infirmary.alone(ref, wanted.inputs, wanted.body)
                if attempts == 1:
                    self._pod.load.asks(request.began_s)
                job = _Awaited(wanted, ref, alone=alone, priority=_priority(request, traffic), deadline_s=deadline_s)
                try:
                    return await self._leased(request, wanted, spec, job)
                except (WorkerDied, ObjectChanged, OutOfMemory) as error:
                    may_again = self._may_again(ref, wanted, error, shared=job.shared)
                    if attempts >= ATTEMPTS or not may_again:
                        raise
                    if job.shared:  # its model pauses: what may be begun again is worth the wait
                        pause_s = infirmary.quarantine.wait_s(ref, self._pod.cache.clock())
                        await asyncio.sleep(min(pause_s, self._patience_s(request)))
                spec = None
        except HearthError as error:
            if ref is None and error.retryable:  # it may be there: the model store could not say
                self._pod.load.asks(request.began_s)
            return self.refusal(ref, error)

    async def _look_up(self, name: str, version: int | None, deadline_s: float) -> ModelSpec:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._pod.catalogue.resolve(name, version)
        except TimeoutError:
            raise DeadlineExceeded(f"model {name!r} could not be looked up before its deadline", retry_after_s=1.0) from None

    def _patience_s(self, request: Request) -> float:
        """How long this request may be held: the setting, or less if its client says so."""
        longest_s = self._pod.settings.hold_timeout_s
        told = request.headers.get(_DEADLINE)
        if told is None:
            return longest_s
        if not told.isdigit() or len(told) > MAX_DEADLINE_DIGITS or int(told) == 0:
            shown = told[:40].decode("latin-1")
            raise MalformedRequest(f"Hearth-Deadline-Ms is a whole number of milliseconds above 0, not {shown!r}")
        return min(longest_s, int(told) / 1000)

    async def _leased(self, request: Request, wanted: codec.InferenceRequest, spec: ModelSpec, job: _Awaited) -> Response:
        lease = await self._pod.cache.lease(spec, deadline_s=job.deadline_s, elements=wanted.elements)
        try:
            schema.check(lease.ref, spec.inputs or lease.schema.inputs, wanted.inputs)
            lease.run(job)
            outcome = await job.outcome
            lease.measured(outcome)
            if isinstance(outcome, HearthError):
                raise outcome
            return self.success(request, wanted, lease, job, outcome)
        finally:
            # A client that goes away does not stop the worker: until that has done, the model is in use.
            if job.outcome.cancelled() and not lease.device.withdraw(job):
                job.abandoned = lease
            else:
                lease.release()

    # ---- answers ---------------------------------------------------------------------------------------------

    def success(self, request: Request, wanted: codec.InferenceRequest, lease: Lease, job: Job, answer: Answer) -> Response:
        """The answer, with what it cost. Raises SchemaMismatch when JSON cannot hold an output."""
        ref = lease.ref
        body = codec.encode(ref, wanted, answer.outputs, answer.parts)
        traffic = self._traffic[ref]
        traffic.answered.inc()
        traffic.queue_seconds.observe(job.queued_s)
        infirmary = self._pod.cache.infirmary
        if infirmary.quarantine or infirmary.poison:
            infirmary.answered(ref, wanted.inputs, wanted.body)
        seconds = time.monotonic() - request.began_s
        if lease.start == "hot":
            traffic.hot_seconds.observe(seconds)
        else:
            self._pod.telemetry.histogram("hearth_request_seconds", ref.name, lease.start).observe(seconds)
        if not self._answered_once:
            self._first_answer()
        headers = (
            f"Hearth-Start: {lease.start}\r\n"
            f"Server-Timing: {_timing(lease, job.queued_s)}compute;dur={answer.compute_s * 1e3:.2f}\r\n"
            f"Hearth-Version: {ref.version}\r\n{self._from()}"
        ).encode("ascii")
        if body.json_bytes is None:
            return Response(200, body.pieces, headers=headers)
        headers += b"Inference-Header-Content-Length: %d\r\n" % body.json_bytes
        return Response(200, body.pieces, headers=headers, content_type=OCTETS)

    def refusal(self, ref: ModelRef | None, error: HearthError) -> Response:
        """The answer to a request that failed.

        ref  None where no model is known: names that clients invent must not become label values
        """
        name, version = (ref.name, str(ref.version)) if ref else ("", "")
        cache = self._pod.cache
        if ref is not None and isinstance(error, WorkerDied) and error.retryable:  # its model may pause for longer than it says
            pause_s = cache.infirmary.quarantine.wait_s(ref, cache.clock())
            if pause_s > (error.retry_after_s or 0.0):
                error = type(error)(error.message, retry_after_s=pause_s)
        self._pod.telemetry.counter("hearth_requests_total", name, version, str(error.http_status)).inc()
        headers = f"Hearth-Version: {version}\r\n{self._from()}" if ref else self._from()
        return error_response(error, headers=headers.encode("ascii"))

    def again(self, request: Request, wanted: codec.InferenceRequest, job: Job, error: HearthError) -> bool:
        """Hold a hot request that may be sent once more; False: it may not."""
        ref = job.ref
        if not self._may_again(ref, wanted, error, shared=job.shared):
            return False
        request.answer_later(self._held(request, ref.name, ref.version, wanted, attempts=1))
        return True

    def _may_again(self, ref: ModelRef, wanted: codec.InferenceRequest, error: HearthError, *, shared: int) -> bool:
        """Note what failed. Whether a request that failed so may be sent once more.

        shared  requests in the batch that it was sent to its worker in: what ended that may be one of them; 0: it was not
        """
        cache = self._pod.cache
        if isinstance(error, OutOfMemory):
            cache.exhausted(ref, wanted.elements)
        elif isinstance(error, ObjectChanged):
            self._pod.catalogue.forget(ref.name)
        elif isinstance(error, WorkerDied) and not isinstance(error, WorkerRestarting):
            if shared and not isinstance(error, WorkerTaken):
                cache.infirmary.killed(ref, wanted.inputs, wanted.body, alone=shared == 1)
            return shared > 0 and self._traffic[ref].idempotent and not isinstance(error, ComputedTooLong)
        return isinstance(error, (OutOfMemory, ObjectChanged, WorkerRestarting))

    def _from(self) -> str:
        return f"Hearth-Pod: {self._pod.name};up={self._pod.timeline.up_s:.3f}\r\n"

    def _first_answer(self) -> None:
        self._answered_once = True
        timeline = self._pod.timeline
        if timeline.mark("answered"):
            log.info("cold start: %s", _in_order(timeline.stages))


class _Asked(Job):
    """What a client wants computed, as a job for a device."""

    __slots__ = ()

    def __init__(self, ref: ModelRef, wanted: codec.InferenceRequest, *, priority: Priority, deadline_s: float) -> None:
        super().__init__(
            ref,
            wanted.inputs,
            wanted.body,
            wanted.outputs,
            elements=wanted.elements,
            priority=priority,
            deadline_s=deadline_s,
        )


class _Hot(_Asked):
    """A request whose model was ready: it waits for the device, or is computed. Answers by itself."""

    __slots__ = ("_gone", "_inference", "_lease", "_request", "_wanted")

    def __init__(
        self,
        inference: Inference,
        request: Request,
        wanted: codec.InferenceRequest,
        lease: Lease,
        *,
        priority: Priority,
        deadline_s: float,
    ) -> None:
        super().__init__(lease.ref, wanted, priority=priority, deadline_s=deadline_s)
        self._inference = inference
        self._request = request
        self._wanted = wanted
        self._lease = lease
        self._gone = False

    def cancel(self) -> None:
        """The client is gone. What is being computed ends in ``done`` all the same."""
        self._gone = True
        if self._lease.device.withdraw(self):
            self._lease.release()

    def done(self, outcome: Outcome) -> None:
        """Called by the dispatcher."""
        try:
            if not self._gone:
                self._finish(outcome)
        finally:
            self._lease.release()

    def _finish(self, outcome: Outcome) -> None:
        inference, request, ref = self._inference, self._request, self.ref
        try:
            if isinstance(outcome, Answer):
                response = inference.success(request, self._wanted, self._lease, self, outcome)
            elif inference.again(request, self._wanted, self, outcome):
                return
            else:
                response = inference.refusal(ref, outcome)
        except HearthError as error:
            response = inference.refusal(ref, error)
        except Exception as error:  # a request's root: unanswered, it would hang
            log.exception("answering for model %s failed", ref)
            response = inference.refusal(ref, internal_error(error))
        request.answer(response)


class _Awaited(_Asked):
    """A request that a task waits for.

    outcome    never an exception: what failed is its result
    abandoned  to be released once it was computed: nobody waits any more
    """

    __slots__ = ("abandoned", "outcome")

    def __init__(
        self, wanted: codec.InferenceRequest, ref: ModelRef, *, alone: bool, priority: Priority, deadline_s: float
    ) -> None:
        super().__init__(ref, wanted, priority=priority, deadline_s=deadline_s)
        self.alone = alone
        self.abandoned: Lease | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(self, outcome: Outcome) -> None:
        """Called by the dispatcher."""
        if self.abandoned is not None:
            self.abandoned.release()
        elif not self.outcome.done():
            self.outcome.set_result(outcome)


def _priority(request: Request, traffic: Traffic) -> Priority:
    """As the client says, else the model's."""
    told = request.headers.get(_PRIORITY)
    if told is None:
        return traffic.priority
    priority = PRIORITIES.get(told.lower())
    if priority is None:
        shown = told[:40].decode("latin-1")
        raise MalformedRequest(f"Hearth-Priority is high, normal or batch, not {shown!r}")
    return priority


def _timing(lease: Lease, queued_s: float) -> str:
    """The stages before the computation that this request waited for; those it did not wait for are left out."""
    if lease.start == "hot":
        return f"queue;dur={queued_s * 1e3:.2f}, " if queued_s > QUEUED_S else ""
    stages = (
        ("queue", lease.wait_s + queued_s),
        ("fetch", lease.fetch_s),
        ("device", lease.device_s),
        ("build", lease.build_s),
    )
    return "".join(f"{name};dur={seconds * 1e3:.2f}, " for name, seconds in stages if seconds > 0)


def _in_order(stages: dict[str, float]) -> str:
    return " ".join(f"{stage}={at_s:.2f}" for stage, at_s in sorted(stages.items(), key=lambda item: item[1]))
