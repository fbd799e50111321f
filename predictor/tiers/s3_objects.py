"""Objects: small ones read, written or removed as a whole, a part of a large one straight into memory, resumed if it breaks.

What stays out: which part goes next (s3_transfers.py), retries (s3_requests.py).
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from predictor import checksums
from predictor.errors import InvalidModel, ObjectChanged
from predictor.tiers.s3_arriving import Part
from predictor.tiers.s3_http import Connection
from predictor.tiers.s3_requests import Again, Corrupt

_MAX_ANSWER_BYTES: Final = 64 << 10
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(slots=True)
class FetchPart:
    """One part into memory.

    on_bytes  bytes that arrived, told as they come in, also by attempts that fail later
    """

    part: Part
    on_bytes: Callable[[int], None]
    operation: ClassVar[str] = "fetch"
    method: ClassVar[str] = "GET"
    body: ClassVar[bytes] = b""
    _got: int = 0
    _differed: tuple[int, str] | None = None

    @property
    def key(self) -> str:
        """The object's."""
        return self.part.file.spec.key

    def parameters(self) -> Mapping[str, str]:
        """None."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """The range that is still missing, of exactly the object that was listed."""
        return {"Range": f"bytes={self._first}-{self.part.end - 1}", **_if_match(self.part.file.spec.etag)}

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Check what is announced, read exactly that, hold it against the manifest. InvalidModel: it differs for good."""
        _same_object(response, self.key, self.part.file.spec.etag)
        length = -1 if response.length is None else response.length
        skip_bytes = 0
        if response.status == 206:  # noqa: PLR2004
            self._check_range(response.getheader("Content-Range", ""), length)
        else:  # the server does not know ranges: this is the whole object
            skip_bytes = self._first
            self._check_size(length)
        if skip_bytes and connection.skip(response, skip_bytes) < skip_bytes:
            raise Again("the answer ended early")
        missing = self.part.end - self._first
        before = connection.left
        try:
            with self.part.file.windows(self._first, self.part.end) as windows:
                connection.fill(response, windows)
        finally:  # what came before a fault need not come again
            got = before - connection.left
            self._got += got
            self.part.file.note(got)
            self.on_bytes(got)
        if got < missing:
            raise Again(f"the answer ended after {got} of {missing} bytes")
        self._verify()

    def _verify(self) -> None:
        """Corrupt: a part differs from what the manifest says, and may come right next time."""
        said = self.part.file.spec.checksums
        if said is None or (wrong := self.part.file.differing(self.part.start, self.part.end)) is None:
            return
        told = checksums.wrong_part(self.part.file.where, said, *wrong)
        if wrong == self._differed:
            raise InvalidModel(f"{told}, the same over another connection: publish the version again")
        self._differed = wrong
        begin = wrong[0] * said.part_bytes - self.part.start  # what lies before it is verified
        self.part.file.note(begin - self._got)
        self._got = begin
        raise Corrupt(told)

    @property
    def _first(self) -> int:
        return self.part.start + self._got

    def _check_range(self, announced: str, length: int) -> None:
        found = _CONTENT_RANGE.fullmatch(announced)
        if found is None:
            raise Again(f"a 206 with Content-Range {announced[:64]!r}")
        first, last, size = found.groups()
        if size != "*":
            self._check_size(int(size))
        if (int(first), int(last)) != (self._first, self.part.end - 1):
            raise Again(f"asked for bytes {self._first}-{self.part.end - 1}, got {first}-{last}")
        if length != self.part.end - self._first:
            raise Again(f"asked for {self.part.end - self._first} bytes, Content-Length says {length}")

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes < 0:
            raise Again("an answer without Content-Length")
        if size_bytes != self.part.file.spec.size_bytes:
            raise ObjectChanged(
                f"{self.key} has {size_bytes} bytes, it was listed with {self.part.file.spec.size_bytes}: ask again",
                retry_after_s=1.0,
            )


@dataclass(frozen=True, slots=True)
class ReadObject:
    """A small object as a whole."""

    key: str
    etag: str
    limit_bytes: int
    operation: ClassVar[str] = "read"
    method: ClassVar[str] = "GET"
    body: ClassVar[bytes] = b""

    def parameters(self) -> Mapping[str, str]:
        """None."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """Exactly the object that was listed."""
        return _if_match(self.etag)

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> bytes:
        """InvalidModel: longer than it may be."""
        _same_object(response, self.key, self.etag)
        body = connection.read(response, self.limit_bytes)
        if len(body) > self.limit_bytes:
            raise InvalidModel(f"{self.key} is longer than the {self.limit_bytes} bytes it may have")
        return body


@dataclass(frozen=True, slots=True)
class WriteObject:
    """A small object, written whole over whatever was there."""

    key: str
    body: bytes
    operation: ClassVar[str] = "write"
    method: ClassVar[str] = "PUT"

    def parameters(self) -> Mapping[str, str]:
        """None."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """What it is: JSON is all that is written."""
        return {"Content-Type": "application/json"}

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Nothing of the answer matters."""
        connection.read(response, _MAX_ANSWER_BYTES)


@dataclass(frozen=True, slots=True)
class RemoveObject:
    """An object; one that is not there is removed, too."""

    key: str
    operation: ClassVar[str] = "remove"
    method: ClassVar[str] = "DELETE"
    body: ClassVar[bytes] = b""

    def parameters(self) -> Mapping[str, str]:
        """None."""
        return {}

    def headers(self) -> Mapping[str, str]:
        """None of its own."""
        return {}

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Nothing of the answer matters."""
        connection.read(response, _MAX_ANSWER_BYTES)


def _if_match(etag: str) -> Mapping[str, str]:
    return {"If-Match": f'"{etag}"'} if etag else {}


def _same_object(response: http.client.HTTPResponse, key: str, etag: str) -> None:
    """For servers that do not know If-Match."""
    found = response.getheader("ETag", "").strip('"')
    if etag and found and found != etag:
        raise ObjectChanged(f"{key} was overwritten after it was listed: ask again", retry_after_s=1.0)
