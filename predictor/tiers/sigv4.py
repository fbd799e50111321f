"""AWS Signature Version 4 by the standard library alone, for requests whose whole body is at hand.

botocore signs too, but importing it takes longer (0.15 s) than a pod from zero may take until it asks for its first
byte. The signatures are the same: the tests compare them.

What stays out: where credentials come from (s3_credentials.py), how a key becomes a URL (s3_endpoint.py).
Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API Reference. S3's own rules are that the
path is encoded once, never normalised (``a//b`` and ``a/../b`` are keys), and that the body's hash is a header.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import quote

NO_BODY_SHA256: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks. What is secret stays out of its ``repr``, and so out of every log.

    token  of temporary credentials; "" for permanent ones
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def encoded_path(key: str) -> str:
    """A key, percent-encoded as S3 signs it: everything but letters, digits, ``-_.~`` and ``/``."""
    return quote(key, safe="/")


def encoded_query(parameters: Mapping[str, str]) -> str:
    """Query parameters, percent-encoded and in the order in which they are signed."""
    pairs = ((quote(name, safe=""), quote(value, safe="")) for name, value in parameters.items())
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def signed(
    target: str,
    headers: Mapping[str, str],
    *,
    credentials: Credentials,
    region: str,
    at: datetime,
    method: str = "GET",
    body: bytes = b"",
) -> dict[str, str]:
    """``headers`` with those added that sign a request to ``target``. Every header given is signed; none may change later.

    target   path and query exactly as they are sent, from ``encoded_path`` and ``encoded_query``
    headers  ``Host`` among them
    at       now, in UTC; S3 refuses signatures more than 15 minutes off
    body     all that is sent
    """
    body_sha256 = hashlib.sha256(body).hexdigest() if body else NO_BODY_SHA256
    moment = at.strftime("%Y%m%dT%H%M%SZ")
    added = {"x-amz-date": moment, "x-amz-content-sha256": body_sha256}
    if credentials.token:
        added["x-amz-security-token"] = credentials.token
    everything = {**headers, **added}
    canonical = sorted((name.lower(), " ".join(value.split())) for name, value in everything.items())
    names = ";".join(name for name, _ in canonical)
    path, _, query = target.partition("?")
    request = "\n".join((method, path, query, *(f"{name}:{value}" for name, value in canonical), "", names, body_sha256))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = _hmac(_signing_key(credentials.secret_key, scope), to_sign).hex()
    everything["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return everything


def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
