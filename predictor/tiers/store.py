"""The model stores: S3 buckets that are listed and read, and the objects that a pod writes to outlive itself.

The asynchronous face of the S3 parts beside this file. Standard library only, so that a pod can ask for its first byte before
it has imported anything else. What stays out: what the objects mean (repository.py, catalogue.py), where the bytes go (ram.py).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from predictor.errors import ObjectChanged, StoreRefused, StoreUnavailable
from predictor.model import FileSpec
from predictor.tiers import s3_credentials, s3_endpoint
from predictor.tiers.s3_arriving import Arriving, Part, parts
from predictor.tiers.s3_http import Connections, Halt
from predictor.tiers.s3_listing import MAX_PAGES, Listing, ListPage, ObjectInfo
from predictor.tiers.s3_objects import FetchPart, ReadObject, RemoveObject, WriteObject
from predictor.tiers.s3_requests import Errand, Requests, Stopped
from predictor.tiers.s3_transfers import Overdue, Transfers
from predictor.tiers.scattered import Scattered

__all__ = ["Bucket", "Buckets", "Listing", "ModelStore", "ObjectInfo", "S3Store", "StateStore", "Stores"]

SMALL_REQUESTS: Final = 8
"""Listings and manifests in flight at once; they have threads of their own and never queue behind parts."""

MAX_CONNECTED: Final = 64
"""Buckets, each with one scope's credentials, whose connections are kept."""

T = TypeVar("T")


class FetchSettings(Protocol):
    """Of the settings, those that rule how S3 is asked: see settings.py."""

    @property
    def fetch_part_bytes(self) -> int: ...
    @property
    def fetch_concurrency(self) -> int: ...
    @property
    def fetch_timeout_s(self) -> float: ...
    @property
    def fetch_retries(self) -> int: ...
    @property
    def fetch_deadline_s(self) -> float: ...


class ModelStore(Protocol):
    """What the pod asks of where models come from. The real one and the tests' fake keep the same contract.

    All raise StoreUnavailable (now) and StoreRefused (always, as things are).
    """

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        """Every object whose key begins with ``prefix``; with ``folders`` only this level, and the folders on it."""

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        """A small object. Raises ObjectChanged, and InvalidModel when it is longer."""

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        """Fill every file's memory, and verify what the manifest tells checksums of.

        background  asked on the event loop, again and again: while it says True, transfers that somebody waits for go first

        Raises ObjectChanged, and InvalidModel when the contents are not what the manifest says. When this returned or
        raised, also by cancellation, nothing writes into the memory or refers to it any more.
        """

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        """List these files once more. Raises ObjectChanged when one has another ETag or size by now, or is gone."""


class Bucket(ModelStore, Protocol):
    """A model store that tells which one it is."""

    @property
    def origin(self) -> str:
        """Which bucket of which server; part of what a model is. Raises as a listing does."""


class StateStore(Protocol):
    """What is asked of where a pod keeps what has to outlive it: small objects. Errors are a ModelStore's."""

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        """See ModelStore."""

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        """See ModelStore; etag "": whatever is there."""

    async def write(self, key: str, body: bytes) -> None:
        """Write a small object over whatever is there. All or nothing."""

    async def remove(self, key: str) -> None:
        """Delete an object, if it is there."""


