"""An HTTP client that sends exactly the bytes it is told to, and shows exactly what came back."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, NamedTuple, Self

PATIENCE_S = 10.0


class Reply(NamedTuple):
    """One answer. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:  # must be set before connecting to bound the window
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def get(self, path: str, *headers: str, method: str = "GET") -> Reply:
        self.send(request(path, *headers, method=method))
        return self.reply(bodiless=method == "HEAD")

    def post(self, path: str, body: bytes, *headers: str) -> Reply:
        self.send(request(path, f"Content-Length: {len(body)}", *headers, method="POST") + body)
        return self.reply()

    def reply(self, *, bodiless: bool = False) -> Reply:
        """The next answer."""
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size_bytes = 0 if bodiless else int(headers.get("content-length", "0"))
        while len(self._received) < size_bytes:
            self._more()
        body, self._received = self._received[:size_bytes], self._received[size_bytes:]
        return Reply(int(status_line.split()[1]), headers, body)

    def ended(self) -> bool:
        """Whether the server closes now, without another byte."""
        try:
            return not self._received and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def silent(self) -> bool:
        """Whether nothing has come."""
        self.socket.settimeout(0)
        try:
            self._received += self.socket.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(PATIENCE_S)
        return not self._received

    def finish(self) -> None:
        """Send no more, but go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go away the rude way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError(f"the server closed after {self._received[:200]!r}")
        self._received += data


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request's head."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()
