"""The real store, opened on a fake server, with everything it tells its owner kept for the tests."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from predictor.model import FileSpec
from predictor.settings import Settings
from predictor.tiers.store import ObjectInfo, S3Store, Stores

BUCKET = "bucket"
PART_BYTES = 1 << 16


class Told:
    """What a store told."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.fetched_bytes = 0
        self.first_asks = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()

    def on_request(self, operation: str, status: str) -> None:
        with self._lock:
            self.requests[operation, status] += 1
            self.threads.add(threading.current_thread().name)

    def on_bytes(self, count: int) -> None:
        with self._lock:
            self.fetched_bytes += count

    def on_first_ask(self) -> None:
        with self._lock:
            self.first_asks += 1


def aws_free(environment: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with its own AWS settings and proxies replaced by ``environment``."""
    own = re.compile(r"aws|s3_|.*_proxy$", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not own.match(name)}
    return kept | dict(environment)


@asynccontextmanager
async def opened(environment: Mapping[str, str], told: Told | None = None, **settings: Any) -> AsyncIterator[S3Store]:
    """An S3Store as a process with this environment would open it; small parts and short waits unless told otherwise."""
    chosen: dict[str, Any] = {
        "models": f"s3://{BUCKET}/models",
        "fetch_part_bytes": PART_BYTES,
        "fetch_concurrency": 4,
        "fetch_timeout_s": 5.0,
        "fetch_retries": 2,
    } | settings
    told = told or Told()
    with patch.dict(os.environ, aws_free(environment), clear=True):
        read = Settings(**chosen)
        stores = Stores.from_environment(
            read,
            on_request=told.on_request,
            on_bytes=told.on_bytes,
            on_first_ask=told.on_first_ask,
        )
        try:
            stores.requests(read.bucket, "").backoff_s = 0.01
            yield stores.at(read.bucket)
        finally:
            await stores.close()


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what happens in a server's thread, where nothing can be awaited."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def as_file(entry: ObjectInfo) -> FileSpec:
    """An object of a listing as a file of a model."""
    return FileSpec(entry.key.rpartition("/")[2], entry.key, entry.etag, entry.size_bytes)