class Buckets(Protocol):
    """Every bucket with every declared scope's credentials. The real ones are ``Stores``."""

    def at(self, bucket: str, scope: str = "") -> Bucket:
        """One bucket, read with the credentials of a scope; "": the process's own. Asks nothing, and fails only when asked."""

    def knows(self, scope: str) -> bool:
        """Whether the credentials of a scope were declared; the process's own always are."""

    def declare(self, scopes: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
        """Take these for all scopes but the process's own. Returns the scopes that are not what they were."""


class Stores:
    """The buckets that a pod reads, each with the credentials that go with it; what they fetch is bounded together.

    connect  makes what asks one bucket, from its name and the variables that say where and as whom
    """

    def __init__(
        self,
        connect: Callable[[str, Mapping[str, str]], Requests],
        *,
        part_bytes: int,
        concurrency: int,
        deadline_s: float,
        on_bytes: Callable[[int], None],
    ) -> None:
        self.part_bytes = part_bytes
        self.deadline_s = deadline_s
        self.transfers = Transfers(concurrency, deadline_s)
        self._on_bytes = on_bytes
        self._connect = connect
        self._scopes: Mapping[str, Mapping[str, str]] = {}
        self._connected: OrderedDict[tuple[str, str], Requests] = OrderedDict()
        self._small = asyncio.Semaphore(SMALL_REQUESTS)
        self._halts: set[Halt] = set()
        self._closed = False
        # Parts and small requests are each bounded before they come here: neither ever waits for a thread.
        number = itertools.count()
        self._threads = ThreadPoolExecutor(
            concurrency + SMALL_REQUESTS, initializer=lambda: _rename(f"hearth-store-{next(number)}")
        )

    @classmethod
    def from_environment(
        cls,
        settings: FetchSettings,
        *,
        on_request: Callable[[str, str], None],
        on_bytes: Callable[[int], None],
        on_first_ask: Callable[[], None],
    ) -> Stores:
        """As the settings and the AWS variables say. Asks nothing yet.

        The callbacks come from threads.

        on_request    every request: its operation (s3_requests.Errand); HTTP status, ``timeout`` or ``broken``
        on_bytes      bytes of model files, as they arrive
        on_first_ask  once, when the first request for bytes of a model file is about to be written
        """
        first = threading.Lock()

        def on_ask(operation: str) -> None:
            if operation == FetchPart.operation and first.acquire(blocking=False):  # and never released
                on_first_ask()

        def connect(bucket: str, environment: Mapping[str, str]) -> Requests:
            connections = Connections(
                settings.fetch_concurrency + SMALL_REQUESTS,
                settings.fetch_timeout_s,
                # All attempts at one part fit into the deadline; one that crawls goes on over another connection before.
                settings.fetch_deadline_s / (settings.fetch_retries + 1),
                functools.partial(s3_endpoint.trusted, environment),
            )
            return Requests(
                s3_endpoint.from_environment(bucket, environment),
                s3_credentials.from_environment(environment),
                connections,
                settings.fetch_retries,
                on_ask,
                on_request,
            )

        return cls(
            connect,
            part_bytes=settings.fetch_part_bytes,
            concurrency=settings.fetch_concurrency,
            deadline_s=settings.fetch_deadline_s,
            on_bytes=on_bytes,
        )

    def at(self, bucket: str, scope: str = "") -> S3Store:
        """One bucket, read with the credentials of a scope; "": the process's own. Asks nothing, and fails only when asked."""
        return S3Store(self, bucket, scope)

    def knows(self, scope: str) -> bool:
        """Whether the credentials of a scope were declared; the process's own always are."""
        return not scope or scope in self._scopes

    def declare(self, scopes: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
        """Take these for the credentials of all scopes but the process's own; see declared.CredentialShard for the variables.

        Returns the scopes that are not what they were. Requests under way end with what they began with.
        """
        changed = frozenset(
            scope for scope in self._scopes.keys() | scopes.keys() if self._scopes.get(scope) != scopes.get(scope)
        )
        self._scopes = dict(scopes)
        for key in [key for key in self._connected if key[1] in changed]:
            self._connected.pop(key).connections.close()
        return changed

    def requests(self, bucket: str, scope: str) -> Requests:
        """What asks a bucket. StoreRefused: its variables are nonsense; StoreUnavailable: the scope is not declared (yet)."""
        key = (bucket, scope)
        known = self._connected.get(key)
        if known is not None:
            self._connected.move_to_end(key)
            return known
        if not self.knows(scope):
            raise StoreUnavailable(
                f"the credentials {scope!a} for s3://{bucket} have not come to this pod yet: ask again", retry_after_s=2.0
            )
        made = self._connected[key] = self._connect(bucket, _environment(self._scopes[scope] if scope else {}))
        if len(self._connected) > MAX_CONNECTED:
            self._connected.popitem(last=False)[1].connections.close()
        return made

    async def ask(self, requests: Requests, errand: Errand[T]) -> T:
        """A small request, in a thread, behind no more than ``SMALL_REQUESTS`` others."""
        async with self._small:
            self.check_open()
            halt = Halt()
            self._halts.add(halt)
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._threads, requests.run, errand, halt)
            last = loop.call_later(self.deadline_s, halt.stop)  # retries are few, but heads may come byte by byte
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                halt.stop()
                await asyncio.wait([asked])  # its thread is taken until then
                asked.exception()  # it was stopped, which is nobody's error: unasked for, asyncio would log it as one
                raise
            except Stopped:
                if self._closed:
                    raise _closed() from None
                raise StoreUnavailable(
                    f"s3://{requests.endpoint.bucket}/{errand.key}: no whole answer to a {errand.operation} in "
                    f"{self.deadline_s:g} s (HEARTH_FETCH_DEADLINE_S); the model store is {requests.endpoint.url}",
                    retry_after_s=5.0,
                ) from None
            finally:
                last.cancel()
                self._halts.discard(halt)

    def bring(self, requests: Requests, part: Part, halt: Halt) -> asyncio.Future[None]:
        """Fetch and verify a part, in a thread."""

        def run() -> None:
            requests.run(FetchPart(part, self._on_bytes), halt)
            part.file.digest(part.start, part.end, halt)

        return asyncio.get_running_loop().run_in_executor(self._threads, run)

    def check_open(self) -> None:
        """Raise StoreUnavailable once the stores are closed."""
        if self._closed:
            raise _closed()

    async def close(self) -> None:
        """Stop everything that runs."""
        self._closed = True
        self.transfers.stop()
        for halt in self._halts:
            halt.stop()
        await asyncio.to_thread(self._threads.shutdown)
        for requests in self._connected.values():
            requests.connections.close()


class S3Store:
    """A bucket of S3, or of anything that speaks its protocol; made by ``Stores.at``."""

    def __init__(self, stores: Stores, bucket: str, scope: str) -> None:
        self._stores = stores
        self._bucket = bucket
        self._scope = scope

    @property
    def origin(self) -> str:
        """Which bucket of which server this is: part of what makes one model's bytes differ from another's.

        Raises StoreRefused and StoreUnavailable: see ``Stores.requests``.
        """
        return self._asks().endpoint.url

    def _asks(self) -> Requests:
        return self._stores.requests(self._bucket, self._scope)

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        """See ModelStore. ``date_s`` is the last page's, so no object is dated after it. StoreRefused also: endless."""
        objects: list[ObjectInfo] = []
        found: list[str] = []
        date_s = 0.0
        async for page in self._pages(prefix, folders=folders):
            objects += page.objects
            found += page.folders
            date_s = page.date_s
        return Listing(tuple(objects), tuple(found), date_s)

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        """See ModelStore."""
        return await self._stores.ask(self._asks(), ReadObject(key, etag, limit_bytes))

    async def write(self, key: str, body: bytes) -> None:
        """See StateStore."""
        await self._stores.ask(self._asks(), WriteObject(key, body))

    async def remove(self, key: str) -> None:
        """See StateStore."""
        await self._stores.ask(self._asks(), RemoveObject(key))

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        """See ModelStore. Stopping takes no longer than a connection may take to open, 5 s; usually a millisecond."""
        stores = self._stores
        stores.check_open()
        requests = self._asks()
        arriving = [Arriving(file, memory, self._bucket) for file, memory in files]
        for file in arriving:
            file.check_digest()  # of the empty ones: no part of theirs will come
        try:
            submit = functools.partial(stores.bring, requests)
            await stores.transfers.carry(parts(arriving, stores.part_bytes), background, submit)
        except Stopped:
            raise _closed() from None
        except Overdue as overdue:
            raise _overdue(requests, arriving, overdue.spent_s) from None

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        """See ModelStore. One page, unless a thousand other keys begin with all that these have in common."""
        missing = {file.key: file for file in files}
        if not missing:
            return
        in_common = os.path.commonprefix(list(missing))  # noqa: RUF071 (of characters, as S3's prefixes are)
        async for page in self._pages(in_common):
            for entry in page.objects:
                file = missing.pop(entry.key, None)
                if file is not None and (file.etag, file.size_bytes) != (entry.etag, entry.size_bytes):
                    raise ObjectChanged(
                        f"s3://{self._bucket}/{file.key} was overwritten while it was fetched: ask again", retry_after_s=1.0
                    )
            if not missing:
                return
        raise ObjectChanged(
            f"s3://{self._bucket}/{min(missing)} was deleted while it was fetched: ask again", retry_after_s=1.0
        )

    async def _pages(self, prefix: str, *, folders: bool = False) -> AsyncIterator[Listing]:
        requests = self._asks()
        token, names = "", 0
        for _ in range(MAX_PAGES):
            page = await self._stores.ask(requests, ListPage(prefix, folders, token))
            names += len(page.listing.objects) + len(page.listing.folders)
            yield page.listing
            token = page.token
            if not token:
                return
        raise StoreRefused(
            f"more than {MAX_PAGES} pages, {names} names, below s3://{self._bucket}/{prefix}: is the prefix right?"
        )


def _environment(variables: Mapping[str, str]) -> Mapping[str, str]:
    """What is read instead of the process's environment.

    Credentials go only where they were meant to go: a scope with keys of its own is asked nowhere but where it says itself.
    """
    if not variables:
        return os.environ
    if variables.get("AWS_ACCESS_KEY_ID") or variables.get("awsAnonymousCredential", "").lower() == "true":
        return variables
    own = dict(os.environ)
    if "AWS_ENDPOINT_URL" in variables:
        own.pop("AWS_ENDPOINT_URL_S3", None)  # it would win
    return own | dict(variables)


def _overdue(requests: Requests, files: Sequence[Arriving], spent_s: float) -> StoreUnavailable:
    came, wanted = sum(file.came_bytes for file in files), sum(file.spec.size_bytes for file in files)
    return StoreUnavailable(
        f"{files[0].where} and the model's other files: {came} of {wanted} bytes came in {spent_s:g} s, "
        f"{came / spent_s / 1e6:.3g} MB/s, and no more time is allowed (HEARTH_FETCH_DEADLINE_S); "
        f"the model store is {requests.endpoint.url}",
        retry_after_s=5.0,
    )


def _closed() -> StoreUnavailable:
    return StoreUnavailable("this pod is stopping: ask again", retry_after_s=1.0)


def _rename(name: str) -> None:
    threading.current_thread().name = name
