"""One request to S3: signed, sent, retried while that can help, and told as one of our errors when it cannot.

Blocking: it runs in the store's threads. What stays out: what the bodies mean (s3_listing.py, s3_objects.py), connections
(s3_http.py), which request goes next (s3_transfers.py).
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from predictor.errors import HearthError, ObjectChanged, StoreRefused, StoreUnavailable
from predictor.tiers.s3_credentials import Identity
from predictor.tiers.s3_endpoint import Endpoint
from predictor.tiers.s3_http import BROKEN, Connection, Connections, Halt
from predictor.tiers.sigv4 import Credentials, signed

log = logging.getLogger(__name__)

BACKOFF_S: Final = 0.25
BACKOFF_LIMIT_S: Final = 5.0
MAX_ERROR_BYTES: Final = 64 << 10

_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
_AGAIN_CODES: Final = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"})
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_REGION: Final = re.compile(rb"<Region>([a-z0-9-]{1,32})</Region>")
_WRONG_CREDENTIALS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_OLD_CREDENTIALS: Final = frozenset({"InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"})
"""What S3 says of credentials that were right once."""

_PERMISSIONS: Final = {
    "list": "s3:ListBucket on the bucket",
    "write": "s3:PutObject on the object",
    "remove": "s3:DeleteObject on the object",
}

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Errand(Protocol[T_co]):
    """What is asked, and what is done with the answer. Asked for anew at every attempt: it may have got half of it before."""

    @property
    def operation(self) -> str:
        """``list``, ``read``, ``fetch``, ``write`` or ``remove``: the metric's label."""

    @property
    def method(self) -> str:
        """``GET``, ``PUT`` or ``DELETE``."""

    @property
    def body(self) -> bytes:
        """What is sent, whole; b"": nothing."""

    @property
    def key(self) -> str:
        """The object's; "" for the bucket itself."""

    def parameters(self) -> Mapping[str, str]:
        """The query."""

    def headers(self) -> Mapping[str, str]:
        """Beside Host and what the signature adds."""

    def receive(self, connection: Connection, response: http.client.HTTPResponse) -> T_co:
        """Take the body of a 200, 204 or 206. Raises Again where the answer is incomplete, and our errors."""


class Again(Exception):
    """This attempt failed; another may not."""


class Corrupt(Again):
    """What came is not what the manifest says. The next attempt is made over a connection of its own."""


class Stopped(Exception):
    """The caller wanted it to stop. Never reaches anybody: the caller has its own error by then."""


class _Stale(Exception):
    """The kept connection was closed by the other side while it was idle."""


