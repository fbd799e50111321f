"""The ``hearth`` command's cluster side: asks a namespace's controller, and wishes pools warm. Wakes nothing.

The controller is reached through the API server's proxy, so a kubeconfig is all that is needed: no port is forwarded, and the
ingress, where asking would start a pod, is never used. Imported by predictor/cli.py when it is asked for; how things look on
screen is that module's business, but for what only a cluster has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from predictor import human
from predictor import why as words
from predictor.errors import HearthError, UnknownModel
from predictor.report import Event, Residency
from warmup.kube import KNATIVE_SERVICES, SERVING_RUNTIMES, Forbidden, Kube, KubeError, NotFound, Resource, Unreachable
from warmup.words import HotSet, hot_set_words

SERVICE: Final = "hearth-controller"
PORT: Final = 8082
WARM_UNTIL: Final = "hearth.dev/warm-until"
POLL_S: Final = 1.0
SERVING: Final = "serving"

OK, NOT_FOUND = 200, 404

Told = TypeVar("Told")


class NoController(HearthError):
    """The namespace has no controller, or none that runs."""

    http_status = 503


class UnknownPool(HearthError):
    """The namespace has no pool of that name."""

    http_status = 404


class CannotWarm(HearthError):
    """That pool does not go to zero, so there is nothing to keep."""

    http_status = 422


class Refused(HearthError):
    """The controller answered that it cannot do this; the message is its own."""


class Pod(msgspec.Struct, frozen=True):
    """A running pod. ``state``: what it says of itself, or why nothing is known of it; ``trouble``: what is wrong, in words."""

    name: str
    state: str = ""
    up_s: float | None = None
    trouble: str = ""


class Pool(msgspec.Struct, frozen=True):
    """A pool, as the controller tells of it. Fields that an older one does not know are empty.

    service       its Knative Service's name; "": none, or not told
    warm          how it stands with its warmth: see prewarm.State; "": not told
    warm_until_s  seconds since the epoch; None: nobody asked for it
    models        how many by state
    hot_set       None: none is published, or not told
    """

    name: str
    kind: str = ""
    default: bool = False
    ready: bool = False
    reason: str = ""
    service: str = ""
    warm: str = ""
    warm_until_s: float | None = None
    pods: tuple[Pod, ...] = ()
    models: dict[str, int] = {}
    hot_set: HotSet | None = None


class Model(msgspec.Struct, frozen=True):
    """A model's InferenceService."""

    name: str
    pool: str = ""
    state: str = ""
    ready: bool = False
    uri: str = ""
    failure: str = ""


class Noted(msgspec.Struct, frozen=True):
    """Something that happened to a model. ``event``: what a pod told; None: the controller did it, in ``detail``'s words."""

    at_s: float
    what: str = ""
    detail: str = ""
    source: str = ""
    event: Event | None = None


class _Pools(msgspec.Struct):
    pools: tuple[Pool, ...]


class _Models(msgspec.Struct):
    models: tuple[Model, ...]


class _Pods(msgspec.Struct):
    pods: tuple[msgspec.Raw, ...]


class _Why(msgspec.Struct):
    events: tuple[Noted, ...]
    now: tuple[str, ...] = ()


class Silent(msgspec.Struct, frozen=True):
    """A pod that did not tell what is where in it; ``error``: why."""

    pod: str
    error: str = ""


Block = str | list[list[str]] | Residency


class _Failure(msgspec.Struct):
    error: str = ""


@dataclass(frozen=True)
class Place:
    """Which controller is meant; "" for what the kubeconfig says."""

    namespace: str = ""
    context: str = ""


