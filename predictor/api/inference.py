"""One inference, from decoded body to answer, on a lease that ends exactly once.

Two ways through. A hot model's request is sent to the worker in the very callback that read it and answered in the
callback that brings the result: no task, no coroutine. Everything else is held in a task: looking the model up, waiting
for its load, and the one retry of what a dying worker had not computed.

What stays out: bodies (codec.py), whether and when a model is ready (cache.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from predictor.api import codec, schema
from predictor.api.message import Answering, Request, Response, error_response, internal_error
from predictor.api.pod import Pod
from predictor.errors import (
    DeadlineExceeded,
    HearthError,
    MalformedRequest,
    ObjectChanged,
    OutOfMemory,
    TooManyRequests,
    WorkerRestarting,
)
from predictor.model import ModelRef, ModelSpec
from predictor.wire import elements

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from predictor.lease import Lease
    from predictor.workers.worker import Answer

log = logging.getLogger(__name__)

OCTETS: Final = b"application/octet-stream"
ATTEMPTS: Final = 2
"""A request whose worker died before computing it is sent once more, and so is one whose model was overwritten while it
was fetched, or that found no memory on its device; a model that kills its worker, or is overwritten for ever, gets no third."""
MAX_DEADLINE_DIGITS: Final = 12
_DEADLINE: Final = b"hearth-deadline-ms"
_JSON_LENGTH: Final = b"inference-header-content-length"


class _Meters(NamedTuple):
    """One model's metrics of the hot path, looked up once: `labels()` alone costs 1.5 µs each time."""

    answered: Counter
    hot_seconds: Histogram
    compute_seconds: Histogram


