"""An API server in memory, over HTTP, for the real client: what the controller needs of Kubernetes, and faults on demand.

Knows no kinds: whatever lies below a known group and version is an object. No admission, no finalizers, no defaults.
tests/warmup/test_kube.py runs the same sentences against this and against a real cluster.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from warmup.kube import Kube

Object = dict[str, Any]
Key = tuple[str, str, str, str]
"""Group, plural, namespace, name."""

GROUPS: Final = frozenset(
    {
        "/v1",
        "apps/v1",
        "coordination.k8s.io/v1",
        "serving.kserve.io/v1beta1",
        "serving.kserve.io/v1alpha1",
        "serving.knative.dev/v1",
        "autoscaling.internal.knative.dev/v1alpha1",
    }
)
WITHOUT_STATUS: Final = frozenset({"configmaps", "secrets", "serviceaccounts", "events", "leases"})
MAX_DATA_BYTES: Final = 1 << 20
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
ROUTE: Final = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<rest>.+))?)?)?"
)


class Refusal(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.headers = code, reason, message, headers or {}

    @property
    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
        }


@dataclass
class Fault:
    """What is done to the next requests that match instead of answering.

    what   an HTTP status, ``hang`` or ``drop``
    verb   get, list, watch, create, update, patch, delete; "": any
    times  how many requests
    """

    what: int | str
    verb: str = ""
    plural: str = ""
    times: int = 1
    retry_after_s: int | None = None


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    verb: str
    plural: str
    name: str
    rest: str
    query: dict[str, str]
    body: Any
    authorization: str = ""


@dataclass(frozen=True)
class Change:
    """One event of a watch."""

    version: int
    key: Key
    kind: str
    found: Object
    labels_before: dict[str, str] | None


@dataclass
class FakeKube:
    """Use as an async context manager. ``asked`` is every request in the order of arrival."""

    groups: set[str] = field(default_factory=lambda: set(GROUPS))
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bookmark_s: float = 0.05

    def __post_init__(self) -> None:
        self.services: dict[tuple[str, str], Callable[[str, dict[str, str]], tuple[int, bytes]]] = {}
        """(namespace, ``name:port``) → what answers behind the service proxy."""
        self._store: dict[Key, Object] = {}
        self._version = 100
        self._changes: list[Change] = []
        self._floor = 0
        self._news = asyncio.Condition()
        self._away = False
        self._expiries = 0
        self._hanging = asyncio.Event()
        self._arrived = asyncio.Event()
        self._transports: set[asyncio.BaseTransport] = set()
        self._clients: list[Kube] = []

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=4 << 20)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()
        self._hanging.set()
        await self._runner.cleanup()

    def client(self, namespace: str = "team", *, timeout_s: float = 5.0) -> Kube:
        """A real client; closed with the server."""
        self._clients.append(Kube(Configuration(host=self.url), namespace, timeout_s=timeout_s))
        return self._clients[-1]

    # What tests do behind the API's back.

    def put(self, plural: str, body: Object, *, namespace: str = "team", group: str | None = None) -> Object:
        """Create or replace an object whole, status included."""
        group = group if group is not None else str(body.get("apiVersion", "v1")).rpartition("/")[0]
        key = (group, plural, namespace, body["metadata"]["name"])
        return self._write(key, copy.deepcopy(body), self._store.get(key))

    def object(self, plural: str, name: str, *, namespace: str = "team") -> Object | None:
        """As it is now; None: there is none."""
        for (_, its_plural, its_namespace, its_name), found in self._store.items():
            if (its_plural, its_namespace, its_name) == (plural, namespace, name):
                return copy.deepcopy(found)
        return None

    def objects(self, plural: str, *, namespace: str = "team") -> dict[str, Object]:
        """All of a kind by name."""
        return {key[3]: copy.deepcopy(found) for key, found in self._store.items() if key[1:3] == (plural, namespace)}

    def remove(self, plural: str, name: str, *, namespace: str = "team") -> None:
        """Delete one, and what it owns."""
        (key,) = (key for key in self._store if key[1:] == (plural, namespace, name))
        self._delete(key)

    def fail(
        self, what: int | str, *, verb: str = "", plural: str = "", times: int = 1, retry_after_s: int | None = None
    ) -> None:
        """Do ``what`` to the next matching requests: an HTTP status, ``hang`` (until the client is gone) or ``drop``."""
        self.faults.append(Fault(what, verb, plural, times, retry_after_s))

    def forget(self) -> None:
        """Compact: no watch can start at what is now the past."""
        self._floor = self._version
        self._changes.clear()

    async def expire_watches(self) -> None:
        """End every running watch with an ERROR event that says 410, as a slow one sees it."""
        self._expiries += 1
        async with self._news:
            self._news.notify_all()

    async def until_asked(self, verb: str, plural: str, *, times: int = 1) -> None:
        """Return once that many such requests have come since the beginning."""
        async with asyncio.timeout(10):
            while sum((asked.verb, asked.plural) == (verb, plural) for asked in self.asked) < times:
                self._arrived.clear()
                await self._arrived.wait()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Every connection is cut and none is answered."""
        self._away = True
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self._away = False

    # The API.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        self._transports = {known for known in self._transports if not known.is_closing()} | {transport}
        if self._away:
            transport.abort()
            return web.Response()
        try:
            return await self._dispatch(request)
        except Refusal as refusal:
            return web.json_response(refusal.status, status=refusal.code, headers=refusal.headers)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        match = ROUTE.fullmatch(request.path)
        if match is None:
            return web.Response(status=404, text="404 page not found\n")
        group = match["group"] or ""
        plural, name, namespace, rest = (
            match["plural"] or "",
            match["name"] or "",
            match["namespace"] or "",
            match["rest"] or "",
        )
        query = dict(request.query)
        body = json.loads(await request.read() or "null") if request.method in ("POST", "PUT", "PATCH", "DELETE") else None
        verb = _verb(request.method, name, query)
        self.asked.append(Asked(verb, plural, name, rest, query, body, request.headers.get("Authorization", "")))
        self._arrived.set()
        if await self._faulty(verb, plural, request):
            return web.Response()
        if f"{group}/{match['version'] or match['core']}" not in self.groups:
            return web.Response(status=404, text="404 page not found\n")
        key = (group, plural, namespace, name)
        if verb == "watch":
            return await self._watch(request, key, query)
        if plural == "services" and rest.startswith("proxy"):
            return self._proxy(namespace, name, rest.removeprefix("proxy").lstrip("/"), query)
        return web.json_response(self._carry_out(verb, key, rest, query, body), status=201 if verb == "create" else 200)

    def _carry_out(self, verb: str, key: Key, rest: str, query: dict[str, str], body: Any) -> Object:
        plural, name = key[1], key[3]
        if not plural:
            return {"kind": "APIResourceList", "resources": []}
        if verb == "list":
            return self._list(key, query)
        if verb == "create":
            return self._create(key, body)
        old = self._store.get(key)
        if old is None:
            raise Refusal(404, "NotFound", f'{plural} "{name}" not found')
        if verb == "get":
            return old
        if verb == "delete":
            wanted = ((body or {}).get("preconditions") or {}).get("uid", old["metadata"]["uid"])
            if wanted != old["metadata"]["uid"]:
                raise Refusal(409, "Conflict", f"the UID in the precondition ({wanted}) does not match")
            return self._delete(key)
        new = copy.deepcopy(body) if verb == "update" else _merged(copy.deepcopy(old), body)
        self._check_version(old, new["metadata"].get("resourceVersion"), name)
        if rest == "status":
            new = copy.deepcopy(old) | {"status": new.get("status", {})}
        elif plural not in WITHOUT_STATUS:
            new = {part: value for part, value in new.items() if part != "status"}
            new |= {"status": old["status"]} if "status" in old else {}
        return self._write(key, new, old)

    def _create(self, key: Key, body: Object) -> Object:
        group, plural, namespace, _ = key
        name = body["metadata"].get("name") or body["metadata"]["generateName"] + uuid.uuid4().hex[:5]
        key = (group, plural, namespace, name)
        if not NAME.fullmatch(name):
            raise Refusal(422, "Invalid", f'{plural} "{name}" is invalid: metadata.name')
        if key in self._store:
            raise Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')
        fresh = {part: value for part, value in body.items() if part != "status" or plural in WITHOUT_STATUS}
        return self._write(key, fresh, None)

    def _check_version(self, old: Object, said: str | None, name: str) -> None:
        if said and said != old["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", f'operation cannot be fulfilled on "{name}": the object has been modified')

    def _write(self, key: Key, new: Object, old: Object | None) -> Object:
        if len(json.dumps(new.get("data") or "")) > MAX_DATA_BYTES:
            raise Refusal(422, "Invalid", f'{key[1]} "{key[3]}" is invalid: data: Too long')
        metadata = new.setdefault("metadata", {})
        was = old["metadata"] if old else {}
        metadata |= {
            "name": key[3],
            "namespace": key[2],
            "uid": was.get("uid") or metadata.get("uid") or str(uuid.uuid4()),
            "creationTimestamp": was.get("creationTimestamp") or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        changed_spec = old is not None and old.get("spec") != new.get("spec")
        metadata["generation"] = was.get("generation", 1) + changed_spec
        if old is not None:
            metadata["resourceVersion"] = was["resourceVersion"]
            if new == old:
                return old
        self._store[key] = new
        self._note(key, "MODIFIED" if old else "ADDED", new, old)
        return new

    def _delete(self, key: Key) -> Object:
        found = self._store.pop(key)
        self._note(key, "DELETED", found, found)
        uid = found["metadata"]["uid"]
        for other, owned in list(self._store.items()):
            owners = [owner["uid"] for owner in owned["metadata"].get("ownerReferences", ())]
            if owners == [uid] and other in self._store:
                self._delete(other)
        return found

    def _note(self, key: Key, kind: str, found: Object, old: Object | None) -> None:
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        before = dict(old["metadata"].get("labels") or {}) if old else None
        self._changes.append(Change(self._version, key, kind, copy.deepcopy(found), before))
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _list(self, key: Key, query: dict[str, str]) -> Object:
        names = sorted(
            its[3]
            for its, found in self._store.items()
            if its[:3] == key[:3] and _chosen(found, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        )
        after = base64.b64decode(query["continue"]).decode() if query.get("continue") else ""
        names = [name for name in names if name > after]
        limit = int(query.get("limit") or 0) or len(names)
        page = names[:limit]
        metadata = {"resourceVersion": str(self._version)}
        if len(names) > limit:
            metadata["continue"] = base64.b64encode(page[-1].encode()).decode()
        return {"kind": "List", "metadata": metadata, "items": [self._store[(*key[:3], name)] for name in page]}

    async def _watch(self, request: web.Request, key: Key, query: dict[str, str]) -> web.StreamResponse:
        version, expiries = int(query["resourceVersion"]), self._expiries
        response = web.StreamResponse()
        await response.prepare(request)
        if version < self._floor:
            gone = Refusal(410, "Expired", f"too old resource version: {version} ({self._floor})")
            await _send(response, {"type": "ERROR", "object": gone.status})
            return response
        async for event in self._events(key, query, version):
            if expiries != self._expiries:
                expired = Refusal(410, "Expired", "the watch fell behind").status
                await _send(response, {"type": "ERROR", "object": expired})
                return response
            await _send(response, event)
        return response

    async def _events(self, key: Key, query: dict[str, str], version: int) -> AsyncIterator[Object]:
        """Until ``timeoutSeconds``; a bookmark where there was nothing for a while."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + float(query.get("timeoutSeconds") or 300)
        while loop.time() < until_s:
            fresh = [change for change in self._changes if change.version > version]
            for change in fresh:
                version = change.version
                event = _event(change, query) if change.key[:3] == key[:3] else None
                if event is not None:
                    yield event
            if fresh:
                continue
            try:
                async with asyncio.timeout(min(self.bookmark_s, until_s - loop.time())), self._news:
                    await self._news.wait_for(lambda: self._version > version)  # noqa: B023 (awaited here)
            except TimeoutError:
                yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}

    def _proxy(self, namespace: str, service: str, path: str, query: dict[str, str]) -> web.Response:
        answer = self.services.get((namespace, service))
        if answer is None:
            name = service.partition(":")[0]
            if any(its[1:] == ("services", namespace, name) for its in self._store):
                raise Refusal(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')
            raise Refusal(404, "NotFound", f'services "{name}" not found')
        status, body = answer(path, query)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _faulty(self, verb: str, plural: str, request: web.Request) -> bool:
        """Whether the connection was cut."""
        for fault in self.faults:
            if fault.times and fault.verb in ("", verb) and fault.plural in ("", plural):
                fault.times -= 1
                if fault.what == "hang":
                    await self._hanging.wait()
                if fault.what in ("hang", "drop"):
                    assert request.transport is not None
                    request.transport.abort()
                    return True
                headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
                reason = {403: "Forbidden", 409: "Conflict", 410: "Expired"}.get(int(fault.what), "InternalError")
                raise Refusal(int(fault.what), reason, f"fault: {fault.what}", headers)
        return False


def _verb(method: str, name: str, query: dict[str, str]) -> str:
    if method == "GET":
        return "watch" if query.get("watch") else "get" if name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = old if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _event(change: Change, query: dict[str, str]) -> Object | None:
    """As a watch with selectors sees it: what begins to match is added, what ceases to is deleted."""
    selector = query.get("labelSelector", "")
    fields = query.get("fieldSelector", "")
    now = change.kind != "DELETED" and _chosen(change.found, selector, fields)
    before = change.labels_before is not None and _matches(change.labels_before, selector) and _chosen(change.found, "", fields)
    if not now and not before:
        return None
    return {"type": "MODIFIED" if now and before else "ADDED" if now else "DELETED", "object": change.found}


def _chosen(found: Object, labels: str, fields: str) -> bool:
    for term in filter(None, fields.split(",")):
        path, _, wanted = term.partition("=")
        value: Any = found
        for part in path.split("."):
            value = (value or {}).get(part)
        if str(value) != wanted:
            return False
    return _matches(found["metadata"].get("labels") or {}, labels)


def _matches(labels: dict[str, str], selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        if "!=" in term:
            key, _, unwanted = term.partition("!=")
            if labels.get(key) == unwanted:
                return False
        elif "=" in term:
            key, _, wanted = term.partition("=")
            if labels.get(key) != wanted.lstrip("="):
                return False
        elif term not in labels:
            return False
    return True


async def _send(response: web.StreamResponse, event: Object) -> None:
    await response.write(json.dumps(event).encode() + b"\n")