class Controller:
    """The controller of one namespace, through the API server's proxy."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def pools(self) -> tuple[Pool, ...]:
        """Every pool."""
        return self._told(_Pools, await self.ask("pools")).pools

    async def models(self, pool: str = "") -> tuple[Model, ...]:
        """Every model, or those of one pool. Raises ``Refused`` where there is no such pool."""
        return self._told(_Models, await self.ask("models", {"pool": pool})).models

    async def look(self, pool: str = "") -> tuple[tuple[Pool, ...], list[Residency | Silent]]:
        """Every pool, or one, and what is where in its pods. Raises ``UnknownPool``."""
        pools = await self.pools()
        if pool:
            pools = (named(pools, pool, self._kube.namespace),)
        return pools, await self.residencies(pool)

    async def residencies(self, pool: str = "") -> list[Residency | Silent]:
        """What is where, in every running pod; an empty list at zero."""
        pods: list[Residency | Silent] = []
        for raw in self._told(_Pods, await self.ask("residency", {"pool": pool})).pods:
            failed = self._told(_Failure, raw).error
            pods.append(self._told(Silent, raw) if failed else self._told(Residency, raw))
        return pods

    async def why(self, name: str) -> tuple[tuple[Noted, ...], tuple[str, ...]]:
        """What happened to a model or a pool, oldest first; of a pool also how it stands. Raises ``UnknownModel``."""
        told = self._told(_Why, await self.ask(f"why/{quote(name, safe='')}"))
        return told.events, told.now

    async def ask(self, route: str, query: Mapping[str, str] | None = None) -> bytes:
        """Answer of one route below ``/hearth/v1/``."""
        namespace = self._kube.namespace
        try:
            answer = await self._kube.ask(SERVICE, PORT, f"hearth/v1/{route}", query)
        except NotFound as error:
            hint = f"name another one with -n, or install one (manifests/base); {error.message}"
            raise NoController(f"namespace {namespace} has no Hearth controller (Service {SERVICE}): {hint}") from error
        except Forbidden as error:
            needed = f'resources: ["services/proxy"], resourceNames: ["{SERVICE}:{PORT}"], verbs: ["get"]'
            raise Forbidden(
                f"you may not ask the controller in namespace {namespace}: a Role there must allow you "
                f'{{apiGroups: [""], {needed}}} (samples/user-role.yaml); {error.message}'
            ) from error
        except Unreachable as error:
            raise NoController(f"the controller in namespace {namespace} cannot be asked: {error.message}") from error
        if answer.status == OK:
            return answer.body
        try:
            said = msgspec.json.decode(answer.body, type=_Failure).error
        except msgspec.DecodeError:
            said = ""
        kind = UnknownModel if answer.status == NOT_FOUND and route.startswith("why/") else Refused
        raise kind(said or f"the controller in namespace {namespace} answers HTTP {answer.status} to {route}")

    def _told(self, kind: type[Told], body: bytes | msgspec.Raw) -> Told:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NoController(
                f"what Service {SERVICE} in namespace {self._kube.namespace} answers is not a Hearth controller's: {error}"
            ) from error


def run(place: Place, ask: Callable[[Controller], Awaitable[Told]]) -> Told:
    """Connect, ask, disconnect. Raises ``KubeError`` and what ``ask`` raises."""

    async def carry_out() -> Told:
        async with await Kube.connect(place.namespace, context=place.context) as kube:
            return await ask(Controller(kube))

    return asyncio.run(carry_out())


def answer(place: Place, command: str, subject: str, *, is_json: bool) -> list[Block]:
    """What to show for ``ps``, ``models`` (``subject``: a pool, or "" for all) or ``why`` (a model).

    Lines, rows with their headings first, and pods' own reports. With ``is_json`` the controller's answer as it is.
    """
    if is_json:
        routes = {"ps": "residency", "models": "models", "why": f"why/{quote(subject, safe='')}"}
        query = {} if command == "why" else {"pool": subject}
        return [run(place, lambda controller: controller.ask(routes[command], query)).decode()]
    if command == "why":
        events, now = run(place, lambda controller: controller.why(subject))
        lines = [*why_lines(events), *(f"now: {line}" for line in now)]
        return ["\n".join(lines) or f"nothing happened to {subject} since the controller started"]
    if command == "models":
        models = run(place, lambda controller: controller.models(subject))
        return [model_rows(models)] if models else ["no InferenceService names a pool of this namespace as its runtime"]
    pools, pods = run(place, lambda controller: controller.look(subject))
    if not pools:
        return ["this namespace has no pool: label what is one hearth.dev/pool=NAME"]
    blocks: list[Block] = [pool_rows(pools, now_s=time.time())]
    blocks += [f"\n{pod.pod}: {pod.error}" if isinstance(pod, Silent) else pod for pod in pods]
    return blocks if pods else [*blocks, "\nno pod runs; the next request, or `hearth warm POOL`, starts one"]


def warm(place: Place, name: str, *, for_s: float, wait_s: float, say: Callable[[str], None]) -> bool:
    """Wish a pool warm for ``for_s`` seconds, 0: no longer; then watch for up to ``wait_s`` what comes of it.

    The value: whether it is as wished (always, where nothing is waited for). ``say`` gets what happens, line by line.
    """

    async def carry_out() -> bool:
        async with await Kube.connect(place.namespace, context=place.context) as kube:
            await wish(kube, name, for_s=for_s, say=say)
            return await follow(Controller(kube), name, warm=for_s > 0, wait_s=wait_s, say=say)

    return asyncio.run(carry_out())


async def wish(kube: Kube, name: str, *, for_s: float, say: Callable[[str], None]) -> None:
    """Write the annotation, or remove it. Raises ``UnknownPool``, ``CannotWarm``, ``KubeError``."""
    pool = named(await Controller(kube).pools(), name, kube.namespace)
    if pool.kind == "deployment" and for_s > 0:
        raise CannotWarm(f"pool {name} is a Deployment: it has the replicas that it says, and nothing here takes it to zero")
    resource, object_name = _wish_object(pool)
    until = datetime.fromtimestamp(time.time() + for_s, UTC) if for_s > 0 else None
    moment = until.strftime("%Y-%m-%dT%H:%M:%SZ") if until else None
    try:
        await kube.patch(resource, object_name, {"metadata": {"annotations": {WARM_UNTIL: moment}}})
    except NotFound as error:
        kind = resource.kind
        raise CannotWarm(
            f"pool {name} has no {kind} {object_name}, on which {WARM_UNTIL} is written: {error.message}"
        ) from error
    if until is None:
        say(f"pool {name} is not kept warm any more")
    else:
        say(f"pool {name} is kept warm until {until.astimezone():%H:%M:%S} ({human.span(for_s)})")


def named(pools: tuple[Pool, ...], name: str, namespace: str) -> Pool:
    """The pool of that name. Raises ``UnknownPool``, which lists those that there are."""
    found = next((pool for pool in pools if pool.name == name), None)
    if found is None:
        has = ", ".join(pool.name for pool in pools)
        raise UnknownPool(f"namespace {namespace} has no pool {name}; " + (f"it has: {has}" if has else "it has none"))
    return found


def _wish_object(pool: Pool) -> tuple[Resource, str]:
    """Never the InferenceService: KServe copies its annotations into the Revision's template, which would be a new one."""
    if pool.kind == "kserve":
        return SERVING_RUNTIMES, pool.name
    return KNATIVE_SERVICES, pool.service or pool.name


