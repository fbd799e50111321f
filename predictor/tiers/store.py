"""The model store: an S3 bucket that is listed and read. The asynchronous face of the S3 parts beside this file.

Standard library only, so that a pod can ask for its first byte before it has imported anything else. What stays out:
what the objects mean (repository.py, catalogue.py), where the bytes go (ram.py).
"""

from __future__ import annotations

import asyncio
import itertools
import os.path
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from predictor.errors import ObjectChanged, StoreRefused, StoreUnavailable
from predictor.model import FileSpec
from predictor.tiers import s3_credentials, s3_endpoint
from predictor.tiers.s3_arriving import Arriving, Part, parts
from predictor.tiers.s3_http import Connections, Halt
from predictor.tiers.s3_listing import MAX_PAGES, Listing, ListPage, ObjectInfo
from predictor.tiers.s3_objects import FetchPart, ReadObject
from predictor.tiers.s3_requests import Errand, Requests, Stopped
from predictor.tiers.s3_transfers import Overdue, Transfers
from predictor.tiers.scattered import Scattered

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

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        """Fill every file's memory, and verify what the manifest tells checksums of.

        background  asked on the event loop, again and again: while it says True, transfers that somebody waits for go first

        Raises ObjectChanged, and InvalidModel when the contents are not what the manifest says. When this returned or
        raised, also by cancellation, nothing writes into the memory or refers to it any more.
        """

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        """List these files once more. Raises ObjectChanged when one has another ETag or size by now, or is gone."""

    async def close(self) -> None:
        """Stop everything that runs."""


class S3Store:
    """A bucket of S3, or of anything that speaks its protocol."""

    def __init__(
        self, requests: Requests, *, part_bytes: int, concurrency: int, deadline_s: float, on_bytes: Callable[[int], None]
    ) -> None:
        self._requests = requests
        self._deadline_s = deadline_s
        self._part_bytes = part_bytes
        self._on_bytes = on_bytes
        self._transfers = Transfers(concurrency, self._submit, deadline_s)
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

        connections = Connections(
            settings.fetch_concurrency + SMALL_REQUESTS,
            settings.fetch_timeout_s,
            # All attempts at one part fit into the deadline; one that crawls goes on over another connection before.
            settings.fetch_deadline_s / (settings.fetch_retries + 1),
            s3_endpoint.trusted,
        )
        requests = Requests(
            s3_endpoint.from_environment(settings.bucket),
            s3_credentials.from_environment(),
            connections,
            settings.fetch_retries,
            on_ask,
            on_request,
        )
        return cls(
            requests,
            part_bytes=settings.fetch_part_bytes,
            concurrency=settings.fetch_concurrency,
            deadline_s=settings.fetch_deadline_s,
            on_bytes=on_bytes,
        )

    @property
    def origin(self) -> str:
        """Which bucket of which server this is: part of what makes one model's bytes differ from another's."""
        return self._requests.endpoint.url

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
        return await self._ask(ReadObject(key, etag, limit_bytes))

    async def fetch(self, files: Sequence[tuple[FileSpec, Scattered]], *, background: Callable[[], bool]) -> None:
        """See ModelStore. Stopping takes no longer than a connection may take to open, 5 s; usually a millisecond."""
        self._check_open()
        arriving = [Arriving(file, memory, self._requests.endpoint.bucket) for file, memory in files]
        for file in arriving:
            file.check_digest()  # of the empty ones: no part of theirs will come
        try:
            await self._transfers.carry(parts(arriving, self._part_bytes), background)
        except Stopped:
            raise _closed() from None
        except Overdue as overdue:
            raise self._overdue(arriving, overdue.spent_s) from None

    async def confirm(self, files: Sequence[FileSpec]) -> None:
        """See ModelStore. One page, unless a thousand other keys begin with all that these have in common."""
        missing = {file.key: file for file in files}
        if not missing:
            return
        bucket = self._requests.endpoint.bucket
        in_common = os.path.commonprefix(list(missing))  # noqa: RUF071 (of characters, as S3's prefixes are)
        async for page in self._pages(in_common):
            for entry in page.objects:
                file = missing.pop(entry.key, None)
                if file is not None and (file.etag, file.size_bytes) != (entry.etag, entry.size_bytes):
                    raise ObjectChanged(
                        f"s3://{bucket}/{file.key} was overwritten while it was fetched: ask again", retry_after_s=1.0
                    )
            if not missing:
                return
        raise ObjectChanged(f"s3://{bucket}/{min(missing)} was deleted while it was fetched: ask again", retry_after_s=1.0)

    async def close(self) -> None:
        """See ModelStore."""
        self._closed = True
        self._transfers.stop()
        for halt in self._halts:
            halt.stop()
        await asyncio.to_thread(self._threads.shutdown)
        self._requests.connections.close()

    def _submit(self, part: Part, halt: Halt) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._bring, part, halt)

    def _bring(self, part: Part, halt: Halt) -> None:
        self._requests.run(FetchPart(part, self._on_bytes), halt)
        part.file.digest(part.start, part.end, halt)

    def _overdue(self, files: Sequence[Arriving], spent_s: float) -> StoreUnavailable:
        came, wanted = sum(file.came_bytes for file in files), sum(file.spec.size_bytes for file in files)
        return StoreUnavailable(
            f"{files[0].where} and the model's other files: {came} of {wanted} bytes came in {spent_s:g} s, "
            f"{came / spent_s / 1e6:.3g} MB/s, and no more time is allowed (HEARTH_FETCH_DEADLINE_S); "
            f"the model store is {self._requests.endpoint.url}",
            retry_after_s=5.0,
        )

    async def _pages(self, prefix: str, *, folders: bool = False) -> AsyncIterator[Listing]:
        token, names = "", 0
        for _ in range(MAX_PAGES):
            page = await self._ask(ListPage(prefix, folders, token))
            names += len(page.listing.objects) + len(page.listing.folders)
            yield page.listing
            token = page.token
            if not token:
                return
        raise StoreRefused(
            f"more than {MAX_PAGES} pages, {names} names, below "
            f"s3://{self._requests.endpoint.bucket}/{prefix}: is the prefix right?"
        )

    async def _ask(self, errand: Errand[T]) -> T:
        async with self._small:
            self._check_open()
            halt = Halt()
            self._halts.add(halt)
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._threads, self._requests.run, errand, halt)
            last = loop.call_later(self._deadline_s, halt.stop)  # retries are few, but heads may come byte by byte
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                halt.stop()
                await asyncio.wait([asked])  # its thread is taken until then
                raise
            except Stopped:
                if self._closed:
                    raise _closed() from None
                raise StoreUnavailable(
                    f"s3://{self._requests.endpoint.bucket}/{errand.key}: no whole answer to a {errand.operation} in "
                    f"{self._deadline_s:g} s (HEARTH_FETCH_DEADLINE_S); the model store is {self._requests.endpoint.url}",
                    retry_after_s=5.0,
                ) from None
            finally:
                last.cancel()
                self._halts.discard(halt)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("this pod is stopping: ask again", retry_after_s=1.0)


def _rename(name: str) -> None:
    threading.current_thread().name = name
