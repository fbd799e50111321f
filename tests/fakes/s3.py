"""A scripted S3 over real HTTP on 127.0.0.1: ListObjectsV2, GET with Range and If-Match, PUT, DELETE, faults to order, counted.

The contract suite holds it against moto. What stays out: checking signatures (``received`` keeps the requests, so that a test
can).

    with FakeS3() as s3:
        s3.put("bucket", "models/m/1/model.onnx", data)
        s3.fail(status=503, times=2)
        ...
        assert s3.gets("bucket", "models/m/1/model.onnx") == 3
"""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from tests.fakes.s3_server import MAX_STALL_S, Fault, Received, Server, Stored

_CODES = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


class FakeS3:
    """The server. ``page_size``: entries per page of a listing. ``tls``: serve HTTPS with this context."""

    def __init__(self, *, page_size: int = 1000, tls: ssl.SSLContext | None = None) -> None:
        self.page_size = page_size
        self.clock: Callable[[], float] = time.time
        self.received: list[Received] = []
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.connections = 0
        self._buckets: dict[str, dict[str, Stored]] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._secure = tls is not None
        self._server = Server(self)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fake-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.heal()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join(10)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self._secure else ''}://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to use this server: nothing of the surrounding environment may matter."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    # ---- contents --------------------------------------------------------------------------------------------

    def make_bucket(self, bucket: str) -> None:
        with self._lock:
            self._buckets.setdefault(bucket, {})

    def put(self, bucket: str, key: str, data: bytes, *, modified_s: float | None = None) -> str:
        """Write an object, making its bucket; returns the ETag. S3 tells times in whole seconds, and so does this."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        when_s = float(int(self.clock())) if modified_s is None else modified_s
        with self._lock:
            self._buckets.setdefault(bucket, {})[key] = Stored(data, etag, when_s)
        return etag

    def delete(self, bucket: str, key: str) -> None:
        with self._lock:
            del self._buckets[bucket][key]

    # ---- faults ----------------------------------------------------------------------------------------------

    def fault(self, fault: Fault) -> None:
        """Let this happen from now on. Where several fit, the one ordered first."""
        with self._lock:
            self._healed.clear()
            self._faults.append(fault)

    def fail(self, *, status: int, times: int | None = 1, operation: str = "", key: str = "", code: str = "") -> None:
        """Answer with an error."""
        self.fault(Fault(times, operation, key, status, code or _CODES.get(status, "InternalError")))

    def stall(self, key: str = "", *, after_bytes: int = 0, times: int | None = 1) -> None:
        """Fall silent in the middle of a body, until healed."""
        self.fault(Fault(times, "get", key, after_bytes=after_bytes, then="stall"))

    def cut(self, key: str = "", *, after_bytes: int = 0, times: int | None = 1) -> None:
        """Close the connection in the middle of a body: a short read."""
        self.fault(Fault(times, "get", key, after_bytes=after_bytes, then="close"))

    def reset(self, key: str = "", *, after_bytes: int = 0, times: int | None = 1) -> None:
        """The same with a TCP reset."""
        self.fault(Fault(times, "get", key, after_bytes=after_bytes, then="reset"))

    def swap(self, bucket: str, key: str, data: bytes) -> None:
        """Overwrite the object just before the next GET of it is answered."""
        self.fault(Fault(1, "get", key, before=partial(self.put, bucket, key, data)))

    def ignore_range(self, key: str = "", *, times: int | None = None) -> None:
        """Answer 200 with the whole object, whatever was asked."""
        self.fault(Fault(times, "get", key, ignore_range=True))

    def delay(self, seconds: float, *, key: str = "", operation: str = "get", times: int | None = None) -> None:
        """A slow first byte."""
        self.fault(Fault(times, operation, key, delay_s=seconds))

    def hang_up(self) -> None:
        """Close every connection, as S3 does with those that are idle."""
        self._server.hang_up()

    def heal(self) -> None:
        """End all faults; what stalls goes on."""
        with self._lock:
            self._faults.clear()
            self._healed.set()

    # ---- questions -------------------------------------------------------------------------------------------

    def gets(self, bucket: str, key: str) -> int:
        """GETs of one object, failed ones too."""
        with self._lock:
            return sum(
                count
                for (operation, path, _), count in self.requests.items()
                if (operation, path) == ("get", f"{bucket}/{key}")
            )

    def lists(self, bucket: str, prefix: str) -> int:
        """Pages asked for of one prefix."""
        with self._lock:
            return self.requests["list", f"{bucket}/{prefix}", ""]

    # ---- for the handler -------------------------------------------------------------------------------------

    def note(self, received: Received) -> Fault:
        """Count a request; what shall go wrong with it."""
        with self._lock:
            self.received.append(received)
            del self.received[:-10_000]
            self.requests[received.operation, received.key, received.range] += 1
            for fault in self._faults:
                if fault.fits(received):
                    if fault.times is not None:
                        fault.times -= 1
                        if not fault.times:
                            self._faults.remove(fault)
                    return fault
            return Fault()

    def objects(self, bucket: str) -> dict[str, Stored] | None:
        """A copy of a bucket; None: there is no such bucket."""
        with self._lock:
            found = self._buckets.get(bucket)
            return None if found is None else dict(found)

    def wait_until_healed(self, seconds: float) -> None:
        self._healed.wait(min(seconds, MAX_STALL_S))
