"""Connections to S3: kept alive, read straight into the caller's memory, and ended at once when nobody wants the bytes.

On http.client for everything but a body's bytes. What stays out: what is asked and what an answer means (s3_requests.py).
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from predictor.tiers.s3_endpoint import Endpoint, proxy_to

CONNECT_TIMEOUT_S: Final = 5.0
IDLE_S: Final = 30.0
"""Older idle connections are not used again: on their way, something may have forgotten them without a word."""

LEAST_BYTES: Final = 64 << 10
"""What must come in every timeout, or the connection counts as silent: one byte per timeout is no progress either."""

BROKEN: Final = (OSError, http.client.HTTPException)
"""What every method of a connection raises when it ends, times out or speaks something else than HTTP."""


class Connection:
    """One connection, used by one thread at a time. Only ``abort`` may come from another.

    timeout_s  silent for longer is broken
    limit_s    what one answer's body may take as a whole, however steadily it comes
    """

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None, timeout_s: float, limit_s: float) -> None:
        self.endpoint = endpoint
        self.answered = 0
        self.idle_since_s = 0.0
        self._timeout_s = timeout_s
        self._limit_s = limit_s
        self._end_s = 0.0
        self._http = _unconnected(endpoint, tls, min(CONNECT_TIMEOUT_S, timeout_s))
        # The kernel then fills a whole part in one call: measured 13 % less CPU per byte than http.client's readinto, and one
        # fight with the event loop for the interpreter's lock instead of one per packet train. TLS has no such call: it gives
        # a record (16 KiB) at a time.
        self._flags = socket.MSG_WAITALL if tls is None else 0
        self._left = 0
        self._lock = threading.Lock()  # abort must not meet a descriptor that was closed and means another file by now
        self._socket: socket.socket | None = None
        self._aborted = False

    @property
    def is_open(self) -> bool:
        """Whether it was connected, and not closed by us."""
        return self._socket is not None

    @property
    def left(self) -> int:
        """Bytes of the answer's body that were not read yet; -1 where the answer does not tell."""
        return self._left

    def open(self) -> None:
        """Connect."""
        self._http.connect()
        connected = self._http.sock
        connected.settimeout(self._timeout_s)
        seconds = int(self._timeout_s)
        timeval = struct.pack("ll", seconds, max(1, int((self._timeout_s - seconds) * 1e6)))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        with self._lock:
            self._socket = connected
            if self._aborted:
                raise ConnectionAbortedError("nobody wants the answer any more")

    def ask(self, target: str, headers: Mapping[str, str], method: str = "GET", body: bytes = b"") -> http.client.HTTPResponse:
        """Send a request; the answer's head. Its body must be read with ``fill`` or ``read``."""
        self._http.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            self._http.putheader(name, value)
        self._http.endheaders(body or None)
        self._end_s = time.monotonic() + self._limit_s
        response = self._http.getresponse()
        self.answered += 1
        self._left = -1 if response.chunked or response.length is None else response.length
        return response

    def fill(self, response: http.client.HTTPResponse, windows: Sequence[memoryview]) -> int:
        """Body bytes straight into ``windows`` (none empty), one after another; the rest of the body must reach that far.

        Fewer than asked: the connection ended. No reference to the memory outlives the call, also when it raises: the caller
        may unmap it at once.
        """
        wanted = sum(map(len, windows))
        assert self._socket is not None, "read before connecting"
        assert self._left >= wanted, f"{self._left} bytes left in the body, {wanted} asked"
        before, buffered = self._left, True
        progress = _Progress(self._timeout_s, self._end_s)
        try:
            for window in windows:
                got = 0
                if buffered:  # by the reader of the head, until it has less than asked
                    progress.check()
                    got = response.fp.readinto1(window)
                    self._left -= got
                    if not got:
                        break
                    progress.received_bytes += got
                    if got == len(window):
                        continue
                    buffered = False
                    if self._flags:  # SO_RCVTIMEO counts from now on: Python's own timeout makes the socket non-blocking
                        self._socket.settimeout(None)
                if not self._receive(window, got, progress):
                    break
        except BlockingIOError:
            raise TimeoutError(f"silent for {self._timeout_s:g} s") from None
        finally:
            self._socket.settimeout(self._timeout_s)
        return before - self._left

    def _receive(self, window: memoryview, got: int, progress: _Progress) -> bool:
        """Fill ``window`` from byte ``got`` on. False: the connection ended."""
        assert self._socket is not None, "read before connecting"
        while got < len(window):
            progress.check()  # not once everything is there: what is complete is not late
            with window[got:] as rest:
                received = self._socket.recv_into(rest, len(rest), self._flags)
            if not received:
                return False
            got += received
            self._left -= received
            progress.received_bytes += received
        return True

    def skip(self, response: http.client.HTTPResponse, size_bytes: int) -> int:
        """Read ``size_bytes`` of the body and forget them. Fewer: the connection ended."""
        scratch = memoryview(bytearray(min(size_bytes, 1 << 20)))
        skipped = 0
        while skipped < size_bytes:
            got = self.fill(response, [scratch[: size_bytes - skipped]])
            if not got:
                break
            skipped += got
        return skipped

    def read(self, response: http.client.HTTPResponse, limit_bytes: int) -> bytes:
        """A small body as a whole, or its first ``limit_bytes`` + 1 bytes when it is longer. Ended early: IncompleteRead."""
        read, end_s = bytearray(), time.monotonic() + self._timeout_s
        while len(read) <= limit_bytes and (chunk := response.read1(limit_bytes + 1 - len(read))):
            read += chunk
            if time.monotonic() > end_s:
                raise TimeoutError(f"{len(read)} bytes in {self._timeout_s:g} s")
        if len(read) <= limit_bytes:
            if response.length:
                raise http.client.IncompleteRead(bytes(read), response.length)
            self._left = 0
        return bytes(read)

    def finish(self, response: http.client.HTTPResponse) -> bool:
        """End an answer; True: the connection can be asked again."""
        reusable = self._left == 0 and not response.will_close and not self._aborted
        with self._lock:
            response.close()
        return reusable

    def abort(self) -> None:
        """Make whatever a thread does on this connection end at once. From any thread, at any moment."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                # Not SSLSocket's own shutdown: that would take the TLS state from under the reading thread.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        with self._lock:
            self._socket = None
            self._http.close()

    def is_alive(self, now_s: float) -> bool:
        """Whether an idle connection may still be asked: not too old, and not closed by the other side."""
        if self._socket is None or now_s - self.idle_since_s > IDLE_S:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)  # S3 says nothing unasked; what can be read now is the end


def _unconnected(endpoint: Endpoint, tls: ssl.SSLContext | None, timeout_s: float) -> http.client.HTTPConnection:
    if tls is None:
        return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
    proxy = proxy_to(endpoint)
    if proxy is None:
        return http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=timeout_s, context=tls)
    through = http.client.HTTPSConnection(proxy.host, proxy.port, timeout=timeout_s, context=tls)
    through.set_tunnel(endpoint.host, endpoint.port, proxy.headers)
    return through


class _Progress:
    """Raises TimeoutError when a body trickles, or is not there at ``last_s`` by the monotonic clock."""

    def __init__(self, timeout_s: float, last_s: float) -> None:
        self._timeout_s = timeout_s
        self._last_s = last_s
        self._end_s = time.monotonic() + timeout_s
        self.received_bytes = 0

    def check(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._last_s:
            raise TimeoutError("it crawls: the time for one attempt is over")
        if now_s < self._end_s:
            return
        if self.received_bytes < LEAST_BYTES:
            raise TimeoutError(f"{self.received_bytes} bytes in {self._timeout_s:g} s")
        self._end_s, self.received_bytes = now_s + self._timeout_s, 0


class Connections:
    """Idle connections, at most ``limit`` of them, the last used first. ``timeout_s``, ``limit_s``: as Connection says."""

    def __init__(self, limit: int, timeout_s: float, limit_s: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._timeout_s = timeout_s
        self._limit_s = limit_s
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._idle: deque[Connection] = deque()
        self._limit = limit
        self._closed = False

    def idle(self, endpoint: Endpoint) -> Connection | None:
        """A connection that was used before; None: there is none."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.endpoint == endpoint and connection.is_alive(time.monotonic()):
                return connection
            connection.close()

    def fresh(self, endpoint: Endpoint) -> Connection:
        """A connection that has to be opened yet."""
        return Connection(endpoint, self._secure() if endpoint.secure else None, self._timeout_s, self._limit_s)

    def give_back(self, connection: Connection) -> None:
        """Keep it for the next request."""
        connection.idle_since_s = time.monotonic()
        with self._lock:
            if len(self._idle) < self._limit and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that are idle, and from now on those that come back."""
        with self._lock:
            self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _secure(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = self._tls()
            return self._context


class Halt:
    """One wish to stop, for all threads that work for the same caller."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._watched: set[Connection] = set()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._event.is_set()

    def stop(self) -> None:
        """End every request of this caller at once, and let none begin."""
        with self._lock:
            self._event.set()
            watched = tuple(self._watched)
        for connection in watched:
            connection.abort()

    def sleep(self, seconds: float) -> None:
        """Wait; less when stopped meanwhile."""
        self._event.wait(seconds)

    @contextlib.contextmanager
    def watching(self, connection: Connection) -> Iterator[None]:
        """While inside, ``stop`` reaches this connection."""
        with self._lock:
            self._watched.add(connection)
            stopped = self.stopped
        if stopped:
            connection.abort()
        try:
            yield
        finally:
            with self._lock:
                self._watched.discard(connection)
