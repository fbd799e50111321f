"""One document of a pool, kept in a ConfigMap of its own: what the controller learned, and its restart must not lose.

Read at the start of leadership, written by who leads, at most every so often and only where it is another. One that cannot
be read is not lost, either: what stood there stays under a key of its own. What stays out: what the document says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import gzip
import logging
import zlib
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from warmup.books import Cluster
from warmup.kube import CONFIG_MAPS, Conflict, KubeError, NotFound, Object
from warmup.objects import part, text
from warmup.view import POOL_LABEL, Pool

log = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES: Final = 900_000
"""As it is kept: compressed, if it is. Kubernetes allows an object 1 MiB, base64 and all."""

MAX_READ_BYTES: Final = 32 << 20
"""Once it is unpacked: what is more was not written here."""

SET_ASIDE: Final = "set-aside"
"""The key of what stood there and could not be read: the latest such."""

KEPT_LABEL: Final = "hearth.dev/kept"
"""Tells these ConfigMaps from the catalogue's, which are watched: nobody needs to hear of their writes."""

_WRITES: Final = 3

T = TypeVar("T")


class Kept(Generic[T]):
    """One document. ``load`` first; then ``write`` as often as one likes.

    pool      as it was seen last; replace it when it changes
    what      last part of the ConfigMap's name: hearth-POOL-WHAT
    key       in it. One that ends in .gz is compressed; else it is text, as pods that mount it need it
    read      makes of the document what is wanted. ValueError: it is none, or of a newer release
    pause_s   between two writes
    count     called with kind and outcome of every write
    """

    def __init__(
        self,
        kube: Cluster,
        pool: Pool,
        what: str,
        *,
        key: str,
        read: Callable[[bytes], T],
        pause_s: float = 60.0,
        count: Callable[[str, str], None] = lambda _resource, _outcome: None,
    ) -> None:
        self.pool = pool
        self.what = what
        self.trouble = ""
        """Why what stood there could not be read; "": it could."""
        self._kube = kube
        self._key = key
        self._read = read
        self._pause_s = pause_s
        self._count = count
        self._found: Object | None = None
        self._stands: bytes | None = None
        self._aside: dict[str, str] = {}
        self._written_s: float | None = None

    @property
    def name(self) -> str:
        """The ConfigMap's."""
        return f"hearth-{self.pool.name}-{self.what}"

    @property
    def due_s(self) -> float:
        """Seconds until it may be written again; 0 or less: now."""
        if self._written_s is None:
            return 0.0
        return self._written_s + self._pause_s - asyncio.get_running_loop().time()

    async def load(self) -> T | None:
        """What stands in the cluster; None: nothing, or nothing that can be read. Raises KubeError."""
        self._found = await self._get()
        self._stands, self._aside, self.trouble = None, {}, ""
        if self._found is None:
            return None
        self._aside = _aside(self._found)
        told = _told(self._found, self._key)
        try:
            document = _unpacked(told, self._key)
            read = self._read(document)
        except ValueError as error:
            self.trouble = f"{self.name}: {self._key}: {error}"
            log.warning("%s; it is set aside under the key %s", self.trouble, SET_ASIDE)
            if told:
                self._aside = {SET_ASIDE: told if self._key.endswith(".gz") else base64.b64encode(told.encode()).decode()}
            return None
        self._stands = document
        return read

    async def write(self, document: bytes, may_write: Callable[[], bool], *, at_once: bool = False) -> bool:
        """Have this stand there, unless it does. Raises KubeError.

        at_once  also where the last write was a moment ago

        The value: whether it stands there now. It does not where it has to wait, or this controller does not lead.
        ValueError: it is larger than ``MAX_DOCUMENT_BYTES``; who writes it has to leave something out.
        """
        if document == self._stands:
            return True
        if not may_write() or (self.due_s > 0 and not at_once):
            return False
        body = await asyncio.to_thread(self._body, document)
        for _ in range(_WRITES):
            if not may_write():
                return False
            try:
                self._found = await self._put(body)
            except Conflict:  # an editor, or who led before: whoever leads now knows more
                self._found = await self._get()
                continue
            self._stands, self._written_s = document, asyncio.get_running_loop().time()
            return True
        raise Conflict(f"{self.name} is written by somebody else again and again")

    def _body(self, document: bytes) -> dict[str, Any]:
        packed = _packed(document, self._key)
        if len(packed) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{self.name}: {len(packed)} of at most {MAX_DOCUMENT_BYTES} bytes")
        aside = self._aside if sum(map(len, self._aside.values())) + len(packed) <= MAX_DOCUMENT_BYTES else {}
        if aside != self._aside:
            log.warning("%s: there is no room for what is set aside", self.name)
        binary = dict(aside)
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "namespace": self.pool.namespace,
                "labels": {"app.kubernetes.io/managed-by": "hearth", POOL_LABEL: self.pool.name, KEPT_LABEL: "true"},
                "ownerReferences": [self.pool.owner.reference()],
            },
        }
        if self._key.endswith(".gz"):
            binary[self._key] = packed
        else:
            body["data"] = {self._key: packed}
        return body | {"binaryData": binary}

    async def _put(self, body: dict[str, Any]) -> Object:
        kind = CONFIG_MAPS.plural
        if self._found is not None:
            body["metadata"]["resourceVersion"] = text(part(self._found, "metadata"), "resourceVersion")
        else:
            body["metadata"].pop("resourceVersion", None)
        try:
            made = await (self._kube.create if self._found is None else self._kube.replace)(CONFIG_MAPS, body)
        except (Conflict, NotFound) as error:
            self._count(kind, "conflict")
            raise Conflict(f"{self.name}: {error.message}") from None
        except KubeError:
            self._count(kind, "failed")
            raise
        self._count(kind, "ok")
        return {"metadata": made["metadata"]}

    async def _get(self) -> Object | None:
        try:
            return await self._kube.get(CONFIG_MAPS, self.name)
        except NotFound:
            return None


def _packed(document: bytes, key: str) -> str:
    """As it stands in the ConfigMap."""
    if not key.endswith(".gz"):
        return document.decode()
    return base64.b64encode(gzip.compress(document, compresslevel=1, mtime=0)).decode()  # 500 KB: 8 ms


def _unpacked(told: str, key: str) -> bytes:
    """ValueError: it is not what ``_packed`` makes, or endless."""
    if not key.endswith(".gz"):
        return told.encode()
    try:
        unpack = zlib.decompressobj(wbits=31)
        document = unpack.decompress(base64.b64decode(told, validate=True), MAX_READ_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"it cannot be unpacked: {error}") from None
    if not unpack.eof:
        raise ValueError(f"it cannot be unpacked: it is cut short, or has more than {MAX_READ_BYTES} bytes")
    return document


def _told(found: Object, key: str) -> str:
    return text(part(found, "binaryData" if key.endswith(".gz") else "data"), key)


def _aside(found: Object) -> dict[str, str]:
    aside = text(part(found, "binaryData"), SET_ASIDE)
    return {SET_ASIDE: aside} if aside else {}