async def follow(controller: Controller, name: str, *, warm: bool, wait_s: float, say: Callable[[str], None]) -> bool:
    """Say what becomes of the pool until it is as wished, or the time is over. Bad news of the connection is no end."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    last = ""
    while loop.time() - started_s < wait_s:
        try:
            pool = next((pool for pool in await controller.pools() if pool.name == name), None)
        except (NoController, KubeError) as error:
            line, done = error.message, False
        else:
            line, done = _progress(pool, warm=warm)
        if line != last:
            say(f"{human.span(loop.time() - started_s)}: {line}")
            last = line
        if done:
            return True
        await asyncio.sleep(POLL_S)
    return wait_s <= 0


def _progress(pool: Pool | None, *, warm: bool) -> tuple[str, bool]:
    """In words, and whether that is what was wished."""
    if pool is None:
        return "the pool is gone", not warm
    if not warm:
        # How long a pod then stays is Knative's affair: its window, its grace period, requests.
        return "its pods go when nobody asks for a while" if pool.pods else "no pod runs", True
    serving = next((pod.name for pod in pool.pods if pod.state == SERVING), "")
    # A pod serves some tenths of a second before Knative sends it requests: "warm" is Knative's word. A min-scale of
    # the user's own, and an older controller, say no such word.
    if pool.warm == "warm" or (serving and pool.warm in {"own", ""}):
        return f"{serving or 'a pod'} serves", True
    return _obstacle(pool), False


def _obstacle(pool: Pool) -> str:
    """What a pool that shall be warm waits for."""
    if pool.warm == "unable":
        return f"it cannot be kept warm: {pool.reason or 'it has no ready Revision'}"
    if pool.pods:
        return ", ".join(f"{pod.name}: {pod.trouble or pod.state}" for pod in pool.pods)
    if pool.warm == "waking":
        return "Knative was sent a request and has not started a pod yet"
    return "waiting for a pod"


def pool_rows(pools: tuple[Pool, ...], *, now_s: float) -> list[list[str]]:
    """The headings, then a row for every pool. ``now_s``: seconds since the epoch."""
    rows = [["POOL", "KIND", "READY", "PODS", "WARM UNTIL", "HOT SET", "MODELS BY STATE"]]
    for pool in pools:
        until_s = pool.warm_until_s or 0.0
        rows.append(
            [
                pool.name + (" (default)" if pool.default else ""),
                pool.kind or "-",
                "yes" if pool.ready else "no" + (f": {pool.reason}" if pool.reason else ""),
                str(len(pool.pods)),
                f"{datetime.fromtimestamp(until_s, UTC).astimezone():%Y-%m-%d %H:%M:%S}" if until_s > now_s else "-",
                hot_set_words(pool.hot_set, now_s),
                ", ".join(f"{count} {state}" for state, count in pool.models.items()) or "-",
            ]
        )
    return rows


def model_rows(models: tuple[Model, ...]) -> list[list[str]]:
    """The headings, then a row for every model."""
    rows = [["NAME", "POOL", "STATE", "READY", "LOCATION"]]
    for model in models:
        ready = "yes" if model.ready else "no" + (f": {model.failure}" if model.failure else "")
        rows.append([model.name, model.pool, model.state or "-", ready, model.uri or "-"])
    return rows


def why_lines(events: tuple[Noted, ...]) -> list[str]:
    """One line an event, in this machine's time zone: what a pod told in the pod's words, and which one it was."""
    lines = []
    for noted in events:
        if noted.event is not None:
            lines += [f"{line}  [{noted.source}]" for line in words.lines([noted.event])]
        else:
            moment = datetime.fromtimestamp(noted.at_s, UTC).astimezone()
            lines.append(f"{moment:%Y-%m-%d %H:%M:%S}  {noted.what}: {noted.detail}  [controller]")
    return lines
