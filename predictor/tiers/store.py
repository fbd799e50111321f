"""The model store: an S3 bucket that is listed and read. The asynchronous face of the S3 parts beside this file.

Standard library only, so that a pod can ask for its first byte before it has imported anything else. What stays out:
what the objects mean (repository.py, catalogue.py), where the bytes go (ram.py).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from predictor.errors import StoreRefused, StoreUnavailable
from predictor.model import FileSpec
from predictor.tiers import s3_credentials, s3_endpoint
from predictor.tiers.s3_http import Connections, Halt
from predictor.tiers.s3_listing import MAX_PAGES, Listing, ListPage, ObjectInfo
from predictor.tiers.s3_objects import FetchPart, Part, ReadObject, parts
from predictor.tiers.s3_requests import Errand, Requests, Stopped
from predictor.tiers.s3_transfers import Transfers

if TYPE_CHECKING:  # pydantic takes longer to import than this file to ask
    from predictor.settings import Settings

__all__ = ["Listing", "ModelStore", "ObjectInfo", "S3Store"]

SMALL_REQUESTS: Final = 8
"""Listings and manifests in flight at once; they have threads of their own and never queue behind parts."""

T = TypeVar("T")


class ModelStore(Protocol):
    """What the pod asks of where models come from. The real one and the tests' fake keep the same contract.

    All raise StoreUnavailable (now) and StoreRefused (always, as things are).
    """

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        """Every object whose key begins with ``prefix``; with ``folders`` only this level, and the folders on it."""

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        """A small object. Raises ObjectChanged, and InvalidModel when it is longer."""

    async def fetch(self, files: Sequence[tuple[FileSpec, memoryview]], *, background: Callable[[], bool]) -> None:
        """Fill every view with its file. Raises ObjectChanged.

        background  asked on the event loop, again and again: while it says True, transfers that somebody waits for go first

        When this returned or raised, also by cancellation, nothing writes into the views or refers to them any more.
        """

    async def close(self) -> None:
        """Stop everything that runs."""


class S3Store:
    """A bucket of S3, or of anything that speaks its protocol."""

    def __init__(self, requests: Requests, *, part_bytes: int, concurrency: int, on_bytes: Callable[[int], None]) -> None:
        self._requests = requests
        self._part_bytes = part_bytes
        self._on_bytes = on_bytes
        self._transfers = Transfers(concurrency, self._submit)
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
        settings: Settings,
        *,
        on_request: Callable[[str, str], None],
        on_bytes: Callable[[int], None],
        on_first_ask: Callable[[], None],
    ) -> S3Store:
        """As the settings and the AWS variables say. Asks nothing yet. StoreRefused: the variables are nonsense.

        The callbacks come from threads.

        on_request    every request: ``list``, ``read`` or ``fetch``; HTTP status, ``timeout`` or ``broken``
        on_bytes      bytes of model files, as they arrive
        on_first_ask  once, when the first request for bytes of a model file is about to be written
        """
        first = threading.Lock()

        def on_ask(operation: str) -> None:
            if operation == FetchPart.operation and first.acquire(blocking=False):  # and never released
                on_first_ask()

        connections = Connections(settings.fetch_concurrency + SMALL_REQUESTS, settings.fetch_timeout_s, s3_endpoint.trusted)
        requests = Requests(
            s3_endpoint.from_environment(settings.bucket),
            s3_credentials.from_environment(),
            connections,
            settings.fetch_retries,
            on_ask,
            on_request,
        )
        return cls(requests, part_bytes=settings.fetch_part_bytes, concurrency=settings.fetch_concurrency, on_bytes=on_bytes)

    @property
    def origin(self) -> str:
        """Which bucket of which server this is: part of what makes one model's bytes differ from another's."""
        return self._requests.endpoint.url

    async def listing(self, prefix: str, *, folders: bool = False) -> Listing:
        """See ModelStore. ``date_s`` is the last page's, so no object is dated after it. StoreRefused also: endless."""
        objects: list[ObjectInfo] = []
        found: list[str] = []
        token = ""
        for _ in range(MAX_PAGES):
            page = await self._ask(ListPage(prefix, folders, token))
            objects += page.listing.objects
            found += page.listing.folders
            token = page.token
            if not token:
                return Listing(tuple(objects), tuple(found), page.listing.date_s)
        raise StoreRefused(
            f"more than {MAX_PAGES} pages, {len(objects) + len(found)} names, below "
            f"s3://{self._requests.endpoint.bucket}/{prefix}: is the prefix right?"
        )

    async def read(self, key: str, etag: str, *, limit_bytes: int) -> bytes:
        """See ModelStore."""
        return await self._ask(ReadObject(key, etag, limit_bytes))

    async def fetch(self, files: Sequence[tuple[FileSpec, memoryview]], *, background: Callable[[], bool]) -> None:
        """See ModelStore. Stopping takes no longer than a connection may take to open, 5 s; usually a millisecond."""
        self._check_open()
        try:
            await self._transfers.carry(parts(files, self._part_bytes), background)
        except Stopped:
            raise _closed() from None

    async def close(self) -> None:
        """See ModelStore."""
        self._closed = True
        self._transfers.stop()
        for halt in self._halts:
            halt.stop()
        await asyncio.to_thread(self._threads.shutdown)
        self._requests.connections.close()

    def _submit(self, part: Part, halt: Halt) -> asyncio.Future[None]:
        return self._start(FetchPart(part, self._on_bytes), halt)

    def _start(self, errand: Errand[T], halt: Halt) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._requests.run, errand, halt)

    async def _ask(self, errand: Errand[T]) -> T:
        async with self._small:
            self._check_open()
            halt = Halt()
            self._halts.add(halt)
            asked = self._start(errand, halt)
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                halt.stop()
                await asyncio.wait([asked])  # its thread is taken until then
                raise
            except Stopped:
                raise _closed() from None
            finally:
                self._halts.discard(halt)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("this pod is stopping: ask again", retry_after_s=1.0)


def _rename(name: str) -> None:
    threading.current_thread().name = name
