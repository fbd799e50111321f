"""Speaks to the Kubernetes API: requests with their own time limits, plain dicts, and errors that say what to do.

Objects stay what the API server sent (dicts of JSON): no generated classes, which cost 0.3 s to import and drop fields
that they do not know. What is kept up to date from a watch is in watch.py. No request is repeated here: who asks knows
whether that is safe. Bodies are never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.config_exception import ConfigException

from predictor.errors import HearthError
from warmup import kubeconfig

Object = dict[str, Any]
"""One object as the API has it: ``metadata``, ``spec``, ``status``, ..."""

TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 4.0
PAGE: Final = 500
MAX_PAGES: Final = 200
MAX_LINE_BYTES: Final = 8 << 20
"""Of one event in a watch: etcd refuses objects above 1.5 MiB, and JSON may escape much of one."""

WATCH_GRACE_S: Final = 5.0
"""How much longer than a watch's own end the client waits for a word: more, and the connection is dead."""

MERGE_PATCH: Final = "application/merge-patch+json"


class KubeError(HearthError):
    """The Kubernetes API did not do what it was asked."""

    http_status: ClassVar[int] = 502


class NotFound(KubeError):
    """No such object, or its kind does not exist in this cluster."""


class Conflict(KubeError):
    """The object is not what the writer thought: it was changed meanwhile, or exists already."""

    retryable: ClassVar[bool] = True


class Gone(KubeError):
    """The resourceVersion is too old for the API server's memory: list anew."""

    retryable: ClassVar[bool] = True


class Forbidden(KubeError):
    """The credentials do not allow it, or are not accepted at all."""


class Refused(KubeError):
    """The object is not valid, or an admission webhook does not let it in. Asking again does not help."""


class Unreachable(KubeError):
    """No answer in time, or one that says: not now. ``retry_after_s`` is what the server asked for, if it did."""

    http_status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


class NoCluster(KubeError):
    """There is neither a kubeconfig nor a pod's service account: which cluster is meant is not known."""


@dataclass(frozen=True)
class Resource:
    """A kind of namespaced objects, and where the API has it. ``group`` is "" for the core kinds."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group's version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Path of all of them in a namespace, of one, or of one's subresource."""
        parts = [self.root, "namespaces", quote(namespace), self.plural, quote(name), subresource]
        return "/".join(part for part in parts if part)


INFERENCE_SERVICES: Final = Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")
SERVING_RUNTIMES: Final = Resource("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime")
KNATIVE_SERVICES: Final = Resource("serving.knative.dev", "v1", "services", "Service")
REVISIONS: Final = Resource("serving.knative.dev", "v1", "revisions", "Revision")
POD_AUTOSCALERS: Final = Resource("autoscaling.internal.knative.dev", "v1alpha1", "podautoscalers", "PodAutoscaler")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS: Final = Resource("", "v1", "events", "Event")
PODS: Final = Resource("", "v1", "pods", "Pod")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
SERVICES: Final = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")


@dataclass(frozen=True)
class Listing:
    """All objects of a kind, and the moment they are from: a watch goes on from there."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True)
class Answer:
    """What a service in the cluster answered through the API server."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Call:
    """One request, in the words that an error about it needs."""

    verb: str
    method: str
    path: str
    resource: Resource | None = None
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Object | None = None
    content_type: str = "application/json"

    @property
    def url(self) -> str:
        """Path and query."""
        told = {key: value for key, value in self.query.items() if value}
        return f"{self.path}?{urlencode(told)}" if told else self.path

    @property
    def about(self) -> str:
        """``get secrets/NAME``: what was attempted."""
        kinds = self.resource.plural if self.resource else self.path
        return f"{self.verb} {'/'.join(part for part in (kinds, self.name, self.subresource) if part)}"