class Inference:
    """Answers inference requests for a pod's models."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._meters: dict[tuple[str, int], _Meters] = {}
        self._answered_once = False

    def __call__(self, request: Request, name: str, version: int | None) -> Answering:
        """Answer ``request`` for model ``name``; None: the version that is served."""
        pod = self._pod
        ref = None
        try:
            if pod.load.requests > pod.settings.max_in_flight:
                raise TooManyRequests(
                    f"{pod.settings.max_in_flight} requests are inside this pod (HEARTH_MAX_IN_FLIGHT): try again later",
                    retry_after_s=1.0,
                )
            spec = pod.catalogue.known(name, version)
            if spec is None:
                return self._held(request, name, version)
            ref = spec.ref
            wanted = codec.decode(request.body, request.headers.get(_JSON_LENGTH))
            lease = pod.cache.hit(ref, elements(wanted.inputs))
            if lease is None:
                return self._held(request, name, version, wanted)
        except HearthError as error:
            return self.refusal(ref, error)
        return _Hot(self, request, wanted, lease).start(spec)

    async def _held(
        self, request: Request, name: str, version: int | None, wanted: codec.InferenceRequest | None = None
    ) -> Response:
        """The slow way; in its own task, cancelled when the client goes."""
        ref = None
        try:
            deadline_s = asyncio.get_running_loop().time() + self._patience_s(request)
            for attempt in range(1, ATTEMPTS + 1):
                spec = await self._look_up(name, version, deadline_s)
                ref = spec.ref
                if wanted is None:
                    wanted = codec.decode(request.body, request.headers.get(_JSON_LENGTH))
                schema.check(ref, spec.inputs, wanted.inputs)  # what cannot run must not evict anything either
                try:
                    return await self._leased(request, wanted, spec, deadline_s)
                except (WorkerRestarting, ObjectChanged, OutOfMemory) as error:
                    if attempt == ATTEMPTS:
                        raise
                    if isinstance(error, ObjectChanged):
                        self._pod.catalogue.forget(name)
                    elif isinstance(error, OutOfMemory):
                        self._pod.cache.exhausted(ref, elements(wanted.inputs))
        except HearthError as error:
            return self.refusal(ref, error)
        raise AssertionError(f"{ATTEMPTS} attempts ended without an answer")

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

    async def _leased(self, request: Request, wanted: codec.InferenceRequest, spec: ModelSpec, deadline_s: float) -> Response:
        lease = await self._pod.cache.lease(spec, deadline_s=deadline_s, elements=elements(wanted.inputs))
        try:
            schema.check(lease.ref, spec.inputs or lease.schema.inputs, wanted.inputs)
            answer = await lease.run(wanted.inputs, wanted.body, wanted.outputs)
            return self.success(request, wanted, lease, answer)
        finally:
            lease.release()

    # ---- answers ---------------------------------------------------------------------------------------------

    def success(self, request: Request, wanted: codec.InferenceRequest, lease: Lease, answer: Answer) -> Response:
        """The answer, with what it cost. Raises SchemaMismatch when JSON cannot hold an output."""
        ref = lease.ref
        body = codec.encode(ref, wanted, answer.outputs, answer.body)
        meters = self._meters.get((ref.name, ref.version)) or self._new_meters(ref)
        meters.answered.inc()
        meters.compute_seconds.observe(answer.compute_s)
        seconds = time.monotonic() - request.began_s
        if lease.start == "hot":
            meters.hot_seconds.observe(seconds)
        else:
            self._pod.telemetry.histogram("hearth_request_seconds", ref.name, lease.start).observe(seconds)
        if not self._answered_once:
            self._first_answer()
        headers = (
            f"Hearth-Start: {lease.start}\r\nServer-Timing: {_timing(lease)}compute;dur={answer.compute_s * 1e3:.2f}\r\n"
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
        self._pod.telemetry.counter("hearth_requests_total", name, version, str(error.http_status)).inc()
        headers = f"Hearth-Version: {version}\r\n{self._from()}" if ref else self._from()
        return error_response(error, headers=headers.encode("ascii"))

    def again(self, request: Request, wanted: codec.InferenceRequest, ref: ModelRef, error: HearthError) -> None:
        """Hold a hot request whose worker died before it computed, or that found no memory."""
        if isinstance(error, OutOfMemory):
            self._pod.cache.exhausted(ref, elements(wanted.inputs))
        request.answer_later(self._held(request, ref.name, ref.version, wanted))

    def _from(self) -> str:
        return f"Hearth-Pod: {self._pod.name};up={self._pod.timeline.up_s:.3f}\r\n"

    def _new_meters(self, ref: ModelRef) -> _Meters:
        telemetry = self._pod.telemetry
        meters = self._meters[ref.name, ref.version] = _Meters(
            telemetry.counter("hearth_requests_total", ref.name, str(ref.version), "200"),
            telemetry.histogram("hearth_request_seconds", ref.name, "hot"),
            telemetry.histogram("hearth_compute_seconds", ref.name),
        )
        return meters

    def _first_answer(self) -> None:
        self._answered_once = True
        timeline = self._pod.timeline
        if timeline.mark("answered"):
            log.info("cold start: %s", _in_order(timeline.stages))


class _Hot:
    """A request whose model was ready: under way in the worker."""

    __slots__ = ("_future", "_inference", "_lease", "_request", "_wanted")

    def __init__(self, inference: Inference, request: Request, wanted: codec.InferenceRequest, lease: Lease) -> None:
        self._inference = inference
        self._request = request
        self._wanted = wanted
        self._lease = lease

    def start(self, spec: ModelSpec) -> Answering:
        """Send it to the worker, if it is what ``spec`` or the loaded model takes."""
        wanted, lease = self._wanted, self._lease
        try:
            schema.check(lease.ref, spec.inputs or lease.schema.inputs, wanted.inputs)
            self._future = lease.run(wanted.inputs, wanted.body, wanted.outputs)
        except BaseException as error:
            lease.release()
            if isinstance(error, HearthError):
                return self._inference.refusal(lease.ref, error)
            raise
        self._future.add_done_callback(self._done)
        return self

    def cancel(self) -> None:
        """The client is gone. The lease ends in ``_done``, which runs in any case."""
        self._future.cancel()

    def _done(self, future: asyncio.Future[Answer]) -> None:
        try:
            if not future.cancelled():
                self._finish(future)
        finally:
            self._lease.release()

    def _finish(self, future: asyncio.Future[Answer]) -> None:
        inference, request, ref = self._inference, self._request, self._lease.ref
        try:
            response = inference.success(request, self._wanted, self._lease, future.result())
        except (WorkerRestarting, OutOfMemory) as error:
            inference.again(request, self._wanted, ref, error)
            return
        except HearthError as error:
            response = inference.refusal(ref, error)
        except Exception as error:  # a request's root: unanswered, it would hang
            log.exception("answering for model %s failed", ref)
            response = inference.refusal(ref, internal_error(error))
        request.answer(response)


def _timing(lease: Lease) -> str:
    """The stages before the computation that this request waited for; those it did not wait for are left out."""
    if lease.start == "hot":
        return ""
    stages = (("queue", lease.wait_s), ("fetch", lease.fetch_s), ("device", lease.device_s), ("build", lease.build_s))
    return "".join(f"{name};dur={seconds * 1e3:.2f}, " for name, seconds in stages if seconds > 0)


def _in_order(stages: dict[str, float]) -> str:
    return " ".join(f"{stage}={at_s:.2f}" for stage, at_s in sorted(stages.items(), key=lambda item: item[1]))
