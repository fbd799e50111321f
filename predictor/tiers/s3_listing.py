"""ListObjectsV2: what is asked, and the XML that comes back. Pages are followed by store.py.

What stays out: what the keys mean (repository.py).
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, Final, NamedTuple
from urllib.parse import unquote_plus

# expat expands no external entities and, from 2.4.1 (2021), stops entities that grow: this XML needs no other parser.
from xml.etree import ElementTree as ET

from predictor.tiers.s3_http import Connection
from predictor.tiers.s3_requests import Again

MAX_PAGES: Final = 100
"""100,000 objects. A model, or the root of a repository, with more is a mistake in the prefix."""

MAX_PAGE_BYTES: Final = 16 << 20


class ObjectInfo(NamedTuple):
    """One object as listed. ``etag`` is without its quotes; ``modified_s`` are seconds of the epoch, on S3's clock."""

    key: str
    etag: str
    size_bytes: int
    modified_s: float


class Listing(NamedTuple):
    """What lies under a prefix.

    folders  where a delimiter was asked for: the prefixes below, each ending in a slash
    date_s   when S3 answered, by its own clock, seconds of the epoch
    """

    objects: tuple[ObjectInfo, ...]
    folders: tuple[str, ...]
    date_s: float


class Page(NamedTuple):
    """Up to 1,000 entries. ``token`` continues after them; "" after the last page."""

    listing: Listing
    token: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """Ask for the page that ``token`` continues with; "" for the first."""

    prefix: str
    folders: bool
    token: str = ""
    operation: ClassVar[str] = "list"
    method: ClassVar[str] = "GET"
    body: ClassVar[bytes] = b""
    key: ClassVar[str] = ""

    def parameters(self) -> Mapping[str, str]:
        """``encoding-type=url``, because XML 1.0 cannot hold every character that a key can."""
        asked = {"list-type": "2", "prefix": self.prefix, "encoding-type": "url"}
        if self.folders:
            asked["delimiter"] = "/"
        if self.token:
            asked["continuation-token"] = self.token
        return asked

    def headers(self) -> Mapping[str, str]:
        """None of its own."""
        return {}

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> Page:
        """Again: cut off or garbled."""
        body = connection.read(response, MAX_PAGE_BYTES)
        try:
            return parse(body, _date_s(response.getheader("Date", "")))
        except (ET.ParseError, ValueError) as error:
            raise Again(f"its listing cannot be read ({error})") from None


def parse(body: bytes, date_s: float) -> Page:
    """ParseError or ValueError: this is no ListBucketResult."""
    root = ET.fromstring(body)  # noqa: S314 (see the import)
    if not root.tag.endswith("ListBucketResult"):
        raise ValueError(f"a {root.tag.rpartition('}')[2]} instead of a ListBucketResult")
    encoded = root.findtext("{*}EncodingType", "").lower() == "url"  # some servers ignore the wish

    def name(element: ET.Element, tag: str) -> str:
        text = element.findtext(f"{{*}}{tag}", "")
        return unquote_plus(text) if encoded else text

    objects = tuple(
        ObjectInfo(
            key=name(entry, "Key"),
            etag=entry.findtext("{*}ETag", "").strip('"'),
            size_bytes=int(entry.findtext("{*}Size", "")),
            modified_s=datetime.fromisoformat(entry.findtext("{*}LastModified", "")).timestamp(),
        )
        for entry in root.iterfind("{*}Contents")
    )
    folders = tuple(name(entry, "Prefix") for entry in root.iterfind("{*}CommonPrefixes"))
    more = root.findtext("{*}IsTruncated", "").lower() == "true"
    token = root.findtext("{*}NextContinuationToken", "") if more else ""
    if more and not token:
        raise ValueError("truncated, but without a token to go on")
    return Page(Listing(objects, folders, date_s), token)


def _date_s(header: str) -> float:
    """A server that does not tell its time is taken to have ours."""
    try:
        return parsedate_to_datetime(header).timestamp()
    except ValueError:
        return time.time()