class _Elsewhere(Exception):
    """The bucket is in another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


@dataclass(slots=True)
class Requests:
    """Asks one bucket.

    endpoint    where it is; replaced when the bucket turns out to be in another region
    retries     attempts after the first; full jitter between them (M. Brooker, "Exponential Backoff And Jitter", 2015)
    on_ask      operation; called when a request is about to be written
    on_request  operation, outcome: the HTTP status, or ``broken``, ``timeout``, ``short``
    """

    endpoint: Endpoint
    identity: Identity
    connections: Connections
    retries: int
    on_ask: Callable[[str], None]
    on_request: Callable[[str, str], None]
    backoff_s: float = BACKOFF_S

    def run(self, errand: Errand[T], halt: Halt) -> T:
        """Until it succeeds, fails for good, or ``halt`` is stopped (Stopped)."""
        begin_s, fresh = time.monotonic(), False
        for attempt in range(self.retries + 1):
            if attempt:
                halt.sleep(random.uniform(0, min(BACKOFF_LIMIT_S, self.backoff_s * 2 ** (attempt - 1))))  # noqa: S311
            if halt.stopped:
                raise Stopped
            try:
                return self._found(errand, halt, fresh=fresh)
            except Again as again:
                reason, fresh = str(again), isinstance(again, Corrupt)
        raise StoreUnavailable(
            f"{self._named(errand)}: {reason}, the last of {self.retries + 1} attempts in {time.monotonic() - begin_s:.1f} s "
            f"(HEARTH_FETCH_RETRIES, HEARTH_FETCH_TIMEOUT_S); the model store is {self.endpoint.url}",
            retry_after_s=2.0,
        )

    def _found(self, errand: Errand[T], halt: Halt, *, fresh: bool) -> T:
        """One attempt, in the region where the bucket really is."""
        endpoint = self.endpoint
        try:
            return self._attempt(errand, halt, endpoint, fresh=fresh)
        except _Elsewhere as elsewhere:
            moved = endpoint.in_region(elsewhere.region)
            if moved is None or moved == endpoint:
                raise self._redirected(errand) from None
            if self.endpoint == endpoint:  # else another thread was first
                self.endpoint = moved
                log.warning(
                    "bucket %s is in region %s, not %s: set AWS_REGION=%s",
                    moved.bucket,
                    moved.region,
                    endpoint.region,
                    moved.region,
                )
        try:
            return self._attempt(errand, halt, self.endpoint, fresh=fresh)
        except _Elsewhere:
            raise self._redirected(errand) from None

    def _attempt(self, errand: Errand[T], halt: Halt, endpoint: Endpoint, *, fresh: bool) -> T:
        connection = None if fresh else self.connections.idle(endpoint)
        if connection is not None:
            with contextlib.suppress(_Stale):  # nobody's fault, so it counts as no attempt
                return self._on(connection, errand, halt)
        return self._on(self.connections.fresh(endpoint), errand, halt)

    def _on(self, connection: Connection, errand: Errand[T], halt: Halt) -> T:
        outcome, reusable = "", False
        try:
            if halt.stopped:
                raise Stopped
            with halt.watching(connection):
                credentials = self.identity.credentials()
                response = self._head(connection, errand, credentials)
                outcome = str(response.status)
                if response.status in {200, 204, 206}:
                    received = errand.receive(connection, response)
                    reusable = connection.finish(response)
                    return received
                body = connection.read(response, MAX_ERROR_BYTES)
                reusable = connection.finish(response)
                raise self._refusal(errand, connection.endpoint, response, body, credentials)
        except (*BROKEN, Again) as error:
            if halt.stopped:
                outcome = ""
                raise Stopped from None
            if isinstance(error, Again):
                raise
            outcome = "timeout" if isinstance(error, TimeoutError) else "broken"
            raise _fault(error, connection.endpoint) from None
        finally:
            if outcome:
                self.on_request(errand.operation, outcome)
            if reusable:
                self.connections.give_back(connection)
            else:
                connection.close()

    def _head(self, connection: Connection, errand: Errand[T], credentials: Credentials | None) -> http.client.HTTPResponse:
        if not connection.is_open:
            connection.open()
        endpoint = connection.endpoint
        target = endpoint.target(errand.key, errand.parameters())
        headers = {"Host": endpoint.authority, **errand.headers()}
        if credentials is not None:
            headers = signed(
                target,
                headers,
                credentials=credentials,
                region=endpoint.region,
                at=datetime.now(UTC),
                method=errand.method,
                body=errand.body,
            )
        headers |= {"Accept-Encoding": "identity", "User-Agent": "hearth"}
        if errand.method == "PUT":
            headers["Content-Length"] = str(len(errand.body))
        self.on_ask(errand.operation)
        try:
            return connection.ask(target, headers, errand.method, errand.body)
        except (ConnectionError, ssl.SSLEOFError):
            if connection.answered:
                raise _Stale from None
            raise

    def _refusal(
        self,
        errand: Errand[T],
        endpoint: Endpoint,
        response: http.client.HTTPResponse,
        body: bytes,
        credentials: Credentials | None,
    ) -> Exception:
        """What an answer without the body asked for means. ``credentials``: who asked."""
        found = _CODE.search(body)
        code = found.group(1).decode() if found else ""
        answer = f"{response.status} {code or response.reason}"
        if response.status in _AGAIN or code in _AGAIN_CODES:
            return Again(f"S3 answered {answer}")
        if code in _OLD_CREDENTIALS and credentials is not None and self.identity.renewed(credentials):
            return Again(f"S3 answered {answer}, and there are other credentials by now")
        if response.status in _REDIRECTS | {400} and code not in _WRONG_CREDENTIALS:
            in_body = _REGION.search(body)
            region = response.getheader("x-amz-bucket-region") or (in_body.group(1).decode() if in_body else "")
            if region and region != endpoint.region:
                return _Elsewhere(region)
        return self._error(errand, response.status, code, answer)

    def _error(self, errand: Errand[T], status: int, code: str, answer: str) -> HearthError:
        named, url = self._named(errand), self.endpoint.url
        if status in {404, 412, 416} and errand.key and code != "NoSuchBucket":
            return ObjectChanged(
                f"{named} was overwritten or deleted after it was listed ({answer}): ask again", retry_after_s=1.0
            )
        action = _PERMISSIONS.get(errand.operation, "s3:GetObject on the object")
        match status:
            case 404 if code in {"", "NoSuchBucket", "NoSuchKey"}:
                why = f"there is no such bucket at {url}; check HEARTH_MODELS and AWS_ENDPOINT_URL"
            case _ if code == "RequestTimeTooSkewed":
                why = "this machine's clock is more than 15 minutes off"
            case _ if code in _WRONG_CREDENTIALS:
                why = "the AWS credentials are wrong or have expired"
            case 401 | 403:
                why = f"the AWS credentials lack the permission, {action}"
            case _ if status in _REDIRECTS:
                return self._redirected(errand)
            case _:
                why = f"the model store is {url}; check the AWS credentials, HEARTH_MODELS and AWS_ENDPOINT_URL"
        return StoreRefused(f"{named}: S3 answered {answer}: {why}")

    def _redirected(self, errand: Errand[T]) -> StoreRefused:
        return StoreRefused(
            f"{self._named(errand)}: {self.endpoint.url} redirects elsewhere: set AWS_REGION to the bucket's region, "
            "and AWS_ENDPOINT_URL to where it is"
        )

    def _named(self, errand: Errand[T]) -> str:
        return f"s3://{self.endpoint.bucket}/{errand.key}"


def _fault(error: Exception, endpoint: Endpoint) -> Exception:
    """What a connection that failed means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreRefused(
            f"{endpoint.url}: its certificate is not trusted ({error.verify_message}): name its authority's in AWS_CA_BUNDLE"
        )
    if isinstance(error, TimeoutError):
        return Again(f"no answer in time ({error})")
    return Again(f"the connection failed ({type(error).__name__}: {error})")
