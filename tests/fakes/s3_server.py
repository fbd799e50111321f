"""The HTTP side of the scripted S3 (s3.py): what a request means, how it is answered, and how an answer goes wrong."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit
from xml.sax.saxutils import escape

MAX_STALL_S = 30.0
CHUNK_BYTES = 1 << 18
VIRTUAL_HOST = ".virtual.test"
TRICKLE_BYTES = 1 << 10
NO_CONTENT = 204


@dataclass(frozen=True)
class Stored:
    """One object."""

    data: bytes
    etag: str
    modified_s: float


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    operation: str
    key: str
    range: str
    target: str
    headers: dict[str, str]


@dataclass
class Fault:
    """Something that goes wrong. ``times``: how often yet; None: until ``heal``.

    operation     ``list``, ``get``, ``put``, ``delete`` or "" for all
    key           one object; "" for all
    status        answer this instead, with ``code`` and ``body``
    headers       of the answer, in place of the right ones; "" for none
    delay_s       before the answer's first byte
    after_bytes   of the body ``then`` happens: ``stall``, ``close`` or ``reset``
    length_error  added to Content-Length; ``range_error`` to both ends of Content-Range
    before        called before the answer is made
    trickle_s     pause before every KiB of the body
    asker         only requests signed with this access key; "" for all
    """

    times: int | None = 1
    operation: str = ""
    key: str = ""
    status: int = 0
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    after_bytes: int = 0
    then: str = ""
    ignore_range: bool = False
    ignore_if_match: bool = False
    length_error: int = 0
    range_error: int = 0
    body: bytes = b""
    before: Callable[[], object] | None = None
    trickle_s: float = 0.0
    asker: str = ""

    def fits(self, received: Received) -> bool:
        """Whether it happens to this request."""
        if self.operation not in {"", received.operation} or (self.key and not received.key.endswith(f"/{self.key}")):
            return False
        return f"Credential={self.asker}" in received.headers.get("Authorization", "") if self.asker else True


class Script(Protocol):
    """What the server asks of FakeS3."""

    page_size: int
    connections: int
    clock: Callable[[], float]

    def note(self, received: Received) -> Fault:
        """Count a request; what shall go wrong with it."""

    def objects(self, bucket: str) -> dict[str, Stored] | None:
        """A copy of a bucket; None: there is no such bucket."""

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Write an object; its ETag."""

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""

    def wait_until_healed(self, seconds: float) -> None:
        """Sleep, at most that long."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, s3: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.s3 = s3
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
            self.s3.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none of ours to report."""

    def hang_up(self) -> None:
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the parent's name)
        return

    def do_PUT(self) -> None:
        self._change("put", self.rfile.read(int(self.headers["Content-Length"])))

    def do_DELETE(self) -> None:
        self._change("delete", b"")

    def _change(self, operation: str, data: bytes) -> None:
        bucket, _, key = unquote(urlsplit(f"http://any{self.path}").path[1:]).partition("/")
        fault = self.server.s3.note(Received(operation, f"{bucket}/{key}", "", self.path, dict(self.headers)))
        if fault.delay_s:
            self.server.s3.wait_until_healed(fault.delay_s)
        objects = self.server.s3.objects(bucket)
        if fault.status:
            self._error(fault.status, fault.code, fault)
        elif objects is None:
            self._error(404, "NoSuchBucket", fault)
        elif operation == "put":
            self._send(200, {"ETag": f'"{self.server.s3.put(bucket, key, data)}"'}, b"", fault)
        else:
            if key in objects:
                self.server.s3.delete(bucket, key)
            self._send(204, {"Content-Length": ""}, b"", fault)

    def do_GET(self) -> None:
        split = urlsplit(f"http://any{self.path}")  # so that a key that begins with a slash is no host
        path = unquote(split.path[1:])
        host = self.headers.get("Host", "").partition(":")[0]
        if host.endswith(VIRTUAL_HOST):  # the bucket stands there
            path = f"{host.removesuffix(VIRTUAL_HOST)}/{path}"
        bucket, _, key = path.partition("/")
        query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        asked_range = self.headers.get("Range", "") if key else ""
        operation, named = ("get", f"{bucket}/{key}") if key else ("list", f"{bucket}/{query.get('prefix', '')}")
        fault = self.server.s3.note(Received(operation, named, asked_range, self.path, dict(self.headers)))
        if fault.before is not None:
            fault.before()
        if fault.delay_s:
            self.server.s3.wait_until_healed(fault.delay_s)
        objects = self.server.s3.objects(bucket)
        if fault.status:
            self._error(fault.status, fault.code, fault)
        elif objects is None:
            self._error(404, "NoSuchBucket", fault)
        elif key:
            self._object(objects.get(key), asked_range, fault)
        else:
            self._list(bucket, objects, query, fault)

    def _object(self, stored: Stored | None, asked_range: str, fault: Fault) -> None:
        if stored is None:
            return self._error(404, "NoSuchKey", fault)
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted.strip('"') not in {"*", stored.etag} and not fault.ignore_if_match:
            return self._error(412, "PreconditionFailed", fault)
        size = len(stored.data)
        headers = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": formatdate(stored.modified_s, usegmt=True),
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range)
        if found is None or fault.ignore_range:
            return self._send(200, headers, stored.data, fault)
        first, last = int(found.group(1)), min(int(found.group(2) or size), size - 1)
        if first >= size or first > last:
            return self._error(416, "InvalidRange", fault)
        headers["Content-Range"] = f"bytes {first + fault.range_error}-{last + fault.range_error}/{size}"
        return self._send(206, headers, stored.data[first : last + 1], fault)

    def _list(self, bucket: str, objects: dict[str, Stored], query: dict[str, str], fault: Fault) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, Stored | None] = {}  # key or folder, in the order of their bytes, as S3 has them
        for key in sorted(objects, key=str.encode):
            if key.startswith(prefix):
                head, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
                entries[prefix + head + found if found else key] = None if found else objects[key]
        names = list(entries)
        begin = names.index(query["continuation-token"]) if query.get("continuation-token") in entries else 0
        limit = min(int(query.get("max-keys", "1000")), self.server.s3.page_size)
        page, rest = names[begin : begin + limit], names[begin + limit :]
        encode = quote_plus if query.get("encoding-type") == "url" else escape
        lines = [f"<Name>{bucket}</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"]
        if encode is quote_plus:
            lines.append("<EncodingType>url</EncodingType>")
        lines.append(f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>")
        if rest:
            lines.append(f"<NextContinuationToken>{escape(rest[0])}</NextContinuationToken>")
        for name in page:
            stored = entries[name]
            if stored is None:
                lines.append(f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>")
            else:
                modified = datetime.fromtimestamp(stored.modified_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
                lines.append(
                    f"<Contents><Key>{encode(name)}</Key><LastModified>{modified}</LastModified>"
                    f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{len(stored.data)}</Size></Contents>"
                )
        body = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(lines)}</ListBucketResult>'
        self._send(200, {"Content-Type": "application/xml"}, body.encode(), fault)

    def _error(self, status: int, code: str, fault: Fault) -> None:
        body = fault.body or f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
        self._send(status, {"Content-Type": "application/xml"}, body, replace(fault, body=b""))

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        body = fault.body or body
        now = formatdate(self.server.s3.clock(), usegmt=True)
        headers = {"Date": now, **headers, "Content-Length": str(len(body) + fault.length_error), **fault.headers}
        self.send_response_only(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        whole = memoryview(body)
        end = min(fault.after_bytes, len(body)) if fault.then else len(body)
        step = TRICKLE_BYTES if fault.trickle_s else CHUNK_BYTES
        for start in range(0, end, step):
            if fault.trickle_s:
                self.server.s3.wait_until_healed(fault.trickle_s)
            self.wfile.write(whole[start : min(start + step, end)])
        if fault.length_error > 0 or (not headers["Content-Length"] and status != NO_CONTENT):
            self.close_connection = True
        match fault.then:
            case "stall":
                self.server.s3.wait_until_healed(MAX_STALL_S)
                self.wfile.write(whole[end:])
            case "close":
                self.close_connection = True
            case "reset":
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