class Kube:
    """One API server and one namespace of it.

    Every method raises ``Unreachable`` when there is no answer within ``timeout_s``, and ``Forbidden`` where the
    credentials lack a permission. Use as an async context manager, or call ``close``.
    """

    def __init__(self, configuration: Configuration, namespace: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.namespace = namespace
        self._configuration = configuration
        self._client = RESTClientObject(configuration)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)

    @classmethod
    async def connect(cls, namespace: str = "", *, context: str = "") -> Kube:
        """Read the credentials: KUBECONFIG, else a pod's service account, else ~/.kube/config. Asks no server.

        namespace  "": the pod's own, or the kubeconfig context's, or ``default``
        context    of the kubeconfig; "": its current one

        Raises ``NoCluster``.
        """
        try:
            configuration, own = await kubeconfig.credentials(context)
        except ValueError as error:
            raise NoCluster(f"which cluster? {error}; set KUBECONFIG, or run it in a pod with a service account") from error
        return cls(configuration, namespace or own or "default")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; watches end."""
        await self._client.close()

    async def get(self, resource: Resource, name: str) -> Object:
        """One object. Raises ``NotFound``."""
        return await self._object(Call("get", "GET", resource.path(self.namespace, name), resource, name))

    async def list(self, resource: Resource, *, labels: str = "", fields: str = "") -> Listing:
        """All objects that match the selectors, read page by page.

        Raises ``NotFound`` where the kind does not exist, ``Gone`` when the listing took longer than the server
        remembers, ``KubeError`` above 100,000 objects.
        """
        items: list[Object] = []
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        for _ in range(MAX_PAGES):
            page = await self._object(Call("list", "GET", resource.path(self.namespace), resource, query=query))
            items += page.get("items") or ()
            metadata = page.get("metadata") or {}
            query["continue"] = metadata.get("continue") or ""
            if not query["continue"]:
                return Listing(items, str(metadata.get("resourceVersion", "")))
        raise KubeError(f"{self.namespace} has more than {MAX_PAGES * PAGE} {resource.plural}: that is too many")

    async def create(self, resource: Resource, body: Object) -> Object:
        """Make one; the value is what the server made of it. Raises ``Conflict`` if there is one of that name."""
        named = {"apiVersion": resource.api_version, "kind": resource.kind} | body
        name = str(body["metadata"].get("name", ""))
        return await self._object(Call("create", "POST", resource.path(self.namespace), resource, name, body=named))

    async def replace(self, resource: Resource, body: Object) -> Object:
        """Write all of an object. Raises ``Conflict`` if its resourceVersion is given and is not the latest."""
        named = {"apiVersion": resource.api_version, "kind": resource.kind} | body
        name = str(body["metadata"]["name"])
        return await self._object(Call("update", "PUT", resource.path(self.namespace, name), resource, name, body=named))

    async def patch(self, resource: Resource, name: str, patch: Object, *, subresource: str = "") -> Object:
        """Merge ``patch`` into an object (RFC 7386: None removes a field, a list replaces the whole list).

        With ``metadata.resourceVersion`` in it, it raises ``Conflict`` unless that is the latest.
        """
        path = resource.path(self.namespace, name, subresource)
        return await self._object(Call("patch", "PATCH", path, resource, name, subresource, {}, patch, MERGE_PATCH))

    async def patch_status(self, resource: Resource, name: str, status: Object) -> Object:
        """Merge ``status`` into an object's status, through the status subresource."""
        return await self.patch(resource, name, {"status": status}, subresource="status")

    async def delete(self, resource: Resource, name: str, *, uid: str = "") -> None:
        """Remove one. With ``uid`` only that very object: ``Conflict`` when another has its name by now."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._object(Call("delete", "DELETE", resource.path(self.namespace, name), resource, name, body=options))

    async def has_api(self, group: str, version: str) -> bool:
        """Whether the cluster has this API group and version: Knative, KServe."""
        try:
            await self._object(Call("get", "GET", f"/apis/{group}/{version}" if group else f"/api/{version}"))
        except NotFound:
            return False
        return True

    async def ask(self, service: str, port: int, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """GET from a Service of the namespace through the API server's proxy: no route to the pod is needed.

        The status and body are the service's own. Raises ``NotFound`` where there is no such Service and
        ``Unreachable`` where no pod of it is ready.
        """
        root = SERVICES.path(self.namespace, f"{service}:{port}", "proxy")
        call = Call("get", "GET", f"{root}/{path.lstrip('/')}", SERVICES, service, "proxy", query or {})
        status, headers, body = await self._exchange(call)
        if status >= 300 and _is_status(body):  # noqa: PLR2004
            raise _error(call, status, headers, body, self.namespace)
        return Answer(status, body)

    async def watch(
        self, resource: Resource, resource_version: str, *, labels: str = "", fields: str = "", timeout_s: float = 50.0
    ) -> AsyncGenerator[Object, None]:
        """Events as they come, ``{"type": "ADDED|MODIFIED|DELETED|BOOKMARK", "object": ...}``; ends after ``timeout_s``.

        Raises ``Gone`` when ``resource_version`` is too old, at once or in mid-stream, ``NotFound`` where the kind does
        not exist, ``Unreachable`` when the connection breaks or nothing was heard for ``timeout_s`` and a little more.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_s))),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        call = Call("watch", "GET", resource.path(self.namespace), resource, query=query)
        quiet_s = timeout_s + WATCH_GRACE_S
        response = await self._send(call, aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=quiet_s))
        try:
            if response.status != 200:  # noqa: PLR2004
                raise _error(call, response.status, response.headers, await response.read(), self.namespace)
            async for line in _lines(response.content):
                event: Object = msgspec.json.decode(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise _error(call, int(status.get("code") or 500), {}, msgspec.json.encode(status), self.namespace)
                yield event
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise _lost(call, error) from error
        finally:
            response.close()  # not release(): what is left of the stream is nobody's

    async def _object(self, call: Call) -> Object:
        status, headers, body = await self._exchange(call)
        if status >= 300:  # noqa: PLR2004
            raise _error(call, status, headers, body, self.namespace)
        try:
            answer: Object = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise Unreachable(f"{call.about}: the answer is no JSON; a proxy in between?") from error
        return answer

    async def _exchange(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        """Send and read all of the answer; one time limit for both."""
        try:
            async with asyncio.timeout(self._timeout.total):
                response = await self._send(call, self._timeout)
                try:
                    return response.status, response.headers, await response.read()
                finally:
                    response.release()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _lost(call, error) from error

    async def _send(self, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Headers are here when this returns, not the body. Tokens are read anew when they are a minute old."""
        headers = {"Accept": "application/json", "Content-Type": call.content_type, "User-Agent": "hearth"}
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
            if token:
                headers["Authorization"] = token
            url = self._configuration.host + call.url
            ask = self._client.request
            sent = await ask(call.method, url, headers, call.body, _request_timeout=limits)  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError, ConfigException) as error:
            raise _lost(call, error) from error
        response: aiohttp.ClientResponse = sent.response
        return response


def meta(found: Object, key: str, field_: str = "annotations") -> str:
    """One annotation, or label; "" where there is none."""
    return str(((found.get("metadata") or {}).get(field_) or {}).get(key, ""))


def name_of(found: Object) -> str:
    """``metadata.name``."""
    return str(found["metadata"]["name"])


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Complete lines. What a broken connection left half is dropped: the watch goes on from the last whole event."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            raise aiohttp.ClientPayloadError(f"an event has more than {MAX_LINE_BYTES} bytes")


def _is_status(body: bytes) -> bool:
    """Whether the API server itself speaks, not the service behind its proxy."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return isinstance(told, dict) and told.get("kind") == "Status"


def _lost(call: Call, error: Exception) -> Unreachable:
    said = str(error) or type(error).__name__
    return Unreachable(f"{call.about}: the Kubernetes API cannot be reached: {said}")


def _error(call: Call, status: int, headers: Mapping[str, str], body: bytes, namespace: str) -> KubeError:
    """The exception for an answer that is none. A Secret's own text is never in it."""
    try:
        told = msgspec.json.decode(body)
        said = str(told.get("message", "")) if isinstance(told, dict) else ""
        reason = str(told.get("reason", "")) if isinstance(told, dict) else ""
    except msgspec.DecodeError:
        said = reason = ""
    if call.resource == SECRETS and status not in (403, 404):
        said = reason  # a message about what is not valid may quote it
    text = f"{call.about} in namespace {namespace}: {said or reason or f'HTTP {status}'}"
    if status == 403:  # noqa: PLR2004
        return Forbidden(_permission(call, namespace, said))
    if status == 401:  # noqa: PLR2004
        return Forbidden(f"{call.about}: the cluster does not accept these credentials (HTTP 401): have they expired?")
    if status == 429 or status >= 500:  # noqa: PLR2004
        return Unreachable(text, retry_after_s=_seconds(headers.get("Retry-After", "")))
    return {404: NotFound, 409: Conflict, 410: Gone}.get(status, Refused)(text)


def _permission(call: Call, namespace: str, said: str) -> str:
    """Which rule a Role needs."""
    if call.resource is None:
        return f"{call.about} is forbidden: {said}"
    kinds = "/".join(part for part in (call.resource.plural, call.subresource) if part)
    rule = f'{{apiGroups: ["{call.resource.group}"], resources: ["{kinds}"], verbs: ["{call.verb}"]}}'
    return f"{call.about} is forbidden in namespace {namespace}: a Role there must allow {rule} ({said})"


def _seconds(text: str) -> float | None:
    """Retry-After as the API server writes it; None: it said none, or a date."""
    return float(text) if text.isdecimal() else None
