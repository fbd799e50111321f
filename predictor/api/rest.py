"""What each URL means. The V2 routes and the probes are answered here, without a framework; rare routes go to FastAPI.

FastAPI on the inference path costs more than everything else in the front together (measured: half the requests per
second), and importing it takes longer than a pod may take to listen.

What stays out: the inference itself (inference.py), FastAPI's routes (admin.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import unquote

import msgspec

from predictor import heat
from predictor.api import state
from predictor.api.asgi import Bridge
from predictor.api.inference import Inference
from predictor.api.message import Answering, Request, Response, error_response, json_response
from predictor.api.pod import Pod
from predictor.errors import DeadlineExceeded, HearthError, MalformedRequest, MethodNotAllowed, UnknownModel, UnknownRoute
from predictor.lease import Schema
from predictor.model import ModelSpec, TensorSpec

STATE: Final = "/hearth/v1/state"
HEAT: Final = "/hearth/v1/heat"
ORDERS: Final = "/hearth/v1/orders"
MAX_SINCE_DIGITS: Final = 15
EXTENSIONS: Final = ("binary_tensor_data",)
MAX_VERSION_DIGITS: Final = 18
REMEMBERED_TARGETS: Final = 10_000
"""Inference URLs that are not taken apart again, 2 µs each; clients may invent as many as they like."""
SHOWN: Final = 200
"""Characters of a path that an error message repeats."""


class InferenceRoutes:
    """The inference port."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._infer = Inference(pod)
        self._rare = Bridge("predictor.api.admin", "inference_app", pod)
        self._targets: dict[str, tuple[str, int | None]] = {}

    def __call__(self, request: Request) -> Answering:
        """Answer ``request``."""
        target = self._targets.get(request.path)
        if target is not None and request.method == "POST":
            return self._infer(request, *target)
        match request.path.split("/"):
            case ["", "v2", "models", name, "infer"]:
                return self._inference(request, name, None)
            case ["", "v2", "models", name, "versions", version, "infer"]:
                return self._inference(request, name, version)
            case ["", "v2", "repository", "index"]:
                return self._rare(request)
            case _:
                return self._reading(request)

    def _inference(self, request: Request, name: str, version: str | None) -> Answering:
        if request.method != "POST":
            return _not_allowed(request, "POST")
        try:
            target = _name(name), _number(version)
        except HearthError as error:
            return self._infer.refusal(None, error)
        if len(self._targets) < REMEMBERED_TARGETS:
            self._targets[request.path] = target
        return self._infer(request, *target)

    def _reading(self, request: Request) -> Answering:
        """Routes that are only read."""
        answer: Callable[[], Answering]
        match request.path.rstrip("/").split("/"):
            case ["", "livez"] | ["", "v2", "health", "live"]:
                answer = partial(live, self._pod)
            case ["", "readyz"] | ["", "v2", "health", "ready"]:
                answer = partial(ready, self._pod, request)
            case ["", "v2"]:
                answer = _server
            case ["", "v2", "models", name]:
                answer = partial(self._metadata, name, None)
            case ["", "v2", "models", name, "versions", version]:
                answer = partial(self._metadata, name, version)
            case ["", "v2", "models", name, "ready"]:
                answer = partial(self._servable, name, None)
            case ["", "v2", "models", name, "versions", version, "ready"]:
                answer = partial(self._servable, name, version)
            case _:
                raise UnknownRoute(f"no route {request.path[:SHOWN]}; models are under /v2/models/<name>")
        if request.method not in {"GET", "HEAD"}:
            return _not_allowed(request, "GET, HEAD")
        return answer()

    async def _metadata(self, name: str, version: str | None) -> Response:
        spec = await self._spec(name, version)
        schema = Schema(spec.inputs, spec.outputs)
        if not (spec.inputs and spec.outputs):
            learned = self._pod.cache.history(spec.ref).schema
            schema = Schema(spec.inputs or learned.inputs, spec.outputs or learned.outputs)
        return json_response(
            200,
            {
                "name": spec.ref.name,
                "versions": [str(spec.ref.version)],
                "platform": spec.format.value,
                "inputs": [_described(field) for field in schema.inputs],
                "outputs": [_described(field) for field in schema.outputs],
            },
        )

    async def _servable(self, name: str, version: str | None) -> Response:
        """200 for every model that a request would bring up: many clients ask this before they infer."""
        spec = await self._spec(name, version)
        history = self._pod.cache.history(spec.ref)
        reason = ""
        if history.failure is not None:
            reason = f"the last load of model {spec.ref} failed: {history.failure.message}"
        elif history.unloaded:
            reason = f"model {spec.ref} was unloaded by order; the next request or load brings it back"
        content: dict[str, object] = {"name": spec.ref.name, "ready": not reason}
        return json_response(400, content | {"error": reason}) if reason else json_response(200, content)

    async def _spec(self, name: str, version: str | None) -> ModelSpec:
        pod, number = self._pod, _number(version)
        name = _name(name)
        spec = pod.catalogue.known(name, number)
        if spec is not None:
            return spec
        timeout_s = pod.settings.hold_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await pod.catalogue.resolve(name, number)
        except TimeoutError:
            raise DeadlineExceeded(
                f"model {name!r} could not be looked up within {timeout_s:.1f} s", retry_after_s=1.0
            ) from None


class AdminRoutes:
    """The admin port: the probes and a controller's questions and orders at once, everything else through FastAPI."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._rare = Bridge("predictor.api.admin", "admin_app", pod)

    def __call__(self, request: Request) -> Answering:
        """Answer ``request``."""
        if request.path == STATE and request.method == "GET" and (since := _since(request.query)) is not None:
            return Response(200, (msgspec.json.encode(state.report(self._pod, since)),))
        if request.path == HEAT and request.method == "GET":
            return _heat(self._pod)
        if request.path == ORDERS and request.method == "PUT":
            return json_response(200, {"ordered": state.take(self._pod, bytes(request.body))})
        if request.path not in {"/livez", "/readyz"}:
            return self._rare(request)
        if request.method not in {"GET", "HEAD"}:
            return _not_allowed(request, "GET, HEAD")
        return live(self._pod) if request.path == "/livez" else ready(self._pod, request)


async def _heat(pod: Pod) -> Response:
    return Response(200, (heat.encode(await state.own_heat(pod)),))


def _since(query: str) -> int | None:
    """Of a controller's question; None: it is asked some other way, which FastAPI answers or refuses."""
    name, _, value = query.partition("=")
    if not query:
        return 0
    return int(value) if name == "since" and value.isascii() and value.isdigit() and len(value) <= MAX_SINCE_DIGITS else None


def live(pod: Pod) -> Response:
    """200 unless a restart is worth what it costs: every loaded model. A loop that stands still answers nobody anyway."""
    reason = pod.hopeless()
    return json_response(503, {"live": False, "error": reason}) if reason else json_response(200, {"live": True})


def ready(pod: Pod, request: Request) -> Response:
    """200 while this pod should get requests: also before torch is imported, because a request waits for that."""
    reason = pod.unready()
    content: dict[str, object] = {"ready": not reason}
    if reason:
        content["error"] = reason
    if "verbose" in request.query.split("&"):
        content |= {
            "pod": pod.name,
            "state": pod.state.value,
            "device": pod.device_failure() or "ok",
            "live": pod.hopeless() or "ok",
            "in_flight": pod.load.requests,
            "waiting": pod.cache.waiting,
            "up_s": round(pod.timeline.up_s, 3),
            "stages": pod.timeline.stages,
            "warm_up": msgspec.structs.asdict(pod.warm_up()),
        }
    return json_response(503 if reason else 200, content)


def _server() -> Response:
    return json_response(200, {"name": "hearth", "version": state.release(), "extensions": EXTENSIONS})


def _not_allowed(request: Request, allowed: str) -> Response:
    error = MethodNotAllowed(f"{request.method} is not possible on {request.path[:SHOWN]}, only {allowed}")
    return error_response(error, headers=b"Allow: %b\r\n" % allowed.encode("ascii"))


def _name(text: str) -> str:
    """A model's name from its URL segment."""
    if "%" not in text:
        return text
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise MalformedRequest(f"the model's name {text[:SHOWN]!r} is not percent-encoded UTF-8") from None


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= MAX_VERSION_DIGITS:
        return int(text)
    raise UnknownModel(f"a model's version is a whole number, not {text[:SHOWN]!r}")


def _described(field: TensorSpec) -> dict[str, object]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.shape}
